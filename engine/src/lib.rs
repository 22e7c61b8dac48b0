//! An LLM serving engine: scheduling, execution, tokenisation, streaming.
//!
//! ```text
//!              Engine: one thread, no waiting but for the executor
//!  Request ──> add ──> Scheduler ──plan──> Batch ──submit──> Executor (model | simulator)
//!                          ^                                    │ wait
//!  RequestEvent <── text <─┴──────────── tokens <───────────────┘
//!
//!  AsyncEngine: any number of clients   submit ──> inbox ──> thread that owns the Engine
//!                                       RequestStream <── mailbox <──┘
//! ```
//!
//! - [`Engine`] is synchronous and has no clock: the caller adds requests, calls
//!   [`step`](Engine::step) with the time, and drains events. Simulations and benchmarks use it
//!   as it is.
//! - [`AsyncEngine`] runs one on a thread. Requests are checked on the caller's thread before
//!   anything is kept of them; events wait in a mailbox for each request, merged if its client is
//!   slow; dropping a [`RequestStream`] aborts the request.
//! - [`Executor`] is what computes: [`ModelExecutor`] a model on the CPU, [`SimExecutor`] none at
//!   all, but with tokens that depend on every cache slot a model would read.
//! - [`text`] turns text into tokens and back.
//!
//! # What a request's output depends on
//!
//! On its prompt, its parameters and its seed. Not on its neighbours in the batch, nor on how its
//! prompt was cut into chunks, found in the cache, or computed again after a preemption; on the
//! CPU bit for bit, log-probabilities included.
//!
//! # Speculation
//!
//! With [`EngineConfig::speculative`] a step also computes guesses at the next tokens of what it
//! decodes, and keeps those that are what it then draws: more than one token a step, and the same
//! tokens. A [`Proposer`] makes the guesses; beams have none.
//!
//! # When something fails
//!
//! - A row that cannot be sampled ends its sequence with [`FinishReason::Error`].
//! - A step that fails as a whole, or a panic of the executor, ends the sequences of that step.
//!   Their blocks were not published, so nothing of it is ever read; all others go on. Blocks the
//!   step was to swap or copy are moved in spite of it, by the executor or, if the step could not
//!   be submitted, before the next one; if that fails too, every request ends.
//! - Several failed steps in a row, or work without progress for
//!   [`EngineConfig::stall_timeout`], and the engine [is not
//!   healthy](AsyncEngine::is_healthy); it recovers when a step succeeds.
//! - A panic of the engine itself, a bug, ends every stream with [`FinishReason::Error`] and the
//!   engine for good: requests get [`RequestError::EngineDead`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod async_engine;
mod batch;
mod beam;
mod block_size;
mod config;
mod engine;
mod error;
mod executor;
mod inbox;
mod limits;
mod mailbox;
mod model_executor;
mod ranking;
mod report;
mod request;
mod search;
mod sequence;
mod simulator;
mod speculative;
mod stats;
mod step;
pub mod text;
mod worker;

pub use async_engine::{AsyncEngine, RequestStream};
pub use beam::MAX_BEAMS;
pub use block_size::{BlockSizeCost, BlockSizeInputs};
pub use config::EngineConfig;
pub use engine::Engine;
pub use error::{EngineError, RequestError};
pub use executor::{Executor, ExecutorError};
pub use limits::{
    MAX_BEAM_STOP_TOKENS, MAX_LENGTH_PENALTY, MAX_STOP_BYTES, MAX_STOP_STRINGS, MAX_TOKEN_LIST,
};
pub use model_executor::ModelExecutor;
/// The scheduler, whose types are part of this crate's interface.
pub use pageloom_scheduler as scheduler;
/// Part of [`EngineConfig`].
pub use pageloom_scheduler::{PreemptionMode, SchedulingPolicy};
pub use request::{
    BeamSearch, EarlyStopping, FinishReason, GeneratedToken, OutputDelta, Request, RequestEvent,
    RequestId, StopCause,
};
pub use simulator::{SimClock, SimConfig, SimExecutor, SimFault};
pub use speculative::{MAX_PROMPT_LOOKUP, MAX_SPECULATIVE_TOKENS, Ngram, NgramConfig, Proposer};
pub use stats::{EngineStats, FinishedCounts, Histogram};

/// The README's example is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
