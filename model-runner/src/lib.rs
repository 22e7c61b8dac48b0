//! Weights, model definitions and sampling for LLaMA-family language models
//! whose keys and values live in a paged cache.
//!
//! ```text
//! Checkpoint ──load──> Model ──new──> CpuRunner: Batch ──run──> StepOutput
//!  weights/             models/ over ops/          forward, logits, sampling/
//! ```
//!
//! A [`Batch`] says which tokens of which sequences are computed and where
//! their keys and values go; who decides that (a scheduler) and what becomes
//! of the tokens (an engine) is not this crate's business. See the README for
//! an example that generates text with nothing but this crate.
#![warn(missing_docs)]

mod batch;
mod error;
pub mod models;
pub mod ops;
mod runner;
pub mod sampling;
pub mod weights;

pub use batch::{
    Batch, Candidate, OutputRow, RowError, RowOutput, StepOutput, TokenLogprobs, Want,
};
pub use error::RunError;
pub use ops::{Operation, Profile, Quantization, SharedProfile, WeightDtype};
pub use pageloom_paged_attn_kernels::KvDtype;
pub use pageloom_paged_attn_kernels::cpu::{allowed_cpus, check_cpus};
pub use runner::{CpuRunner, LoadOptions, Model, RunnerConfig};
pub use sampling::{InvalidParam, MAX_LOGPROBS, SamplingParams};
pub use weights::{Checkpoint, LoadError, ModelConfig};

/// Index into a model's vocabulary.
pub type TokenId = u32;
