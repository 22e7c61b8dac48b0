//! The CPU back end: f32 activations in memory, matrices packed for the kernels.

mod matrix;

use std::sync::Arc;

use pageloom_paged_attn_kernels::cpu::{
    AlignedFloats, AttendArgs, AttendPlan, Epilogue, Heads, Isa, LinearScratch, PackedMatrix,
    RopeAngles, ThreadPool, attend, copy_blocks, linear, linear_silu_mul, rms_norm, rms_norm_heads,
    rope, swap_blocks, write_kv,
};
use pageloom_paged_attn_kernels::{AttendBatch, CacheLayout, KernelError, KvCache, Rows, RowsMut};

use super::{Backend, Linear, QkvLayout};
use crate::batch::Batch;
use crate::error::RunError;
use crate::weights::{LoadError, Tensor};

/// How matrices are kept in memory, and what they are multiplied by. Sums are f32 whatever the
/// choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// As the file has them: quantised ones stay packed. Where weights are bf16 or quantised, the
    /// inputs of linear layers are rounded to bf16; f32 and f16 weights are multiplied in f32.
    #[default]
    Auto,
    /// f32 inputs, with weights as the file has them: f32 for f32 and f16 matrices, bf16 for bf16
    /// ones. Quantised matrices are dequantised to bf16, whose rounding (one part in 512) is far
    /// below their own steps.
    Exact,
    /// f32 inputs and 4 bytes a weight: exact, whatever the file holds.
    F32,
    /// 2 bytes a weight, rounded to nearest even, and inputs rounded to bf16.
    Bf16,
}

/// To how many bits weights are quantised that the file does not have quantised already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// 8 bits, a scale for every 32 weights of a row: 8.5 bits a weight.
    Int8,
    /// 4 bits, a scale and a minimum for every 32 weights of a row: 5 bits a weight.
    Int4,
}

/// How weights are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightOptions {
    /// How they are kept.
    pub dtype: WeightDtype,
    /// Whether they are quantised on the way; with [`WeightDtype::Auto`] only.
    pub quantization: Option<Quantization>,
}

/// Activations, `[num_rows, width]`, dense.
pub struct CpuRows {
    pub(crate) data: AlignedFloats,
    pub(crate) width: usize,
}

/// CPU threads, their kernels, and the KV cache they work on.
///
/// Its host tier is a second cache of the same memory: swapping buys nothing here that a larger
/// cache would not, but it moves real bytes, as it does where the cache is on another device.
pub struct CpuBackend {
    pool: Arc<ThreadPool>,
    isa: Isa,
    weights: WeightOptions,
    inverse_frequencies: Vec<f32>,
    num_heads: usize,
    cache: Option<KvCache>,
    /// The host tier.
    host: Option<KvCache>,
    plan: AttendPlan,
    angles: RopeAngles,
    scratch: LinearScratch,
}

impl CpuBackend {
    /// A back end without a cache, which can load weights.
    ///
    /// `inverse_frequencies`: `[head_dim / 2]`, radians a position.
    pub fn new(
        num_threads: usize,
        weights: WeightOptions,
        num_heads: usize,
        inverse_frequencies: Vec<f32>,
    ) -> Self {
        CpuBackend {
            pool: Arc::new(ThreadPool::new(num_threads)),
            isa: Isa::detect(),
            weights,
            inverse_frequencies,
            num_heads,
            cache: None,
            host: None,
            plan: AttendPlan::new(),
            angles: RopeAngles::default(),
            scratch: LinearScratch::default(),
        }
    }

    /// Reserves the KV cache, and its host tier if that has any block. Memory is taken as blocks
    /// are first written.
    ///
    /// # Errors
    /// [`KernelError`] if the layout is not supported or memory is short.
    pub fn allocate_cache(
        &mut self,
        layout: CacheLayout,
        num_host_blocks: usize,
    ) -> Result<(), KernelError> {
        self.host = match num_host_blocks {
            0 => None,
            num_blocks => Some(KvCache::new(CacheLayout {
                num_blocks,
                ..layout
            })?),
        };
        self.cache = Some(KvCache::new(layout)?);
        Ok(())
    }

    /// The threads, for work beside the operations: sampling.
    pub fn pool(&self) -> &Arc<ThreadPool> {
        &self.pool
    }

    fn product(
        &mut self,
        x: &CpuRows,
        w: &PackedMatrix,
        epilogue: Epilogue<'_>,
        out: &mut CpuRows,
    ) -> Result<(), RunError> {
        let (pool, scratch) = (&self.pool, &mut self.scratch);
        Ok(linear(
            pool,
            self.isa,
            scratch,
            &x.data,
            w,
            epilogue,
            &mut out.data,
        )?)
    }

    fn cache_mut(cache: &mut Option<KvCache>) -> Result<&mut KvCache, RunError> {
        cache.as_mut().ok_or(RunError::NoCache)
    }
}

impl Backend for CpuBackend {
    type Matrix = PackedMatrix;
    type Vector = Vec<f32>;
    type Rows = CpuRows;

