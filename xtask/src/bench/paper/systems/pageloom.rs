//! What Pageloom adds to the paper's system, one thing at a time and all together.

use pageloom_block_manager as block_manager;
use pageloom_scheduler::{self as scheduler, PreemptionMode};

use super::paged::Paged;
use crate::bench::paper::machine::{Machine, SWAP_SLOTS};
use crate::bench::paper::system::{Setup, System};

/// The paper's system with some of these.
#[derive(Debug)]
pub(crate) struct Pageloom {
    name: &'static str,
    /// Prompts are computed in parts, with the decodes, as many tokens a step as cost little.
    chunked: bool,
    /// What was computed once is found again.
    caching: bool,
    /// Keys and values are 8 bits and a scale.
    int8: bool,
    /// Time that attention takes for a cached token of those, over that for one of 16 bits.
    int8_price: f64,
    /// Admission leaves room that it learns from what is computed twice.
    headroom: bool,
    /// What is done with the preempted.
    preemption: PreemptionMode,
}

/// Of 64 sequences of 192 tokens, by this project's own kernels, bound by memory as the paper's
/// GPU is: 10.4 ms over 14.5 (`benches/RESULTS.md`, int8 pages); other cases measured less.
const INT8_PRICE: f64 = 0.72;

const NONE: Pageloom = Pageloom {
    name: "",
    chunked: false,
    caching: false,
    int8: false,
    int8_price: INT8_PRICE,
    headroom: false,
    preemption: PreemptionMode::Recompute,
};

impl Pageloom {
    pub(crate) const CHUNKED: Self = Pageloom {
        name: "chunked-prefill",
        chunked: true,
        ..NONE
    };
    pub(crate) const CACHING: Self = Pageloom {
        name: "prefix-caching",
        caching: true,
        ..NONE
    };
    /// More pages, not cheaper ones.
    pub(crate) const INT8_SLOTS: Self = Pageloom {
        name: "int8-slots",
        int8: true,
        int8_price: 1.0,
        ..NONE
    };
    pub(crate) const INT8: Self = Pageloom {
        name: "int8-pages",
        int8: true,
        ..NONE
    };
    pub(crate) const HEADROOM: Self = Pageloom {
        name: "learned-headroom",
        headroom: true,
        ..NONE
    };
    pub(crate) const SWAP: Self = Pageloom {
        name: "swap",
        preemption: PreemptionMode::Swap,
        ..NONE
    };
    pub(crate) const AUTO: Self = Pageloom {
        name: "swap-or-recompute",
        preemption: PreemptionMode::Auto,
        ..NONE
    };
    /// All but copies to the host, which take as long as computing again on the paper's machine.
    pub(crate) const ALL: Self = Pageloom {
        name: "pageloom",
        chunked: true,
        caching: true,
        int8: true,
        headroom: true,
        ..NONE
    };
    pub(crate) const ALL_EAGER: Self = Pageloom {
        name: "pageloom-no-headroom",
        headroom: false,
        ..Self::ALL
    };
    pub(crate) const ALL_SLOTS: Self = Pageloom {
        name: "pageloom-int8-slots",
        int8_price: 1.0,
        ..Self::ALL
    };
    pub(crate) const ALL_16_BITS: Self = Pageloom {
        name: "pageloom-16-bits",
        int8: false,
        ..Self::ALL
    };
    /// For machines where copies to the host may cost less than computing again.
    pub(crate) const ALL_TIERS: Self = Pageloom {
        name: "pageloom-tiers",
        preemption: PreemptionMode::Auto,
        ..Self::ALL
    };
    pub(crate) const ALL_TIERS_16_BITS: Self = Pageloom {
        name: "pageloom-tiers-16-bits",
        int8: false,
        ..Self::ALL_TIERS
    };
}

/// Tokens a step, and sequences at once, if prompts are computed in parts: as many as are computed
/// while the weights are read (16.7 ms at 0.105), and a sequence for so many slots at least.
const CHUNKED_NUM_TOKENS: usize = 160;
const CHUNKED_SLOTS_A_SEQ: usize = 128;

/// Bytes of a value of 16 bits, and of the scale that a head's values of 8 bits have.
const BYTES_16: usize = 2;
const SCALE_BYTES: usize = 4;

impl System for Pageloom {
    fn name(&self) -> &'static str {
        self.name
    }

    fn setup(&self, machine: &Machine) -> Setup {
        let Setup {
            mut scheduler,
            mut blocks,
            mut admission,
            padded,
            mut context_price,
            ..
        } = Paged.setup(machine);
        if self.chunked {
            let most = CHUNKED_NUM_TOKENS.max(machine.num_slots / CHUNKED_SLOTS_A_SEQ);
            admission = None;
            scheduler = scheduler::Config {
                max_num_seqs: most,
                max_num_batched_tokens: most,
                ..scheduler
            };
        }
        if self.int8 {
            context_price = self.int8_price;
            let bytes = machine.num_slots * BYTES_16 * machine.head_dim;
            blocks.num_blocks = bytes / (machine.head_dim + SCALE_BYTES) / machine.block_size;
        }
        scheduler.learn_headroom = self.headroom;
        if self.preemption != PreemptionMode::Recompute {
            scheduler.preemption_mode = self.preemption;
            blocks.num_host_blocks = SWAP_SLOTS / machine.block_size;
        }
        let blocks = block_manager::Config {
            prefix_caching: self.caching,
            ..blocks
        };
        Setup {
            scheduler,
            blocks,
            admission,
            padded,
            context_price,
            int8_pages: self.int8,
        }
    }
}
