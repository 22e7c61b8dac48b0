//! Latency by block size, preempting by computing again and by copying: what figures 18b and 19b of
//! the paper have of memory and copies, simulated.

use serde::{Deserialize, Serialize};

use super::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, RunArgs, Series, Source, Table,
};
use super::paper::account::Window;
use super::paper::dataset::{Data, Dataset};
use super::paper::machine::{Machine, Model};
use super::paper::replay::{Run, replay};
use super::paper::sweep::spread;
use super::paper::systems;
use super::paper::trace::Load;
use super::resume::{Points, num_threads};

pub(crate) const NAME: &str = "page-size";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
}

const BLOCK_SIZES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// Systems that preempt by computing again and by copying, and figure 19b, seconds a token.
const MODES: [(&str, [f64; 9]); 2] = [
    (
        "paged",
        [2.0, 1.64, 1.62, 0.51, 0.08, 0.06, 0.07, 0.17, 1.12],
    ),
    (
        "swap",
        [2.56, 1.97, 1.79, 0.55, 0.08, 0.06, 0.07, 0.12, 0.66],
    ),
];
/// Figure 18b, ShareGPT, seconds a token.
const FIGURE_18B: [f64; 9] = [2.3, 1.95, 2.0, 0.57, 0.08, 0.07, 0.09, 0.16, 1.35];
/// Requests a second: the artifact's.
const RATE: f64 = 2.01;
const SEEDS: [u32; 3] = [0, 1, 2];

#[derive(Serialize)]
struct Point {
    system: &'static str,
    block_size: usize,
    seed: u32,
    duration_s: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    latency_s: f64,
    /// Of the pool, over time.
    tokens_percent: f64,
    num_preemptions: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    experiment(&args.run)?.publish(&args.run)
}

pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    let points = Points::open(NAME, run)?;
    let (seeds, duration_s) = match run.quick {
        true => (&SEEDS[..1], 900.0),
        false => (&SEEDS[..], Model::Opt13b.trace_s()),
    };
    let mut parameters = Vec::new();
    for (system, _) in MODES {
        for block_size in BLOCK_SIZES {
            parameters.extend(seeds.iter().map(|&seed| Point {
                system,
                block_size,
                seed,
                duration_s,
            }));
        }
    }
    let dataset = Dataset::load(Data::ShareGpt)?;
    let results = points.all(&parameters, num_threads(), |point| {
        simulate(&dataset, point)
    })?;
    let of_sizes: Vec<&[Figures]> = results.chunks(seeds.len()).collect();
    let mut experiment = describe(seeds, duration_s);
    experiment.points = points.into_files();
    for ((system, paper), results) in MODES.iter().zip(of_sizes.chunks(BLOCK_SIZES.len())) {
        experiment.tables.push(table(system, paper, results));
        experiment.plots.push(plot(system, paper, results));
    }
    // At 16 tokens and more the kernel's price, which is not modelled, does not decide.
    let at = |size: usize| BLOCK_SIZES.iter().position(|&s| s == size).unwrap_or(0);
    let [at_16, at_256] = [16, 256].map(|size| of_sizes[at(size)][0].latency_s);
    let check = Check::new(
        "256 tokens a block over 16: latency",
        at_256 / at_16,
        Bound::AtLeast(2.0),
    );
    let paper = FIGURE_18B[at(256)] / FIGURE_18B[at(16)];
    experiment.checks.push(check.paper(paper).unit("times"));
    Ok(experiment)
}

fn simulate(dataset: &Dataset, point: &Point) -> anyhow::Result<Figures> {
    let trace = dataset.trace(Load {
        rate: RATE,
        duration_s: point.duration_s,
        seed: point.seed,
    });
    let machine = Machine {
        block_size: point.block_size,
        ..Machine::paper(Model::Opt13b, 0)
    };
    let outcome = replay(Run {
        system: systems::named(point.system)?,
        machine: &machine,
        trace: &trace,
        window: Window {
            from_s: 300.0,
            until_s: point.duration_s,
        },
    })?;
    let stats = outcome.stats;
    Ok(Figures {
        latency_s: outcome.latency_s,
        tokens_percent: outcome.usage.percent(machine.num_slots)[0],
        num_preemptions: stats.num_preemptions_by_swap + stats.num_preemptions_by_recompute,
    })
}

