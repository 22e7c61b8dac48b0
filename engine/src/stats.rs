//! Figures of an engine.

use std::time::Duration;

use crate::FinishReason;

/// Upper bounds in seconds, those of vLLM, so that dashboards made for it fit.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Upper bounds in tokens.
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];

/// Counts of observations by size.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Histogram {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// Sum of all observations.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Number of observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bucket's inclusive upper bound, the last infinite, and how many observations are in
    /// it and in no smaller one.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied())
    }
}

/// How sequences ended so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FinishedCounts {
    /// By a stop token, a stop string or the end of text.
    pub stop: u64,
    /// By `max_tokens` or the end of the context.
    pub length: u64,
    /// By the caller.
    pub abort: u64,
    /// By a failure.
    pub error: u64,
}

impl FinishedCounts {
    fn count(&mut self, reason: &FinishReason) {
        *match reason {
            FinishReason::Stop(_) => &mut self.stop,
            FinishReason::Length => &mut self.length,
            FinishReason::Abort => &mut self.abort,
            FinishReason::Error(_) => &mut self.error,
        } += 1;
    }
}

/// A snapshot of an engine. Counters and histograms only grow.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Sequences that hold blocks.
    pub num_running: usize,
    /// Sequences that wait.
    pub num_waiting: usize,
    /// Tokens a block holds.
    pub block_size: usize,
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Blocks that hold nothing.
    pub num_free_blocks: usize,
    /// Blocks that nobody uses but a prefix hit could.
    pub num_cached_blocks: usize,
    /// Blocks that sequences use, those pinned by a copy under way included.
    pub num_referenced_blocks: usize,
    /// Blocks by the sequences: each counts for every sequence that uses it. Sharing saves
    /// `1 - num_referenced_blocks / num_logical_blocks` of the memory.
    pub num_logical_blocks: usize,
    /// Of the blocks that are used, the ones that shared prefixes keep for good.
    pub num_resident_blocks: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub num_prefix_queries: u64,
    /// Prompt tokens found there.
    pub num_prefix_hits: u64,
    /// Requests preempted whose blocks were copied to the host.
    pub num_preemptions_by_swap: u64,
    /// Requests preempted whose blocks were released, to be computed again.
    pub num_preemptions_by_recompute: u64,
    /// Tokens computed, recomputed ones included.
    pub num_computed_tokens: u64,
    /// Tokens computed again after a preemption.
    pub num_recomputed_tokens: u64,
    /// How often a sequence had drafts in a step: guesses at its next tokens.
    pub num_drafts: u64,
    /// Drafts computed in those.
    pub num_draft_tokens: u64,
    /// Drafts that were what was drawn. One less than were drawn in a step: the mean number of
    /// tokens a step with drafts brings is `1 + num_accepted_tokens / num_drafts`.
    pub num_accepted_tokens: u64,
    /// Blocks of preempted requests copied to the host.
    pub num_swapped_out_blocks: u64,
    /// Blocks of preempted requests copied back.
    pub num_swapped_in_blocks: u64,
    /// Blocks copied because a shared one was to be written.
    pub num_copied_blocks: u64,
    /// Prompt tokens of the sequences whose prompt is done, cached ones included.
    pub num_prompt_tokens: u64,
    /// Tokens drawn.
    pub num_generation_tokens: u64,
    /// Steps that were computed.
    pub num_steps: u64,
    /// Steps that failed as a whole.
    pub num_failed_steps: u64,
    /// Time that the other steps took.
    pub step_time: Duration,
    /// The part of it in which blocks were moved between the tiers or copied.
    pub transfer_time: Duration,
    /// Sequences that ended, by reason.
    pub finished: FinishedCounts,
    /// Seconds from arrival to the first token of a sequence.
    pub time_to_first_token: Histogram,
    /// Seconds between two tokens of a sequence.
    pub inter_token_latency: Histogram,
    /// Seconds from arrival to the end of a sequence.
    pub e2e_latency: Histogram,
    /// Seconds from arrival to the first step of a sequence.
    pub queue_time: Histogram,
    /// Seconds from the first step to the first token of a sequence.
    pub prefill_time: Histogram,
    /// Seconds from the first token to the last of a sequence.
    pub decode_time: Histogram,
    /// Tokens computed in a step.
    pub iteration_tokens: Histogram,
}

