//! A sequence and its place in the scheduler.

use core::fmt;

use pageloom_block_manager::{Namespace, TableId, TokenId};

/// A sequence of one scheduler.
///
/// Carries a generation that no other sequence of the same scheduler ever has: an id used after
/// its sequence ended names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId {
    pub(crate) index: u32,
    pub(crate) generation: u64,
}

impl SeqId {
    /// A small number that no other living sequence has: a place in a side table.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.index, self.generation)
    }
}

/// What a sequence starts with.
#[derive(Debug, Clone, Default)]
pub struct NewSequence {
    /// The tokens to continue, at least one.
    pub prompt: Vec<TokenId>,
    /// Tokens to generate at most; with 0 only the prompt is computed.
    pub max_tokens: usize,
    /// Sequences of different namespaces never share cached blocks.
    pub namespace: Namespace,
    /// Every prompt position's logits are wanted ([`PlannedSeq::scores`](crate::PlannedSeq)),
    /// so the prompt is computed in full, whatever the prefix cache holds.
    pub score_prompt: bool,
    /// Wait until this sequence's prompt is computed (or it has ended): one that shares its
    /// prompt then finds it in the prefix cache instead of computing it beside it.
    pub follows: Option<SeqId>,
}

/// Where a sequence is.
///
/// ```text
///  add --follows--> Parked --prompt computed--> Waiting --admitted--> Running --ended-->
///   +--------------------------------------------^  ^---preempted-------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Waits for the prompt of the sequence it follows.
    Parked { leader: SeqId },
    /// Waits for blocks and a seat; holds no block.
    Waiting,
    /// Holds a block table with room for all its tokens.
    Running,
    /// Ended; its slot is about to be freed.
    Gone,
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) place: Place,
    /// Part of the step in flight: the executor may be writing to its blocks.
    pub(crate) in_flight: bool,
    /// Ended by the caller while in flight; goes with the step.
    pub(crate) ending: bool,
    /// Counted in the queue caps: not yet scheduled.
    pub(crate) queued: bool,
    pub(crate) prompt_reported: bool,
    pub(crate) score_prompt: bool,
    pub(crate) table: Option<TableId>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) num_computed: usize,
    /// Of those, the ones the block manager was told of: all but the last block's.
    pub(crate) num_committed: usize,
    /// Positions that have a slot in the table: whole blocks.
    pub(crate) num_slots: usize,
    /// Prompt and output.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt: usize,
    /// Length at which it ends.
    pub(crate) max_len: usize,
    /// Orders all sequences: the lower arrived first.
    pub(crate) arrival: u64,
    /// Most tokens that were ever computed: what is computed again below it is recomputed.
    pub(crate) high_water: usize,
    /// Prompt positions whose scores were delivered.
    pub(crate) num_scored: usize,
    /// Tokens found in the prefix cache when first scheduled.
    pub(crate) num_cached: usize,
    pub(crate) namespace: Namespace,
    /// Sequences parked on this one, in order of arrival.
    pub(crate) followers: Vec<SeqId>,
}

impl Sequence {
    /// Tokens not yet computed; at least 1 while running.
    pub(crate) fn num_remaining(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// Positions that have a score: all but the prompt's last, whose successor is not known.
    pub(crate) fn num_scores(&self) -> usize {
        if self.score_prompt {
            self.num_prompt - 1
        } else {
            0
        }
    }

    pub(crate) fn needs_scores(&self) -> bool {
        self.num_scored < self.num_scores()
    }
}
