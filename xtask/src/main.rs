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
use clap::{Parser, Subcommand};

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
    match Cli::parse().task {
        Task::Ci { args } => ci(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::GpuBundle(args) => gpu_bundle::run(&args),
        Task::Bench(bench) => bench.run(),
    }
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
