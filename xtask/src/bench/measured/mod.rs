//! The paper's experiments on the real engine: a model on this machine's CPU, the pool capped to what
//! the paper's held, lengths a quarter of the paper's where those are ShareGPT's.
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
pub(crate) mod prefix;
mod prompts;
mod serve;
pub(crate) mod sharing;
pub(crate) mod throughput;

use std::path::Path;

use pageloom_model_runner::{Checkpoint, WeightDtype};

use super::experiment::Experiment;
use super::paper::dataset::{Data, Dataset};
use super::paper::machine::{Machine, SCALE};
use super::paper::trace::{Arrival, Load};

/// Of each system in figures 2 and 13. The project's own has pages of 16 bits here, so that the pool is
/// the same in slots, and a tier on the host.
const SYSTEMS: [&str; 5] = [
    "orca-max",
    "orca-pow2",
    "orca-oracle",
    "paged",
    "pageloom-tiers-16-bits",
];

/// As in the paper: 16 bits a weight.
const WEIGHTS: WeightDtype = WeightDtype::Bf16;

/// A model to measure on.
struct Subject {
    /// Values of a head's key.
    head_dim: usize,
    /// What it is, in words.
    shape: String,
}

impl Subject {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.config();
        Ok(Subject {
            head_dim: config.head_dim,
            shape: format!(
                "{}, {} layers, {} key-value heads of {}",
                config.architecture, config.num_layers, config.num_kv_heads, config.head_dim
            ),
        })
    }

    /// An experiment on it, with what all have in common.
    fn describe(&self, name: &str, title: &str, machine: &Machine) -> Experiment {
        let mut experiment = Experiment::measured(name, title);
        experiment.command = format!("cargo xtask bench {name} --model MODEL.gguf");
        experiment.parameter("model", self.shape.as_str());
        experiment.parameter("weights", "bf16, as the paper's have 16 bits");
        experiment.parameter("slots", machine.num_slots);
        experiment.parameter("block size", machine.block_size);
        experiment.parameter("context", machine.context_len);
        experiment.ours = "The real engine computes a real model on this machine's CPU, with weights of 16 \
            bits, as the paper's. The pool is capped: this machine's memory would hold far more. Each answer \
            is made as long as the trace says. The Orca systems are a rule of admission over a buddy \
            allocator; `paged` is the paper's own policy; `pageloom-tiers-16-bits` is this project's, without \
            compressed pages. Kernels, pool and trace are the same for all. "
            .into();
        experiment
    }
}

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
    let mut trace = dataset.trace(Load {
        rate: num_requests as f64,
        duration_s: 2.0,
        seed: 0,
    });
    trace.truncate(num_requests);
    for arrival in &mut trace {
        arrival.at_s = 0.0;
    }
    trace
}

/// What a quarter of everything means, for an experiment's text.
const QUARTERED: &str = "Lengths, context and pool are a quarter of the paper's for OPT-13B, so that as much \
    fits as there. ";
