//! Figures of a scheduler.

/// A snapshot; counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences of the groups that have seats.
    pub num_running: usize,
    /// Sequences of the groups that wait, preempted ones included.
    pub num_waiting: usize,
    /// Sequences that groups never scheduled will be: what the queue caps count.
    pub num_queued: usize,
    /// Prompt tokens of those.
    pub num_queued_tokens: usize,
    /// Groups preempted so far whose blocks were copied to the host.
    pub num_preemptions_by_swap: u64,
    /// Groups preempted so far whose blocks were released, to be computed again.
    pub num_preemptions_by_recompute: u64,
    /// Prompt tokens looked up in the prefix cache, once for each sequence.
    pub num_prefix_queries: u64,
    /// Prompt tokens found there.
    pub num_prefix_hits: u64,
    /// Tokens computed so far, recomputed ones and drafts included.
    pub num_computed_tokens: u64,
    /// Tokens computed again after a preemption.
    pub num_recomputed_tokens: u64,
    /// How often a sequence had drafts in a step.
    pub num_drafts: u64,
    /// Drafts computed in those.
    pub num_draft_tokens: u64,
    /// Drafts that turned out to be what was drawn.
    pub num_accepted_tokens: u64,
}
