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
/// # When a step fails
///
/// After an error, or a panic, the executor must be ready for another `submit`. The engine ends
/// every sequence of the failed step and reuses its blocks, so what was or was not written to the
/// slots that the batch names does not matter; all others must be as they were.
///
/// The batch's [transfers](Batch#transfers) do matter: what they move belongs to sequences
/// outside the batch too, and to nobody yet but a later prompt that finds it in the cache. So:
///
/// - **`submit` fails: nothing was done**, no transfer either. The engine submits the transfers
///   again, as a batch without sequences and with the same step number, before any other.
/// - **`submit` succeeds: the transfers are done**, all of them and in their order, whatever
///   `wait` returns. An executor does them before anything else of the batch; one that finds out
///   in `submit` that it cannot do the rest leaves the error to `wait`.
pub trait Executor {
    /// Tokens of the model's vocabulary; ids are below it.
    fn vocab_size(&self) -> usize;

    /// Starts a step.
    ///
    /// # Errors
    /// If nothing of the step can be done, its transfers included. It is over then: `wait` is
    /// not called.
    fn submit(&mut self, batch: Batch) -> Result<(), ExecutorError>;

    /// Waits for the step started last; gives the batch back so that its buffers are reused.
    ///
    /// # Errors
    /// If the step failed as a whole, but for its transfers. A row that fails alone is in
    /// [`StepOutput::rows`].
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
