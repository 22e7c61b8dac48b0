//! What the pool is used for, and how many requests run at once: figures 2 and 13a, measured.

use std::path::Path;

use serde::Serialize;

use super::serve::{Run, Served, serve};
use super::{QUARTERED, SYSTEMS, Subject, WEIGHTS, all_at_once, quarter};
use crate::bench::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, RunArgs, Series, Source, Table,
};
use crate::bench::paper::machine::Machine;
use crate::bench::resume::Points;

#[derive(Serialize)]
struct Point<'a> {
    model: &'a Path,
    system: &'static str,
    num_requests: usize,
}

/// What systems do with more requests than any can serve, and an experiment that says so.
fn saturate(
    (name, title): (&str, &str),
    model: &Path,
    run: &RunArgs,
) -> anyhow::Result<(Experiment, Vec<Served>)> {
    let num_requests = if run.quick { 48 } else { 140 };
    let points = Points::open(&format!("{name}-measured"), run)?;
    let subject = Subject::open(model)?;
    let machine = Machine::quarter(subject.head_dim);
    let trace = all_at_once(&quarter()?, num_requests);
    let parameters = SYSTEMS.map(|system| Point {
        model,
        system,
        num_requests,
    });
    let served = points.all(&parameters, 1, |point| {
        serve(Run {
            model,
            weights: WEIGHTS,
            machine,
            system: point.system,
            trace: &trace,
        })
    })?;
    let mut experiment = subject.describe(name, title, &machine);
    experiment.points = points.into_files();
    experiment.parameter("number of requests", num_requests);
    experiment.parameter("requests", "ShareGPT, lengths over 4; tokens at random");
    experiment.ours += QUARTERED;
    experiment.ours += "So are blocks. ";
    experiment.ours += COUNTED;
    experiment.notes.push(
        "The trace is a tenth of the paper's: which few requests run while it is counted moves a share by some \
         points. In the simulation, with the paper's trace, shares are within half a point."
            .into(),
    );
    Ok((experiment, served))
}

const COUNTED: &str = "All requests of the trace are there at once; what is counted are the steps from when a \
    quarter has ended until three quarters have, by the time they take.";

/// Figure 2, as the simulation's: percent of the slots for tokens, reserved, internal fragmentation and
/// the rest.
const SHARES: [[f64; 4]; 4] = [
    [20.4, 13.3, 57.3, 8.9],
    [26.8, 17.9, 13.6, 41.6],
    [38.2, 25.2, 0.0, 36.6],
    [96.3, 0.0, 0.0, 3.7],
];
const USES: [&str; 4] = ["tokens", "reserved", "internal", "external & others"];
/// Points of percent that a share may be off: the trace is a tenth of the paper's.
const NEAR: f64 = 5.0;

/// Figure 2.
pub(crate) fn waste(name: &str, model: &Path, run: &RunArgs) -> anyhow::Result<Experiment> {
    let (mut experiment, served) = saturate((name, "What memory is used for"), model, run)?;
    experiment.figures = vec!["Fig 2".into()];
    experiment.paper =
        "Under more load than any system serves, slots of the memory for keys and values \
        are told apart by what they are for."
            .into();
    let mut columns = vec![("system", 0), ("", 0)];
    columns.extend(USES.map(|name| (name, 1)));
    let mut table = Table::new("Percent of the pool's slots", &columns);
    for (at, (system, served)) in SYSTEMS.iter().zip(&served).enumerate() {
        let paper = SHARES.get(at).map(|&shares| ("paper", shares));
        for (from, shares) in paper.into_iter().chain([("measured", served.percent)]) {
            let mut row = vec![Cell::from(*system), from.into()];
            row.extend(shares.map(Cell::Number));
            table.rows.push(row);
        }
        for (i, (name, ours)) in USES.iter().zip(served.percent).enumerate() {
            if let Some((_, paper)) = paper {
                let name = format!("{system}: {name}");
                let check = Check::new(name, ours, Bound::Within(NEAR)).paper(paper[i]);
                experiment.checks.push(check.unit("% of the pool"));
            }
        }
    }
    experiment.tables.push(table);
    let series = (0..USES.len()).map(|part| Series {
        name: USES[part].to_owned(),
        source: Source::Measured,
        points: (served.iter().zip(0..))
            .map(|(served, i)| (f64::from(i), served.percent[part]))
            .collect(),
    });
    experiment.plots.push(Plot {
        name: "shares".into(),
        title: "What the KV cache's memory is used for".into(),
        caption: "The real engine on a CPU, with a capped pool.".into(),
        kind: PlotKind::Stacked,
        x: Axis::categories("", &SYSTEMS),
        y: Axis::linear("slots of the pool (%)"),
        series: series.collect(),
        thresholds: Vec::new(),
    });
    Ok(experiment)
}

/// Figure 13a: requests at once.
const AT_ONCE: [f64; 4] = [7.00, 9.81, 13.62, 30.42];

/// Figure 13a.
pub(crate) fn batch_size(name: &str, model: &Path, run: &RunArgs) -> anyhow::Result<Experiment> {
    let (mut experiment, served) = saturate((name, "Requests computed at once"), model, run)?;
    experiment.figures = vec!["Fig 13a".into()];
    experiment.paper = "OPT-13B under ShareGPT at 2 req/s; requests in a batch, on average.".into();
    let columns = [
        ("system", 0),
        ("paper", 2),
        ("measured", 2),
        ("difference, %", 1),
        ("computed again, %", 2),
    ];
    let mut table = Table::new("Requests at once", &columns);
    for (at, (system, served)) in SYSTEMS.iter().zip(&served).enumerate() {
        let (ours, paper) = (served.batch_size, AT_ONCE.get(at).copied());
        table.rows.push(vec![
            (*system).into(),
            paper.into(),
            ours.into(),
            paper.map(|paper| 100.0 * (ours / paper - 1.0)).into(),
            served.recomputed_percent.into(),
        ]);
        if let Some(paper) = paper {
            let name = format!("{system}: requests at once");
            let check = Check::new(name, ours, Bound::WithinPercent(15.0));
            experiment.checks.push(check.paper(paper));
        }
    }
    experiment.tables.push(table);
    let bars = |source, values: &mut dyn Iterator<Item = f64>| Series {
        name: "requests".into(),
        source,
        points: values.zip(0..).map(|(v, i)| (f64::from(i), v)).collect(),
    };
    let mut paper = AT_ONCE.into_iter();
    experiment.plots.push(Plot {
        name: "at-once".into(),
        title: "Requests computed at once".into(),
        caption: "The real engine on a CPU, with a capped pool.".into(),
        kind: PlotKind::Bars,
        x: Axis::categories("system", &SYSTEMS),
        y: Axis::linear("requests at once"),
        series: vec![
            bars(Source::Paper("Fig 13a".into()), &mut paper),
            bars(
                Source::Measured,
                &mut served.iter().map(|served| served.batch_size),
            ),
        ],
        thresholds: Vec::new(),
    });
    Ok(experiment)
}
