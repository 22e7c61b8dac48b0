//! Kernels over a paged KV cache: write, attend, copy and swap, usable without the rest of Pageloom.
//!
//! A [`KvCache`] holds keys and values in blocks of a fixed number of tokens. A sequence's blocks
//! may lie anywhere in it; its block table lists them in the order of its tokens. The operations
//! take slots and tables as plain integers, so any allocator can own the blocks.
//!
//! ```
//! use pageloom_paged_attn_kernels::cpu::{AttendArgs, AttendPlan, ThreadPool};
//! use pageloom_paged_attn_kernels::cpu::{attend, write_kv};
//! use pageloom_paged_attn_kernels::{AttendBatch, CacheLayout, KvCache, KvDtype, Rows, RowsMut};
//!
//! let pool = ThreadPool::new(2);
//! let mut cache = KvCache::new(CacheLayout {
//!     num_layers: 1,
//!     num_blocks: 8,
//!     block_size: 16,
//!     num_kv_heads: 1,
//!     head_dim: 8,
//!     dtype: KvDtype::F32,
//! })?;
//!
//! // Two tokens of a sequence whose first block is block 5.
//! let keys = [1.0; 2 * 8];
//! let values = [0.5; 2 * 8];
//! let (k, v) = (Rows::new(&keys, 8), Rows::new(&values, 8));
//! write_kv(&pool, &mut cache, 0, &[5 * 16, 5 * 16 + 1], k, v)?;
//!
//! // Once a step: what is attended to. Here, the second token decodes over both.
//! let mut plan = AttendPlan::new();
//! let batch = AttendBatch {
//!     query_offsets: &[0, 1],
//!     context_lens: &[2],
//!     block_tables: &[5],
//!     table_offsets: &[0, 1],
//! };
//! plan.plan(cache.layout(), 2, &batch, pool.num_threads())?;
//!
//! // Once a layer: two query heads share the key-value head.
//! let q = [0.25; 2 * 8];
//! let mut out = [f32::NAN; 2 * 8];
//! let args = AttendArgs {
//!     layer: 0,
//!     q: Rows::new(&q, 16),
//!     out: RowsMut::new(&mut out, 16),
//!     scale: 1.0 / 8f32.sqrt(),
//! };
//! attend(&pool, &cache, &mut plan, args)?;
//! assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
//! # Ok::<(), pageloom_paged_attn_kernels::KernelError>(())
//! ```

mod batch;
mod cache;
pub mod cpu;
pub mod cuda;
mod element;
pub mod emulator;
mod error;
mod layout;
mod paged_attention;
pub mod reference;
mod rows;

pub use batch::AttendBatch;
pub use cache::KvCache;
pub use error::KernelError;
pub use layout::{CacheLayout, KvDtype};
pub use paged_attention::{LayerQuery, PagedAttention};
pub use rows::{Rows, RowsMut};
