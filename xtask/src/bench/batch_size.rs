//! How many requests each system computes at once: figure 13 of the paper, simulated.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, RunArgs, Series, Source, Table,
};
use super::measured;
use super::paper::account::Window;
use super::paper::dataset::{Data, Dataset};
use super::paper::machine::{Machine, Model};
use super::paper::replay::{Run, replay};
use super::paper::systems;
use super::paper::trace::Load;
use super::resume::{Points, num_threads};

pub(crate) const NAME: &str = "batch-size";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A model to measure on, on this machine; without it the paper's is simulated
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

const SYSTEMS: [&str; 4] = ["orca-max", "orca-pow2", "orca-oracle", "paged"];
const SEEDS: [u32; 3] = [0, 1, 2];
/// Seconds of a run, and from when on is counted: the artifact's.
const DURATION_S: f64 = 3600.0;
const FROM_S: f64 = 600.0;

/// A part of the figure.
struct Panel {
    figure: &'static str,
    data: Data,
    /// Requests a second.
    rate: f64,
    /// Requests at once, of each system.
    paper: [f64; 4],
    check: Checked,
}

/// Whether a panel's figures must be near the paper's.
#[derive(Clone, Copy, PartialEq)]
enum Checked {
    Required,
    Told,
    /// Another load than the paper's.
    No,
}

const PANELS: [Panel; 3] = [
    Panel {
        figure: "Fig 13a",
        data: Data::ShareGpt,
        rate: 2.0,
        paper: [7.00, 9.81, 13.62, 30.42],
        check: Checked::Required,
    },
    Panel {
        figure: "Fig 13b",
        data: Data::Alpaca,
        rate: 30.0,
        paper: [7.00, 43.24, 72.75, 132.44],
        check: Checked::Told,
    },
    // What memory allows when time is no matter.
    Panel {
        figure: "Fig 13b, when full",
        data: Data::Alpaca,
        rate: 70.0,
        paper: [7.00, 43.24, 72.75, 132.44],
        check: Checked::No,
    },
];

#[derive(Serialize)]
struct Point {
    data: Data,
    rate: f64,
    system: &'static str,
    seed: u32,
    duration_s: f64,
}

#[derive(Serialize, Deserialize)]
struct BatchSize(f64);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        return measured::memory::batch_size(NAME, model, &args.run)?.publish(&args.run);
    }
    experiment(&args.run)?.publish(&args.run)
}

pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    let points = Points::open(NAME, run)?;
    let (seeds, duration_s) = match run.quick {
        true => (&SEEDS[..1], 2400.0),
        false => (&SEEDS[..], DURATION_S),
    };
    let parameters: Vec<Point> = PANELS
        .iter()
        .flat_map(|panel| SYSTEMS.map(|system| (panel, system)))
        .flat_map(|(panel, system)| {
            seeds.iter().map(move |&seed| Point {
                data: panel.data,
                rate: panel.rate,
                system,
                seed,
                duration_s,
            })
        })
        .collect();
    let datasets = [Dataset::load(Data::ShareGpt)?, Dataset::load(Data::Alpaca)?];
    let sizes = points.all(&parameters, num_threads(), |point| {
        simulate(&datasets, point)
    })?;
    let of_systems: Vec<&[BatchSize]> = sizes.chunks(seeds.len()).collect();
    let mut experiment = describe(seeds, duration_s);
    for (panel, sizes) in PANELS.iter().zip(of_systems.chunks(SYSTEMS.len())) {
        report(&mut experiment, panel, sizes);
    }
    experiment.points = points.into_files();
    Ok(experiment)
}

