//! From logits to a token.

mod adjust;
mod filter;
mod logprobs;
mod params;
mod rng;
mod sampler;
mod softmax;
mod top;

pub use params::{InvalidParam, MAX_LOGPROBS, SamplingParams};
pub use rng::{philox4x32, uniform};
pub use sampler::{DrawContext, Sampler};
