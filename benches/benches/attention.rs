//! Paged attention on the CPU: decode against a plain read of the same memory, prefill against
//! arithmetic, and pages of 16 in random order against one contiguous run.
//!
//! SmolLM2-135M's shape: 9 query heads, 3 key-value heads of 64. Each iteration takes the next
//! layer of a cache larger than L2, as the layers of a model do.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageloom_paged_attn_kernels::cpu::{AttendArgs, AttendPlan, ThreadPool, attend, write_kv};
use pageloom_paged_attn_kernels::{AttendBatch, CacheLayout, KvCache, KvDtype, Rows, RowsMut};

const NUM_HEADS: usize = 9;
const NUM_KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;

/// Sequences of one length in a cache of several layers.
struct Setup {
    cache: KvCache,
    plan: AttendPlan,
    q: Vec<f32>,
    out: Vec<f32>,
    layer: usize,
}

impl Setup {
    fn new(
        pool: &ThreadPool,
        layout: CacheLayout,
        num_seqs: usize,
        num_queries: usize,
        context_len: usize,
        shuffled: bool,
    ) -> Self {
        let blocks_each = context_len.div_ceil(layout.block_size);
        let layout = CacheLayout {
            num_blocks: num_seqs * blocks_each,
            ..layout
        };
        let mut cache = KvCache::new(layout).expect("memory for the cache");
        let mut block_tables: Vec<u32> = (0..layout.num_blocks as u32).collect();
        let mut state = 1u64;
        for i in (1..block_tables.len()).rev().filter(|_| shuffled) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            block_tables.swap(i, (state >> 33) as usize % (i + 1));
        }
        let width = NUM_KV_HEADS * HEAD_DIM;
        let slots: Vec<u32> = (0..layout.num_slots() as u32).collect();
        let kv: Vec<f32> = (0..slots.len() * width)
            .map(|i| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.5)
            .collect();
        for layer in 0..layout.num_layers {
            let rows = Rows::new(&kv, width);
            write_kv(pool, &mut cache, layer, &slots, rows, rows).expect("slots in range");
        }
        let ascending = |step: usize| (0..=num_seqs as u32).map(|s| s * step as u32).collect();
        let (query_offsets, table_offsets): (Vec<u32>, Vec<u32>) =
            (ascending(num_queries), ascending(blocks_each));
        let batch = AttendBatch {
            query_offsets: &query_offsets,
            context_lens: &vec![context_len as u32; num_seqs],
            block_tables: &block_tables,
            table_offsets: &table_offsets,
        };
        let mut plan = AttendPlan::new();
        plan.plan(cache.layout(), NUM_HEADS, &batch, pool.num_threads())
            .expect("a valid batch");
        let num_rows = num_seqs * num_queries * NUM_HEADS * HEAD_DIM;
        Self {
            cache,
            plan,
            q: kv.iter().cycle().take(num_rows).map(|x| x * 4.0).collect(),
            out: vec![0.0; num_rows],
            layer: 0,
        }
    }

    fn run(&mut self, pool: &ThreadPool) {
        self.layer = (self.layer + 1) % self.cache.layout().num_layers;
        let stride = NUM_HEADS * HEAD_DIM;
        let args = AttendArgs {
            layer: self.layer,
            q: Rows::new(&self.q, stride),
            out: RowsMut::new(&mut self.out, stride),
            scale: 0.125,
        };
        attend(pool, &self.cache, &mut self.plan, args).expect("a valid plan");
        black_box(&mut self.out);
    }
}

fn layout(block_size: usize, dtype: KvDtype, num_layers: usize) -> CacheLayout {
    CacheLayout {
        num_layers,
        num_blocks: 1,
        block_size,
        num_kv_heads: NUM_KV_HEADS,
        head_dim: HEAD_DIM,
        dtype,
    }
}

/// Layers for a cache of about 256 MiB.
fn layers(bytes_per_layer: usize) -> usize {
    (256usize << 20).div_ceil(bytes_per_layer).clamp(2, 64)
}

/// Adds 16-lane sums of the data: as fast as the machine reads memory.
fn read(pool: &ThreadPool, data: &[f32]) -> f32 {
    let chunk = 64 * 1024;
    let chunks: Vec<&[f32]> = data.chunks(chunk).collect();
    let sums: Vec<std::sync::atomic::AtomicU32> = chunks.iter().map(|_| 0.into()).collect();
    pool.for_each(chunks.len(), |i| {
        let mut sum = [0.0f32; 64];
        for row in chunks[i].chunks_exact(64) {
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
        let total: f32 = sum.iter().sum();
        sums[i].store(total.to_bits(), std::sync::atomic::Ordering::Relaxed);
    });
    sums.iter()
        .map(|s| f32::from_bits(s.load(std::sync::atomic::Ordering::Relaxed)))
        .sum()
}

fn decode(c: &mut Criterion) {
    let pool = ThreadPool::new(2);
    let mut group = c.benchmark_group("decode");
    group.sample_size(20);
    let data = vec![1.0f32; 64 << 20];
    // A cache of the same size as below is read in pieces of a layer's size.
    let mut at = 0;
    let piece = 3 << 20;
    group.throughput(Throughput::Bytes(4 * piece as u64));
    group.bench_function("plain read", |b| {
        b.iter(|| {
            at = (at + piece) % (data.len() - piece);
            black_box(read(&pool, &data[at..at + piece]))
        })
    });
    for (num_seqs, context_len) in [(1, 256), (8, 256), (32, 256), (64, 128), (1, 8192)] {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            let head_bytes = HEAD_DIM * dtype.bytes() + dtype.scale_bytes();
            let bytes = num_seqs * context_len * NUM_KV_HEADS * 2 * head_bytes;
            group.throughput(Throughput::Bytes(bytes as u64));
            for (name, block_size, shuffled) in [
                ("paged 16", 16, true),
                ("contiguous", 256.min(context_len), false),
            ] {
                let layout = layout(block_size, dtype, layers(bytes));
                let mut setup = Setup::new(&pool, layout, num_seqs, 1, context_len, shuffled);
                let id = format!("{num_seqs}x{context_len} {dtype:?}");
                group.bench_function(BenchmarkId::new(name, id), |b| b.iter(|| setup.run(&pool)));
            }
        }
    }
    group.finish();
}

fn prefill(c: &mut Criterion) {
    let pool = ThreadPool::new(2);
    let mut group = c.benchmark_group("prefill");
    group.sample_size(20);
    for (num_seqs, num_queries, context_len) in
        [(1, 128, 128), (4, 128, 128), (1, 512, 512), (1, 512, 4096)]
    {
        // Two products of two operations for each visible key and dimension.
        let visible: usize = (0..num_queries).map(|i| context_len - i).sum();
        let flops = num_seqs * visible * NUM_HEADS * HEAD_DIM * 4;
        group.throughput(Throughput::Elements(flops as u64));
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            for (name, block_size, shuffled) in [
                ("paged 16", 16, true),
                ("contiguous", 256.min(context_len), false),
            ] {
                let layout = layout(block_size, dtype, 8);
                let mut setup =
                    Setup::new(&pool, layout, num_seqs, num_queries, context_len, shuffled);
                let id = format!("{num_seqs}x{num_queries} of {context_len} {dtype:?}");
                group.bench_function(BenchmarkId::new(name, id), |b| b.iter(|| setup.run(&pool)));
            }
        }
    }
    group.finish();
}

criterion_group!(benches, decode, prefill);
criterion_main!(benches);
