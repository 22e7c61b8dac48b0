//! A model on the CPU behind the executor's interface.

use pageloom_model_runner::{Batch, CpuRunner, StepOutput};

use crate::{Executor, ExecutorError};

/// Runs steps on the CPU, on the runner's own threads and the caller's.
pub struct ModelExecutor {
    runner: CpuRunner,
    submitted: Option<Batch>,
}

impl ModelExecutor {
    /// Takes a model that has its KV cache.
    #[must_use]
    pub fn new(runner: CpuRunner) -> Self {
        ModelExecutor {
            runner,
            submitted: None,
        }
    }
}

impl Executor for ModelExecutor {
    fn vocab_size(&self) -> usize {
        self.runner.config().vocab_size
    }

    /// Keeps the batch: there is no other device to hand it to, [`wait`](Executor::wait) does
    /// the work.
    ///
    /// # Errors
    /// If a transfer names a block that the runner does not have.
    fn submit(&mut self, batch: Batch) -> Result<(), ExecutorError> {
        let refused = |error| ExecutorError::Failed(Box::new(error));
        self.runner.check_transfers(&batch).map_err(refused)?;
        self.submitted = Some(batch);
        Ok(())
    }

    fn wait(&mut self) -> Result<(Batch, StepOutput), ExecutorError> {
        let batch = self.submitted.take().expect("a step was submitted");
        let mut output = StepOutput::default();
        match self.runner.run(&batch, &mut output) {
            Ok(()) => Ok((batch, output)),
            Err(error) => Err(ExecutorError::Failed(Box::new(error))),
        }
    }
}
