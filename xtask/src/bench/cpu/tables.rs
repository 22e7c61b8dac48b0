//! Numbers of several rounds, and tables of them.

/// A figure measured in several rounds.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(super) struct Figure {
    rounds: Vec<f64>,
}

impl Figure {
    pub(super) fn is_empty(&self) -> bool {
        self.rounds.is_empty()
    }

    /// The middle one, or the mean of the two in the middle; not a number if there is none.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[upper],
            _ => (sorted[upper - 1] + sorted[upper]) / 2.0,
        }
    }

    /// What each round gives divided by what it gives of `other`, as far as both have rounds.
    pub(super) fn over(&self, other: &Figure) -> Figure {
        let pairs = self.rounds.iter().zip(&other.rounds);
        Figure {
            rounds: pairs.map(|(a, b)| a / b).collect(),
        }
    }

    /// `median (lowest..highest)`, the range only if there were several rounds.
    pub(super) fn show(&self, decimals: usize) -> String {
        match self.rounds.as_slice() {
            [] => "-".to_owned(),
            [one] => format!("{one:.decimals$}"),
            all => {
                let low = all.iter().copied().fold(f64::INFINITY, f64::min);
                let high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let median = self.median();
                format!("{median:.decimals$} ({low:.decimals$}..{high:.decimals$})")
            }
        }
    }
}

impl FromIterator<f64> for Figure {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Figure {
            rounds: values.into_iter().collect(),
        }
    }
}

/// Prints a table in Markdown: the first column to the left, the others to the right.
pub(super) fn print(title: &str, header: &[&str], rows: &[Vec<String>]) {
    println!("\n## {title}\n");
    println!("| {} |", header.join(" | "));
    println!("|---|{}", "---:|".repeat(header.len().saturating_sub(1)));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// Bytes in MiB.
pub(super) fn mib(bytes: f64) -> f64 {
    bytes / (1u64 << 20) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_does_not_depend_on_the_order_or_on_one_outlier() {
        let odd: Figure = [9.0, 1.0, 2.0].into_iter().collect();
        let even: Figure = [4.0, 1.0, 100.0, 2.0].into_iter().collect();
        assert_eq!((odd.median(), even.median()), (2.0, 3.0));
        assert!(Figure::default().median().is_nan());
        assert_eq!(odd.show(1), "2.0 (1.0..9.0)");
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ours: Figure = [2.0, 4.0].into_iter().collect();
        let theirs: Figure = [1.0, 2.0, 3.0].into_iter().collect();
        assert_eq!(ours.over(&theirs).rounds, [2.0, 2.0]);
    }
}
