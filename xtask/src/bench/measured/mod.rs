//! The paper's experiments on the real engine: a model on this machine's CPU, the pool capped to what
//! the paper's held, everything a quarter as long.
//!
//! ```text
//!  dataset / 4 ── arrivals ──┐
//!  systems ── rule, config ──┼──> Engine + ModelExecutor ──> latencies, memory, batch sizes
//!  model file ───────────────┘        (time: measured; idle time: skipped)
//! ```
//!
//! The systems are those of the simulations, with the same rules of admission over the same buddy
//! allocator. They differ in nothing else: the kernels, the pool and the trace are the same.

pub(crate) mod memory;
mod serve;
pub(crate) mod throughput;

use std::path::Path;

use super::experiment::Experiment;
use super::paper::dataset::{Data, Dataset};
use super::paper::machine::{Machine, SCALE};
use super::paper::trace::{Arrival, Load, artifact};

/// Of each system in figures 2 and 13: the project's own is at its best with 16-bit pages, so that the
/// pool is the same.
const SYSTEMS: [&str; 5] = [
    "orca-max",
    "orca-pow2",
    "orca-oracle",
    "paged",
    "pageloom-16-bits",
];

/// ShareGPT, a quarter as long.
fn quarter() -> anyhow::Result<Dataset> {
    let mut dataset = Dataset::load(Data::ShareGpt)?;
    for lengths in &mut dataset.lengths {
        lengths.prompt = (lengths.prompt / SCALE).max(1);
        lengths.output = (lengths.output / SCALE).max(1);
    }
    Ok(dataset)
}

/// The first `num_requests` of the trace, all there at once.
fn all_at_once(dataset: &Dataset, num_requests: usize) -> Vec<Arrival> {
    let mut trace = artifact(
        &dataset.lengths,
        Load {
            rate: num_requests as f64,
            duration_s: 2.0,
            seed: 0,
        },
    );
    trace.truncate(num_requests);
    for arrival in &mut trace {
        arrival.at_s = 0.0;
    }
    trace
}

/// An experiment of this kind, with what all have in common.
fn describe(name: &str, title: &str, model: &Path) -> anyhow::Result<Experiment> {
    let mut experiment = Experiment::measured(name, title);
    let machine = Machine::quarter();
    experiment.command = format!("cargo xtask bench {name} --model MODEL.gguf");
    experiment.parameter("model", serve::shape(model)?);
    experiment.parameter("slots", machine.num_slots);
    experiment.parameter("block size", machine.block_size);
    experiment.parameter("context", machine.context_len);
    experiment.parameter("requests", "ShareGPT, lengths over 4; tokens at random");
    experiment.ours = "The real engine computes a real model on this machine's CPU. Lengths, context, blocks \
        and pool are a quarter of the paper's for OPT-13B, so that as much fits as there: the pool is capped, \
        this machine's memory would hold far more. Each answer is made as long as the trace says. The Orca \
        systems are a rule of admission over a buddy allocator; `paged` is the paper's own policy; \
        `pageloom-16-bits` is this project's, without compressed pages. Kernels, pool and trace are the same \
        for all. "
        .into();
    Ok(experiment)
}
