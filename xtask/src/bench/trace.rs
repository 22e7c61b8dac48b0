//! A trace of real arrivals, under each system: the machine is the paper's, simulated.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::experiment::{Cell, Experiment, RunArgs, Table};
use super::paper::account::Window;
use super::paper::machine::{Machine, Model};
use super::paper::replay::{Run, replay};
use super::paper::systems;
use super::paper::trace::{Arrival, committed, read_trace};
use super::resume::{Points, num_threads};

const NAME: &str = "trace";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A CSV, plain or .gz, with arrival_s, prompt_tokens and output_tokens [default: the Azure
    /// conversations of benches/data]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How many times slower the requests come: the paper's smallest machine is one GPU
    #[arg(long, default_value_t = 4.0)]
    slower: f64,
    /// Systems; an unknown name lists all
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_values_t = SYSTEMS.map(str::to_owned)
    )]
    systems: Vec<String>,
}

const SYSTEMS: [&str; 5] = ["orca-max", "orca-oracle", "capped", "paged", "pageloom"];
/// The trace by default.
const AZURE: &str = "azure_llm_2023_conv.csv.gz";
/// Requests of a quick run.
const QUICK: usize = 3000;

#[derive(Serialize)]
struct Point<'a> {
    system: &'static str,
    file: &'a Path,
    slower: f64,
    num_requests: usize,
}

#[derive(Serialize, Deserialize)]
struct Figures {
    latency_s: f64,
    latency_p99_s: f64,
    batch_size: f64,
    num_preemptions: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.slower.is_finite() && args.slower > 0.0,
        "--slower: {} is not above 0",
        args.slower
    );
    let systems = args.systems.iter().map(|name| systems::named(name));
    let systems: Vec<_> = systems.collect::<anyhow::Result<_>>()?;
    let file = args.file.clone().unwrap_or_else(|| committed(AZURE));
    let machine = Machine::paper(Model::Opt13b, 5);
    let mut trace = read_trace(&file)?;
    if args.run.quick {
        trace.truncate(QUICK);
    }
    let num_read = trace.len();
    let trace = playable(trace, &machine, args.slower);
    ensure!(
        !trace.is_empty(),
        "{}: no request fits the model",
        file.display()
    );
    let points = Points::open(NAME, &args.run)?;
    let parameters: Vec<Point<'_>> = systems
        .iter()
        .map(|system| Point {
            system: system.name(),
            file: &file,
            slower: args.slower,
            num_requests: trace.len(),
        })
        .collect();
    let figures = points.all(&parameters, num_threads(), |point| {
        simulate(point.system, &machine, &trace)
    })?;
    points.forget()?;
    let mut experiment = Experiment::simulated(NAME, "A trace of real arrivals");
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    experiment.command += &format!(" --slower {}", args.slower);
    experiment.parameter("trace", name.as_ref());
    experiment.parameter("requests", trace.len());
    experiment.parameter(
        "left out, longer than the model's context",
        num_read - trace.len(),
    );
    experiment.parameter("times slower", args.slower);
    experiment.parameter("model", Model::Opt13b.name());
    experiment.paper = "The paper draws its arrivals at random.".into();
    experiment.ours = "Requests come when they came to a real service, evenly slowed down to what one GPU \
        of the paper's can serve, and are as long; those longer than the model's context are left out."
        .into();
    experiment.tables.push(table(&parameters, &figures));
    experiment.publish(&args.run)
}

/// Those that the machine can serve, slower.
fn playable(mut trace: Vec<Arrival>, machine: &Machine, slower: f64) -> Vec<Arrival> {
    for arrival in &mut trace {
        arrival.at_s *= slower;
        arrival.lengths.prompt = arrival.lengths.prompt.max(1);
        arrival.lengths.output = arrival.lengths.output.max(1);
    }
    trace.retain(|arrival| arrival.lengths.total() <= machine.context_len);
    trace
}

fn simulate(system: &'static str, machine: &Machine, trace: &[Arrival]) -> anyhow::Result<Figures> {
    let outcome = replay(Run {
        system: systems::named(system)?,
        machine,
        trace,
        window: Window {
            from_s: 0.0,
            until_s: trace.last().map_or(0.0, |last| last.at_s),
        },
    })?;
    let stats = outcome.stats;
    Ok(Figures {
        latency_s: outcome.latency_s,
        latency_p99_s: outcome.latency_p99_s,
        batch_size: outcome.usage.batch_size(),
        num_preemptions: stats.num_preemptions_by_swap + stats.num_preemptions_by_recompute,
    })
}

fn table(parameters: &[Point<'_>], figures: &[Figures]) -> Table {
    let columns = [
        ("system", 0),
        ("mean latency, s a token", 3),
        ("99th percentile", 3),
        ("requests at once", 2),
        ("preemptions", 0),
    ];
    let mut table = Table::new("Normalised latency", &columns);
    for (point, figures) in parameters.iter().zip(figures) {
        table.rows.push(vec![
            point.system.into(),
            Cell::Number(figures.latency_s),
            Cell::Number(figures.latency_p99_s),
            Cell::Number(figures.batch_size),
            (figures.num_preemptions as usize).into(),
        ]);
    }
    table
}