fn describe(seeds: &[u32], duration_s: f64) -> Experiment {
    let mut experiment = Experiment::simulated(NAME, "Block sizes, by memory and copies");
    experiment.figures = vec!["Fig 18b".into(), "Fig 19b".into()];
    experiment.parameter("model", Model::Opt13b.name());
    experiment.parameter("slots", Model::Opt13b.num_slots());
    experiment.parameter("requests", "ShareGPT");
    experiment.parameter("rate, req/s", RATE);
    experiment.parameter("trace, s", duration_s);
    experiment.parameter("seeds", format!("{seeds:?}"));
    experiment.paper =
        "ShareGPT at a fixed rate with blocks of 1 to 256 tokens. Small blocks make the \
        paper's kernel slow, and its copies; large ones leave memory empty."
            .into();
    experiment.ours = "The paper's policy with blocks of each size; preempted requests are computed again, \
        or copied at figure 19a's price for that size. The kernel's price is the same for all sizes, so \
        what is seen is fragmentation, and copies."
        .into();
    experiment.notes.push(
        "The side of large blocks comes out without a model of the kernel: it is fragmentation. The side of \
         small ones does not when preempted requests are computed again: the paper's kernel is slow there, \
         and that is not modelled. `cargo xtask bench block-size` measures Pageloom's own kernel."
            .into(),
    );
    experiment.notes.push(
        "From 16 to 64 tokens latencies are short, here and in the paper, but up to 2.4 times the paper's: the \
         rate is just below what the system sustains (see throughput), where a step that takes a little \
         longer tells most."
            .into(),
    );
    experiment
}

fn latency(results: &[Figures]) -> f64 {
    spread(&results.iter().map(|r| r.latency_s).collect::<Vec<_>>()).0
}

fn table(system: &str, paper: &[f64; 9], results: &[&[Figures]]) -> Table {
    let columns = [
        ("block size", 0),
        ("seed 0, s a token", 3),
        ("mean of seeds", 3),
        ("paper, Fig 19b", 2),
        ("paper, Fig 18b", 2),
        ("tokens, % of the pool", 1),
        ("preemptions", 0),
    ];
    let mut table = Table::new(format!("{system}, ShareGPT at {RATE} req/s"), &columns);
    for (i, results) in results.iter().enumerate() {
        let first = &results[0];
        table.rows.push(vec![
            BLOCK_SIZES[i].into(),
            Cell::Number(first.latency_s),
            Cell::Number(latency(results)),
            Cell::Number(paper[i]),
            Cell::Number(FIGURE_18B[i]),
            Cell::Number(first.tokens_percent),
            (first.num_preemptions as usize).into(),
        ]);
    }
    table
}

fn plot(system: &str, paper: &[f64; 9], results: &[&[Figures]]) -> Plot {
    let xs = || BLOCK_SIZES.iter().map(|&size| size as f64);
    let line = |source, points| Series {
        name: system.to_owned(),
        source,
        points,
    };
    Plot {
        name: system.to_owned(),
        title: format!("Latency by block size, {system}"),
        caption: format!("OPT-13B, ShareGPT at {RATE} req/s, mean normalised latency over seeds."),
        kind: PlotKind::Lines,
        x: Axis::log("tokens of a block"),
        y: Axis::log("latency (s a token)"),
        series: vec![
            line(
                Source::Paper("Fig 19b".into()),
                xs().zip(paper.iter().copied()).collect(),
            ),
            line(
                Source::Simulated,
                xs().zip(results.iter().map(|r| latency(r))).collect(),
            ),
        ],
        thresholds: Vec::new(),
    }
}
