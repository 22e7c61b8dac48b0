//! How much of the pool admission leaves to those that run, learned from what is computed twice.

/// Share of the computed tokens that may be recomputed ones.
const TARGET: f64 = 0.04;
/// Most of the pool that is ever left free on this account.
const MOST: f64 = 0.3;
/// Change of the headroom in the time in which the pool's tokens are computed once, for each unit
/// that the recomputed share is off the target.
const GAIN: f64 = 0.3;

/// Room for running sequences to grow besides the configured watermark, as a share of the pool.
///
/// A sequence let in too early is preempted and computed again. How early is too early depends on
/// how long sequences become and how few of them fill the pool, which nobody knows beforehand. So
/// this is controlled by the outcome: while more than [`TARGET`] of the computed tokens are
/// recomputed ones, the headroom grows, otherwise it shrinks; slowly, over as many tokens as the
/// pool holds. The constants were chosen with `cargo xtask bench preemption`: more headroom computes less
/// twice but leaves more of the pool empty, and about here the most requests are served.
#[derive(Debug, Default)]
pub(crate) struct Headroom {
    share: f64,
    /// Tokens computed, older ones counting less and less; and those of them recomputed.
    computed: f64,
    recomputed: f64,
}

impl Headroom {
    /// Takes in a step.
    pub(crate) fn observe(&mut self, computed: u64, recomputed: u64, num_slots: usize) {
        let (computed, window) = (computed as f64, num_slots as f64);
        let kept = window / (window + computed);
        self.computed = self.computed * kept + computed;
        self.recomputed = self.recomputed * kept + recomputed as f64;
        if self.computed == 0.0 {
            return;
        }
        let excess = self.recomputed / self.computed - TARGET;
        self.share = (self.share + GAIN * excess * computed / window).clamp(0.0, MOST);
    }

    /// Share of the pool.
    pub(crate) fn share(&self) -> f64 {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUM_SLOTS: usize = 1000;

    fn observe(headroom: &mut Headroom, num_steps: usize, recomputed: u64) {
        for _ in 0..num_steps {
            headroom.observe(100, recomputed, NUM_SLOTS);
        }
    }

    #[test]
    fn it_grows_while_much_is_recomputed_and_goes_when_nothing_is() {
        let mut headroom = Headroom::default();
        observe(&mut headroom, 1000, 3);
        assert_eq!(headroom.share(), 0.0, "below the target");
        observe(&mut headroom, 10, 50);
        let after_a_pool = headroom.share();
        assert!(after_a_pool > 0.05 && after_a_pool < 0.15, "{after_a_pool}");
        observe(&mut headroom, 1000, 50);
        assert_eq!(headroom.share(), MOST);
        observe(&mut headroom, 1000, 0);
        assert_eq!(headroom.share(), 0.0);
    }

    #[test]
    fn a_step_without_tokens_says_nothing() {
        let mut headroom = Headroom::default();
        headroom.observe(0, 0, NUM_SLOTS);
        assert_eq!(headroom.share(), 0.0);
    }
}
