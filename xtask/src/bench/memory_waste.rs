//! What a pool's memory is used for under each system: figure 2 of the paper, simulated.

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

pub(crate) const NAME: &str = "memory-waste";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A model to measure on, on this machine; without it the paper's is simulated
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// Figure 2: systems, and percent of the pool's slots for tokens, reserved, internal fragmentation
/// and the rest.
const PAPER: [(&str, [f64; 4]); 4] = [
    ("orca-max", [20.4, 13.3, 57.3, 8.9]),
    ("orca-pow2", [26.8, 17.9, 13.6, 41.6]),
    ("orca-oracle", [38.2, 25.2, 0.0, 36.6]),
    ("paged", [96.3, 0.0, 0.0, 3.7]),
];
const USES: [&str; 4] = ["tokens", "reserved", "internal", "external & others"];
/// Requests a second, and when is counted: the artifact's.
const RATE: f64 = 4.0;
const WINDOW: Window = Window {
    from_s: 300.0,
    until_s: 900.0,
};
const SEEDS: [u32; 3] = [0, 1, 2];

#[derive(Serialize)]
struct Point {
    system: &'static str,
    seed: u32,
}

#[derive(Serialize, Deserialize)]
struct Shares([f64; 4]);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        return measured::memory::waste(NAME, model, &args.run)?.publish(&args.run);
    }
    experiment(&args.run)?.publish(&args.run)
}

pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    let points = Points::open(NAME, run)?;
    let seeds = if run.quick { &SEEDS[..1] } else { &SEEDS };
    let parameters: Vec<Point> = PAPER
        .iter()
        .flat_map(|&(system, _)| seeds.iter().map(move |&seed| Point { system, seed }))
        .collect();
    let dataset = Dataset::load(Data::ShareGpt)?;
    let shares = points.all(&parameters, num_threads(), |point| {
        simulate(&dataset, point)
    })?;
    let of_systems: Vec<&[Shares]> = shares.chunks(seeds.len()).collect();
    let firsts: Vec<[f64; 4]> = of_systems.iter().map(|shares| shares[0].0).collect();
    let mut experiment = describe(seeds);
    for ((&(system, paper), ours), shares) in PAPER.iter().zip(&firsts).zip(&of_systems) {
        for ((name, paper), &ours) in USES.iter().zip(paper).zip(ours) {
            let check = Check::new(format!("{system}: {name}"), ours, Bound::Within(1.0));
            let check = check.paper(paper).unit("% of the pool");
            experiment.checks.push(check.required());
        }
        for (name, shares) in [
            ("paper", paper),
            ("seed 0", *ours),
            ("mean of seeds", mean(shares)),
        ] {
            let mut row = vec![system.into(), name.into()];
            row.extend(shares.map(Cell::Number));
            experiment.tables[0].rows.push(row);
        }
    }
    experiment.plots.push(plot(&firsts));
    experiment.points = points.into_files();
    Ok(experiment)
}

fn simulate(dataset: &Dataset, point: &Point) -> anyhow::Result<Shares> {
    let machine = Machine::paper(Model::Opt13b, 0);
    let trace = dataset.trace(Load {
        rate: RATE,
        duration_s: WINDOW.until_s,
        seed: point.seed,
    });
    let outcome = replay(Run {
        system: systems::named(point.system)?,
        machine: &machine,
        trace: &trace,
        window: WINDOW,
    })?;
    Ok(Shares(outcome.usage.percent(machine.num_slots)))
}

fn mean(shares: &[Shares]) -> [f64; 4] {
    let part = |i: usize| shares.iter().map(|s| s.0[i]).sum::<f64>() / shares.len() as f64;
    [0, 1, 2, 3].map(part)
}

fn describe(seeds: &[u32]) -> Experiment {
    let mut experiment = Experiment::simulated(NAME, "What memory is used for");
    experiment.figures = vec!["Fig 2".into()];
    experiment.parameter("model", Model::Opt13b.name());
    experiment.parameter("slots", Model::Opt13b.num_slots());
    experiment.parameter("requests", "ShareGPT, Poisson as the artifact's");
    experiment.parameter("rate, req/s", RATE);
    experiment.parameter(
        "counted, s",
        format!("{} to {}", WINDOW.from_s, WINDOW.until_s),
    );
    experiment.parameter("seeds", format!("{seeds:?}"));
    experiment.paper = "Under more load than any system serves, slots of the memory for keys and values \
        are told apart by what they are for: tokens; those reserved for tokens to come; those set aside \
        for a request that never needs them; and the rest, lost between reservations."
        .into();
    experiment.ours = "The same requests at the same times go through Pageloom's scheduler and block \
        manager. The Orca systems are a rule of admission over a buddy allocator; `paged` is the paper's \
        own policy. Shares are means over time. Seed 0 is the paper's own trace, and what is checked; the mean \
        over three seeds says how much is chance."
        .into();
    let mut columns = vec![("system", 0), ("", 0)];
    columns.extend(USES.map(|name| (name, 1)));
    let title = "Percent of the pool's slots";
    experiment.tables.push(Table::new(title, &columns));
    experiment.notes.push(
        "Reserving is what wastes memory: it holds whatever the time of a step is, so this figure hardly \
         depends on the model of time. Of `paged`, the rest is the ends of last blocks and the 1 % that \
         admission leaves free."
            .into(),
    );
    experiment
}

fn plot(ours: &[[f64; 4]]) -> Plot {
    let names: Vec<&str> = PAPER
        .iter()
        .flat_map(|&(system, _)| ["paper", system])
        .collect();
    let series = USES.iter().enumerate().flat_map(|(part, &name)| {
        let series = |source, points| Series {
            name: name.to_owned(),
            source,
            points,
        };
        let papers = PAPER
            .iter()
            .zip(0..)
            .map(|((_, p), i)| (2.0 * f64::from(i), p[part]));
        let ours = ours
            .iter()
            .zip(0..)
            .map(|(m, i)| (2.0 * f64::from(i) + 1.0, m[part]));
        [
            series(Source::Paper("Fig 2".into()), papers.collect()),
            series(Source::Simulated, ours.collect()),
        ]
    });
    Plot {
        name: "shares".into(),
        title: "What the KV cache's memory is used for".into(),
        caption: "OPT-13B on one A100 of 40 GB, ShareGPT at 4 req/s. Left of each system, the paper's figure."
            .into(),
        kind: PlotKind::Stacked,
        x: Axis::categories("", &names),
        y: Axis::linear("slots of the pool (%)"),
        series: series.collect(),
        thresholds: Vec::new(),
    }
}