fn simulate(datasets: &[Dataset], point: &Point) -> anyhow::Result<BatchSize> {
    let dataset = datasets.iter().find(|set| set.data == point.data);
    let trace = dataset.expect("both are loaded").trace(Load {
        rate: point.rate,
        duration_s: point.duration_s,
        seed: point.seed,
    });
    let outcome = replay(Run {
        system: systems::named(point.system)?,
        machine: &Machine::paper(Model::Opt13b, 0),
        trace: &trace,
        window: Window {
            from_s: FROM_S,
            until_s: point.duration_s,
        },
    })?;
    Ok(BatchSize(outcome.usage.batch_size()))
}

fn describe(seeds: &[u32], duration_s: f64) -> Experiment {
    let mut experiment = Experiment::simulated(NAME, "Requests computed at once");
    experiment.figures = vec!["Fig 13".into()];
    experiment.parameter("model", Model::Opt13b.name());
    experiment.parameter("slots", Model::Opt13b.num_slots());
    experiment.parameter("counted, s", format!("{FROM_S} to {duration_s}"));
    experiment.parameter("seeds", format!("{seeds:?}"));
    experiment.paper =
        "OPT-13B under ShareGPT at 2 req/s and Alpaca at 30 req/s; requests in a batch, \
        on average."
            .into();
    experiment.ours = "The same systems on Pageloom's scheduler, on the artifact's arrivals. A mean over \
        time, idle time included. Seed 0 is the paper's own trace, and what is checked. Alpaca's lengths are of 5,000 rows, taken again and \
        again."
        .into();
    experiment.notes.push(
        "At 30 req/s of Alpaca the simulated `paged` is not full: a step of many short sequences costs less \
         here than it did on the paper's engine. 30 requests a second of 58 tokens in batches of 132 mean \
         75 ms a step there; the model, which is fitted on figure 1's batches of 40 at most, says 46. At \
         70 req/s all systems are full, and what then fits is a matter of memory alone."
            .into(),
    );
    experiment
}

/// `sizes`: of each system, one for each seed.
fn report(experiment: &mut Experiment, panel: &Panel, sizes: &[&[BatchSize]]) {
    let firsts: Vec<f64> = sizes.iter().map(|sizes| sizes[0].0).collect();
    let (figure, data, rate) = (panel.figure, panel.data.name(), panel.rate);
    let title = format!("{figure}: {data}, {rate} req/s");
    let columns = [
        ("system", 0),
        ("paper", 2),
        ("seed 0", 2),
        ("difference, %", 1),
        ("mean of seeds", 2),
    ];
    let mut table = Table::new(&title, &columns);
    for ((system, paper), sizes) in SYSTEMS.into_iter().zip(panel.paper).zip(sizes) {
        let ours = sizes[0].0;
        let mean = sizes.iter().map(|size| size.0).sum::<f64>() / sizes.len() as f64;
        let difference = 100.0 * (ours / paper - 1.0);
        table.rows.push(vec![
            system.into(),
            Cell::Number(paper),
            Cell::Number(ours),
            Cell::Number(difference),
            Cell::Number(mean),
        ]);
        let name = format!("{figure}, {system}: requests at once");
        let check = Check::new(name, ours, Bound::WithinPercent(10.0)).paper(paper);
        match panel.check {
            Checked::Required => experiment.checks.push(check.required()),
            Checked::Told => experiment.checks.push(check),
            Checked::No => {}
        }
    }
    experiment.tables.push(table);
    let bars = |source, values: &[f64]| Series {
        name: "requests".into(),
        source,
        points: values
            .iter()
            .zip(0..)
            .map(|(&v, i)| (f64::from(i), v))
            .collect(),
    };
    experiment.plots.push(Plot {
        name: format!("{}-{}", data.to_lowercase(), rate),
        title,
        caption: "OPT-13B on one A100 of 40 GB.".into(),
        kind: PlotKind::Bars,
        x: Axis::categories("system", &SYSTEMS),
        y: Axis::linear("requests at once"),
        series: vec![
            bars(Source::Paper("Fig 13".into()), &panel.paper),
            bars(Source::Simulated, &firsts),
        ],
        thresholds: Vec::new(),
    });
}
