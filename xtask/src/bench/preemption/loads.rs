//! What preemption costs: the engine over the simulator, on the paper's trace and the paper's
//! machine, at loads up to and past what the pool can hold.
//!
//! The real engine, scheduler and block manager run on a virtual clock. Times are those of
//! OPT-13B on an A100 as the paper shows them (Kwon et al. 2023, figures 1 and 19a).

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use pageloom_engine::{Engine, EngineConfig, PreemptionMode, Request, SimConfig, SimExecutor};
use pageloom_model_runner::SamplingParams;
use serde::Serialize;

use super::super::experiment::{
    Axis, Bound, Check, Experiment, Plot, PlotKind, RunArgs, Series, Source,
};
use super::super::lengths::{self, SplitMix};
use super::super::resume::Points;
use super::figures::{Figures, Measured, Row, WARM_UP, table};
use crate::simulated::tokenizer;

/// Of table 1: 12 GiB of keys and values of 819,200 bytes a token.
const NUM_SLOTS: usize = 15_728;
const BLOCK_SIZE: usize = 16;
const VOCAB_SIZE: usize = 288;
/// A step of few sequences takes 26 ms, and each of its tokens 0.42 ms more (figure 1); prompts,
/// which are computed many at once, take about 0.105 ms a token. The simulator has one figure.
const STEP_TIME: Duration = Duration::from_micros(26_000);
const TOKEN_TIME: Duration = Duration::from_micros(105);
/// 256 tokens, 16 blocks, are copied out in 18.7 ms and back in 22 ms (figure 19a).
const SWAP_TIME: Duration = Duration::from_micros(1_270);
/// Most requests of a run, and blocks of the host for one of the device: what a run holds in memory.
const MAX_REQUESTS: usize = 1_000_000;
const MAX_SWAP_SPACE: f64 = 1000.0;

#[derive(clap::Args, Serialize)]
pub(super) struct Args {
    /// Requests a second, with commas between; --quick takes 2, 2.5 and 3.2
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "RATES",
        default_value = "1.5,2,2.2,2.4,2.5,2.6,2.8,3.2"
    )]
    rates: Vec<f64>,
    /// Requests of each run
    #[arg(long, default_value_t = Args::default().requests)]
    requests: usize,
    /// Seeds of the arrivals, with commas between; the table has the means
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SEEDS",
        default_value = "0,1,2"
    )]
    seeds: Vec<u64>,
    /// Blocks of the host tier, as a multiple of the device's
    #[arg(long, default_value_t = Args::default().swap_space)]
    swap_space: f64,
    /// Share of the pool that admission leaves free
    #[arg(long, default_value_t = Args::default().watermark)]
    watermark: f64,
    /// Modes, with commas between
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "MODES",
        default_value = "recompute,swap,auto"
    )]
    modes: Vec<Mode>,
    /// Sequences of each request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    n: u16,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            rates: vec![1.5, 2.0, 2.2, 2.4, 2.5, 2.6, 2.8, 3.2],
            requests: 2000,
            seeds: vec![0, 1, 2],
            swap_space: 1.0,
            watermark: EngineConfig::default().watermark,
            modes: vec![Mode::Recompute, Mode::Swap, Mode::Auto],
            n: 1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum, Serialize)]
pub(super) enum Mode {
    Recompute,
    Swap,
    Auto,
}

/// One run.
#[derive(Serialize)]
struct Point<'a> {
    rate: f64,
    mode: Mode,
    seed: u64,
    requests: usize,
    args: &'a Args,
}

impl From<Mode> for PreemptionMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Recompute => PreemptionMode::Recompute,
            Mode::Swap => PreemptionMode::Swap,
            Mode::Auto => PreemptionMode::Auto,
        }
    }
}

