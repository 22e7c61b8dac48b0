//! What only moves bytes: writes into the cache, norms, activations, block copies.

use anyhow::Result;
use half::bf16;
use pageloom_paged_attn_kernels::cuda::blocks::{
    BlockPairs, KvRows, WriteKvArgs, copy_blocks, swap_blocks, write_kv,
};
use pageloom_paged_attn_kernels::cuda::elementwise::{
    ActivationArgs, NormArgs, rms_norm, silu_mul,
};
use pageloom_paged_attn_kernels::cuda::{Buffer, KvCache};
use pageloom_paged_attn_kernels::{CacheLayout, KvDtype};

use super::Measure;
use super::timing::Bench;
use crate::bench::lengths::SplitMix;

const TABLE: &str = "Bytes moved";
const NUM_TOKENS: usize = 8192;
const WIDTH: usize = 4096;

const LAYOUT: CacheLayout = CacheLayout {
    num_layers: 8,
    num_blocks: 2 * NUM_TOKENS / 16,
    block_size: 16,
    num_kv_heads: 8,
    head_dim: 128,
    dtype: KvDtype::Bf16,
};

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    write(bench)?;
    norm(bench)?;
    activation(bench)?;
    copies(bench)?;
    swaps(bench)
}

/// 8,192 tokens of 8 heads of 128 into random slots.
fn write(bench: &mut Bench) -> Result<()> {
    let width = LAYOUT.num_kv_heads * LAYOUT.head_dim;
    let mut cache = KvCache::new(&bench.device, LAYOUT)?;
    cache.fill(&bench.stream, 0)?;
    let k = bench.activations(LAYOUT.num_layers * NUM_TOKENS * width)?;
    let v = bench.activations(LAYOUT.num_layers * NUM_TOKENS * width)?;
    let mut slots: Buffer<u32> = bench.device.alloc(NUM_TOKENS)?;
    slots.upload(
        &bench.stream,
        &permutation(LAYOUT.num_slots())[..NUM_TOKENS],
    )?;
    let times = bench.time(LAYOUT.num_layers, |layer| {
        let first = layer * NUM_TOKENS * width;
        let args = WriteKvArgs {
            layer,
            slots: &slots,
            num_tokens: NUM_TOKENS,
            rows: KvRows::Apart {
                k: k.rows_from(first, width),
                v: v.rows_from(first, width),
            },
            rotary: None,
        };
        write_kv(&bench.stream, &mut cache, &args)
    })?;
    let bytes = 2 * 2 * NUM_TOKENS * width * size_of::<bf16>();
    let measure = bench.percent_of_copy(bytes, times);
    bench.add(
        TABLE,
        format!("write_kv, {NUM_TOKENS} tokens of {width}"),
        times,
        measure,
    );
    Ok(())
}

/// RMS norm with a fused residual: reads two rows and writes two.
fn norm(bench: &mut Bench) -> Result<()> {
    let len = NUM_TOKENS * WIDTH;
    let num_copies = bench.num_copies(4 * len * size_of::<bf16>());
    let x = bench.activations(num_copies * len)?;
    let weight = bench.activations(WIDTH)?;
    let mut residual = bench.activations(num_copies * len)?;
    let mut out = bench.device.alloc::<bf16>(num_copies * len)?;
    let times = bench.time(num_copies, |copy| {
        let args = NormArgs {
            x: Some(x.rows_from(copy * len, WIDTH)),
            residual: Some(residual.rows_mut_from(copy * len, WIDTH)),
            out: out.rows_mut_from(copy * len, WIDTH),
            weight: Some(weight.rows(WIDTH)),
            bias: None,
            num_tokens: NUM_TOKENS,
            num_heads: 1,
            width: WIDTH,
            eps: 1e-5,
        };
        rms_norm(&bench.stream, &args)
    })?;
    let measure = bench.percent_of_copy(4 * len * size_of::<bf16>(), times);
    bench.add(
        TABLE,
        format!("rms_norm + residual, {NUM_TOKENS} rows of {WIDTH}"),
        times,
        measure,
    );
    Ok(())
}