impl EngineStats {
    pub(crate) fn new() -> Self {
        EngineStats {
            num_running: 0,
            num_waiting: 0,
            block_size: 0,
            num_blocks: 0,
            num_free_blocks: 0,
            num_cached_blocks: 0,
            num_referenced_blocks: 0,
            num_logical_blocks: 0,
            num_resident_blocks: 0,
            num_prefix_queries: 0,
            num_prefix_hits: 0,
            num_preemptions_by_swap: 0,
            num_preemptions_by_recompute: 0,
            num_computed_tokens: 0,
            num_recomputed_tokens: 0,
            num_drafts: 0,
            num_draft_tokens: 0,
            num_accepted_tokens: 0,
            num_swapped_out_blocks: 0,
            num_swapped_in_blocks: 0,
            num_copied_blocks: 0,
            num_prompt_tokens: 0,
            num_generation_tokens: 0,
            num_steps: 0,
            num_failed_steps: 0,
            step_time: Duration::ZERO,
            transfer_time: Duration::ZERO,
            finished: FinishedCounts::default(),
            time_to_first_token: Histogram::new(FIRST_TOKEN),
            inter_token_latency: Histogram::new(INTER_TOKEN),
            e2e_latency: Histogram::new(REQUEST),
            queue_time: Histogram::new(REQUEST),
            prefill_time: Histogram::new(REQUEST),
            decode_time: Histogram::new(REQUEST),
            iteration_tokens: Histogram::new(STEP_TOKENS),
        }
    }

    /// Takes over what scheduler and block manager count themselves.
    pub(crate) fn refresh(&mut self, scheduler: &pageloom_scheduler::Scheduler) {
        let stats = scheduler.stats();
        self.num_running = stats.num_running;
        self.num_waiting = stats.num_waiting;
        self.num_prefix_queries = stats.num_prefix_queries;
        self.num_prefix_hits = stats.num_prefix_hits;
        self.num_preemptions_by_swap = stats.num_preemptions_by_swap;
        self.num_preemptions_by_recompute = stats.num_preemptions_by_recompute;
        self.num_computed_tokens = stats.num_computed_tokens;
        self.num_recomputed_tokens = stats.num_recomputed_tokens;
        self.num_drafts = stats.num_drafts;
        self.num_draft_tokens = stats.num_draft_tokens;
        self.num_accepted_tokens = stats.num_accepted_tokens;
        let blocks = scheduler.block_manager().stats();
        self.num_swapped_out_blocks = blocks.num_swapped_out;
        self.num_swapped_in_blocks = blocks.num_swapped_in;
        self.num_copied_blocks = blocks.num_copies;
        let blocks = blocks.device;
        self.block_size = scheduler.block_manager().config().block_size;
        self.num_blocks = blocks.num_blocks;
        self.num_free_blocks = blocks.num_free;
        self.num_cached_blocks = blocks.num_cached;
        self.num_logical_blocks = blocks.num_references;
        self.num_resident_blocks = scheduler.num_held_blocks();
        self.num_referenced_blocks = blocks.num_referenced + blocks.num_pinned;
    }

    pub(crate) fn observe_step(&mut self, num_tokens: usize) {
        self.num_steps += 1;
        self.iteration_tokens.observe(num_tokens as f64);
    }

    pub(crate) fn observe_token(&mut self, times: &mut SequenceTimes, now: Duration) {
        self.num_generation_tokens += 1;
        match times.last_token {
            None => {
                self.time_to_first_token
                    .observe(seconds(now, times.arrival));
                let start = times.first_step.unwrap_or(times.arrival);
                self.prefill_time.observe(seconds(now, start));
                times.first_token = Some(now);
            }
            Some(last) => self.inter_token_latency.observe(seconds(now, last)),
        }
        times.last_token = Some(now);
    }

    pub(crate) fn observe_first_step(&mut self, times: &mut SequenceTimes, now: Duration) {
        if times.first_step.is_none() {
            times.first_step = Some(now);
            self.queue_time.observe(seconds(now, times.arrival));
        }
    }

    pub(crate) fn observe_end(
        &mut self,
        times: &SequenceTimes,
        reason: &FinishReason,
        now: Duration,
    ) {
        self.finished.count(reason);
        self.e2e_latency.observe(seconds(now, times.arrival));
        if let (Some(first), Some(last)) = (times.first_token, times.last_token) {
            self.decode_time.observe(seconds(last, first));
        }
    }
}

/// When what happened to a sequence, on the caller's clock.
#[derive(Debug, Clone)]
pub(crate) struct SequenceTimes {
    arrival: Duration,
    first_step: Option<Duration>,
    first_token: Option<Duration>,
    last_token: Option<Duration>,
}

impl SequenceTimes {
    pub(crate) fn new(arrival: Duration) -> Self {
        SequenceTimes {
            arrival,
            first_step: None,
            first_token: None,
            last_token: None,
        }
    }
}

/// A clock that goes backwards is the caller's; it must not make a negative observation.
fn seconds(now: Duration, since: Duration) -> f64 {
    now.saturating_sub(since).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_puts_a_bound_into_its_own_bucket() {
        let mut histogram = Histogram::new(STEP_TOKENS);
        for value in [1.0, 2.0, 8.0, 20_000.0] {
            histogram.observe(value);
        }
        let buckets: Vec<_> = histogram.buckets().filter(|&(_, n)| n > 0).collect();
        assert_eq!(buckets, [(1.0, 1), (8.0, 2), (f64::INFINITY, 1)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 20_011.0));
    }
}
