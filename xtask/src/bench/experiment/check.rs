//! Claims, and whether they hold.

use serde::{Deserialize, Serialize};

/// A claim about a figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    pub(crate) name: String,
    /// The paper's figure, where it has one.
    pub(crate) paper: Option<f64>,
    /// Nothing if there is no such figure: the check falls short then.
    pub(crate) ours: Option<f64>,
    pub(crate) unit: String,
    pub(crate) bound: Bound,
    /// Whether `verify` fails if this falls short.
    pub(crate) required: bool,
    /// Set when results are written.
    pub(crate) passed: bool,
}

/// What a figure must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// As far as this from the paper's, in its unit.
    Within(f64),
    /// As far as this from the paper's, in percent of it.
    WithinPercent(f64),
    AtLeast(f64),
    AtMost(f64),
    Between(f64, f64),
}

impl Check {
    pub(crate) fn new(name: impl Into<String>, ours: impl Into<Option<f64>>, bound: Bound) -> Self {
        Self {
            name: name.into(),
            paper: None,
            ours: ours.into(),
            unit: String::new(),
            bound,
            required: false,
            passed: false,
        }
    }

    pub(crate) fn paper(self, paper: f64) -> Self {
        Self {
            paper: Some(paper),
            ..self
        }
    }

    pub(crate) fn unit(self, unit: &str) -> Self {
        Self {
            unit: unit.to_owned(),
            ..self
        }
    }

    /// `verify` fails if this falls short.
    pub(crate) fn required(self) -> Self {
        Self {
            required: true,
            ..self
        }
    }

    /// Whether the figure is what it must be.
    pub(crate) fn holds(&self) -> bool {
        let Some(ours) = self.ours else { return false };
        match (self.bound, self.paper) {
            (Bound::Within(by), Some(paper)) => (ours - paper).abs() <= by,
            (Bound::WithinPercent(percent), Some(paper)) => {
                (ours - paper).abs() <= paper.abs() * percent / 100.0
            }
            (Bound::Within(_) | Bound::WithinPercent(_), None) => false,
            (Bound::AtLeast(least), _) => ours >= least,
            (Bound::AtMost(most), _) => ours <= most,
            (Bound::Between(least, most), _) => (least..=most).contains(&ours),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_holds_up_to_its_bound() {
        for (bound, holds, falls_short) in [
            (Bound::Within(1.0), 21.0, 21.1),
            (Bound::WithinPercent(10.0), 18.0, 17.9),
            (Bound::AtLeast(1.5), 1.5, 1.4),
            (Bound::AtMost(1.5), 1.5, 1.6),
            (Bound::Between(1.5, 2.0), 2.0, 2.1),
        ] {
            let check = |ours| Check::new("rate", ours, bound).paper(20.0);
            assert!(check(holds).holds(), "{bound:?}");
            assert!(!check(falls_short).holds(), "{bound:?}");
        }
    }

    #[test]
    fn no_figure_never_holds() {
        let check = Check::new("rate", None, Bound::AtMost(1.0));
        assert!(!check.holds());
        // Nor does a distance from a figure that the paper does not have.
        assert!(!Check::new("rate", 1.0, Bound::Within(1e9)).holds());
    }
}
