//! Attention over random keys, timed.

use std::time::Instant;

use pageloom_paged_attn_kernels::cpu::{AttendArgs, AttendPlan, ThreadPool, attend, write_kv};
use pageloom_paged_attn_kernels::{
    AttendBatch, CacheLayout, KernelError, KvCache, KvDtype, Rows, RowsMut,
};

use super::lengths::SplitMix;

/// Layers a run goes through, so that none is still in the cache of the run before.
const NUM_LAYERS: usize = 4;

/// What attention is like in a model.
#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: KvDtype,
}

/// Sequences of a step.
pub(crate) struct Sequences {
    pub(crate) context_lens: Vec<usize>,
    /// Query rows of each.
    pub(crate) num_queries: usize,
}

/// Blocks of a cache.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    /// Tokens of each.
    pub(crate) size: usize,
    pub(crate) order: Order,
}

/// Where a sequence's blocks lie.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// One after another: its keys are as good as contiguous.
    Contiguous,
    /// Anywhere, drawn from a seed.
    Shuffled(u64),
}

/// A step, ready to run.
pub(crate) struct Workload {
    cache: KvCache,
    plan: AttendPlan,
    row_len: usize,
    scale: f32,
    q: Vec<f32>,
    out: Vec<f32>,
}

impl Workload {
    /// Fills a cache with random keys and values.
    pub(crate) fn new(
        pool: &ThreadPool,
        model: Model,
        blocks: Blocks,
        sequences: &Sequences,
    ) -> Result<Self, KernelError> {
        let block_size = blocks.size;
        let num_seqs = sequences.context_lens.len();
        let mut table_offsets = vec![0u32];
        for &len in &sequences.context_lens {
            let end = table_offsets[table_offsets.len() - 1] + len.div_ceil(block_size) as u32;
            table_offsets.push(end);
        }
        let num_blocks = table_offsets[num_seqs];
        let mut cache = KvCache::new(CacheLayout {
            num_layers: NUM_LAYERS,
            num_blocks: num_blocks as usize,
            block_size,
            num_kv_heads: model.num_kv_heads,
            head_dim: model.head_dim,
            dtype: model.dtype,
        })?;
        let mut block_tables: Vec<u32> = (0..num_blocks).collect();
        if let Order::Shuffled(seed) = blocks.order {
            let mut random = SplitMix(seed);
            for i in (1..block_tables.len()).rev() {
                block_tables.swap(i, (random.uniform() * (i + 1) as f64) as usize);
            }
        }
        let mut random = SplitMix(num_blocks.into());
        let slots: Vec<u32> = (0..num_blocks * block_size as u32).collect();
        let width = model.num_kv_heads * model.head_dim;
        let mut floats =
            |n: usize| -> Vec<f32> { (0..n).map(|_| random.uniform() as f32 - 0.5).collect() };
        let kv = floats(slots.len() * width);
        for layer in 0..NUM_LAYERS {
            let rows = Rows::new(&kv, width);
            write_kv(pool, &mut cache, layer, &slots, rows, rows)?;
        }
        let context_lens: Vec<u32> = sequences.context_lens.iter().map(|&n| n as u32).collect();
        let query_offsets: Vec<u32> = (0..=num_seqs)
            .map(|s| (s * sequences.num_queries) as u32)
            .collect();
        let batch = AttendBatch {
            query_offsets: &query_offsets,
            context_lens: &context_lens,
            block_tables: &block_tables,
            table_offsets: &table_offsets,
        };
        let mut plan = AttendPlan::new();
        plan.plan(cache.layout(), model.num_heads, &batch, pool.num_threads())?;
        let row_len = model.num_heads * model.head_dim;
        let q = floats(plan.num_tokens() * row_len);
        Ok(Self {
            cache,
            out: vec![0.0; q.len()],
            q,
            plan,
            row_len,
            scale: 1.0 / (model.head_dim as f32).sqrt(),
        })
    }

    /// Attends in every layer; microseconds of one.
    pub(crate) fn run(&mut self, pool: &ThreadPool) -> Result<f64, KernelError> {
        let start = Instant::now();
        for layer in 0..NUM_LAYERS {
            let args = AttendArgs {
                layer,
                q: Rows::new(&self.q, self.row_len),
                out: RowsMut::new(&mut self.out, self.row_len),
                scale: self.scale,
            };
            attend(pool, &self.cache, &mut self.plan, args)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / NUM_LAYERS as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_runs_at_every_kind_of_block_size() {
        let pool = ThreadPool::new(1);
        let model = Model {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            dtype: KvDtype::Bf16,
        };
        let sequences = Sequences {
            context_lens: vec![5, 40],
            num_queries: 3,
        };
        let outputs = [1, 16, 256].map(|block_size| {
            let blocks = Blocks {
                size: block_size,
                order: Order::Shuffled(1),
            };
            let mut workload = Workload::new(&pool, model, blocks, &sequences).unwrap();
            assert!(workload.run(&pool).unwrap() > 0.0);
            workload.out
        });
        assert!(
            outputs
                .iter()
                .all(|out| out.iter().all(|x| x.is_finite() && *x != 0.0))
        );
    }
}
