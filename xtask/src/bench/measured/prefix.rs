//! Translations behind a prefix that all requests share: figure 16, measured.

use std::path::Path;

use serde::Serialize;

use super::serve::{Run, Served, serve};
use super::{Subject, WEIGHTS, all_at_once};
use crate::bench::experiment::{
    Axis, Bound, Check, Experiment, Plot, PlotKind, RunArgs, Series, Source, Table,
};
use crate::bench::paper::dataset::{Data, Dataset};
use crate::bench::paper::machine::{Machine, Model};
use crate::bench::resume::Points;

/// Tokens of the prefix, and what figure 16's text says Pageloom's predecessor gains over Orca (Oracle).
const PREFIXES: [(u32, f64); 2] = [(80, 1.67), (341, 3.58)];
/// What each is compared with comes first, what does as the paper's system does, second.
const SYSTEMS: [&str; 4] = [
    "orca-oracle",
    "prefix-caching",
    "paged",
    "pageloom-tiers-16-bits",
];
/// Tokens of the pool: as many requests fit as do not take long to be measured, some 20 of the longer
/// prefix under Orca.
const NUM_SLOTS: usize = 7864;

#[derive(Serialize)]
struct Point<'a> {
    model: &'a Path,
    prefix: u32,
    system: &'static str,
    num_requests: usize,
}

pub(crate) fn experiment(name: &str, model: &Path, run: &RunArgs) -> anyhow::Result<Experiment> {
    let num_requests = if run.quick { 64 } else { 160 };
    let points = Points::open(&format!("{name}-measured"), run)?;
    let subject = Subject::open(model)?;
    let machine = Machine {
        num_slots: NUM_SLOTS,
        head_dim: subject.head_dim,
        ..Machine::paper(Model::Opt13b, 0)
    };
    let parameters: Vec<Point<'_>> = (PREFIXES.iter())
        .flat_map(|&(prefix, _)| {
            SYSTEMS.map(|system| Point {
                model,
                prefix,
                system,
                num_requests,
            })
        })
        .collect();
    let served = points.all(&parameters, 1, |point| {
        let prefix = point.prefix;
        let trace = all_at_once(&Dataset::load(Data::Translation { prefix })?, num_requests);
        serve(Run {
            model,
            weights: WEIGHTS,
            machine,
            system: point.system,
            trace: &trace,
        })
    })?;
    let mut experiment = subject.describe(name, "A prefix that all requests share", &machine);
    experiment.points = points.into_files();
    explain(&mut experiment, num_requests);
    for (&(prefix, paper), served) in PREFIXES.iter().zip(served.chunks(SYSTEMS.len())) {
        let ratios: Vec<f64> = served.iter().map(|s| s.rate / served[0].rate).collect();
        experiment.tables.push(table(prefix, paper, served));
        let name = format!(
            "prefix of {prefix} tokens: {} over {}",
            SYSTEMS[1], SYSTEMS[0]
        );
        let check = Check::new(name, ratios[1], Bound::AtLeast(paper));
        experiment.checks.push(check.paper(paper).unit("times"));
    }
    experiment.plots.push(plot(&served));
    Ok(experiment)
}

fn explain(experiment: &mut Experiment, num_requests: usize) {
    experiment.figures = vec!["Fig 16".into()];
    experiment.parameter("number of requests", num_requests);
    experiment.parameter(
        "requests",
        "translations as in the simulation; tokens at random",
    );
    experiment.paper = "English sentences are translated behind one example (80 tokens) or five (341), which \
        the paper's system keeps once for all requests and never computes again: 1.67 and 3.58 times the rate \
        of Orca (Oracle)."
        .into();
    experiment.ours += "Prefixes and sentences are as long as in the simulation, not scaled; the pool is half \
        the paper's. All requests are there at once; counted are the steps from when a quarter has ended until \
        three quarters have. `prefix-caching` is the paper's policy, and prefixes are found again.";
    experiment.notes.push(
        "A prefix costs arithmetic, and a CPU is short of that: not computing it again gains more here than on \
         the paper's GPU. `paged`, which shares nothing, shows how little of the gain is from pages alone."
            .into(),
    );
}

fn table(prefix: u32, paper: f64, served: &[Served]) -> Table {
    let columns = [
        ("system", 0),
        ("req/s", 2),
        ("over orca-oracle", 2),
        ("paper", 2),
        ("requests at once", 1),
        ("ms a step", 1),
    ];
    let mut table = Table::new(format!("A prefix of {prefix} tokens"), &columns);
    for (system, ours) in SYSTEMS.into_iter().zip(served) {
        table.rows.push(vec![
            system.into(),
            ours.rate.into(),
            (ours.rate / served[0].rate).into(),
            (system == SYSTEMS[1]).then_some(paper).into(),
            ours.batch_size.into(),
            ours.step_ms.into(),
        ]);
    }
    table
}

fn plot(served: &[Served]) -> Plot {
    let series = PREFIXES.iter().zip(served.chunks(SYSTEMS.len()));
    let series = series.map(|(&(prefix, _), served)| Series {
        name: format!("{prefix} tokens"),
        source: Source::Measured,
        points: (0..)
            .zip(served)
            .map(|(at, ours)| (f64::from(at), ours.rate / served[0].rate))
            .collect(),
    });
    Plot {
        name: "rates".into(),
        title: "Requests a second, over Orca (Oracle)".into(),
        caption: "The real engine on a CPU; a prefix that all requests share.".into(),
        kind: PlotKind::Bars,
        x: Axis::categories("system", &SYSTEMS),
        y: Axis::linear("times the rate of orca-oracle"),
        series: series.collect(),
        thresholds: Vec::new(),
    }
}
