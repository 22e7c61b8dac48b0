//! A simulator at the paper's scale: its models and machines, its traces, and the systems that it
//! compares.
//!
//! ```text
//!  dataset, trace ── arrivals ──┐
//!  systems ── rule, config ─────┼──> replay ──> latencies, memory, batch sizes
//!  machine, cost ── step times ─┘       │
//!                        scheduler + block manager, the project's own
//! ```
//!
//! Only the time of a step is modelled. Every system is a rule of admission and a configuration of
//! the one scheduler, so that only what is compared differs.

pub(crate) mod account;
mod buddy;
pub(crate) mod cost;
pub(crate) mod dataset;
pub(crate) mod knee;
pub(crate) mod machine;
mod random;
pub(crate) mod replay;
pub(crate) mod sweep;
pub(crate) mod system;
pub(crate) mod systems;
pub(crate) mod trace;
