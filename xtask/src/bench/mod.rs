//! Experiments: each prints a table.

mod block_size;
mod cpu;
mod kernels;
mod lengths;
mod preemption;
mod prefix_cache;
mod sharing;
mod speculative;
mod waste;
mod workload;

use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Sweeps block sizes over attention time on the CPU and memory waste
    BlockSize(block_size::Args),
    /// Runs Pageloom and its peers on the CPU: speed, accuracy, memory, start-up, roofline
    Cpu(Box<cpu::Args>),
    /// Runs a random model of 7 billion weights of 4 bits: speed of one stream, memory
    Large(cpu::LargeArgs),
    /// Times the CUDA kernels on a GPU, against its copy rate and arithmetic
    Kernels(kernels::Args),
    /// Replays request traces through the prefix cache: hit rate against pool size, beside Belady
    PrefixCache(prefix_cache::Args),
    /// Simulates loads up to and past what the pool holds: what each preemption mode costs
    Preemption(preemption::Args),
    /// Measures the memory that sharing blocks saves, with a real model on real prompts
    Sharing(sharing::Args),
    /// Decodes with and without speculation by n-grams, with a real model: a summary, an edit of code
    Speculative(speculative::Args),
}

impl Bench {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            Bench::BlockSize(args) => block_size::run(args),
            Bench::Cpu(args) => cpu::run(args),
            Bench::Large(args) => cpu::run_large(args),
            Bench::Kernels(args) => kernels::run(args),
            Bench::PrefixCache(args) => prefix_cache::run(args),
            Bench::Preemption(args) => preemption::run(args),
            Bench::Sharing(args) => sharing::run(args),
            Bench::Speculative(args) => speculative::run(args),
        }
    }
}
