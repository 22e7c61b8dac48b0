//! FasterTransformer behind a scheduler that forms batches of requests, as the paper models it.

use pageloom_scheduler::{self as scheduler, Admission, Applicant};

use crate::bench::paper::machine::Machine;
use crate::bench::paper::system::{Setup, System};

/// Takes the earliest requests, as many as its memory holds at their longest, and the next ones
/// when all of those are done.
#[derive(Debug)]
pub(crate) struct FasterTransformer;

impl System for FasterTransformer {
    fn name(&self) -> &'static str {
        "ft"
    }

    fn setup(&self, machine: &Machine) -> Setup {
        let size = machine.padded_batch;
        let setup = Setup::iterations(machine);
        Setup {
            scheduler: scheduler::Config {
                max_num_seqs: size,
                // A batch's prompts are computed together.
                max_num_batched_tokens: size * machine.context_len,
                ..setup.scheduler
            },
            admission: Some(Box::new(Batches { size, room: 0 })),
            padded: true,
            ..setup
        }
    }
}

/// Lets requests in only while none is under way, and then as many as a batch has.
#[derive(Debug)]
struct Batches {
    size: usize,
    room: usize,
}

impl Admission for Batches {
    fn begin_step(&mut self, num_requests: usize) {
        self.room = if num_requests == 0 { self.size } else { 0 };
    }

    fn admit(&mut self, applicant: &Applicant) -> bool {
        let fits = applicant.num_seqs <= self.room;
        if fits {
            self.room -= applicant.num_seqs;
        }
        fits
    }
}
