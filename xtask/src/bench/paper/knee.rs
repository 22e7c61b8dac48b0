//! The rate at which a system's latency reaches a threshold.

use serde::{Deserialize, Serialize};

/// Rates and latencies of a system, by rate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Curve {
    points: Vec<(f64, f64)>,
}

/// How near two rates must be, as a ratio, before the latency between them is interpolated.
const NEAR: f64 = 1.02;

impl Curve {
    /// Rates, requests a second, and latencies, seconds a token; by rate.
    pub(crate) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// Adds a measurement.
    pub(crate) fn insert(&mut self, rate: f64, latency: f64) {
        let place = self.points.partition_point(|&(r, _)| r < rate);
        self.points.insert(place, (rate, latency));
    }

    /// Where the latency first reaches `threshold`, by what is known; `None` if it never does, or is
    /// above from the first.
    pub(crate) fn between(&self, threshold: f64) -> Option<f64> {
        let after = self.points.iter().position(|&(_, l)| l >= threshold)?;
        let before = self.points.get(after.checked_sub(1)?)?;
        Some(interpolated(*before, self.points[after], threshold))
    }

    /// Where the latency first reaches `threshold`: first doubling or halving the rate from `near`,
    /// then by halves, until the rates on both sides differ by a fiftieth; between those in
    /// proportion to the logarithm of the latency.
    ///
    /// # Errors
    /// Those of `latency`.
    pub(crate) fn crossing(
        &mut self,
        threshold: f64,
        near: f64,
        mut latency: impl FnMut(f64) -> anyhow::Result<f64>,
    ) -> anyhow::Result<f64> {
        loop {
            let after = self.points.iter().position(|&(_, l)| l >= threshold);
            let rate = match after {
                Some(0) => self.points[0].0 / 1.3,
                Some(at) => {
                    let (low, high) = (self.points[at - 1], self.points[at]);
                    if high.0 / low.0 <= NEAR {
                        return Ok(interpolated(low, high, threshold));
                    }
                    (low.0 * high.0).sqrt()
                }
                None => self.points.last().map_or(near, |&(rate, _)| rate * 1.3),
            };
            if !(1e-3..1e5).contains(&rate) {
                anyhow::bail!("no rate has a latency of {threshold} s a token");
            }
            self.insert(rate, latency(rate)?);
        }
    }
}

/// In proportion to the logarithm of the latency.
fn interpolated(low: (f64, f64), high: (f64, f64), threshold: f64) -> f64 {
    let share = (threshold / low.1).ln() / (high.1 / low.1).ln();
    low.0 + share * (high.0 - low.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crossing_lies_between_measured_rates() {
        let mut curve = Curve::default();
        for (rate, latency) in [(4.0, 0.16), (1.0, 0.01), (2.0, 0.01)] {
            curve.insert(rate, latency);
        }
        let rate = curve.between(0.04).expect("it is crossed");
        assert!((rate - 3.0).abs() < 1e-9, "{rate}");
        assert_eq!(curve.between(0.2), None, "never reached");
        assert_eq!(curve.between(0.005), None, "not from below");
    }

    #[test]
    fn the_crossing_is_found_from_either_side() {
        for near in [0.1, 2.0, 40.0] {
            let mut curve = Curve::default();
            let latency = |rate: f64| Ok(0.05 * (rate / 2.0).powi(10) + 0.02);
            let half = curve.crossing(0.5, near, latency).unwrap();
            assert!((half / 2.508 - 1.0).abs() < 1e-3, "{half}");
            let num_points = curve.points().len();
            let fifth = curve.crossing(0.2, near, latency).unwrap();
            assert!((fifth / 2.274 - 1.0).abs() < 1e-3, "{fifth}");
            assert!(
                curve.points().len() < num_points + 9,
                "what is known is used"
            );
        }
    }

    #[test]
    fn a_latency_that_is_never_reached_is_said() {
        let error = Curve::default().crossing(0.5, 1.0, |_| Ok(0.1));
        assert!(error.unwrap_err().to_string().contains("0.5 s"));
    }
}
