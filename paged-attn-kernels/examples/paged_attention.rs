//! Paged attention without the rest of Pageloom: builds a cache, writes to it, attends, and checks
//! the result against the formula in f64.
//!
//! ```sh
//! cargo run --release -p pageloom-paged-attn-kernels --example paged_attention
//! ```
//!
//! Runs on the first NVIDIA GPU, and on the CPU where there is none.

use std::error::Error;

use half::bf16;
use pageloom_paged_attn_kernels::cuda::{self, Device};
use pageloom_paged_attn_kernels::{
    AttendBatch, CacheLayout, KvDtype, LayerQuery, PagedAttention, cpu,
};

const NUM_HEADS: usize = 8;
const NUM_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const BLOCK_SIZE: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    match Device::open(0) {
        Ok(device) => run(&cuda::Paged::<bf16>::new(&device)?),
        Err(error) => {
            println!("{error}: on the CPU");
            run(&cpu::Paged::new(2))
        }
    }
}

/// Two sequences of 40 tokens: one decodes its last token, the other computes its last 10 at once.
fn run<P: PagedAttention>(device: &P) -> Result<(), Box<dyn Error>> {
    println!("on {}", device.name());
    let mut cache = device.new_cache(CacheLayout {
        num_layers: 1,
        num_blocks: 16,
        block_size: BLOCK_SIZE,
        num_kv_heads: NUM_KV_HEADS,
        head_dim: HEAD_DIM,
        dtype: KvDtype::Bf16,
    })?;

    // Blocks may lie anywhere; a table lists a sequence's in the order of its tokens.
    let tables: [[u32; 3]; 2] = [[7, 2, 11], [0, 5, 3]];
    let num_tokens = 40;
    let kv_width = NUM_KV_HEADS * HEAD_DIM;
    let mut sequences = Vec::new();
    for (seed, table) in (1..).zip(&tables) {
        let keys = numbers(seed, num_tokens * kv_width);
        let values = numbers(seed + 100, num_tokens * kv_width);
        let slot = |t: usize| table[t / BLOCK_SIZE] * BLOCK_SIZE as u32 + (t % BLOCK_SIZE) as u32;
        let slots: Vec<u32> = (0..num_tokens).map(slot).collect();
        let rows = (
            device.upload(&keys, kv_width)?,
            device.upload(&values, kv_width)?,
        );
        device.write_kv(&mut cache, 0, &slots, (&rows.0, &rows.1))?;
        sequences.push((keys, values));
    }

    // A fork that is about to write gets copies of what it shares. Here the last block moves.
    device.copy_blocks(&mut cache, &[(11, 14)])?;

    let queries_of = [1, 10];
    let batch = AttendBatch {
        query_offsets: &[0, 1, 11],
        context_lens: &[40, 40],
        block_tables: &[7, 2, 14, 0, 5, 3],
        table_offsets: &[0, 3, 6],
    };
    let mut plan = device.new_plan()?;
    device.plan(&mut plan, &cache, NUM_HEADS, &batch)?;
    let width = NUM_HEADS * HEAD_DIM;
    let queries = numbers(7, 11 * width);
    let q = device.upload(&queries, width)?;
    let mut out = device.upload(&vec![f32::NAN; 11 * width], width)?;
    let layer = LayerQuery {
        layer: 0,
        q: &q,
        out: &mut out,
        scale: 1.0 / (HEAD_DIM as f32).sqrt(),
    };
    device.attend(&cache, &mut plan, layer)?;

    let out = device.download(&out)?;
    let (mut row, mut difference, mut size) = (0, 0.0, 0.0);
    for ((keys, values), num_queries) in sequences.iter().zip(queries_of) {
        for i in 0..num_queries {
            let visible = num_tokens - num_queries + i + 1;
            for head in 0..NUM_HEADS {
                let at = (row * NUM_HEADS + head) * HEAD_DIM;
                let expected = attend(&queries[at..at + HEAD_DIM], keys, values, (head, visible));
                for (found, expected) in out[at..at + HEAD_DIM].iter().zip(expected) {
                    difference += (f64::from(*found) - expected).powi(2);
                    size += expected * expected;
                }
            }
            row += 1;
        }
    }
    let error = (difference / size).sqrt();
    println!("{row} rows, relative error {error:.1e}");
    if error.is_nan() || error > 1e-2 {
        return Err(format!("the relative error is {error:.1e}").into());
    }
    Ok(())
}

/// `softmax(q K^T / sqrt(head_dim)) V` over the first `visible` tokens.
fn attend(q: &[f32], keys: &[f32], values: &[f32], (head, visible): (usize, usize)) -> Vec<f64> {
    let kv_head = head / (NUM_HEADS / NUM_KV_HEADS);
    let row = |rows: &[f32], t: usize| -> Vec<f64> {
        let start = (t * NUM_KV_HEADS + kv_head) * HEAD_DIM;
        rows[start..start + HEAD_DIM]
            .iter()
            .map(|&x| f64::from(x))
            .collect()
    };
    let dot = |key: Vec<f64>| -> f64 { q.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum() };
    let scores = (0..visible).map(|t| dot(row(keys, t)) / (HEAD_DIM as f64).sqrt());
    let weights: Vec<f64> = scores.map(f64::exp).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; HEAD_DIM];
    for (t, weight) in weights.iter().enumerate() {
        for (out, v) in out.iter_mut().zip(row(values, t)) {
            *out += weight / sum * v;
        }
    }
    out
}

/// Numbers between -1 and 1 that bf16 holds exactly, so that rounding them changes nothing.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) % 255) as f32 / 128.0 - 0.992_187_5
    };
    (0..count).map(|_| next()).collect()
}
