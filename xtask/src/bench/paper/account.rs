//! What is counted while a trace is played.

use pageloom_scheduler::{SchedulerStats, SeqId, StepPlan};

use super::machine::Machine;
use super::system::System;
use super::trace::Lengths;

/// Seconds of a run that are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub(crate) from_s: f64,
    pub(crate) until_s: f64,
}

impl Window {
    /// Nothing is counted: only latencies are looked at.
    pub(crate) const NONE: Self = Window {
        from_s: 0.0,
        until_s: 0.0,
    };

    /// How much of `from_s..until_s` is in it, seconds.
    pub(crate) fn overlap(&self, from_s: f64, until_s: f64) -> f64 {
        (until_s.min(self.until_s) - from_s.max(self.from_s)).max(0.0)
    }
}

/// Slots by what they are for, while a step runs (section 3.1 of the paper).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Slots {
    /// Hold a token.
    pub(crate) tokens: f64,
    /// Will hold one of the same request.
    pub(crate) reserved: f64,
    /// Set aside for a request that will never need them.
    pub(crate) internal: f64,
}

impl Slots {
    /// Those of a step's sequences, under a system; `lengths` gives a sequence's, output included.
    pub(crate) fn of(
        plan: &StepPlan,
        system: &dyn System,
        machine: &Machine,
        lengths: impl Fn(SeqId) -> Lengths,
    ) -> Self {
        let mut slots = Slots::default();
        for planned in &plan.seqs {
            let lengths = lengths(planned.id);
            let (now, total) = (planned.positions.end, lengths.total());
            slots.tokens += now as f64;
            if let Some(reserved) = system.reserved(machine, lengths) {
                slots.reserved += (total - now) as f64;
                slots.internal += (reserved - total) as f64;
            }
        }
        slots
    }
}

/// Means over a window, kept as sums over time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) time_s: f64,
    slots: Slots,
    requests: f64,
    /// Blocks in use, and blocks by the sequences: each for every one that holds it.
    physical: f64,
    logical: f64,
}

impl Usage {
    /// Counts a step, or a part of it.
    pub(crate) fn add(&mut self, time_s: f64, slots: Slots, num_requests: usize) {
        self.time_s += time_s;
        self.slots.tokens += time_s * slots.tokens;
        self.slots.reserved += time_s * slots.reserved;
        self.slots.internal += time_s * slots.internal;
        self.requests += time_s * num_requests as f64;
    }

    /// Counts the pool's blocks, those in use and those by the sequences.
    pub(crate) fn add_blocks(&mut self, time_s: f64, physical: usize, logical: usize) {
        self.physical += time_s * physical as f64;
        self.logical += time_s * logical as f64;
    }

    /// Percent of the blocks that sharing saves (figure 15).
    pub(crate) fn saving_percent(&self) -> f64 {
        100.0 * (1.0 - self.physical / self.logical)
    }

    /// Requests of a batch, on average over time.
    pub(crate) fn batch_size(&self) -> f64 {
        self.requests / self.time_s
    }

    /// Percent of a pool's slots: tokens, reserved, internal fragmentation, and the rest, which is
    /// external fragmentation, what rounding takes, and what is idle.
    pub(crate) fn percent(&self, num_slots: usize) -> [f64; 4] {
        let whole = self.time_s * num_slots as f64;
        let Slots {
            tokens,
            reserved,
            internal,
        } = self.slots;
        let shares = [tokens, reserved, internal].map(|sum| 100.0 * sum / whole);
        let rest = 100.0 - shares.iter().sum::<f64>();
        [shares[0], shares[1], shares[2], rest]
    }
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Mean over the requests after the warm-up of (end - arrival) / output tokens, seconds.
    pub(crate) latency_s: f64,
    /// What 99 % of requests have less than.
    pub(crate) latency_p99_s: f64,
    /// All of the trace.
    pub(crate) num_requests: usize,
    /// Within the window.
    pub(crate) usage: Usage,
    pub(crate) stats: SchedulerStats,
}

impl Outcome {
    /// Fills in the latencies.
    pub(crate) fn with_latencies(mut self, mut latencies: Vec<f64>) -> Self {
        if latencies.is_empty() {
            return self;
        }
        self.latency_s = latencies.iter().sum::<f64>() / latencies.len() as f64;
        latencies.sort_by(f64::total_cmp);
        self.latency_p99_s = latencies[(latencies.len() - 1) * 99 / 100];
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_pool_are_means_over_time() {
        let mut usage = Usage::default();
        let slots = Slots {
            tokens: 40.0,
            reserved: 20.0,
            internal: 10.0,
        };
        usage.add(1.0, slots, 4);
        usage.add(3.0, Slots::default(), 0);
        assert_eq!(usage.percent(100), [10.0, 5.0, 2.5, 82.5]);
        assert_eq!(usage.batch_size(), 1.0);
        usage.add_blocks(2.0, 9, 12);
        assert_eq!(usage.saving_percent(), 25.0);
    }

    #[test]
    fn windows_cut_steps() {
        let window = Window {
            from_s: 1.0,
            until_s: 2.0,
        };
        let overlaps = [(0.0, 0.5), (0.5, 1.5), (1.0, 3.0)].map(|(a, b)| window.overlap(a, b));
        assert_eq!(overlaps, [0.0, 0.5, 1.0]);
    }
}
