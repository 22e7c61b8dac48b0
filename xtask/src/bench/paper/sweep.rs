//! Curves of latency over rate, and their knees, for several systems and seeds.

use serde::{Deserialize, Serialize};

use super::account::Window;
use super::dataset::{Data, Dataset};
use super::knee::Curve;
use super::machine::{Machine, Model};
use super::replay::{Run, replay};
use super::systems;
use super::trace::Load;
use crate::bench::experiment::{Axis, Plot, PlotKind, Series, Source};
use crate::bench::resume::Points;

/// Latencies of a knee, seconds a token; both are reported, as ratios depend on it.
pub(crate) const THRESHOLDS: [f64; 2] = [0.2, 0.5];

/// Rates below the first knee, in parts of it, that a curve has for the eye.
const BELOW: [f64; 3] = [0.4, 0.6, 0.8];

/// A curve to find.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Task {
    pub(crate) model: Model,
    pub(crate) data: Data,
    /// Its name.
    pub(crate) system: &'static str,
    /// Sequences of each request.
    pub(crate) num_seqs: usize,
    /// They are beams; see [`Machine::renewal`].
    pub(crate) renewal: Option<f64>,
    pub(crate) duration_s: f64,
    pub(crate) seed: u32,
    /// A rate to begin the search with.
    pub(crate) near: f64,
}

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Rates at which the thresholds are crossed, requests a second.
    pub(crate) knees: [f64; 2],
    pub(crate) curve: Curve,
    /// Requests played.
    pub(crate) num_requests: usize,
}

/// Finds the curves of all tasks on `num_threads` threads, in the tasks' order.
///
/// # Errors
/// Data that cannot be read, or a rate that cannot be found.
pub(crate) fn sweep(
    points: &Points,
    tasks: &[Task],
    num_threads: usize,
) -> anyhow::Result<Vec<Found>> {
    let mut datasets: Vec<Dataset> = Vec::new();
    for task in tasks {
        if !datasets.iter().any(|set| set.data == task.data) {
            datasets.push(Dataset::load(task.data)?);
        }
    }
    points.all(tasks, num_threads, |task| {
        let dataset = datasets.iter().find(|set| set.data == task.data);
        find(task, dataset.expect("all were loaded"))
    })
}

fn find(task: &Task, dataset: &Dataset) -> anyhow::Result<Found> {
    let machine = Machine {
        num_seqs: task.num_seqs,
        renewal: task.renewal,
        ..Machine::paper(task.model, task.data.padded_batch(task.model))
    };
    let system = systems::named(task.system)?;
    let mut curve = Curve::default();
    let mut num_requests = 0;
    let mut latency = |rate: f64| {
        let trace = dataset.trace(Load {
            rate,
            duration_s: task.duration_s,
            seed: task.seed,
        });
        let outcome = replay(Run {
            system,
            machine: &machine,
            trace: &trace,
            window: Window::NONE,
        })?;
        num_requests += outcome.num_requests;
        Ok(outcome.latency_s)
    };
    let [low, high] = THRESHOLDS;
    let knees = [
        curve.crossing(low, task.near, &mut latency)?,
        curve.crossing(high, task.near, &mut latency)?,
    ];
    for share in BELOW {
        let rate = share * knees[0];
        curve.insert(rate, latency(rate)?);
    }
    Ok(Found {
        knees,
        curve,
        num_requests,
    })
}

/// The mean of some knees, and the least and the greatest.
pub(crate) fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(0.0, f64::max);
    (mean, least, greatest)
}

/// A system in a plot of latency by rate.
pub(crate) struct Drawn<'a> {
    pub(crate) system: &'a str,
    /// Of seed 0.
    pub(crate) curve: &'a Curve,
    /// The rate at which the paper's curve is at 0.5 s a token, all that is known of it.
    pub(crate) paper: Option<f64>,
}

/// Latency by rate of each system, as in the paper's figure `figure`, and the paper's rates beside.
pub(crate) fn latency_plot<'a>(
    figure: &str,
    title: String,
    systems: impl Iterator<Item = Drawn<'a>>,
) -> Plot {
    let mut series = Vec::new();
    for drawn in systems {
        series.push(Series {
            name: drawn.system.to_owned(),
            source: Source::Simulated,
            points: drawn.curve.points().to_vec(),
        });
        series.extend(drawn.paper.map(|rate| Series {
            name: drawn.system.to_owned(),
            source: Source::Paper(format!("Fig {figure}")),
            points: vec![(rate, 0.5), (rate, 0.0)],
        }));
    }
    Plot {
        name: figure.to_owned(),
        title,
        caption: "Mean normalised latency, seed 0. Dashed: down from where the paper's curve is at 0.5 s a token."
            .into(),
        kind: PlotKind::Lines,
        x: Axis::linear("request rate (req/s)"),
        y: Axis {
            max: Some(1.0),
            ..Axis::linear("latency (s a token)")
        },
        series,
        thresholds: THRESHOLDS.map(|at| (format!("{at} s a token"), at)).into(),
    }
}
