//! Fleets of replicas behind a router, simulated: how requests should be spread.
//!
//! ```text
//!  workload ── requests ──> router ──> replica: scheduler + block manager, the project's own
//!                             ^           │
//!                             └─ tokens in flight
//! ```

mod machine;
mod replica;
mod results;
mod router;
mod routers;
mod simulate;
mod sustain;
mod workload;

use anyhow::ensure;

use super::experiment::{Experiment, RunArgs};
use super::resume::{Points, num_threads};
use simulate::{Task, simulate};
use sustain::{Target, sustained};
use workload::{Data, Workload};

pub(crate) const NAME: &str = "fleet";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// Numbers of replicas, with commas between [default: 1,2,8,32,128,1000; with --quick 1,8,32]
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    replicas: Vec<usize>,
    /// Routers, with commas between; an unknown name lists all [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    routers: Vec<String>,
}

const REPLICAS: [usize; 6] = [1, 2, 8, 32, 128, 1000];
const QUICK_REPLICAS: [usize; 3] = [1, 8, 32];
/// Most replicas that a fleet may have: what the caches of so many take in memory.
const MOST_REPLICAS: usize = 4096;
/// Requests of a run: it ends before the trace does if there would be more.
const MOST_REQUESTS: f64 = 40_000.0;
const QUICK_REQUESTS: f64 = 4_000.0;
/// Replicas of the fleet whose sustained load is looked for.
const SUSTAINED: usize = 32;
const QUICK_SUSTAINED: usize = 8;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let replicas = match (args.replicas.is_empty(), args.run.quick) {
        (true, true) => &QUICK_REPLICAS[..],
        (true, false) => &REPLICAS,
        (false, _) => &args.replicas,
    };
    let known = router::ALL.map(|(name, _)| name);
    let mut routers = Vec::new();
    for wanted in &args.routers {
        let found = known.iter().find(|name| *name == wanted);
        ensure!(
            found.is_some(),
            "no router {wanted:?}; there are {}",
            known.join(", ")
        );
        routers.extend(found);
    }
    if routers.is_empty() {
        routers.extend(known);
    }
    let is_own = !args.replicas.is_empty() || !args.routers.is_empty();
    let run = args.run.apart(is_own);
    let mut experiment = make(&run, replicas, &routers)?;
    experiment.flag("replicas", &args.replicas);
    experiment.flag("routers", &args.routers);
    experiment.publish(&run)
}

pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    let replicas = match run.quick {
        true => &QUICK_REPLICAS[..],
        false => &REPLICAS,
    };
    make(run, replicas, &router::ALL.map(|(name, _)| name))
}

fn make(run: &RunArgs, replicas: &[usize], routers: &[&'static str]) -> anyhow::Result<Experiment> {
    for &number in replicas {
        ensure!(
            (1..=MOST_REPLICAS).contains(&number),
            "{number} replicas; a fleet has from 1 to {MOST_REPLICAS}"
        );
    }
    let most = match run.quick {
        true => QUICK_REQUESTS,
        false => MOST_REQUESTS,
    };
    let points = Points::open(NAME, run)?;
    let workloads = workload::ALL.map(Workload::load);
    let workloads = workloads.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let mut tasks = Vec::new();
    let mut targets = Vec::new();
    let size = match run.quick {
        true => QUICK_SUSTAINED,
        false => SUSTAINED,
    };
    for workload in &workloads {
        for &num_replicas in replicas {
            let of = |&router| task(workload, num_replicas, router, most);
            tasks.extend(routers.iter().map(of));
        }
        let target = |&router| Target {
            task: task(workload, size, router, most / 4.0),
            ttft_s: workload.data.target_s(),
        };
        targets.extend(routers.iter().map(target));
    }
    let of = |data: Data| workloads.iter().find(|workload| workload.data == data);
    // The longest first, so that no thread is left with one at the end.
    tasks.reverse();
    let mut outcomes = points.all(&tasks, num_threads(), |task| {
        simulate(task, of(task.data).expect("all were loaded"))
    })?;
    tasks.reverse();
    outcomes.reverse();
    let sustained = points.all(&targets, num_threads(), |target| {
        sustained(target, of(target.task.data).expect("all were loaded"))
    })?;
    let both: Vec<_> = targets.iter().zip(&sustained).collect();
    let mut experiment = results::experiment(&workloads, &tasks, &outcomes);
    results::sustained(&mut experiment, &both);
    experiment.points = points.into_files();
    Ok(experiment)
}

/// Of about so many requests: it ends before the trace does if there would be more.
fn task(workload: &Workload, num_replicas: usize, router: &'static str, most: f64) -> Task {
    let data = workload.data;
    let duration_s = most / (data.load() * num_replicas as f64);
    Task {
        data,
        num_replicas,
        router,
        load: data.load(),
        duration_s: duration_s.max(data.least_s()).min(workload.span_s()),
    }
}
