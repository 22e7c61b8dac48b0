//! Figures of a scheduler.

/// A snapshot; counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences that hold blocks.
    pub num_running: usize,
    /// Sequences that wait, preempted ones and followers included.
    pub num_waiting: usize,
    /// Of those, the ones never scheduled: what the queue caps count.
    pub num_queued: usize,
    /// Prompt tokens of the queued ones.
    pub num_queued_tokens: usize,
    /// Preemptions so far.
    pub num_preemptions: u64,
    /// Prompt tokens looked up in the prefix cache, once for each sequence.
    pub num_prefix_queries: u64,
    /// Prompt tokens found there.
    pub num_prefix_hits: u64,
    /// Tokens computed so far, recomputed ones included.
    pub num_computed_tokens: u64,
    /// Tokens computed again after a preemption.
    pub num_recomputed_tokens: u64,
}
