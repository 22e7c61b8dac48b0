//! Kernel time and memory waste by block size: the paper's figure 18 and section 7.2, on the CPU.

use std::path::PathBuf;

use anyhow::ensure;
use clap::ValueEnum;
use pageloom_paged_attn_kernels::KvDtype;
use pageloom_paged_attn_kernels::cpu::{Isa, ThreadPool};

use super::lengths::{self, Request};
use super::waste;
use super::workload::{Model, Sequences, Workload};

const BLOCK_SIZES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Lengths of requests: a CSV file of prompt_len,output_len, plain or .gz. Without it they are
    /// drawn from the paper's ShareGPT requests (means 161 and 338 tokens)
    #[arg(long)]
    lengths: Option<PathBuf>,
    /// Requests to draw
    #[arg(long, default_value_t = 2000)]
    num_requests: usize,
    /// Seed of drawn lengths and of block order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sequences that run at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Prompt tokens of a prefill
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=8192))]
    prefill: u16,
    /// Threads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// Format of the cache
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Timed rounds over all block sizes; the median is printed
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Query heads
    #[arg(long, default_value_t = 9)]
    num_heads: usize,
    /// Key-value heads
    #[arg(long, default_value_t = 3)]
    num_kv_heads: usize,
    /// Elements a head
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

/// One line of the table.
struct Row {
    block_size: usize,
    decode_us: f64,
    prefill_us: f64,
    waste_percent: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.num_requests > 0, "--num-requests must not be zero");
    let requests = match &args.lengths {
        Some(path) => lengths::read(path)?,
        None => lengths::draw(args.num_requests, args.seed)?,
    };
    let concurrency = usize::from(args.concurrency);
    let pool = ThreadPool::new(args.threads.into());
    // Sequences in the middle of their output.
    let contexts = requests
        .iter()
        .cycle()
        .map(|r| r.prompt + r.output.div_ceil(2));
    let decodes = Sequences {
        context_lens: contexts.take(concurrency).collect(),
        num_queries: 1,
    };
    let prefill = Sequences {
        context_lens: vec![args.prefill.into()],
        num_queries: args.prefill.into(),
    };
    let decode_us = kernel_times(args, &decodes, &pool)?;
    let prefill_us = kernel_times(args, &prefill, &pool)?;
    let mut rows = Vec::new();
    let mut reserved = 0.0;
    for (i, block_size) in BLOCK_SIZES.into_iter().enumerate() {
        let (usage, sequence_steps) = waste::play(&requests, block_size, concurrency)?;
        let longest = requests.iter().map(|r| r.prompt + r.output).max();
        reserved = usage.wasted_by_reserving(longest.unwrap_or(1), sequence_steps);
        rows.push(Row {
            block_size,
            decode_us: decode_us[i],
            prefill_us: prefill_us[i],
            waste_percent: usage.waste_percent(),
        });
    }
    print_table(args, &requests, &pool, &rows);
    println!(
        "\nReserving the longest request's length for each sequence would waste {reserved:.1} %."
    );
    Ok(())
}

/// Microseconds of one layer's attention, for each block size.
///
/// Block sizes take turns, so that a machine that slows down slows all of them.
fn kernel_times(args: &Args, sequences: &Sequences, pool: &ThreadPool) -> anyhow::Result<Vec<f64>> {
    let model = Model {
        num_heads: args.num_heads,
        num_kv_heads: args.num_kv_heads,
        head_dim: args.head_dim,
        dtype: match args.dtype {
            Dtype::F32 => KvDtype::F32,
            Dtype::Bf16 => KvDtype::Bf16,
        },
    };
    let mut workloads = Vec::new();
    for block_size in BLOCK_SIZES {
        workloads.push(Workload::new(
            pool, model, block_size, sequences, args.seed,
        )?);
    }
    let mut samples = vec![Vec::new(); workloads.len()];
    for round in 0..=args.rounds {
        for (workload, samples) in workloads.iter_mut().zip(&mut samples) {
            let time_us = workload.run(pool)?;
            // The first round warms up.
            if round > 0 {
                samples.push(time_us);
            }
        }
    }
    Ok(samples.into_iter().map(median).collect())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn print_table(args: &Args, requests: &[Request], pool: &ThreadPool, rows: &[Row]) {
    let mean = |f: fn(&Request) -> usize| {
        requests.iter().map(f).sum::<usize>() as f64 / requests.len() as f64
    };
    println!(
        "{} requests, mean {:.0} prompt and {:.0} output tokens, {} at once",
        requests.len(),
        mean(|r| r.prompt),
        mean(|r| r.output),
        args.concurrency,
    );
    println!(
        "one layer of {} query and {} key-value heads of {}, {} cache, {} threads, {}; \
         median of {} rounds\n",
        args.num_heads,
        args.num_kv_heads,
        args.head_dim,
        args.dtype
            .to_possible_value()
            .map_or(String::new(), |v| v.get_name().to_owned()),
        pool.num_threads(),
        Isa::detect().name(),
        args.rounds,
    );
    let best = |f: fn(&Row) -> f64| rows.iter().map(f).fold(f64::INFINITY, f64::min);
    let (best_decode, best_prefill) = (best(|r| r.decode_us), best(|r| r.prefill_us));
    println!("| block size | decode us | over best | prefill us | over best | memory waste |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for row in rows {
        println!(
            "| {} | {:.0} | {:.2} | {:.0} | {:.2} | {:.1} % |",
            row.block_size,
            row.decode_us,
            row.decode_us / best_decode,
            row.prefill_us,
            row.prefill_us / best_prefill,
            row.waste_percent,
        );
    }
}
