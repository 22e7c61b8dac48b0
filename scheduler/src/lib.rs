//! Continuous batching over a paged KV cache, as a pure state machine.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod error;
mod plan;
mod queue;
mod schedule;
mod scheduler;
mod sequence;
mod stats;

pub use config::Config;
pub use error::{AdmissionError, ConfigError};
pub use plan::{EndReason, PlannedSeq, SeqEvent, SeqResult, StepPlan};
pub use scheduler::Scheduler;
pub use sequence::{NewSequence, SeqId};
pub use stats::SchedulerStats;

pub use pageloom_block_manager::{BlockId, BlockManager, BlockOps, Namespace, StepId, TokenId};