pub(super) fn experiment(args: &Args, run: &RunArgs) -> anyhow::Result<Experiment> {
    ensure!(
        args.rates.iter().all(|rate| (1e-3..=1e3).contains(rate)),
        "--rates: a rate is from 0.001 to 1000 requests a second"
    );
    ensure!(!args.seeds.is_empty(), "--seeds: at least one");
    ensure!(
        (1..=MAX_REQUESTS).contains(&args.requests),
        "--requests: {} is not from 1 to {MAX_REQUESTS}",
        args.requests
    );
    ensure!(
        (0.0..=MAX_SWAP_SPACE).contains(&args.swap_space),
        "--swap-space: {} is not from 0 to {MAX_SWAP_SPACE}",
        args.swap_space
    );
    let lengths = lengths::sharegpt()?;
    let (rates, seeds, requests) = match run.quick {
        true => (
            vec![2.0, 2.5, 3.2],
            &args.seeds[..1],
            args.requests.min(600),
        ),
        false => (args.rates.clone(), &args.seeds[..], args.requests),
    };
    let mut points = Vec::new();
    for &rate in &rates {
        for &mode in &args.modes {
            points.extend(seeds.iter().map(|&seed| Point {
                rate,
                mode,
                seed,
                requests,
                args,
            }));
        }
    }
    let saved = Points::open("preemption", run)?;
    let num_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let figures = saved.all(&points, num_threads, |point| simulate(point, &lengths))?;
    let mut rows = Vec::new();
    for (points, figures) in points.chunks(seeds.len()).zip(figures.chunks(seeds.len())) {
        let mut mean = Figures::default();
        figures.iter().for_each(|f| mean.add(f, seeds.len() as f64));
        rows.push(Row {
            rate: points[0].rate,
            mode: points[0].mode,
            mean,
        });
    }
    let mut experiment = results(args, requests, seeds.len(), &rows);
    experiment.points = saved.into_files();
    Ok(experiment)
}

fn results(args: &Args, requests: usize, num_seeds: usize, rows: &[Row]) -> Experiment {
    let mut results = Experiment::simulated("preemption", "Preemption under load");
    results.figures = vec!["section 4.5".to_owned(), "Fig 19b".to_owned()];
    results.paper = "When the pool is full the latest request gives up its blocks, which are copied to the \
        host or computed again. At 2.01 requests a second of ShareGPT both serve alike with blocks of 16 to \
        64 tokens."
        .to_owned();
    results.ours = "ShareGPT lengths at loads up to and past what the pool holds, on the engine over a \
        simulated executor, whose step, swap and prefill times are those of figures 1 and 19a. `auto` \
        compares what both have cost so far."
        .to_owned();
    results.parameter("requests a run", requests);
    results.parameter("seeds", num_seeds);
    results.parameter("device blocks", NUM_SLOTS / BLOCK_SIZE);
    results.parameter("host blocks", num_host_blocks(args));
    results.parameter("block size", BLOCK_SIZE);
    results.parameter("sequences a request", usize::from(args.n));
    results.parameter("watermark", args.watermark);
    results.tables.push(table(rows));
    for (name, title, label, figure) in [
        (
            "served",
            "Requests served",
            "served (req/s)",
            (|f| f.throughput) as fn(&Figures) -> f64,
        ),
        (
            "again",
            "Work done twice",
            "tokens computed again (%)",
            |f| 100.0 * f.recomputed,
        ),
    ] {
        let series = args.modes.iter().map(|&mode| Series {
            name: format!("{mode:?}").to_lowercase(),
            source: Source::Simulated,
            points: (rows.iter().filter(|row| row.mode == mode))
                .map(|row| (row.rate, figure(&row.mean)))
                .collect(),
        });
        results.plots.push(Plot {
            name: name.to_owned(),
            title: format!("{title}, by preemption mode"),
            caption: "ShareGPT lengths, OPT-13B on an A100, 15,728 slots.".to_owned(),
            kind: PlotKind::Lines,
            x: Axis::linear("request rate (req/s)"),
            y: Axis::linear(label),
            series: series.collect(),
            thresholds: Vec::new(),
        });
    }
    results.checks = checks(rows);
    results
}

/// Of `auto`, at the highest rate.
fn checks(rows: &[Row]) -> Vec<Check> {
    let highest = rows.iter().map(|row| row.rate).fold(0.0, f64::max);
    let served = |mode| {
        let row = rows
            .iter()
            .find(|row| row.rate == highest && row.mode == mode);
        row.map(|row| row.mean.throughput)
    };
    let others = [Mode::Recompute, Mode::Swap].map(served);
    let best = others.into_iter().flatten().fold(0.0, f64::max);
    let share = served(Mode::Auto)
        .filter(|_| best > 0.0)
        .map(|auto| 100.0 * auto / best);
    let name = format!("{highest} req/s: auto's throughput, of the better mode's");
    vec![Check::new(name, share, Bound::AtLeast(99.0)).unit("%")]
}

