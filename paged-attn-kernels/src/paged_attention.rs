//! One interface over both back ends.

use crate::{AttendBatch, CacheLayout};

/// A device with paged caches on it, and the operations on them.
///
/// What is written over it runs on the CPU ([`cpu::Paged`](crate::cpu::Paged)) and on a GPU
/// ([`cuda::Paged`](crate::cuda::Paged)) alike; `examples/paged_attention.rs` is such a program. An
/// engine that knows its device better uses the functions of the back ends themselves, which take
/// strided rows, fuse the rotary embedding into the write, and run beside other work.
///
/// All calls take effect in order.
pub trait PagedAttention {
    /// Keys and values in blocks.
    type Cache;
    /// Dense rows of activations.
    type Rows;
    /// What a step attends to.
    type Plan;
    /// Why a call failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What it runs on, for people.
    fn name(&self) -> String;

    /// A cache where attention reads it.
    ///
    /// # Errors
    /// If the layout is not supported, or there is not enough memory.
    fn new_cache(&self, layout: CacheLayout) -> Result<Self::Cache, Self::Error>;

    /// Rows of `width` elements on the device, rounded to its type.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn upload(&self, data: &[f32], width: usize) -> Result<Self::Rows, Self::Error>;

    /// Copies rows back, after all that was called before.
    ///
    /// # Errors
    /// If something that was called before failed.
    fn download(&self, rows: &Self::Rows) -> Result<Vec<f32>, Self::Error>;

    /// Stores keys and values, `[num_tokens, num_kv_heads * head_dim]` each, in the slots of a layer:
    /// slot `s` is offset `s % block_size` of block `s / block_size`.
    ///
    /// # Errors
    /// If an argument does not fit the cache; nothing is written then.
    fn write_kv(
        &self,
        cache: &mut Self::Cache,
        layer: usize,
        slots: &[u32],
        kv: (&Self::Rows, &Self::Rows),
    ) -> Result<(), Self::Error>;

    /// A plan without work.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn new_plan(&self) -> Result<Self::Plan, Self::Error>;

    /// Replaces a plan's work by that of a step: once a step, for all its layers.
    ///
    /// # Errors
    /// If the batch contradicts itself or the cache's layout.
    fn plan(
        &self,
        plan: &mut Self::Plan,
        cache: &Self::Cache,
        num_heads: usize,
        batch: &AttendBatch<'_>,
    ) -> Result<(), Self::Error>;

    /// Attends each query row of the plan to its sequence's keys in a layer.
    ///
    /// # Errors
    /// If an argument does not fit the plan or the cache; nothing is written then.
    fn attend(
        &self,
        cache: &Self::Cache,
        plan: &mut Self::Plan,
        layer: LayerQuery<'_, Self::Rows>,
    ) -> Result<(), Self::Error>;

    /// Copies whole blocks of all layers within a cache, `(from, to)`; no pair may read or write what
    /// another writes.
    ///
    /// # Errors
    /// For a block that the cache does not have.
    fn copy_blocks(&self, cache: &mut Self::Cache, pairs: &[(u32, u32)])
    -> Result<(), Self::Error>;
}

/// One layer's part in a planned step.
#[derive(Debug)]
pub struct LayerQuery<'a, Rows> {
    /// Layer of the cache.
    pub layer: usize,
    /// Queries: `[num_tokens, num_heads * head_dim]`.
    pub q: &'a Rows,
    /// Results, as `q`.
    pub out: &'a mut Rows,
    /// What scores are multiplied by, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}
