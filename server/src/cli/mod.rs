//! The command line.

mod bench;
mod block_size;
mod cpu_list;
mod generate;
mod options;
mod serve;

use clap::{Parser, Subcommand};

pub use bench::BenchArgs;
pub use block_size::BlockSize;
pub use cpu_list::CpuList;
pub use generate::GenerateArgs;
pub use options::{
    CacheOptions, Device, KvFormat, ModelOptions, NumberFormat, Policy, Preemption,
    SpeculationOptions, Speculative, WeightQuantization,
};
pub use serve::ServeArgs;

/// Serves language models from a paged KV cache.
#[derive(Debug, Parser)]
#[command(name = "pageloom", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model with an OpenAI-compatible API
    Serve(Box<ServeArgs>),
    /// Continue a prompt and print the text as it is generated
    Generate(Box<GenerateArgs>),
    /// Time prefill and decode at several batch sizes
    Bench(Box<BenchArgs>),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever stopped it, with its context.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve::run(*args),
            Command::Generate(args) => generate::run(*args),
            Command::Bench(args) => bench::run(*args),
        }
    }
}
