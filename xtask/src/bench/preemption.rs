//! What preemption costs: the engine over the simulator, on the paper's trace and the paper's
//! machine, at loads up to and past what the pool can hold.
//!
//! The real engine, scheduler and block manager run on a virtual clock. Times are those of
//! OPT-13B on an A100 as the paper shows them (Kwon et al. 2023, figures 1 and 19a).

use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum;
use pageloom_engine::{
    Engine, EngineConfig, EngineStats, PreemptionMode, Request, SimConfig, SimExecutor,
};
use pageloom_model_runner::SamplingParams;

use super::lengths::{self, SplitMix};
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
/// Requests that arrive in this time are not measured, nor is what happens after the last arrival.
const WARM_UP: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Requests a second
    #[arg(long, value_delimiter = ',', default_values_t = [1.5, 2.0, 2.2, 2.4, 2.5, 2.6, 2.8, 3.2])]
    rates: Vec<f64>,
    /// Requests of each run
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Seeds of the arrivals; the table has the means
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2])]
    seeds: Vec<u64>,
    /// Blocks of the host tier, as a multiple of the device's
    #[arg(long, default_value_t = 1.0)]
    swap_space: f64,
    /// Share of the pool that admission leaves free
    #[arg(long, default_value_t = EngineConfig::default().watermark)]
    watermark: f64,
    /// Modes
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Recompute, Mode::Swap, Mode::Auto])]
    modes: Vec<Mode>,
    /// Sequences of each request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    n: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Recompute,
    Swap,
    Auto,
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

/// Means over a run, from the end of the warm-up to the last arrival.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    /// Of the blocks, over time.
    full: f64,
    /// Of the tokens computed.
    recomputed: f64,
    /// Of the time.
    swapping: f64,
    preemptions_per_request: f64,
    /// Requests that ended a second.
    throughput: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.rates.iter().all(|&rate| rate > 0.0 && rate < 1e3),
        "--rates: a rate must be above 0 and below 1000"
    );
    let lengths = lengths::sharegpt()?;
    println!(
        "ShareGPT lengths, {} blocks of {BLOCK_SIZE} tokens, {} on the host, n = {}; full: of the \
         pool, over time; again: of all computed tokens, those that were computed before; swap: of \
         the time, the part spent copying; a request: preemptions; served: requests a second",
        NUM_SLOTS / BLOCK_SIZE,
        num_host_blocks(args),
        args.n
    );
    println!("| rate | mode | full | again | swap | a request | served |");
    println!("|---:|---|---:|---:|---:|---:|---:|");
    for &rate in &args.rates {
        for &mode in &args.modes {
            let mut mean = Figures::default();
            for &seed in &args.seeds {
                let figures = simulate(args, mode.into(), rate, seed, &lengths)?;
                mean.add(&figures, args.seeds.len() as f64);
            }
            println!(
                "| {rate} | {mode:?} | {:.1} % | {:.2} % | {:.2} % | {:.3} | {:.2} |",
                mean.full * 100.0,
                mean.recomputed * 100.0,
                mean.swapping * 100.0,
                mean.preemptions_per_request,
                mean.throughput,
            );
        }
    }
    Ok(())
}

fn num_host_blocks(args: &Args) -> usize {
    (args.swap_space * (NUM_SLOTS / BLOCK_SIZE) as f64) as usize
}

fn simulate(
    args: &Args,
    preemption_mode: PreemptionMode,
    rate: f64,
    seed: u64,
    lengths: &[lengths::Request],
) -> anyhow::Result<Figures> {
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
    let mut random = SplitMix(seed);
    let mut arrivals = (0..args.requests).map(|_| {
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
    Ok(measured.figures())
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

/// Sums over the steps after the warm-up.
#[derive(Default)]
struct Measured {
    first: Option<EngineStats>,
    last: Option<EngineStats>,
    time: f64,
    full_time: f64,
}

impl Measured {
    fn step(&mut self, began: Duration, ended: Duration, stats: impl FnOnce() -> EngineStats) {
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

    fn figures(&self) -> Figures {
        let (Some(first), Some(last)) = (&self.first, &self.last) else {
            return Figures::default();
        };
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let since = |f: fn(&EngineStats) -> u64| f(last) - f(first);
        let ended = since(|s| s.finished.length);
        let preempted = since(|s| s.num_preemptions_by_swap + s.num_preemptions_by_recompute);
        let transfers = last.transfer_time - first.transfer_time;
        Figures {
            full: self.full_time / self.time,
            recomputed: share(
                since(|s| s.num_recomputed_tokens),
                since(|s| s.num_computed_tokens),
            ),
            swapping: transfers.as_secs_f64() / self.time,
            preemptions_per_request: share(preempted, ended),
            throughput: ended as f64 / self.time,
        }
    }
}

impl Figures {
    fn add(&mut self, other: &Figures, num_runs: f64) {
        self.full += other.full / num_runs;
        self.recomputed += other.recomputed / num_runs;
        self.swapping += other.swapping / num_runs;
        self.preemptions_per_request += other.preemptions_per_request / num_runs;
        self.throughput += other.throughput / num_runs;
    }
}
