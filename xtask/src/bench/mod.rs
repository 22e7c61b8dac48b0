//! Experiments: each prints a table.

mod block_size;
mod lengths;
mod waste;
mod workload;

use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Sweeps block sizes over attention time on the CPU and memory waste
    BlockSize(block_size::Args),
}

impl Bench {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            Bench::BlockSize(args) => block_size::run(args),
        }
    }
}