/// Gate and up side by side in a row, as a fused projection writes them.
fn activation(bench: &mut Bench) -> Result<()> {
    let len = NUM_TOKENS * WIDTH;
    let num_copies = bench.num_copies(3 * len * size_of::<bf16>());
    let x = bench.activations(num_copies * 2 * len)?;
    let mut out = bench.device.alloc::<bf16>(num_copies * len)?;
    let times = bench.time(num_copies, |copy| {
        let args = ActivationArgs {
            x: Some(x.rows_from(2 * copy * len, 2 * WIDTH)),
            up: Some(x.rows_from(2 * copy * len + WIDTH, 2 * WIDTH)),
            out: out.rows_mut_from(copy * len, WIDTH),
            num_rows: NUM_TOKENS,
            width: WIDTH,
        };
        silu_mul(&bench.stream, &args)
    })?;
    let measure = bench.percent_of_copy(3 * len * size_of::<bf16>(), times);
    bench.add(
        TABLE,
        format!("silu_mul, {NUM_TOKENS} rows of {WIDTH}"),
        times,
        measure,
    );
    Ok(())
}

/// 1,000 scattered blocks of 16 tokens, all layers at once.
fn copies(bench: &mut Bench) -> Result<()> {
    let layout = CacheLayout {
        num_blocks: 4096,
        ..LAYOUT
    };
    let mut cache = KvCache::new(&bench.device, layout)?;
    cache.fill(&bench.stream, 0x5a)?;
    let blocks = permutation(layout.num_blocks);
    let pairs: Vec<(u32, u32)> = blocks
        .chunks_exact(2)
        .map(|p| (p[0], p[1]))
        .take(1000)
        .collect();
    let mut on_device = BlockPairs::new(&bench.device)?;
    on_device.set(&bench.stream, &pairs)?;
    let times = bench.time(4, |_| copy_blocks(&bench.stream, &mut cache, &on_device))?;
    let block_bytes = layout.bytes_per_block()?;
    let measure = bench.percent_of_copy(2 * pairs.len() * block_bytes, times);
    let mib = (pairs.len() * block_bytes) >> 20;
    bench.add(
        TABLE,
        format!("copy_blocks, 1,000 blocks of 16 tokens ({mib} MiB)"),
        times,
        measure,
    );
    Ok(())
}

/// Figure 19a of the paper: what goes to the host and comes back when a sequence is preempted.
fn swaps(bench: &mut Bench) -> Result<()> {
    const NUM_TOKENS: usize = 256;
    for block_size in [8, 16, 32, 64, 128] {
        let layout = CacheLayout {
            num_layers: 40,
            num_blocks: 2 * NUM_TOKENS / block_size,
            block_size,
            num_kv_heads: 40,
            ..LAYOUT
        };
        let mut device = KvCache::new(&bench.device, layout)?;
        let mut host = KvCache::new_pinned(&bench.device, layout)?;
        device.fill(&bench.stream, 0x5a)?;
        host.fill(&bench.stream, 0xa5)?;
        let pairs: Vec<(u32, u32)> = permutation(layout.num_blocks)
            .into_iter()
            .zip(0..)
            .take(NUM_TOKENS / block_size)
            .collect();
        let bytes = pairs.len() * layout.bytes_per_block()?;
        let back: Vec<(u32, u32)> = pairs.iter().map(|&(from, to)| (to, from)).collect();
        let mut on_device = BlockPairs::new(&bench.device)?;
        for (way, pairs) in [("out", pairs), ("in", back)] {
            on_device.set(&bench.stream, &pairs)?;
            let times = bench.time(1, |_| match way {
                "out" => swap_blocks(&bench.stream, &device, &mut host, &on_device),
                _ => swap_blocks(&bench.stream, &host, &mut device, &on_device),
            })?;
            let measure = Measure::GbPerS(bytes as f64 / times.median / 1e6);
            let case = format!("{way}, blocks of {block_size} ({} MiB)", bytes >> 20);
            let table = "Swaps of 256 tokens of OPT-13B's shape (figure 19a)";
            bench.add(table, case, times, measure);
        }
    }
    Ok(())
}

fn permutation(n: usize) -> Vec<u32> {
    let mut random = SplitMix(n as u64);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, (random.next() % (i as u64 + 1)) as usize);
    }
    order
}
