//! What a block size costs: attention, memory, copies, and all together on a real model; the paper's
//! figure 18b and section 7.2, on the CPU.

mod costs;
mod end_to_end;
mod results;

use std::path::PathBuf;

use anyhow::ensure;
use clap::ValueEnum;
use pageloom_engine::BlockSizeInputs;
use pageloom_model_runner::Checkpoint;
use pageloom_paged_attn_kernels::KvDtype;
use serde::Serialize;

use self::results::Row;
use super::experiment::RunArgs;
use super::lengths::{self, Request};
use super::resume::Points;
use super::workload::Model;

const BLOCK_SIZES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

#[derive(clap::Args, Serialize, Clone)]
pub(crate) struct Args {
    #[command(flatten)]
    #[serde(skip)]
    run: RunArgs,
    /// A model to run the requests on, end to end, in a capped pool; its own heads are then measured.
    /// Without it that column stays empty
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Lengths of requests: a CSV file with columns prompt_len and output_len, plain or gzip. Without it they are
    /// drawn from the paper's ShareGPT requests (means 161 and 338 tokens)
    #[arg(long, value_name = "FILE")]
    lengths: Option<PathBuf>,
    /// Requests to draw
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    num_requests: u32,
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
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Format of the cache
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Timed rounds over all block sizes; the median is told
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
    /// Slots of the pool that the model runs in: the paper's for OPT-13B, over four, as its lengths are
    #[arg(long, default_value_t = 3932)]
    slots: usize,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
enum Dtype {
    F32,
    Bf16,
    Int8,
}

impl Dtype {
    fn kv(self) -> KvDtype {
        match self {
            Dtype::F32 => KvDtype::F32,
            Dtype::Bf16 => KvDtype::Bf16,
            Dtype::Int8 => KvDtype::Int8,
        }
    }
}

/// A part of the measurements that is kept when a run is interrupted.
#[derive(Serialize)]
struct Part<'a> {
    what: &'static str,
    block_size: Option<usize>,
    args: &'a Args,
    /// Their lengths: a file of the same name may have changed since.
    requests: &'a [Request],
    quick: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let args = &args.with_heads_of_model()?;
    ensure!(
        args.slots >= 2048,
        "--slots must be at least 2048, which the longest request may need"
    );
    let mut requests = match &args.lengths {
        Some(path) => lengths::read(path)?,
        None => lengths::draw(args.num_requests as usize, args.seed)?,
    };
    if args.run.quick {
        requests.truncate(300);
    }
    let saved = Points::open("block-size", &args.run)?;
    let part = |what, block_size| Part {
        what,
        block_size,
        args,
        requests: &requests,
        quick: args.run.quick,
    };
    let kernels = saved.all(&[part("kernel", None)], 1, |_| {
        costs::kernels(args, &requests)
    })?;
    let kernels = kernels.into_iter().flatten();
    let sizes = |what| BLOCK_SIZES.map(|size| part(what, Some(size)));
    let size = |part: &Part<'_>| part.block_size.unwrap_or(1);
    let others = saved.all(&sizes("memory and copies"), 1, |part| {
        costs::memory_and_copies(args, &requests, size(part))
    })?;
    let tokens_per_s = match &args.model {
        None => vec![None; BLOCK_SIZES.len()],
        Some(model) => saved.all(&sizes("end to end"), 1, |part| {
            end_to_end::tokens_per_s(args, model, &requests, size(part)).map(Some)
        })?,
    };
    let columns = BLOCK_SIZES
        .into_iter()
        .zip(kernels)
        .zip(others)
        .zip(tokens_per_s);
    let rows: Vec<Row> = columns
        .map(|(((block_size, kernels), other), tokens_per_s)| Row {
            block_size,
            kernels,
            other,
            tokens_per_s,
        })
        .collect();
    results::experiment(args, &requests, &rows).publish(&args.run)?;
    saved.forget()
}

impl Args {
    fn with_heads_of_model(&self) -> anyhow::Result<Self> {
        let mut args = self.clone();
        if let Some(path) = &self.model {
            let checkpoint = Checkpoint::open(path)?;
            let model = checkpoint.config();
            args.num_heads = model.num_heads;
            args.num_kv_heads = model.num_kv_heads;
            args.head_dim = model.head_dim;
        }
        Ok(args)
    }

    fn attention(&self) -> Model {
        Model {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            dtype: self.dtype.kv(),
        }
    }

    /// What the recommendation is made from.
    fn inputs(&self, requests: &[Request]) -> BlockSizeInputs {
        let mean = |f: fn(&Request) -> usize| {
            requests.iter().map(f).sum::<usize>() as f64 / requests.len() as f64
        };
        BlockSizeInputs {
            head_dim: self.head_dim,
            kv_dtype: self.dtype.kv(),
            mean_prompt: mean(|r| r.prompt),
            mean_output: mean(|r| r.output),
        }
    }
}
