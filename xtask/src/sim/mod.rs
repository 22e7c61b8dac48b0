//! `cargo xtask sim`: the engine, its scheduler and its block manager, simulated.
//!
//! ```text
//! seed ──> Scenario: configuration, requests, arrivals, aborts, faults      scenario, arrivals
//!             ├──> each request alone ──> what it must get                   script, alone
//!             └──> all of them: the real Engine on virtual time              drive
//!                    ├─ each batch, as the executor gets it                  watch
//!                    ├─ blocks, plan, order, after each half of a step       checks, order
//!                    └─ at the end: every transcript, and nothing held       verdict, checks
//! ```
//!
//! The executor computes each token from the contents of the cache that it reads through the block
//! tables, so a wrong copy, swap, share or free changes an output. A scenario depends on its seed
//! only. In some, what a request is known to come to is proposed as drafts, some of them wrong. One that fails is shrunk with proptest, from which all generation comes.
//!
//! `--controls` plants bugs into copies of the real sources and expects each to be found.

mod alone;
mod arrivals;
mod checks;
mod clients;
mod compare;
mod controls;
mod drive;
mod guesses;
mod order;
mod planted;
mod prompts;
mod refusal;
mod scenario;
mod script;
mod show;
mod totals;
mod transcript;
mod verdict;
mod watch;

use std::{
    cell::RefCell,
    num::NonZeroUsize,
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use drive::Report;
use proptest::strategy::ValueTree;
use scenario::Scenario;
use totals::Totals;

/// Seeds from which on everything must have happened.
const ENOUGH_SEEDS: u64 = 1_000;
/// One seed in so many is run twice, and must give the same twice.
const REPEAT_EVERY: u64 = 16;
/// How long a failing scenario is shrunk.
const SHRINKING: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many scenarios to run
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The seed of the first
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Threads; the results do not depend on it. As many as there are processors by default
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Write down each step of a scenario that failed, once it is shrunk
    #[arg(long)]
    trace: bool,
    /// Instead, plant one bug after the other into a copy of the sources, and expect each to be
    /// found within so many seeds
    #[arg(long)]
    controls: bool,
    /// With --controls: only those with this in their names
    #[arg(long, requires = "controls")]
    only: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.controls {
        return controls::run(args.seeds, args.only.as_deref());
    }
    let threads = args
        .threads
        .map_or_else(thread::available_parallelism, Ok)?;
    let begun = Instant::now();
    match run_seeds(args.first_seed, args.seeds, threads.get()) {
        Ok(totals) => {
            println!("{totals}");
            println!("passed in {:.1} s", begun.elapsed().as_secs_f64());
            let missing = totals.missing();
            if args.seeds >= ENOUGH_SEEDS && !missing.is_empty() {
                bail!("never happened: {}", missing.join(", "));
            }
            Ok(())
        }
        Err(Failure { seed, error }) => {
            println!("seed {seed} failed: {error:#}");
            println!("again: cargo xtask sim --seeds 1 --first-seed {seed}");
            let (scenario, error, num_runs) = shrink(seed);
            if args.trace {
                // It fails again.
                let _ = run_scenario(&scenario, true);
            }
            println!("shrunk in {num_runs} runs to:\n{scenario}\nwhich fails with: {error:#}");
            bail!("seed {seed} failed")
        }
    }
}

/// The first seed that fails, and how.
#[derive(Debug)]
struct Failure {
    seed: u64,
    error: anyhow::Error,
}

/// Runs `num_seeds` scenarios from seed `first` on; the lowest seed that fails is reported.
fn run_seeds(first: u64, num_seeds: u64, num_threads: usize) -> Result<Totals, Failure> {
    hide_panics();
    let next = AtomicU64::new(first);
    let end = AtomicU64::new(first.saturating_add(num_seeds));
    let found = Mutex::new((Totals::default(), None::<Failure>));
    let work = || {
        let mut totals = Totals::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            // Seeds below one that failed are still run: the lowest is to be found.
            if seed >= end.load(Ordering::Relaxed) {
                break;
            }
            match run_seed(seed) {
                Ok(report) => totals.add(&report),
                Err(error) => {
                    end.fetch_min(seed, Ordering::Relaxed);
                    let mut found = found.lock().expect("no panic");
                    if found.1.as_ref().is_none_or(|other| seed < other.seed) {
                        found.1 = Some(Failure { seed, error });
                    }
                }
            }
        }
        found.lock().expect("no panic").0.add(&totals);
    };
    thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(work);
        }
    });
    let (totals, failure) = found.into_inner().expect("no panic");
    failure.map_or(Ok(totals), Err)
}

fn run_seed(seed: u64) -> Result<Totals> {
    let scenario = scenario::tree(seed).current();
    let report = run_scenario(&scenario, false)?;
    if seed.is_multiple_of(REPEAT_EVERY) && run_scenario(&scenario, false)? != report {
        bail!("the same scenario gave something else when run again");
    }
    Ok(report.totals)
}

thread_local! {
    /// Set while a scenario runs: the panic that ended it.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static RUNS: RefCell<bool> = const { RefCell::new(false) };
}

/// Keeps panics inside of scenarios for the report; some are injected, and caught by the engine.
fn hide_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if RUNS.with_borrow(|runs| *runs) {
                PANIC.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a scenario; a panic is an error. With `trace`, writes down each step.
fn run_scenario(scenario: &Scenario, trace: bool) -> Result<Report> {
    RUNS.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| drive::run(scenario, trace)));
    RUNS.set(false);
    result.unwrap_or_else(|_| Err(anyhow!(PANIC.take().unwrap_or_default())))
}

/// The simplest scenario found that fails where the one of `seed` does, how, and after how many
/// runs.
fn shrink(seed: u64) -> (Scenario, anyhow::Error, usize) {
    let begun = Instant::now();
    let mut tree = scenario::tree(seed);
    let mut num_runs = 0;
    let mut simplest = None;
    loop {
        num_runs += 1;
        let scenario = tree.current();
        // Twice, for what does not always fail.
        let failed = (0..2).find_map(|_| run_scenario(&scenario, false).err());
        let is_failing = failed.is_some();
        if let Some(error) = failed {
            simplest = Some((scenario, error));
        }
        let goes_on = match is_failing {
            true => tree.simplify(),
            false => tree.complicate(),
        };
        if !goes_on || begun.elapsed() > SHRINKING {
            break;
        }
    }
    let (scenario, error) = simplest.unwrap_or_else(|| {
        let error = anyhow!("not again: it depends on more than its seed");
        (scenario::tree(seed).current(), error)
    });
    (scenario, error, num_runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_seeds_pass() {
        let totals = run_seeds(0, 600, 2).expect("no seed fails");
        assert_eq!(totals.seeds, 600);
        assert!(totals.preempted_by_swap > 0 && totals.preempted_by_recompute > 0);
        assert!(totals.forks > 0 && totals.prefix_hit_tokens > 0 && totals.failed_steps > 0);
    }

    #[test]
    fn totals_do_not_depend_on_the_number_of_threads() {
        let one = run_seeds(1_000, 40, 1).expect("no seed fails");
        let three = run_seeds(1_000, 40, 3).expect("no seed fails");
        assert_eq!(one, three);
    }
}
