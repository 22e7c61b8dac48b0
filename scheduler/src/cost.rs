//! What a preemption costs, learned from the steps.

use core::time::Duration;

/// What is done with the blocks of a preempted group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PreemptionMode {
    /// Whichever is expected to take less time, from the steps reported so far; a group is
    /// recomputed while nothing is known.
    #[default]
    Auto,
    /// Copied to the host and back. A group for which the host has no room is recomputed.
    Swap,
    /// Released, and computed again later.
    Recompute,
}

/// How long the parts of a step took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Copying blocks between the tiers.
    pub swap: Duration,
    /// All the rest.
    pub compute: Duration,
}

/// Running means of what was measured, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    per_block_swapped: Option<f64>,
    per_token_computed: Option<f64>,
}

/// Weight of a new measurement.
const NEWEST: f64 = 0.2;

/// Fewer tokens say little about prefills: the weights are read for a step however few they are.
const MIN_TOKENS: usize = 64;

impl Costs {
    /// Takes in a step that swapped so many blocks and computed so many tokens.
    pub(crate) fn observe(&mut self, times: StepTimes, num_blocks: usize, num_tokens: usize) {
        let learn = |mean: &mut Option<f64>, time: Duration, count: usize| {
            let new = time.as_secs_f64() / count as f64;
            *mean = Some(mean.map_or(new, |old| old + NEWEST * (new - old)));
        };
        if num_blocks > 0 {
            learn(&mut self.per_block_swapped, times.swap, num_blocks);
        }
        if num_tokens >= MIN_TOKENS {
            learn(&mut self.per_token_computed, times.compute, num_tokens);
        }
    }

    /// Whether blocks of `block_size` tokens are sooner copied out and in than computed again.
    /// As long as no swap was seen it is tried, once it is known what computing costs.
    pub(crate) fn prefer_swap(&self, block_size: usize) -> bool {
        match (self.per_block_swapped, self.per_token_computed) {
            (Some(swap), Some(compute)) => 2.0 * swap < compute * block_size as f64,
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(swap: u64, compute: u64) -> StepTimes {
        StepTimes {
            swap: Duration::from_micros(swap),
            compute: Duration::from_micros(compute),
        }
    }

    #[test]
    fn what_takes_less_time_is_preferred() {
        let mut costs = Costs::default();
        assert!(!costs.prefer_swap(16), "nothing is known");
        costs.observe(times(0, 1_000), 0, MIN_TOKENS - 1);
        assert!(!costs.prefer_swap(16), "too few tokens to know");
        costs.observe(times(0, 100_000), 0, 100);
        assert!(costs.prefer_swap(16), "worth a try");
        // 16 tokens take 16 ms; 7 ms there and 7 back are less, 9 and 9 are more.
        costs.observe(times(70_000, 0), 10, 0);
        assert!(costs.prefer_swap(16));
        assert!(!costs.prefer_swap(8));
        for _ in 0..50 {
            costs.observe(times(90_000, 0), 10, 0);
        }
        assert!(!costs.prefer_swap(16));
        for _ in 0..50 {
            costs.observe(times(0, 200_000), 0, 100);
        }
        assert!(costs.prefer_swap(16));
    }
}
