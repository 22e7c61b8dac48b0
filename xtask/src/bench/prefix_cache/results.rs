//! What the replays of a trace come to: a table, a plot and checks.

use super::super::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, Series, Source, Table,
};
use super::trace::Trace;
use super::{OURS, Policy, Row};

/// Of the paper's anchors nothing: prefix caching came after it.
pub(super) fn new() -> Experiment {
    let mut results =
        Experiment::simulated("prefix-cache", "Prefix cache: hit rate against pool size");
    results.figures = vec!["section 4.4".to_owned()];
    results.paper =
        "Prefixes are shared if the provider names them beforehand (section 4.4); there is no \
        automatic cache, and so no figure to compare with."
            .to_owned();
    results.ours = "Every full block is kept until its memory is needed. Two traces of requests \
        (Mooncake, Apache-2.0, one id for each 512 tokens of prompt) run through the block manager one \
        request after another, at several pool sizes, with each of its eviction policies, beside Belady: \
        the best that any policy could do that knew the future. A hit is a block of a prompt that need not \
        be computed. Both are exact; nothing is modelled."
        .to_owned();
    results.parameter("tokens a block", 512usize);
    results.parameter("requests at once", 1usize);
    results.notes.push(
        "Segmented LRU protects blocks that were used twice from prompts that come once; in pools that hold nearly \
         everything it may lose some of the least. What is left \
         below Belady is what knowing the future is worth; with room for every block all policies find \
         the same."
            .to_owned(),
    );
    results
}

/// A trace's rows, by pool size; the last has room for every block.
pub(super) struct OfTrace<'a> {
    pub(super) name: &'static str,
    /// Percentage of the blocks that came before.
    pub(super) unlimited: f64,
    pub(super) trace: &'a Trace,
    pub(super) rows: &'a [&'a Row],
}

impl OfTrace<'_> {
    pub(super) fn add_to(&self, policies: &[Policy], results: &mut Experiment) {
        results.tables.push(self.table(policies));
        results.plots.push(self.plot(policies));
        self.check(policies, &mut results.checks);
    }

    fn is_unlimited(&self, row: &Row) -> bool {
        row.num_blocks == self.trace.num_distinct
    }

    fn table(&self, policies: &[Policy]) -> Table {
        let title = format!(
            "Mooncake {}: {} requests, {} prompt blocks, {} distinct. Prompt blocks found, in percent; and \
             how much of the distance from the first policy to Belady is closed.",
            self.name,
            self.trace.prompts.len(),
            self.trace.num_blocks,
            self.trace.num_distinct
        );
        let mut columns = vec![("pool, blocks", 0), ("Belady", 1)];
        columns.extend(policies.iter().map(|policy| (policy.name, 1)));
        columns.extend(policies[1..].iter().map(|_| ("closed, %", 0)));
        let mut table = Table::new(title, &columns);
        for row in self.rows {
            let size = match self.is_unlimited(row) {
                true => Cell::from("unlimited"),
                false => Cell::from(row.num_blocks),
            };
            let mut cells = vec![size, row.belady.into()];
            cells.extend(row.policies.iter().map(|&rate| Cell::from(rate)));
            let first = row.policies[0];
            let closed = row.policies[1..].iter().map(|rate| {
                let gap = row.belady - first;
                Cell::from((gap > 0.0).then(|| 100.0 * (rate - first) / gap))
            });
            cells.extend(closed);
            table.rows.push(cells);
        }
        table
    }

    fn plot(&self, policies: &[Policy]) -> Plot {
        let series = |name: &str, rate: &dyn Fn(&Row) -> f64| Series {
            name: name.to_owned(),
            source: Source::Simulated,
            points: self
                .rows
                .iter()
                .map(|row| (row.num_blocks as f64, rate(row)))
                .collect(),
        };
        let mut all = vec![series("Belady", &|row| row.belady)];
        let ours = policies.iter().enumerate().rev();
        all.extend(ours.map(|(i, policy)| series(policy.name, &|row| row.policies[i])));
        Plot {
            name: self.name.to_owned(),
            title: format!("Prompt blocks found in the prefix cache: Mooncake {}", self.name),
            caption: "Share of the prompts' blocks of 512 tokens that are cached, against the pool's size; \
                the last point has room for all."
                .to_owned(),
            kind: PlotKind::Lines,
            x: Axis::log("pool (blocks of 512 tokens)"),
            y: Axis::linear("prompt blocks found (%)"),
            series: all,
            thresholds: Vec::new(),
        }
    }

    fn check(&self, policies: &[Policy], checks: &mut Vec<Check>) {
        let name = self.name;
        let ours = policies
            .iter()
            .position(|policy| policy.name == OURS)
            .unwrap_or(0);
        let unlimited = self.rows.iter().find(|row| self.is_unlimited(row));
        let found = unlimited.map(|row| row.policies[ours]);
        let (low, high) = (self.unlimited - 0.05, self.unlimited + 0.05);
        checks.push(
            Check::new(
                format!("{name}, unlimited: blocks found"),
                found,
                Bound::Between(low, high),
            )
            .unit("%")
            .required(),
        );
        let above = self
            .rows
            .iter()
            .flat_map(|row| row.policies.iter().map(|rate| rate - row.belady));
        let most = above.fold(f64::NEG_INFINITY, f64::max);
        checks.push(
            Check::new(
                format!("{name}: above Belady, at most"),
                most,
                Bound::AtMost(0.0),
            )
            .unit("points")
            .required(),
        );
        let gain = self
            .rows
            .iter()
            .map(|row| row.policies[ours] - row.policies[0]);
        let least = gain.fold(f64::INFINITY, f64::min);
        checks.push(
            Check::new(
                format!("{name}: above LRU, at least"),
                least,
                Bound::AtLeast(0.0),
            )
            .unit("points"),
        );
    }
}