fn num_host_blocks(args: &Args) -> usize {
    (args.swap_space * (NUM_SLOTS / BLOCK_SIZE) as f64) as usize
}

fn simulate(point: &Point<'_>, lengths: &[lengths::Request]) -> anyhow::Result<Figures> {
    let (args, rate) = (point.args, point.rate);
    let preemption_mode = PreemptionMode::from(point.mode);
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks: NUM_SLOTS / BLOCK_SIZE,
        // Without swaps nothing needs a host tier, which would keep evicted blocks as well.
        num_host_blocks: match preemption_mode {
            PreemptionMode::Recompute => 0,
            _ => num_host_blocks(args),
        },
        max_model_len: lengths::CONTEXT,
        preemption_mode,
        watermark: args.watermark,
        max_num_queued_requests: usize::MAX,
        max_num_queued_tokens: usize::MAX,
        ..EngineConfig::default()
    };
    let executor = SimExecutor::new(SimConfig {
        block_size: config.block_size,
        num_blocks: config.num_blocks,
        num_host_blocks: config.num_host_blocks,
        vocab_size: VOCAB_SIZE,
        step_time: STEP_TIME,
        token_time: TOKEN_TIME,
        swap_time: SWAP_TIME,
        ..SimConfig::default()
    });
    let clock = executor.clock();
    let mut engine = Engine::new(config, Box::new(executor), tokenizer())?;
    let mut random = SplitMix(point.seed);
    let mut arrivals = (0..point.requests).map(|_| {
        let request = request(args, &mut random, lengths);
        // Poisson: the gaps are exponential.
        let gap = Duration::from_secs_f64(-random.uniform().ln() / rate);
        (gap, request)
    });
    let mut measured = Measured::default();
    let mut next = arrivals.next();
    let mut due = Duration::ZERO;
    while let Some((gap, request)) = next.take() {
        due += gap;
        while clock.now() < due {
            if !engine.has_work() {
                clock.advance(due.saturating_sub(clock.now()));
                break;
            }
            let began = clock.now();
            engine.begin_step(began)?;
            engine.end_step(|| clock.now());
            engine.drain_events().for_each(drop);
            measured.step(began, clock.now(), || engine.stats());
        }
        engine.add(request, due)?;
        next = arrivals.next();
    }
    measured.figures().with_context(|| {
        let warm_up_s = WARM_UP.as_secs();
        format!(
            "--requests {} at {rate} req/s: all come in the first {warm_up_s} s, which are not measured",
            point.requests
        )
    })
}

/// A prompt that no other has anything in common with.
fn request(args: &Args, random: &mut SplitMix, lengths: &[lengths::Request]) -> Request {
    let length = lengths[(random.next() % lengths.len() as u64) as usize];
    let token = |random: &mut SplitMix| (random.next() % VOCAB_SIZE as u64) as u32;
    Request {
        n: args.n.into(),
        max_tokens: Some(length.output),
        sampling: SamplingParams {
            seed: random.next(),
            ..SamplingParams::default()
        },
        ignore_eos: true,
        ..Request::new((0..length.prompt).map(|_| token(random)).collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn verify_takes_what_the_command_takes() {
        let parsed = Command::parse_from(["preemption"]).args;
        let json = |args| serde_json::to_string(args).unwrap();
        assert_eq!(json(&parsed), json(&Args::default()));
    }

    #[test]
    fn a_run_that_ends_before_anything_is_measured_is_refused() {
        let lengths = lengths::sharegpt().unwrap();
        let args = Args::default();
        let figures = |requests| {
            let point = Point {
                rate: 2.0,
                mode: Mode::Recompute,
                seed: 0,
                requests,
                args: &args,
            };
            simulate(&point, &lengths)
        };
        let error = figures(50).unwrap_err().to_string();
        assert!(error.contains("--requests 50 at 2 req/s"), "{error}");
        assert!(figures(300).unwrap().throughput > 0.0);
    }
}
