//! What can be wrong with a configuration or a sequence.

/// Why a [`Config`](crate::Config) was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value that must be at least 1 is 0.
    #[error("{field} is 0; it must be at least 1")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// With fewer tokens a step than sequences, some decodes would starve.
    #[error(
        "max_num_batched_tokens is {max_num_batched_tokens}, below max_num_seqs {max_num_seqs}: \
         a step could not hold one token of each sequence"
    )]
    BudgetBelowSeqs {
        /// Tokens a step.
        max_num_batched_tokens: usize,
        /// Sequences at once.
        max_num_seqs: usize,
    },
    /// Not a share of the pool.
    #[error("watermark is {watermark}; it must be at least 0 and below 1")]
    Watermark {
        /// The value given.
        watermark: f64,
    },
    /// What is held for good would leave no block.
    #[error(
        "num_resident_blocks is {num_resident_blocks}; it must be below the pool's {num_blocks} blocks"
    )]
    Resident {
        /// The value given.
        num_resident_blocks: usize,
        /// Blocks of the pool.
        num_blocks: usize,
    },
}

/// Why a sequence was not taken. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// There is nothing to compute.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Prompt and output together are longer than the model's context.
    #[error(
        "{num_prompt_tokens} prompt tokens and max_tokens {max_tokens} exceed \
         max_model_len {max_model_len}"
    )]
    TooLong {
        /// Tokens of the prompt.
        num_prompt_tokens: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// The limit on both together.
        max_model_len: usize,
    },
    /// No group has so many sequences.
    #[error("{num_seqs} sequences; there must be 1 to max_num_seqs {max_num_seqs}")]
    TooManySeqs {
        /// Sequences asked for.
        num_seqs: usize,
        /// Sequences that run at once.
        max_num_seqs: usize,
    },
    /// Even alone in the pool the sequences could not be finished.
    #[error("the request needs up to {needed_blocks} blocks, the whole pool has {num_blocks}")]
    NeverFits {
        /// Blocks at its longest.
        needed_blocks: usize,
        /// Blocks of the pool.
        num_blocks: usize,
    },
    /// Too much is waiting already; later it may be taken.
    #[error(
        "the queue is full: {num_queued} sequences with {num_queued_tokens} tokens wait, at most \
         {max_num_queued} with {max_num_queued_tokens} may"
    )]
    QueueFull {
        /// Sequences that wait to be scheduled for the first time.
        num_queued: usize,
        /// Their prompt tokens.
        num_queued_tokens: usize,
        /// The cap on sequences.
        max_num_queued: usize,
        /// The cap on tokens.
        max_num_queued_tokens: usize,
    },
}
