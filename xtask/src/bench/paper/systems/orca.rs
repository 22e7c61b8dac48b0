//! Orca (Yu et al., OSDI 2022) as the paper models it: iterations like its own system's, but memory
//! set aside for a whole request before it begins, in one piece, by a buddy allocator.

use std::collections::BTreeMap;

use pageloom_scheduler::{Admission, Applicant, SeqId};

use crate::bench::paper::buddy::{Buddy, Chunk};
use crate::bench::paper::machine::Machine;
use crate::bench::paper::system::{Setup, System};
use crate::bench::paper::trace::Lengths;

/// What is known of an output when its memory is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orca {
    /// Nothing: room for the longest is kept.
    Max,
    /// Its length to within a factor of 2.
    Pow2,
    /// Its length.
    Oracle,
}

impl Orca {
    /// Tokens set aside for a sequence.
    fn reserve(self, lengths: Lengths, context_len: usize) -> usize {
        let output = match self {
            Orca::Max => context_len,
            Orca::Pow2 => lengths.output.next_power_of_two(),
            Orca::Oracle => lengths.output,
        };
        (lengths.prompt + output).min(context_len)
    }
}

impl System for Orca {
    fn name(&self) -> &'static str {
        match self {
            Orca::Max => "orca-max",
            Orca::Pow2 => "orca-pow2",
            Orca::Oracle => "orca-oracle",
        }
    }

    fn setup(&self, machine: &Machine) -> Setup {
        let blocks = |tokens: usize| tokens.div_ceil(machine.block_size);
        Setup {
            admission: Some(Box::new(Reservations {
                orca: *self,
                context_len: machine.context_len,
                block_size: machine.block_size,
                buddy: Buddy::new(
                    machine.num_slots / machine.block_size,
                    blocks(machine.context_len),
                ),
                held: BTreeMap::new(),
            })),
            ..Setup::iterations(machine)
        }
    }

    fn reserved(&self, machine: &Machine, lengths: Lengths) -> Option<usize> {
        Some(self.reserve(lengths, machine.context_len))
    }
}

/// Lets in who gets a chunk for each of its sequences. Since they never use more than that, the
/// pool itself always has room for them, and nothing is ever preempted.
#[derive(Debug)]
struct Reservations {
    orca: Orca,
    context_len: usize,
    block_size: usize,
    buddy: Buddy,
    held: BTreeMap<SeqId, Vec<Chunk>>,
}

impl Admission for Reservations {
    fn admit(&mut self, applicant: &Applicant) -> bool {
        if applicant.num_prompt_tokens > applicant.budget {
            return false;
        }
        let lengths = Lengths {
            prompt: applicant.num_prompt_tokens,
            output: applicant.max_tokens,
        };
        let num_tokens = self.orca.reserve(lengths, self.context_len);
        let num_blocks = num_tokens.div_ceil(self.block_size);
        let mut chunks = Vec::with_capacity(applicant.num_seqs);
        for _ in 0..applicant.num_seqs {
            match self.buddy.allocate(num_blocks) {
                Some(chunk) => chunks.push(chunk),
                None => {
                    chunks.into_iter().for_each(|c| self.buddy.release(c));
                    return false;
                }
            }
        }
        self.held.insert(applicant.id, chunks);
        true
    }

    fn leave(&mut self, id: SeqId) {
        let chunks = self.held.remove(&id).unwrap_or_default();
        chunks.into_iter().for_each(|c| self.buddy.release(c));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_the_papers() {
        let lengths = Lengths {
            prompt: 10,
            output: 25,
        };
        let reserved = [Orca::Max, Orca::Pow2, Orca::Oracle].map(|o| o.reserve(lengths, 2048));
        assert_eq!(reserved, [2048, 42, 35]);
        let long = Lengths {
            prompt: 1500,
            output: 520,
        };
        assert_eq!(Orca::Pow2.reserve(long, 2048), 2048);
    }
}
