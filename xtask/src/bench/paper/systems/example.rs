//! An example of a policy of one's own: all of it is in this file but its line in `systems::ALL`.

use std::collections::BTreeMap;

use pageloom_scheduler::{Admission, Applicant, SeqId};

use super::Paged;
use crate::bench::paper::machine::Machine;
use crate::bench::paper::system::{Setup, System};

/// The paper's system, but a request begins only if all that run, at their longest, would fit the
/// pool: pages still come with the tokens, and nothing is ever preempted.
///
/// Try it with `cargo xtask bench throughput --systems paged,capped`.
#[derive(Debug)]
pub(crate) struct Capped;

impl System for Capped {
    fn name(&self) -> &'static str {
        "capped"
    }

    fn setup(&self, machine: &Machine) -> Setup {
        Setup {
            admission: Some(Box::new(Cap {
                room: machine.num_slots / machine.block_size,
                block_size: machine.block_size,
                taken: BTreeMap::new(),
            })),
            ..Paged.setup(machine)
        }
    }
}

/// Blocks not promised to anyone, and those promised.
#[derive(Debug)]
struct Cap {
    room: usize,
    block_size: usize,
    taken: BTreeMap<SeqId, usize>,
}

impl Admission for Cap {
    fn admit(&mut self, applicant: &Applicant) -> bool {
        let longest = applicant.num_prompt_tokens + applicant.max_tokens;
        let num_blocks = longest.div_ceil(self.block_size) * applicant.num_seqs;
        let fits = num_blocks <= self.room && applicant.num_prompt_tokens <= applicant.budget;
        if fits {
            self.room -= num_blocks;
            self.taken.insert(applicant.id, num_blocks);
        }
        fits
    }

    fn leave(&mut self, id: SeqId) {
        self.room += self.taken.remove(&id).unwrap_or(0);
    }
}
