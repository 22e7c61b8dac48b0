//! Block allocator for a paged KV cache.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod check;
mod config;
mod ids;
mod index;
mod manager;
mod ops;
mod pool;
mod query;
mod size;
mod stats;
mod table;

pub use check::Violation;
pub use config::{Config, ConfigError, OutOfBlocks};
pub use ids::{BlockId, Namespace, StepId, TableId, TokenId};
pub use manager::BlockManager;
pub use ops::{BlockCopy, BlockOps};
pub use stats::{PrefixHit, Stats};
