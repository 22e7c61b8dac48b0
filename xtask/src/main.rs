//! Project tasks: `cargo xtask ci`, `cargo xtask sim`, `cargo xtask kernels`, `cargo xtask gpu-bundle`,
//! `cargo xtask bench cpu` and other experiments.

mod bench;
mod gpu_bundle;
mod kernels;
mod sim;
mod simulated;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs everything a change must pass: the script .ci/run
    Ci {
        /// Arguments for the script
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Simulates the engine: random scenarios, each request compared with itself alone
    Sim(sim::Args),
    /// Builds the CUDA kernels: PTX, cubins, their table and their report
    Kernels(kernels::Args),
    /// Gathers what checks and times the CUDA kernels on a machine with a GPU and without Rust
    GpuBundle(gpu_bundle::Args),
    /// Experiments
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(&error));
    match cli.task {
        Task::Ci { args } => ci(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::GpuBundle(args) => gpu_bundle::run(&args),
        Task::Bench(bench) => bench.run(),
    }
}

/// Says what is wrong, and for an unknown name which ones there are.
fn refuse(error: &clap::Error) -> ! {
    let printed = error.print();
    if error.kind() == ErrorKind::InvalidSubcommand {
        let is_bench = std::env::args().nth(1).is_some_and(|task| task == "bench");
        eprintln!("\nKnown: {}", known(is_bench).join(", "));
    }
    // Nothing else can be done for a reader who is gone.
    std::process::exit(if printed.is_ok() {
        error.exit_code()
    } else {
        1
    })
}

/// Names of experiments, or of tasks.
fn known(of_bench: bool) -> Vec<String> {
    let command = Cli::command();
    let bench = command.find_subcommand("bench").filter(|_| of_bench);
    let names = bench.unwrap_or(&command).get_subcommands();
    names.map(|command| command.get_name().to_owned()).collect()
}

fn ci(args: &[String]) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace's root")?;
    let script = root.join(".ci/run");
    let status = Command::new(&script)
        .args(args)
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !status.success() {
        bail!("{} failed: {status}", script.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_those_of_experiments_or_tasks() {
        let (experiments, tasks) = (known(true), known(false));
        for (name, of_bench) in [("prefix-cache", true), ("ci", false), ("bench", false)] {
            assert_eq!(experiments.iter().any(|known| known == name), of_bench);
            assert_eq!(tasks.iter().any(|known| known == name), !of_bench);
        }
    }
}
