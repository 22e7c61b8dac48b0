//! What preemption costs: swaps beside recomputation on a real model, and under load in simulation.

mod figures;
mod loads;
mod tiers;

use std::path::PathBuf;

use super::experiment::{Experiment, RunArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A model to measure swaps and recomputation on; without it loads are simulated
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Threads of the measurement [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), requires = "model")]
    threads: Option<u16>,
    /// Rounds of the measurement, over all block sizes in turn; medians are told
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    #[command(flatten)]
    loads: loads::Args,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Some(model) = &args.model else {
        return loads::experiment(&args.loads, &args.run)?.publish(&args.run);
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let tiers = tiers::Tiers {
        model: model.clone(),
        num_threads: args.threads.map_or(cores, usize::from),
        rounds: if args.run.quick {
            args.rounds.min(3)
        } else {
            args.rounds
        },
    };
    tiers.experiment()?.publish(&args.run)
}

/// The simulation, with loads by default.
pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    loads::experiment(&loads::Args::default(), run)
}
