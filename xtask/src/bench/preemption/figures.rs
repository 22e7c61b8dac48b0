//! What a run under load is told by.

use std::time::Duration;

use pageloom_engine::EngineStats;
use serde::{Deserialize, Serialize};

use super::super::experiment::{Cell, Table};
use super::loads::Mode;

/// Requests that arrive in this time are not measured, nor is what happens after the last arrival.
pub(super) const WARM_UP: Duration = Duration::from_secs(60);

/// Means over a run, from the end of the warm-up to the last arrival.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Of the blocks, over time.
    pub(super) full: f64,
    /// Of the tokens computed.
    pub(super) recomputed: f64,
    /// Of the time.
    pub(super) swapping: f64,
    pub(super) preemptions_per_request: f64,
    /// Requests that ended a second.
    pub(super) throughput: f64,
}

/// What a mode does at a rate: means over seeds.
pub(super) struct Row {
    pub(super) rate: f64,
    pub(super) mode: Mode,
    pub(super) mean: Figures,
}

/// Sums over the steps after the warm-up.
#[derive(Default)]
pub(super) struct Measured {
    first: Option<EngineStats>,
    last: Option<EngineStats>,
    time: f64,
    full_time: f64,
}

impl Measured {
    pub(super) fn step(
        &mut self,
        began: Duration,
        ended: Duration,
        stats: impl FnOnce() -> EngineStats,
    ) {
        if began < WARM_UP {
            return;
        }
        let stats = stats();
        let time = (ended - began).as_secs_f64();
        self.time += time;
        self.full_time += time * stats.num_referenced_blocks as f64 / stats.num_blocks as f64;
        self.first.get_or_insert_with(|| stats.clone());
        self.last = Some(stats);
    }

    /// None if there was nothing after the warm-up.
    pub(super) fn figures(&self) -> Option<Figures> {
        let (first, last) = (self.first.as_ref()?, self.last.as_ref()?);
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let since = |f: fn(&EngineStats) -> u64| f(last) - f(first);
        let ended = since(|s| s.finished.length);
        let preempted = since(|s| s.num_preemptions_by_swap + s.num_preemptions_by_recompute);
        let transfers = last.transfer_time - first.transfer_time;
        Some(Figures {
            full: self.full_time / self.time,
            recomputed: share(
                since(|s| s.num_recomputed_tokens),
                since(|s| s.num_computed_tokens),
            ),
            swapping: transfers.as_secs_f64() / self.time,
            preemptions_per_request: share(preempted, ended),
            throughput: ended as f64 / self.time,
        })
    }
}

impl Figures {
    pub(super) fn add(&mut self, other: &Figures, num_runs: f64) {
        self.full += other.full / num_runs;
        self.recomputed += other.recomputed / num_runs;
        self.swapping += other.swapping / num_runs;
        self.preemptions_per_request += other.preemptions_per_request / num_runs;
        self.throughput += other.throughput / num_runs;
    }
}

/// A row of figures for each rate and mode.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(
        "Full: of the pool, over time. Again: of all computed tokens, those computed before. Swaps: of the \
         time, the part spent copying.",
        &[
            ("rate, req/s", 2),
            ("mode", 0),
            ("full, %", 1),
            ("again, %", 2),
            ("swaps, %", 2),
            ("preemptions a request", 3),
            ("served, req/s", 2),
        ],
    );
    for row in rows {
        table.rows.push(vec![
            Cell::from(row.rate),
            format!("{:?}", row.mode).to_lowercase().into(),
            (100.0 * row.mean.full).into(),
            (100.0 * row.mean.recomputed).into(),
            (100.0 * row.mean.swapping).into(),
            row.mean.preemptions_per_request.into(),
            row.mean.throughput.into(),
        ]);
    }
    table
}
