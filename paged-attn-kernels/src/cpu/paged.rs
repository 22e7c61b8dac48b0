//! Paged attention on the CPU, through the interface that both back ends have.

use super::{AttendArgs, AttendPlan, ThreadPool, attend, copy_blocks, write_kv};
use crate::error::check_len;
use crate::{
    AttendBatch, CacheLayout, KernelError, KvCache, LayerQuery, PagedAttention, Rows, RowsMut,
};

/// The CPU as a [`PagedAttention`] device.
pub struct Paged {
    pool: ThreadPool,
}

/// Dense rows in f32.
#[derive(Debug, Clone)]
pub struct PagedRows {
    data: Vec<f32>,
    width: usize,
}

impl Paged {
    /// A device of `num_threads` threads, the caller's included.
    pub fn new(num_threads: usize) -> Self {
        Self {
            pool: ThreadPool::new(num_threads),
        }
    }
}

impl std::fmt::Debug for Paged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paged")
            .field("num_threads", &self.pool.num_threads())
            .finish()
    }
}

impl PagedRows {
    fn rows(&self) -> Rows<'_> {
        Rows::new(&self.data, self.width)
    }
}

impl PagedAttention for Paged {
    type Cache = KvCache;
    type Rows = PagedRows;
    type Plan = AttendPlan;
    type Error = KernelError;

    fn name(&self) -> String {
        format!("the CPU, {} threads", self.pool.num_threads())
    }

    fn new_cache(&self, layout: CacheLayout) -> Result<KvCache, KernelError> {
        KvCache::new(layout)
    }

    fn upload(&self, data: &[f32], width: usize) -> Result<PagedRows, KernelError> {
        let num_rows = data.len().checked_div(width).unwrap_or(0);
        check_len("data", num_rows * width, data.len())?;
        Ok(PagedRows {
            data: data.to_vec(),
            width,
        })
    }

    fn download(&self, rows: &PagedRows) -> Result<Vec<f32>, KernelError> {
        Ok(rows.data.clone())
    }

    fn write_kv(
        &self,
        cache: &mut KvCache,
        layer: usize,
        slots: &[u32],
        (k, v): (&PagedRows, &PagedRows),
    ) -> Result<(), KernelError> {
        write_kv(&self.pool, cache, layer, slots, k.rows(), v.rows())
    }

    fn new_plan(&self) -> Result<AttendPlan, KernelError> {
        Ok(AttendPlan::new())
    }

    fn plan(
        &self,
        plan: &mut AttendPlan,
        cache: &KvCache,
        num_heads: usize,
        batch: &AttendBatch<'_>,
    ) -> Result<(), KernelError> {
        plan.plan(cache.layout(), num_heads, batch, self.pool.num_threads())
    }

    fn attend(
        &self,
        cache: &KvCache,
        plan: &mut AttendPlan,
        layer: LayerQuery<'_, PagedRows>,
    ) -> Result<(), KernelError> {
        let args = AttendArgs {
            layer: layer.layer,
            q: layer.q.rows(),
            out: RowsMut::new(&mut layer.out.data, layer.out.width),
            scale: layer.scale,
        };
        attend(&self.pool, cache, plan, args)
    }

    fn copy_blocks(&self, cache: &mut KvCache, pairs: &[(u32, u32)]) -> Result<(), KernelError> {
        copy_blocks(&self.pool, cache, pairs)
    }
}
