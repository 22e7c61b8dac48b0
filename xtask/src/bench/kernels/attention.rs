//! Attention: decodes against the copy rate, pages against one run, prefill against arithmetic.

use anyhow::Result;
use half::bf16;
use pageloom_paged_attn_kernels::cuda::attention::{AttendArgs, AttendPlan, PlanShape, attend};
use pageloom_paged_attn_kernels::cuda::blocks::{KvRows, WriteKvArgs, write_kv};
use pageloom_paged_attn_kernels::cuda::{Buffer, Device, Dtype, KvCache};
use pageloom_paged_attn_kernels::{AttendBatch, CacheLayout, KvDtype};

use super::Measure;
use super::timing::{Bench, Times};
use crate::bench::lengths::SplitMix;

/// Tokens of a block where keys lie in order.
pub(crate) const CONTIGUOUS: usize = 128;

/// What is attended to.
#[derive(Debug, Clone, Copy)]
struct Case {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    dtype: KvDtype,
    batch: usize,
    context: usize,
    /// Query rows of each sequence, the last of its context.
    queries: usize,
    block_size: usize,
    /// Blocks in random order; else each sequence's are one run.
    shuffled: bool,
    /// Keys split at fixed places, so that a sequence's bits do not depend on the batch.
    batch_invariant: bool,
}

const LLAMA_8B: Case = Case {
    num_heads: 32,
    num_kv_heads: 8,
    head_dim: 128,
    dtype: KvDtype::Bf16,
    batch: 1,
    context: 512,
    queries: 1,
    block_size: 16,
    shuffled: true,
    batch_invariant: false,
};

/// As in the paper: as many key-value heads as query heads.
const OPT_13B: Case = Case {
    num_heads: 40,
    num_kv_heads: 40,
    ..LLAMA_8B
};

impl Case {
    /// The same over keys that lie in order.
    fn in_one_run(self) -> Self {
        Case {
            block_size: CONTIGUOUS,
            shuffled: false,
            ..self
        }
    }

    fn blocks_a_sequence(&self) -> usize {
        self.context.div_ceil(self.block_size)
    }

    fn layout(&self, num_layers: usize) -> CacheLayout {
        CacheLayout {
            num_layers,
            num_blocks: self.batch * self.blocks_a_sequence(),
            block_size: self.block_size,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            dtype: self.dtype,
        }
    }

    /// Keys, values and scales that are read.
    fn bytes(&self) -> usize {
        let row = self.head_dim * self.dtype.bytes() + self.dtype.scale_bytes();
        2 * self.batch * self.context * self.num_kv_heads * row
    }

    /// Of causal attention.
    fn operations(&self) -> f64 {
        let rows = (self.batch * self.queries * self.num_heads * self.head_dim) as f64;
        let keys = self.context as f64 - (self.queries as f64 - 1.0) / 2.0;
        4.0 * rows * keys
    }

    fn name(&self) -> String {
        format!(
            "{}/{} heads of {}, batch {}, context {}, {} pages of {}",
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.batch,
            self.context,
            self.dtype.name(),
            self.block_size
        )
    }

    /// Times a call; each layer of the cache is another copy of keys and values.
    fn time(&self, bench: &Bench) -> Result<Times> {
        let num_copies = bench.num_copies(self.bytes());
        let layout = self.layout(num_copies);
        let mut cache = KvCache::new(&bench.device, layout)?;
        self.fill(bench, &mut cache)?;
        let tables = self.tables();
        let every = |n: usize| -> Vec<u32> { (0..=self.batch).map(|s| (s * n) as u32).collect() };
        let batch = AttendBatch {
            query_offsets: &every(self.queries),
            context_lens: &vec![self.context as u32; self.batch],
            block_tables: &tables,
            table_offsets: &every(self.blocks_a_sequence()),
        };
        let mut plan = AttendPlan::new(&bench.device)?;
        let shape = PlanShape {
            layout: &layout,
            num_heads: self.num_heads,
            dtype: Dtype::Bf16,
            window: 0,
            batch_invariant: self.batch_invariant,
            replayed: false,
        };
        plan.plan(&bench.stream, &shape, &batch)?;
        let width = self.num_heads * self.head_dim;
        let num_rows = self.batch * self.queries;
        let q = bench.activations(num_rows * width)?;
        let mut out = bench.device.alloc::<bf16>(num_rows * width)?;
        bench.time(num_copies, |layer| {
            let args = AttendArgs {
                layer,
                q: q.rows(width),
                out: out.rows_mut(width),
                scale: 1.0 / (self.head_dim as f32).sqrt(),
                soft_cap: 0.0,
            };
            attend(&bench.stream, &cache, &mut plan, args)
        })
    }

    /// Writes random keys and values everywhere.
    fn fill(&self, bench: &Bench, cache: &mut KvCache) -> Result<()> {
        let layout = *cache.layout();
        let width = layout.num_kv_heads * layout.head_dim;
        let most = layout.num_slots().min(1 << 14);
        let (k, v) = (
            bench.activations(most * width)?,
            bench.activations(most * width + 8)?,
        );
        let mut slots: Buffer<u32> = bench.device.alloc(most)?;
        for first in (0..layout.num_slots()).step_by(most) {
            let num_tokens = most.min(layout.num_slots() - first);
            let range: Vec<u32> = (first..first + num_tokens).map(|s| s as u32).collect();
            slots.upload(&bench.stream, &range)?;
            for layer in 0..layout.num_layers {
                let args = WriteKvArgs {
                    layer,
                    slots: &slots,
                    num_tokens,
                    rows: KvRows::Apart {
                        k: k.rows(width),
                        v: v.rows_from(8, width),
                    },
                    rotary: None,
                };
                write_kv(&bench.stream, cache, &args)?;
            }
        }
        Ok(())
    }

