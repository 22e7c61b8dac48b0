//! What can go wrong with an engine, and with a request.

use pageloom_model_runner::InvalidParam;
use pageloom_scheduler::AdmissionError;

/// Why an engine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The pool's configuration.
    #[error(transparent)]
    Blocks(#[from] pageloom_block_manager::ConfigError),
    /// The scheduler's configuration.
    #[error(transparent)]
    Scheduler(#[from] pageloom_scheduler::ConfigError),
    /// A batch numbers the cache's slots with 32 bits.
    #[error("{num_blocks} blocks of {block_size} tokens are more than 2^32 - 1 slots")]
    TooManySlots {
        /// Blocks of the cache, or of its host tier.
        num_blocks: usize,
        /// Tokens a block.
        block_size: usize,
    },
    /// Shared prefixes are kept in the prefix cache.
    #[error("shared prefixes need the prefix cache, which is off")]
    SharedPrefixWithoutCache,
    /// A shared prefix is empty or longer than a sequence may be.
    #[error(
        "shared prefix {index} has {num_tokens} tokens; it must have between 1 and \
         {max_model_len}, the context"
    )]
    SharedPrefixLength {
        /// Which, from 0.
        index: usize,
        /// Its length.
        num_tokens: usize,
        /// Tokens of the context.
        max_model_len: usize,
    },
    /// They would leave no room even for a prompt as long as the longest of them.
    #[error(
        "the shared prefixes, and beside them a prompt as long as the longest, need {needed_blocks} \
         cache blocks, and there are {num_blocks}"
    )]
    SharedPrefixesDoNotFit {
        /// Blocks of all, and of the prompt.
        needed_blocks: usize,
        /// Blocks of the cache.
        num_blocks: usize,
    },
    /// A shared prefix cannot be computed.
    #[error("shared prefix {index} is not accepted: {reason}")]
    SharedPrefix {
        /// Which, from 0.
        index: usize,
        /// Why.
        reason: RequestError,
    },
    /// A bound of the speculation.
    #[error("{field} must be between {least} and {most}, got {value}")]
    Speculation {
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The least that is accepted.
        least: usize,
        /// The most.
        most: usize,
    },
    /// Work waits and no step can be planned. A bug: the scheduler always plans one.
    #[error("{num_waiting} sequences wait, {num_running} run, and no step can be planned")]
    Stalled {
        /// Sequences waiting.
        num_waiting: usize,
        /// Sequences that hold blocks.
        num_running: usize,
    },
}

/// Why a request was not taken. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A field has a value that is not accepted.
    #[error("{field} {message}")]
    InvalidParam {
        /// The field as a client spells it.
        field: &'static str,
        /// What is accepted and what was given; reads on after the field's name.
        message: String,
    },
    /// The prompt leaves no room for output in the model's context.
    #[error(
        "the prompt has {num_prompt_tokens} tokens, and the context of {max_model_len} must also \
         hold the output"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        num_prompt_tokens: usize,
        /// Tokens of the context.
        max_model_len: usize,
    },
    /// The request could not be finished even with the whole cache to itself.
    #[error("the request needs up to {needed_blocks} cache blocks, and there are {num_blocks}")]
    NeverFits {
        /// Blocks at its longest.
        needed_blocks: usize,
        /// Blocks of the cache.
        num_blocks: usize,
    },
    /// Too much is waiting already; try again later.
    #[error("the queue is full: {num_queued} sequences with {num_queued_tokens} tokens wait")]
    QueueFull {
        /// Sequences waiting to be scheduled for the first time.
        num_queued: usize,
        /// Their prompt tokens.
        num_queued_tokens: usize,
    },
    /// The engine takes no more requests; it finishes those it has.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    EngineDead,
}

impl RequestError {
    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        RequestError::InvalidParam {
            field,
            message: message.into(),
        }
    }
}

impl From<InvalidParam> for RequestError {
    fn from(invalid: InvalidParam) -> Self {
        RequestError::invalid(
            invalid.field,
            format!("must be {}, got {}", invalid.expected, invalid.got),
        )
    }
}

impl From<AdmissionError> for RequestError {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::TooLong {
                num_prompt_tokens,
                max_model_len,
                ..
            } => RequestError::PromptTooLong {
                num_prompt_tokens,
                max_model_len,
            },
            AdmissionError::NeverFits {
                needed_blocks,
                num_blocks,
            } => RequestError::NeverFits {
                needed_blocks,
                num_blocks,
            },
            AdmissionError::QueueFull {
                num_queued,
                num_queued_tokens,
                ..
            } => RequestError::QueueFull {
                num_queued,
                num_queued_tokens,
            },
            other => RequestError::invalid("prompt", other.to_string()),
        }
    }
}
