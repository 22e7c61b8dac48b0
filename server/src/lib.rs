//! Parts of the `pageloom` binary, as a library so that tests can drive them without a process.
//!
//! ```text
//! cli ──> launch ──> model (fetch), memory_plan ──> pageloom-engine
//!   └───> api (HTTP routes over an engine)
//! ```
#![forbid(unsafe_code)]

pub mod api;
pub mod available_memory;
pub mod bytes;
pub mod cli;
pub mod launch;
pub mod memory_plan;
pub mod model;
pub mod shared_prefix;
pub mod step_log;
