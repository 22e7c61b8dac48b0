//! Rules of admission beyond what the pool itself demands.

use core::fmt::Debug;

use crate::SeqId;

/// A request at the head of the queue, which the step at hand might begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applicant {
    /// Its first sequence: names the request for as long as it lives.
    pub id: SeqId,
    /// Tokens of its prompt.
    pub num_prompt_tokens: usize,
    /// Most tokens each of its sequences may draw.
    pub max_tokens: usize,
    /// Sequences it may have at once.
    pub num_seqs: usize,
    /// Tokens that the step may still compute.
    pub budget: usize,
}

/// Decides who begins, and thereby what kind of serving system this is.
///
/// The scheduler asks it about the head of the queue before it looks for blocks; who is refused
/// waits, and those behind with it. Without one, blocks, seats and the budget decide.
/// A request is asked for until it is let in, and never again when it was preempted.
///
/// With it a scheduler that reserves memory for whole requests, or runs one batch after the other,
/// is a few lines over the same machinery; `cargo xtask bench throughput` compares such.
pub trait Admission: Debug + Send {
    /// A step is about to be planned, with `num_requests` let in and not ended.
    fn begin_step(&mut self, num_requests: usize) {
        let _ = num_requests;
    }

    /// Whether it may begin, as far as this rule is concerned. What it reserves here is its own
    /// until [`leave`](Self::leave), whether blocks are found in this step or a later one.
    fn admit(&mut self, applicant: &Applicant) -> bool;

    /// A request that was admitted has ended.
    fn leave(&mut self, id: SeqId) {
        let _ = id;
    }
}
