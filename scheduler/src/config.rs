//! What a scheduler is made from.

use core::time::Duration;

use crate::{ConfigError, PreemptionMode};

/// Who goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SchedulingPolicy {
    /// Who came first.
    #[default]
    Fcfs,
    /// The lower [`priority`](crate::NewSequence::priority); it may take the place of what runs
    /// with a higher one.
    Priority {
        /// A request that waited this long for each class that it is behind another, since that
        /// one arrived, goes first: nothing waits for ever. Zero is first come, first served but
        /// for requests that arrive in the same microsecond.
        ageing: Duration,
    },
}

/// Budgets and caps of a [`Scheduler`](crate::Scheduler).
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Most sequences that hold blocks at once.
    pub max_num_seqs: usize,
    /// Most tokens a step computes; at least `max_num_seqs`, so that decodes always all fit.
    pub max_num_batched_tokens: usize,
    /// Most tokens of a sequence, prompt and output together.
    pub max_model_len: usize,
    /// Most sequences that wait to be scheduled for the first time. Sequences that were
    /// preempted wait too, but are not counted: they were let in already.
    pub max_num_queued_requests: usize,
    /// Most prompt tokens of the sequences that wait to be scheduled for the first time.
    pub max_num_queued_tokens: usize,
    /// Most tokens one sequence prefills in a step, so that a long prompt leaves room for
    /// others; 0 sets no limit but the step's.
    pub long_prefill_token_threshold: usize,
    /// Blocks that [`Scheduler::hold`](crate::Scheduler::hold) may keep for good: no sequence is
    /// let in that could not be finished without them.
    pub num_resident_blocks: usize,
    /// Share of the pool that admission leaves unused, in `[0, 1)`: room for running sequences
    /// to grow, so that they do not preempt what was admitted just before. Ignored when nothing
    /// runs.
    pub watermark: f64,
    /// Whether more than the watermark is left free while too much is computed twice.
    pub learn_headroom: bool,
    /// Who goes first.
    pub policy: SchedulingPolicy,
    /// What is done with the blocks of a preempted group.
    pub preemption_mode: PreemptionMode,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_model_len: 8192,
            max_num_queued_requests: 1024,
            max_num_queued_tokens: 4 << 20,
            long_prefill_token_threshold: 0,
            num_resident_blocks: 0,
            watermark: 0.01,
            learn_headroom: true,
            policy: SchedulingPolicy::default(),
            preemption_mode: PreemptionMode::default(),
        }
    }
}

impl Config {
    /// Checks that a scheduler with these values always progresses.
    ///
    /// # Errors
    /// [`ConfigError`] names the field and its value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_model_len", self.max_model_len),
            ("max_num_queued_requests", self.max_num_queued_requests),
            ("max_num_queued_tokens", self.max_num_queued_tokens),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(ConfigError::BudgetBelowSeqs {
                max_num_batched_tokens: self.max_num_batched_tokens,
                max_num_seqs: self.max_num_seqs,
            });
        }
        if !(0.0..1.0).contains(&self.watermark) {
            return Err(ConfigError::Watermark {
                watermark: self.watermark,
            });
        }
        Ok(())
    }
}
