//! From logits to a token.

mod params;

pub use params::{InvalidParam, MAX_LOGPROBS, SamplingParams};
