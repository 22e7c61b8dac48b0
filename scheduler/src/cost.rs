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

/// What was measured, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    per_block_swapped: Option<f64>,
    /// What a token adds to a step's time.
    per_token_computed: Option<f64>,
    steps: Steps,
}

/// Weight of a new measurement of swaps.
const NEWEST_SWAP: f64 = 0.2;

impl Costs {
    /// Takes in a step that swapped so many blocks and computed so many tokens.
    pub(crate) fn observe(&mut self, times: StepTimes, num_blocks: usize, num_tokens: usize) {
        if num_blocks > 0 {
            let new = times.swap.as_secs_f64() / num_blocks as f64;
            let mean = self.per_block_swapped.get_or_insert(new);
            *mean += NEWEST_SWAP * (new - *mean);
        }
        if num_tokens > 0 {
            self.steps
                .observe(num_tokens as f64, times.compute.as_secs_f64());
            // Steps alike say nothing new; what was learned before stands.
            self.per_token_computed = self.steps.slope().or(self.per_token_computed);
        }
    }

    /// Whether it is known that copying blocks of `block_size` tokens out and in takes longer than
    /// computing them again.
    pub(crate) fn swap_never_pays(&self, block_size: usize) -> bool {
        let known = self.per_block_swapped.is_some() && self.per_token_computed.is_some();
        known && !self.prefer_swap(block_size)
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

/// Running means of steps, the last hundred or so: the line through their tokens and times.
///
/// Not time over tokens: a step reads the weights however few its tokens are, and does so whether
/// or not something is computed again in it. What recomputing costs is what its tokens add.
#[derive(Debug, Default)]
struct Steps {
    count: u32,
    /// Of the tokens and the seconds.
    means: (f64, f64),
    variance: f64,
    covariance: f64,
}

/// Weight of a new step.
const NEWEST_STEP: f64 = 0.02;
/// Least standard deviation of the steps' tokens from which a slope is told.
const MIN_SPREAD: f64 = 8.0;

impl Steps {
    fn observe(&mut self, tokens: f64, time: f64) {
        self.count = self.count.saturating_add(1);
        // The first ones count alike.
        let weight = NEWEST_STEP.max(1.0 / f64::from(self.count));
        let (more, longer) = (tokens - self.means.0, time - self.means.1);
        self.means.0 += weight * more;
        self.means.1 += weight * longer;
        let older = 1.0 - weight;
        self.variance = older * (self.variance + weight * more * more);
        self.covariance = older * (self.covariance + weight * more * longer);
    }

    /// Seconds a token; `None` if the steps were too much alike, or if longer ones took no longer,
    /// which is noise: a token is never free.
    fn slope(&self) -> Option<f64> {
        let spread = self.variance >= MIN_SPREAD * MIN_SPREAD;
        spread
            .then(|| self.covariance / self.variance)
            .filter(|&slope| slope > 0.0)
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

    /// Steps of 10 and 110 tokens that take 20 ms and so much for each token.
    fn steps(costs: &mut Costs, count: usize, per_token: u64) {
        for num_tokens in [10, 110].into_iter().cycle().take(count) {
            let compute = 20_000 + per_token * num_tokens as u64;
            costs.observe(times(0, compute), 0, num_tokens);
        }
    }

    #[test]
    fn what_takes_less_time_is_preferred() {
        let mut costs = Costs::default();
        assert!(!costs.prefer_swap(16), "nothing is known");
        costs.observe(times(0, 120_000), 0, 100);
        assert!(!costs.prefer_swap(16), "one step does not tell its parts");
        steps(&mut costs, 20, 1_000);
        assert!(costs.prefer_swap(16), "worth a try");
        // 16 tokens take 16 ms; 7 ms there and 7 back are less, 9 and 9 are more.
        costs.observe(times(70_000, 0), 10, 0);
        assert!(costs.prefer_swap(16));
        assert!(!costs.prefer_swap(8));
        for _ in 0..50 {
            costs.observe(times(90_000, 0), 10, 0);
        }
        assert!(!costs.prefer_swap(16));
        steps(&mut costs, 400, 2_000);
        assert!(costs.prefer_swap(16));
    }

    #[test]
    fn what_a_step_takes_without_tokens_is_not_charged_to_them() {
        let mut costs = Costs::default();
        steps(&mut costs, 100, 100);
        let per_token = costs.per_token_computed.expect("the steps differ");
        assert!((per_token / 100e-6 - 1.0).abs() < 1e-6, "{per_token}");
        // 16 tokens add 1.6 ms; by the time of whole steps they would cost 4.5 ms and more.
        assert!(!costs.swap_never_pays(16), "no swap was seen");
        costs.observe(times(10_000, 0), 10, 0);
        assert!(!costs.prefer_swap(16) && costs.swap_never_pays(16));
    }

    #[test]
    fn steps_that_take_no_longer_with_more_tokens_tell_nothing() {
        let mut costs = Costs::default();
        steps(&mut costs, 100, 0);
        costs.observe(times(10_000, 0), 10, 0);
        assert!(!costs.prefer_swap(16) && !costs.swap_never_pays(16));
    }

    #[test]
    fn steps_alike_change_nothing() {
        let mut costs = Costs::default();
        steps(&mut costs, 100, 100);
        let before = costs.per_token_computed.expect("the steps differ");
        for _ in 0..2_000 {
            costs.observe(times(0, 23_000), 0, 30);
        }
        let after = costs.per_token_computed.expect("kept");
        assert!((after / before - 1.0).abs() < 1e-6, "{before} {after}");
    }
}