    fn load_matrix(&self, parts: &[Tensor<'_>]) -> Result<PackedMatrix, LoadError> {
        Ok(matrix::pack(&self.pool, self.weights, parts))
    }

    fn load_gated(&self, gate: Tensor<'_>, up: Tensor<'_>) -> Result<PackedMatrix, LoadError> {
        Ok(matrix::pack_gated(&self.pool, self.weights, gate, up))
    }

    fn matrix_bytes(matrix: &PackedMatrix) -> u64 {
        matrix.num_bytes() as u64
    }

    fn load_vector(&self, parts: &[Tensor<'_>]) -> Result<Vec<f32>, LoadError> {
        let mut vector = Vec::new();
        for part in parts {
            let start = vector.len();
            vector.resize(start + part.cols(), 0.0);
            part.read_row(0, &mut vector[start..]);
        }
        Ok(vector)
    }

    fn rows(&self, width: usize) -> CpuRows {
        CpuRows {
            data: AlignedFloats::default(),
            width,
        }
    }

    fn set_num_rows(&self, rows: &mut CpuRows, num_rows: usize) {
        rows.data.resize(num_rows * rows.width);
    }

    fn transfer(&mut self, batch: &Batch) -> Result<(), RunError> {
        let (pool, cache) = (&self.pool, Self::cache_mut(&mut self.cache)?);
        if !(batch.swap_outs.is_empty() && batch.swap_ins.is_empty()) {
            let host = self.host.as_mut().ok_or(RunError::NoHostTier)?;
            swap_blocks(pool, cache, host, &batch.swap_outs)?;
            swap_blocks(pool, host, cache, &batch.swap_ins)?;
        }
        Ok(copy_blocks(pool, cache, &batch.copies)?)
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), RunError> {
        let cache = Self::cache_mut(&mut self.cache)?;
        let work = AttendBatch {
            query_offsets: &batch.row_offsets,
            context_lens: &batch.context_lens,
            block_tables: &batch.block_tables,
            table_offsets: &batch.table_offsets,
        };
        self.plan.plan(
            cache.layout(),
            self.num_heads,
            &work,
            self.pool.num_threads(),
        )?;
        self.angles
            .compute(&batch.positions, &self.inverse_frequencies);
        Ok(())
    }

    fn embed(
        &mut self,
        batch: &Batch,
        table: &PackedMatrix,
        out: &mut CpuRows,
    ) -> Result<(), RunError> {
        for (&token, row) in batch
            .tokens
            .iter()
            .zip(out.data.chunks_exact_mut(out.width))
        {
            if token as usize >= table.rows() {
                let reason = format!("{token} is not below the vocabulary's {}", table.rows());
                return Err(RunError::Batch {
                    field: "tokens",
                    reason,
                });
            }
            table.read_row(token as usize, row);
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        x: &CpuRows,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut CpuRows,
    ) -> Result<(), RunError> {
        Ok(rms_norm(&self.pool, &x.data, weight, eps, &mut out.data)?)
    }

    fn linear(&mut self, x: &CpuRows, w: &Linear<Self>, out: &mut CpuRows) -> Result<(), RunError> {
        let epilogue = w.bias.as_deref().map_or(Epilogue::Store, Epilogue::Bias);
        self.product(x, &w.weight, epilogue, out)
    }

    fn linear_add(
        &mut self,
        x: &CpuRows,
        w: &PackedMatrix,
        out: &mut CpuRows,
    ) -> Result<(), RunError> {
        self.product(x, w, Epilogue::Add, out)
    }

    fn rms_norm_heads(
        &mut self,
        x: &mut CpuRows,
        heads: Heads,
        weight: &Vec<f32>,
        eps: f32,
    ) -> Result<(), RunError> {
        Ok(rms_norm_heads(
            &self.pool,
            &mut x.data,
            x.width,
            heads,
            weight,
            eps,
        )?)
    }

    fn rope(&mut self, qkv: &mut CpuRows, layout: QkvLayout) -> Result<(), RunError> {
        // Query and key heads lie side by side: one pass rotates both.
        let num_heads = layout.num_heads + layout.num_kv_heads;
        let heads = Heads {
            offset: 0,
            num_heads,
            head_dim: layout.head_dim,
        };
        Ok(rope(
            &self.pool,
            &mut qkv.data,
            qkv.width,
            heads,
            &self.angles,
        )?)
    }

    fn attend(
        &mut self,
        batch: &Batch,
        layer: usize,
        qkv: &CpuRows,
        layout: QkvLayout,
        out: &mut CpuRows,
    ) -> Result<(), RunError> {
        let cache = Self::cache_mut(&mut self.cache)?;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let columns = |heads: Heads| Rows::new(&qkv.data[heads.offset..], qkv.width);
        let (k, v) = (columns(layout.k()), columns(layout.v()));
        write_kv(&self.pool, cache, layer, &batch.slots, k, v)?;
        let args = AttendArgs {
            layer,
            q: columns(layout.q()),
            out: RowsMut::new(&mut out.data, out.width),
            scale: 1.0 / (layout.head_dim as f32).sqrt(),
        };
        Ok(attend(&self.pool, cache, &mut self.plan, args)?)
    }

    fn linear_silu_mul(
        &mut self,
        x: &CpuRows,
        w: &PackedMatrix,
        out: &mut CpuRows,
    ) -> Result<(), RunError> {
        let (pool, scratch) = (&self.pool, &mut self.scratch);
        Ok(linear_silu_mul(
            pool,
            self.isa,
            scratch,
            &x.data,
            w,
            &mut out.data,
        )?)
    }

    fn gather(
        &mut self,
        x: &CpuRows,
        rows: impl ExactSizeIterator<Item = u32>,
        out: &mut CpuRows,
    ) -> Result<(), RunError> {
        for (row, out) in rows.zip(out.data.chunks_exact_mut(x.width)) {
            let source = x
                .data
                .chunks_exact(x.width)
                .nth(row as usize)
                .ok_or_else(|| {
                    let reason = format!("row {row} of {}", x.data.len() / x.width);
                    RunError::Batch {
                        field: "outputs",
                        reason,
                    }
                })?;
            out.copy_from_slice(source);
        }
        Ok(())
    }
}
