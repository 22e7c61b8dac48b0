//! What can go wrong in a step.

use pageloom_paged_attn_kernels::KernelError;

/// Why a step, or the set-up of a runner, was refused. The cache of other sequences is intact.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The batch contradicts itself or the runner's limits.
    #[error("malformed batch: {field}: {reason}")]
    Batch {
        /// Field of [`Batch`](crate::Batch).
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A step was run before the back end was given a KV cache.
    #[error("the back end has no KV cache yet")]
    NoCache,
    /// A batch swaps blocks and the runner was made without host blocks.
    #[error("the batch swaps blocks, and the runner has no host blocks")]
    NoHostTier,
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
