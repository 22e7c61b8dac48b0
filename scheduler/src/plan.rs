//! What a step computes and what came of it.

use core::ops::Range;

use pageloom_block_manager::{BlockOps, StepId, TokenId};

use crate::SeqId;

/// One step: which sequences compute which of their tokens.
#[derive(Debug)]
pub struct StepPlan {
    /// Number of the step, counted from 0.
    pub step: StepId,
    /// Decodes first, then prefills that go on, then sequences just admitted.
    pub seqs: Vec<PlannedSeq>,
    /// Memory operations to be done before the step writes to the cache.
    pub ops: BlockOps,
    /// Tokens of all sequences together.
    pub num_tokens: usize,
}

impl Default for StepPlan {
    fn default() -> Self {
        StepPlan {
            step: StepId(0),
            seqs: Vec::new(),
            ops: BlockOps::default(),
            num_tokens: 0,
        }
    }
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedSeq {
    /// The sequence.
    pub id: SeqId,
    /// Positions to compute; those before it are in the cache.
    pub positions: Range<usize>,
    /// How many of them, the last, are those of drafts and lie behind the sequence's tokens; see
    /// [`Scheduler::drafts`](crate::Scheduler::drafts).
    pub num_drafts: usize,
    /// Positions among them whose logits score the token that follows, a token of the prompt:
    /// each position of the prompt but the last is in exactly one step's range, if
    /// [`NewSequence::score_prompt`](crate::NewSequence::score_prompt) asked for it.
    pub scores: Range<usize>,
    /// Whether the logits of the last token's position, and those of each draft, give the token
    /// that follows.
    pub sample: bool,
}

/// What came of a [`PlannedSeq`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeqResult {
    /// Its positions were computed; it was not to sample.
    Computed,
    /// Its positions were computed and this token follows; if there were drafts, none of them.
    Token(TokenId),
    /// Its positions were computed, and its first drafts follow.
    Tokens {
        /// How many of them.
        num_accepted: usize,
        /// The token after those.
        token: TokenId,
    },
    /// It cannot go on; what the step wrote to its blocks does not matter.
    Failed,
}

impl SeqResult {
    /// Drafts that follow.
    pub(crate) fn num_accepted(self) -> usize {
        match self {
            SeqResult::Tokens { num_accepted, .. } => num_accepted,
            SeqResult::Computed | SeqResult::Token(_) | SeqResult::Failed => 0,
        }
    }
}

/// What happened to a sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeqEvent {
    /// Every token of the prompt is in the cache. Once for each sequence, before its tokens.
    PromptComputed {
        /// The sequence.
        id: SeqId,
        /// Tokens that were found in the prefix cache when it was first scheduled.
        num_cached_tokens: usize,
    },
    /// The sequence grew; an event for each token, in their order.
    Token {
        /// The sequence.
        id: SeqId,
        /// The token after those it had.
        token: TokenId,
    },
    /// The sequence ended and its blocks are free; the id names nothing any more.
    Ended {
        /// The sequence.
        id: SeqId,
        /// Why.
        reason: EndReason,
    },
}

/// Why the scheduler ended a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// It has all tokens it may have.
    Length,
    /// [`SeqResult::Failed`] was reported.
    Failed,
}
