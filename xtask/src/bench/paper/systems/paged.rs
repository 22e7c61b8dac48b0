//! The paper's own system: its policy, on this project's scheduler.

use pageloom_scheduler::{self as scheduler, Admission, Applicant};

use crate::bench::paper::machine::{Machine, SWAP_SLOTS};
use crate::bench::paper::system::{Setup, System};

/// Pages as tokens come, first come, first served, the last arrived preempted first, 1 % of the pool
/// left free on admission, prompts computed whole. Who is preempted is computed again, or, with
/// several samples, copied to the host.
///
/// A prompt that does not fit what is left of a step's 2560 tokens waits for the next. One that
/// was preempted may be computed in two parts where the paper's would wait; two such in one step
/// are rare.
#[derive(Debug)]
pub(crate) struct Paged;

impl System for Paged {
    fn name(&self) -> &'static str {
        "paged"
    }

    fn setup(&self, machine: &Machine) -> Setup {
        let mut setup = Setup::iterations(machine);
        if machine.num_seqs > 1 {
            setup.scheduler.preemption_mode = scheduler::PreemptionMode::Swap;
            setup.blocks.num_host_blocks = SWAP_SLOTS / machine.block_size;
        }
        Setup {
            scheduler: scheduler::Config {
                watermark: 0.01,
                ..setup.scheduler
            },
            admission: Some(Box::new(WholePrompts)),
            ..setup
        }
    }
}

/// Lets in whose prompt can be computed in one step.
#[derive(Debug)]
pub(crate) struct WholePrompts;

impl Admission for WholePrompts {
    fn admit(&mut self, applicant: &Applicant) -> bool {
        applicant.num_prompt_tokens <= applicant.budget
    }
}
