//! A sequence and what it starts with.

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

/// What a sequence starts with. It is the first of a group, to which its forks belong.
#[derive(Debug, Clone)]
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
    /// Most sequences the group will be at once, forks included; at least 1. As many seats are
    /// kept for it.
    pub num_seqs: usize,
    /// All sequences of the group draw their tokens in the same step or none does, as a beam
    /// search wants it.
    pub lockstep: bool,
    /// Class of urgency under [`SchedulingPolicy::Priority`](crate::SchedulingPolicy): lower goes
    /// first.
    pub priority: i32,
}

impl Default for NewSequence {
    fn default() -> Self {
        NewSequence {
            prompt: Vec::new(),
            max_tokens: 0,
            namespace: Namespace(0),
            score_prompt: false,
            num_seqs: 1,
            lockstep: false,
            priority: 0,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    /// Place of its group.
    pub(crate) group: u32,
    /// Part of the step in flight: the executor may be writing to its blocks.
    pub(crate) in_flight: bool,
    /// Ended by the caller while in flight; goes with the step.
    pub(crate) ending: bool,
    /// Ended; its slot is about to be freed.
    pub(crate) gone: bool,
    pub(crate) prompt_reported: bool,
    pub(crate) score_prompt: bool,
    /// `None` while its group waits, or until its tokens can be shared or computed again.
    pub(crate) table: Option<TableId>,
    /// Tokens whose keys and values are in the cache.
    pub(crate) num_computed: usize,
    /// Of those, the ones the block manager was told of: all but the last block's, unless
    /// somebody is to share that.
    pub(crate) num_committed: usize,
    /// Positions that have a slot in the table which may be written: whole blocks, or what was
    /// computed if another holds the last of them too.
    pub(crate) num_slots: usize,
    /// Prompt and output.
    pub(crate) tokens: Vec<TokenId>,
    /// What may follow them.
    pub(crate) drafts: Vec<TokenId>,
    pub(crate) num_prompt: usize,
    /// Length at which it ends.
    pub(crate) max_len: usize,
    /// Most tokens that were ever computed: what is computed again below it is recomputed.
    pub(crate) high_water: usize,
    /// Prompt positions whose scores were delivered.
    pub(crate) num_scored: usize,
    /// Tokens found in the prefix cache when first scheduled.
    pub(crate) num_cached: usize,
    pub(crate) namespace: Namespace,
}

impl Sequence {
    /// Tokens not yet computed; at least 1 while its group runs.
    pub(crate) fn num_remaining(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// Whether more than its last token is to be computed.
    pub(crate) fn is_behind(&self) -> bool {
        self.table.is_none() || self.num_remaining() > 1
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

    /// Notes that nothing of it is in the cache any more.
    pub(crate) fn forget_computed(&mut self) {
        self.num_computed = 0;
        self.num_committed = 0;
        self.num_slots = 0;
    }
}