    fn tables(&self) -> Vec<u32> {
        let num_blocks = self.batch * self.blocks_a_sequence();
        let mut tables: Vec<u32> = (0..num_blocks as u32).collect();
        if self.shuffled {
            let mut random = SplitMix(num_blocks as u64);
            for i in (1..tables.len()).rev() {
                tables.swap(i, (random.next() % (i as u64 + 1)) as usize);
            }
        }
        tables
    }
}

/// Cases of a list; every third of them if there is little time.
fn some<T: Copy>(bench: &Bench, cases: &[T]) -> Vec<T> {
    let step = if bench.quick { 3 } else { 1 };
    cases.iter().copied().step_by(step).collect()
}

/// Decodes: 1 GB of keys and values and more, about 100 MB, and a single short sequence.
pub(super) fn decode(bench: &mut Bench) -> Result<()> {
    let sizes = [
        (1, 512),
        (8, 2048),
        (1, 32_768),
        (64, 2048),
        (64, 8192),
        (256, 2048),
    ];
    for model in [LLAMA_8B, OPT_13B] {
        for (batch, context) in some(bench, &sizes) {
            let case = Case {
                batch,
                context,
                ..model
            };
            let times = case.time(bench)?;
            let measure = bench.percent_of_copy(case.bytes(), times);
            let mib = case.bytes() >> 20;
            bench.add(
                "Decode attention",
                format!("{} ({mib} MiB)", case.name()),
                times,
                measure,
            );
        }
    }
    Ok(())
}

/// Figure 18a of the paper: what pages cost, over the same kernel on keys in one run.
pub(super) fn paged_against_contiguous(bench: &mut Bench) -> Result<()> {
    let contexts = [64, 128, 256, 1024, 4096, 16_384, 32_768];
    for batch in [8, 32] {
        for context in some(bench, &contexts) {
            let paged = Case {
                batch,
                context,
                ..OPT_13B
            };
            let base = paged.in_one_run().time(bench)?;
            let times = paged.time(bench)?;
            let measure = Measure::Ratio(times.median / base.median);
            let case = format!("{} over one run ({:.4} ms)", paged.name(), base.median);
            bench.add("Pages against one run (figure 18a)", case, times, measure);
        }
    }
    Ok(())
}

/// One decode step of equal sequences, bf16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decodes {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) batch: usize,
    pub(crate) context: usize,
}

/// Milliseconds of a layer's attention on the first GPU: over keys that lie in order, and over
/// shuffled pages of 16 tokens.
///
/// # Errors
/// If there is no GPU, or a kernel fails.
pub(crate) fn contiguous_and_paged(device: &Device, decodes: Decodes) -> Result<[f64; 2]> {
    let bench = Bench::new(device, false)?;
    let paged = Case {
        num_heads: decodes.num_heads,
        num_kv_heads: decodes.num_kv_heads,
        head_dim: decodes.head_dim,
        batch: decodes.batch,
        context: decodes.context,
        ..LLAMA_8B
    };
    Ok([
        paged.in_one_run().time(&bench)?.median,
        paged.time(&bench)?.median,
    ])
}

/// Block sizes at one size of work.
pub(super) fn block_sizes(bench: &mut Bench) -> Result<()> {
    for block_size in [8, 16, 32, 64, 128] {
        let case = Case {
            batch: 32,
            context: 4096,
            block_size,
            ..LLAMA_8B
        };
        let times = case.time(bench)?;
        let measure = bench.percent_of_copy(case.bytes(), times);
        bench.add("Block sizes", case.name(), times, measure);
    }
    Ok(())
}

/// Compressed pages, over bf16's.
pub(super) fn formats(bench: &mut Bench) -> Result<()> {
    let bf16 = Case {
        batch: 64,
        context: if bench.quick { 1024 } else { 8192 },
        ..LLAMA_8B
    };
    let base = bf16.time(bench)?;
    for dtype in [KvDtype::Int8, KvDtype::Fp8] {
        let case = Case { dtype, ..bf16 };
        let times = case.time(bench)?;
        let measure = Measure::Ratio(times.median / base.median);
        let name = format!("{} over bf16 ({:.4} ms)", case.name(), base.median);
        bench.add("Formats of pages, decode", name, times, measure);
    }
    Ok(())
}

/// What it costs that a sequence's bits do not depend on its batch.
pub(super) fn fixed_splits(bench: &mut Bench) -> Result<()> {
    for (batch, context) in [(1, 512), (1, 32_768), (8, 8192), (64, 2048)] {
        let case = Case {
            batch,
            context,
            ..LLAMA_8B
        };
        let base = case.time(bench)?;
        let fixed = Case {
            batch_invariant: true,
            ..case
        };
        let times = fixed.time(bench)?;
        let measure = Measure::Ratio(times.median / base.median);
        let name = format!("{} over free splits ({:.4} ms)", case.name(), base.median);
        bench.add("Splits at fixed places", name, times, measure);
    }
    Ok(())
}

/// Causal prefill, and a chunk behind a long cached prefix.
pub(super) fn prefill(bench: &mut Bench) -> Result<()> {
    let shapes = [(1, 8192, 8192), (4, 2048, 2048), (1, 32_768, 1024)];
    for head_dim in [64, 128, 256] {
        for (batch, context, queries) in some(bench, &shapes) {
            let case = Case {
                head_dim,
                batch,
                context,
                queries,
                ..LLAMA_8B
            };
            let times = case.time(bench)?;
            let measure = Measure::Tflops(case.operations() / times.median / 1e9);
            bench.add(
                "Prefill",
                format!("{queries} rows, {}", case.name()),
                times,
                measure,
            );
        }
    }
    Ok(())
}
