//! Experiments: each prints a table.

mod batch_size;
mod block_size;
mod cpu;
mod csv;
mod experiment;
mod fleet;
mod improvements;
mod kernel;
mod kernels;
mod lengths;
mod measured;
mod memory_waste;
mod page_size;
mod paper;
mod plot;
mod preemption;
mod prefix_cache;
mod report;
mod resume;
mod sampling;
mod shared_prefix;
mod speculative;
mod throughput;
mod trace;
mod verify;
mod waste;
mod whole_file;
mod workload;

use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// How many requests each system computes at once (figure 13), simulated or measured
    BatchSize(batch_size::Args),
    /// Sweeps block sizes over attention time on the CPU and memory waste
    BlockSize(Box<block_size::Args>),
    /// Runs Pageloom and its peers on the CPU: speed, accuracy, memory, start-up, roofline
    Cpu(Box<cpu::Args>),
    /// Simulates fleets of up to 1,000 replicas behind a router: round robin, by load, by prefix
    Fleet(fleet::Args),
    /// Simulates what Pageloom adds to the paper's own system
    Improvements(improvements::Args),
    /// Times attention over pages against attention over contiguous keys, with the same kernel
    Kernel(kernel::Args),
    /// Runs a random model of 7 billion weights of 4 bits: speed of one stream, memory
    Large(cpu::LargeArgs),
    /// Times the CUDA kernels on a GPU, against its copy rate and arithmetic
    Kernels(kernels::Args),
    /// What the pool's memory is used for under each system (figure 2), simulated or measured
    MemoryWaste(memory_waste::Args),
    /// Simulates latency by block size, preempting in either way (figures 18b and 19b)
    PageSize(page_size::Args),
    /// Replays request traces through the prefix cache: hit rate against pool size, beside Belady
    PrefixCache(prefix_cache::Args),
    /// Simulates loads up to and past what the pool holds: what each preemption mode costs
    Preemption(Box<preemption::Args>),
    /// Joins the results of experiments into benches/REPORT.md
    Report(report::Args),
    /// Several samples of a prompt, simulated: memory saved, rate sustained (figures 14 and 15); or
    /// with a model and prompts, measured: memory saved
    Sampling(sampling::Args),
    /// Translations behind a prefix that all requests share (figure 16), simulated or measured
    SharedPrefix(shared_prefix::Args),
    /// Decodes with and without speculation by n-grams, with a real model: a summary, an edit of code
    Speculative(speculative::Args),
    /// The rate that each system sustains (figures 12 and 17), simulated or measured
    Throughput(throughput::Args),
    /// Simulates a trace of real arrivals under systems of your choice
    Trace(trace::Args),
    /// Prints the checks of all experiments; fails if a required one falls short
    Verify(verify::Args),
}

impl Bench {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match self {
            Bench::BatchSize(args) => batch_size::run(args),
            Bench::Fleet(args) => fleet::run(args),
            Bench::Improvements(args) => improvements::run(args),
            Bench::MemoryWaste(args) => memory_waste::run(args),
            Bench::PageSize(args) => page_size::run(args),
            Bench::Sampling(args) => sampling::run(args),
            Bench::BlockSize(args) => block_size::run(args),
            Bench::Cpu(args) => cpu::run(args),
            Bench::Kernel(args) => kernel::run(args),
            Bench::Large(args) => cpu::run_large(args),
            Bench::Kernels(args) => kernels::run(args),
            Bench::PrefixCache(args) => prefix_cache::run(args),
            Bench::Preemption(args) => preemption::run(args),
            Bench::Report(args) => report::run(args),
            Bench::SharedPrefix(args) => shared_prefix::run(args),
            Bench::Speculative(args) => speculative::run(args),
            Bench::Throughput(args) => throughput::run(args),
            Bench::Trace(args) => trace::run(args),
            Bench::Verify(args) => verify::run(args),
        }
    }
}
