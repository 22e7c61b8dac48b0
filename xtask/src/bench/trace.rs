//! A trace of real arrivals, under each system: the machine is the paper's, simulated.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::experiment::{Cell, Experiment, RunArgs, Table};
use super::paper::account::Window;
use super::paper::machine::{Machine, Model};
use super::paper::replay::{Run, WARM_UP_S, replay};
use super::paper::systems;
use super::paper::trace::{Arrival, MAX_TIME_S, committed, digest, read_trace};
use super::resume::{Points, num_threads};

const NAME: &str = "trace";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A CSV, plain or gzip, with columns arrival_s (seconds, never less than the row before),
    /// prompt_tokens and output_tokens [default: the Azure conversations of benches/data]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How many times slower the requests come: the paper's smallest machine is one GPU
    #[arg(long, default_value_t = SLOWER)]
    slower: f64,
    /// Systems, with commas between; an unknown name lists all
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = SYSTEMS)]
    systems: Vec<String>,
}

const SYSTEMS: &str = "orca-max,orca-oracle,capped,paged,pageloom";
/// The trace by default.
const AZURE: &str = "azure_llm_2023_conv.csv.gz";
const SLOWER: f64 = 4.0;
/// Requests of a quick run.
const QUICK: usize = 3000;

#[derive(Serialize)]
struct Point<'a> {
    system: &'static str,
    /// A digest: a file of the same name may have changed since.
    trace: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Figures {
    latency_s: f64,
    latency_p99_s: f64,
    batch_size: f64,
    num_preemptions: u64,
}

impl Args {
    fn has_default_systems(&self) -> bool {
        self.systems.join(",") == SYSTEMS
    }

    fn is_default(&self) -> bool {
        self.file.is_none() && self.slower == SLOWER && self.has_default_systems()
    }
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
    let run = args.run.apart(!args.is_default());
    let machine = Machine::paper(Model::Opt13b, 5);
    let mut trace = read_trace(&file)?;
    if run.quick {
        trace.truncate(QUICK);
    }
    let num_read = trace.len();
    let trace =
        playable(trace, &machine, args.slower).with_context(|| file.display().to_string())?;
    let points = Points::open(NAME, &run)?;
    let digest = digest(&trace);
    let parameters: Vec<Point<'_>> = systems
        .iter()
        .map(|system| Point {
            system: system.name(),
            trace: &digest,
        })
        .collect();
    let figures = points.all(&parameters, num_threads(), |point| {
        simulate(point.system, &machine, &trace).with_context(|| file.display().to_string())
    })?;
    let mut experiment = Experiment::simulated(NAME, "A trace of real arrivals");
    experiment.points = points.into_files();
    // Of the file its name alone: the results are the same wherever it lies.
    let name = args.file.as_deref().and_then(Path::file_name);
    experiment.flag("file", name.map(OsStr::to_string_lossy).as_slice());
    experiment.flag("slower", &[args.slower]);
    if !args.has_default_systems() {
        experiment.flag("systems", &args.systems);
    }
    let name = file.file_name().unwrap_or_default().to_string_lossy();
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
    experiment.publish(&run)
}

/// Those that the machine can serve, slower.
///
/// # Errors
/// If no request fits, or all come before any is counted or later than can be played.
fn playable(
    mut trace: Vec<Arrival>,
    machine: &Machine,
    slower: f64,
) -> anyhow::Result<Vec<Arrival>> {
    for arrival in &mut trace {
        arrival.at_s *= slower;
        arrival.lengths.prompt = arrival.lengths.prompt.max(1);
        arrival.lengths.output = arrival.lengths.output.max(1);
    }
    trace.retain(|arrival| arrival.lengths.total() <= machine.context_len);
    let last = trace.last().with_context(|| {
        let most = machine.context_len;
        format!("no request fits the model, whose context has {most} tokens")
    })?;
    let end_s = last.at_s;
    ensure!(
        end_s <= MAX_TIME_S,
        "--slower {slower}: the last request comes at {end_s} s; no more than {MAX_TIME_S} s are played"
    );
    ensure!(
        end_s > WARM_UP_S,
        "the last request comes at {end_s} s, --slower {slower} included; those of the first {WARM_UP_S} s \
         are not counted"
    );
    Ok(trace)
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

#[cfg(test)]
mod tests {
    use super::super::paper::trace::Lengths;
    use super::*;

    fn trace(times: &[f64], prompt: usize) -> Vec<Arrival> {
        let arrival = |&at_s: &f64| Arrival {
            at_s,
            lengths: Lengths { prompt, output: 0 },
            text: 0,
            offset: 0,
            shared: 0,
        };
        times.iter().map(arrival).collect()
    }

    #[test]
    fn traces_that_cannot_be_played_are_refused() {
        let machine = Machine::paper(Model::Opt13b, 5);
        let played = playable(trace(&[0.0, 40.0], 0), &machine, 2.0).unwrap();
        assert_eq!(played[1].at_s, 80.0);
        assert_eq!(played[1].lengths.total(), 2);
        for (times, prompt, slower, reason) in [
            (&[0.0, 60.0][..], 9, 1.0, "not counted"),
            (&[0.0, 900.0], 5000, 1.0, "no request fits"),
            (&[0.0, 900.0], 9, 1e300, "--slower"),
            (&[0.0, 900.0], 9, 1e-9, "not counted"),
        ] {
            let error = playable(trace(times, prompt), &machine, slower).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_flood_of_requests_is_refused_before_it_fills_the_memory() {
        let machine = Machine::paper(Model::Opt13b, 5);
        let flood = playable(trace(&[70.0; 40_000], 2000), &machine, 1.0).unwrap();
        let error = simulate("paged", &machine, &flood).err().unwrap();
        assert!(
            error.to_string().contains("paged cannot keep up"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_has_changed_is_another_trace() {
        let [a, b, c] = [([0.0, 1.0], 9), ([0.0, 2.0], 9), ([0.0, 1.0], 8)]
            .map(|(times, prompt)| digest(&trace(&times, prompt)));
        assert!(a != b && a != c);
        assert_eq!(a, digest(&trace(&[0.0, 1.0], 9)));
    }
}
