//! Pageloom's engine: scheduling, execution, tokenisation and streaming.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod async_engine;
mod batch;
mod config;
mod engine;
mod error;
mod executor;
mod inbox;
mod limits;
mod mailbox;
mod model_executor;
mod request;
mod sequence;
mod simulator;
mod stats;
mod step;
pub mod text;
mod worker;

pub use async_engine::{AsyncEngine, RequestStream};
pub use config::EngineConfig;
pub use engine::Engine;
pub use error::{EngineError, RequestError};
pub use executor::{Executor, ExecutorError};
pub use limits::{MAX_STOP_BYTES, MAX_STOP_STRINGS};
pub use model_executor::ModelExecutor;
pub use request::{
    FinishReason, GeneratedToken, OutputDelta, Request, RequestEvent, RequestId, StopCause,
};
pub use simulator::{SimClock, SimConfig, SimExecutor, SimFault};
pub use stats::{EngineStats, FinishedCounts, Histogram};
