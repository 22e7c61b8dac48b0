//! The parts of a block size's cost, each alone.

use std::time::Instant;

use pageloom_paged_attn_kernels::cpu::{ThreadPool, copy_blocks};
use pageloom_paged_attn_kernels::{CacheLayout, KvCache};
use serde::{Deserialize, Serialize};

use super::super::kernel::median;
use super::super::lengths::Request;
use super::super::waste;
use super::super::workload::{Blocks, Order, Sequences, Workload};
use super::{Args, BLOCK_SIZES};

/// Attention of one layer, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Kernels {
    pub(super) decode_us: f64,
    pub(super) prefill_us: f64,
}

/// For each block size.
pub(super) fn kernels(args: &Args, requests: &[Request]) -> anyhow::Result<Vec<Kernels>> {
    // Sequences in the middle of their output.
    let contexts = requests
        .iter()
        .cycle()
        .map(|r| r.prompt + r.output.div_ceil(2));
    let decodes = Sequences {
        context_lens: contexts.take(args.concurrency.into()).collect(),
        num_queries: 1,
    };
    let prefill = Sequences {
        context_lens: vec![args.prefill.into()],
        num_queries: args.prefill.into(),
    };
    let pool = ThreadPool::new(args.threads.into());
    let decode_us = times(args, &decodes, &pool)?;
    let prefill_us = times(args, &prefill, &pool)?;
    let both = decode_us.into_iter().zip(prefill_us);
    let kernels = both.map(|(decode_us, prefill_us)| Kernels {
        decode_us,
        prefill_us,
    });
    Ok(kernels.collect())
}

/// Block sizes take turns, so that a machine that slows down slows all of them; each round begins with
/// another, so that none always runs when others on the machine do.
fn times(args: &Args, sequences: &Sequences, pool: &ThreadPool) -> anyhow::Result<Vec<f64>> {
    let mut workloads = Vec::new();
    for size in BLOCK_SIZES {
        let order = Order::Shuffled(args.seed);
        let blocks = Blocks { size, order };
        workloads.push(Workload::new(pool, args.attention(), blocks, sequences)?);
    }
    let mut samples = vec![Vec::new(); workloads.len()];
    let rounds = if args.run.quick {
        args.rounds.min(7)
    } else {
        args.rounds
    };
    for round in 0..=usize::from(rounds) {
        for turn in 0..workloads.len() {
            let i = (round + turn) % workloads.len();
            let time_us = workloads[i].run(pool)?;
            // The first round warms up.
            if round > 0 {
                samples[i].push(time_us);
            }
        }
    }
    Ok(samples.into_iter().map(median).collect())
}

/// Memory and copies.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Other {
    /// Of the blocks that sequences hold, what carries no token.
    pub(super) waste_percent: f64,
    /// The same if every sequence reserved the longest request's length instead.
    pub(super) reserved_percent: f64,
    /// A copy of one block of one layer, as a fork's first write makes it.
    pub(super) copy_us: f64,
}

pub(super) fn memory_and_copies(
    args: &Args,
    requests: &[Request],
    block_size: usize,
) -> anyhow::Result<Other> {
    let (usage, sequence_steps) = waste::play(requests, block_size, args.concurrency.into())?;
    let longest = requests.iter().map(|r| r.prompt + r.output).max();
    Ok(Other {
        waste_percent: usage.waste_percent(),
        reserved_percent: usage.wasted_by_reserving(longest.unwrap_or(1), sequence_steps),
        copy_us: copy_us(args, block_size)?,
    })
}

/// Pairs of a launch, in the layers of a cache larger than the processor's.
const NUM_COPIES: usize = 32;
const NUM_LAYERS: usize = 4;
const CACHE_SLOTS: usize = 1 << 15;

fn copy_us(args: &Args, block_size: usize) -> anyhow::Result<f64> {
    let model = args.attention();
    let pool = ThreadPool::new(args.threads.into());
    let num_blocks = CACHE_SLOTS / block_size;
    let mut cache = KvCache::new(CacheLayout {
        num_layers: NUM_LAYERS,
        num_blocks,
        block_size,
        num_kv_heads: model.num_kv_heads,
        head_dim: model.head_dim,
        dtype: model.dtype,
    })?;
    let mut samples = Vec::new();
    for round in 0..=usize::from(args.rounds) {
        // Other blocks each time, far apart; no block is both source and destination.
        let block = |i: usize| ((round * NUM_COPIES + i) * 2) % num_blocks;
        let pairs = (0..NUM_COPIES).map(|i| (block(i) as u32, block(i) as u32 + 1));
        let pairs: Vec<(u32, u32)> = pairs.collect();
        let began = Instant::now();
        copy_blocks(&pool, &mut cache, &pairs)?;
        let copied = (NUM_COPIES * NUM_LAYERS) as f64;
        // The first rounds are those that take the memory from the system.
        samples.push(began.elapsed().as_secs_f64() * 1e6 / copied);
    }
    Ok(median(samples))
}
