//! What computes the steps.

use std::{
    any::Any,
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
};

use pageloom_model_runner::{Batch, StepOutput};

/// Computes steps: a model on some device, or a simulator.
///
/// `submit` and `wait` come in turns. An executor on another device returns from `submit` at
/// once; the engine has a moment for other work before it waits.
///
/// After an error the executor must be ready for another `submit`. The engine ends every
/// sequence of the failed step and reuses its blocks, so what was or was not written to the
/// slots and copied to the blocks that the batch names does not matter; all others must be as
/// they were.
pub trait Executor {
    /// Tokens of the model's vocabulary; ids are below it.
    fn vocab_size(&self) -> usize;

    /// Starts a step.
    ///
    /// # Errors
    /// If the step cannot be done. It is over then: `wait` is not called.
    fn submit(&mut self, batch: Batch) -> Result<(), ExecutorError>;

    /// Waits for the step started last; gives the batch back so that its buffers are reused.
    ///
    /// # Errors
    /// If the step failed as a whole. A row that fails alone is in [`StepOutput::rows`].
    fn wait(&mut self) -> Result<(Batch, StepOutput), ExecutorError>;
}

/// Why a whole step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The executor says why.
    #[error("the step failed: {0}")]
    Failed(Box<dyn Error + Send + Sync>),
    /// The executor panicked; the text is the panic's.
    #[error("the executor panicked: {0}")]
    Panicked(String),
    /// The output is not that of the batch: a bug of the executor.
    #[error(
        "the executor returned {got_rows} rows for step {got_step} where step {step} has \
         {num_rows}"
    )]
    WrongOutput {
        /// Step asked for.
        step: u64,
        /// Rows asked for.
        num_rows: usize,
        /// Step returned.
        got_step: u64,
        /// Rows returned.
        got_rows: usize,
    },
}

/// Calls into an executor; a panic becomes an error of the step.
///
/// Nothing of the engine is borrowed by the call, so what may be half done is the executor's
/// own state, about which its contract says: ready for another step.
pub(crate) fn guarded<T>(
    call: impl FnOnce() -> Result<T, ExecutorError>,
) -> Result<T, ExecutorError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|payload| Err(ExecutorError::Panicked(panic_message(&*payload))))
}

/// The text of a panic.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}
