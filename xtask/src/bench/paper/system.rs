//! What makes a serving system, on the project's own scheduler and block manager.

use pageloom_block_manager as block_manager;
use pageloom_scheduler::{self as scheduler, Admission};

use super::machine::Machine;
use super::trace::Lengths;

/// A serving system: a rule of admission, a configuration, and what it sets aside.
///
/// A new one is a file that implements this, and a line in [`systems::ALL`](super::systems::ALL);
/// `systems/example.rs` is one.
pub(crate) trait System: Sync {
    /// What the command line and the tables call it.
    fn name(&self) -> &'static str;

    /// How it runs on this machine; for one run, since a rule of admission has state.
    fn setup(&self, machine: &Machine) -> Setup;

    /// Tokens of memory set aside for each sequence of a request, before any rounding; `None` if
    /// memory is given as tokens come.
    fn reserved(&self, machine: &Machine, lengths: Lengths) -> Option<usize> {
        let _ = (machine, lengths);
        None
    }
}

/// A system on a machine.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) scheduler: scheduler::Config,
    pub(crate) blocks: block_manager::Config,
    /// Keys and values are 8 bits and a scale.
    pub(crate) int8_pages: bool,
    pub(crate) admission: Option<Box<dyn Admission>>,
    /// A batch computes all its requests at the length of its longest prompt and output, and none
    /// is answered before it ends.
    pub(crate) padded: bool,
    /// Time that attention takes for a cached token, over that for one of 16 bits.
    pub(crate) context_price: f64,
}

/// Most sequences at once in the paper's artifact.
const MAX_NUM_SEQS: usize = 2048;
/// Most tokens it computes in a step.
const MAX_NUM_BATCHED_TOKENS: usize = 2560;

impl Setup {
    /// Iterations like the artifact's, without its watermark: first come, first served, pages as
    /// tokens come, recomputed if preempted, whatever fits let in.
    pub(crate) fn iterations(machine: &Machine) -> Self {
        Setup {
            scheduler: scheduler::Config {
                max_num_seqs: MAX_NUM_SEQS,
                max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
                max_model_len: machine.context_len,
                max_num_queued_requests: usize::MAX,
                max_num_queued_tokens: usize::MAX,
                watermark: 0.0,
                learn_headroom: false,
                preemption_mode: scheduler::PreemptionMode::Recompute,
                ..scheduler::Config::default()
            },
            blocks: block_manager::Config {
                block_size: machine.block_size,
                num_blocks: machine.num_slots / machine.block_size,
                prefix_caching: false,
                ..block_manager::Config::default()
            },
            admission: None,
            padded: false,
            int8_pages: false,
            context_price: 1.0,
        }
    }
}
