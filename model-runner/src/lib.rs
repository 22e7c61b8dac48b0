//! Weights, model definitions and sampling for LLaMA-family language models.
#![warn(missing_docs)]

mod batch;
pub mod sampling;

pub use batch::{Batch, OutputRow, RowError, RowOutput, StepOutput, TokenLogprobs, Want};
pub use sampling::{InvalidParam, MAX_LOGPROBS, SamplingParams};

/// Index into a model's vocabulary.
pub type TokenId = u32;
