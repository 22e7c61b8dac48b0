//! Experiments: each prints a table.

mod block_size;
mod lengths;
mod prefix_cache;
mod waste;
mod workload;

use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Sweeps block sizes over attention time on the CPU and memory waste
    BlockSize(block_size::Args),
    /// Replays request traces through the prefix cache: hit rate against pool size, beside Belady
    PrefixCache(prefix_cache::Args),
}

impl Bench {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            Bench::BlockSize(args) => block_size::run(args),
            Bench::PrefixCache(args) => prefix_cache::run(args),
        }
    }
}
