//! Block allocator for a paged KV cache.
//!
//! A serving engine cuts its KV cache into blocks of a few tokens and gives each sequence a *block
//! table*, as an operating system gives a process a page table (Kwon et al. 2023, PagedAttention).
//! This crate decides which physical block belongs to whom: allocation on demand, sharing between
//! forks, copy-on-write, finding prefixes that are still cached, and swapping to a second, slower
//! tier. It never touches the cache's memory, so it fits any device and layout; it has no clock,
//! no threads, no I/O and no unsafe code, and the same calls always give the same answers.
//!
//! # The life of a block
//!
//! ```text
//!           reserve               commit, when full
//!  free ──────────────> owned ──────────────────────> published <──┐ open, fork: one
//!   ^  ^                  │ fork                         │  ^  └───┘ more reference
//!   │  │                  v                              │  │
//!   │  │               shared ── reserve: copy-on-write  │  │ open
//!   │  │ last release     │      into a free block       v  │
//!   │  └──────────────────┘               last release: cached
//!   │                                                      │
//!   └─────────────────────── evict ────────────────────────┤
//!                                                          │ a copy, if there is room
//!  device   blocks of a table                              │
//!  ──────────────── │ ───── ^ ──────────────────────────── │ ──────────────────────────
//!  host    swap_out v       │ swap_in                      v
//!                 held ── last release, if published ─> cached ──> open: copied back
//! ```
//!
//! - **owned**: one table holds it and may write it.
//! - **shared**: several tables hold it; whichever writes first gets a copy, the last one left
//!   writes in place.
//! - **published**: full, computed, immutable, and found by its tokens and all before them.
//! - **cached**: published and held by nobody; taken when no free block is left, in the order
//!   that [`Eviction`] says.
//! - **pinned** (not drawn): read or written by a transfer that is not completed; neither reused
//!   nor evicted until [`complete`](BlockManager::complete), whoever holds it. A block that is
//!   copied to the host is free at once: in a step such copies come before everything else.
//!
//! One rule joins sharing and caching: *a slot may be written if and only if its block has one
//! reference and is not published.*
//!
//! # Two tiers
//!
//! The *device* is the memory that attention reads; the *host* is slower and larger memory behind
//! it, and may have no block at all. A table is in one of them, whole:
//! [`swap_out`](BlockManager::swap_out) and [`swap_in`](BlockManager::swap_in) move the tables of
//! a group, and what they share stays shared. A table on the host can be forked, cut and released,
//! but not reserved, committed or read. Beside such tables the host keeps the published blocks
//! that the device evicted, as long as it has room, and [`open`](BlockManager::open) finds them
//! there. The same contents can be in both tiers; then nothing is copied twice.
//!
//! # What the executor keeps to
//!
//! 1. Steps run in the order they were sealed.
//! 2. A step first does the transfers of its [`BlockOps`]: all its `swap_outs`, then all its
//!    `swap_ins`, then all its `copies`, those of one list in any order. Then it writes the slots
//!    reserved for it, then it reads. [`complete`](BlockManager::complete) once the transfers
//!    are done.
//! 3. [`commit`](BlockManager::commit) when the tokens are computed or, with several steps in
//!    flight, as soon as the step that computes them is given to the executor: whoever finds the
//!    block runs later.
//!
//! # Cost
//!
//! `b` blocks touched, `n` tokens given; nothing scans a pool, and once warm nothing allocates
//! but [`seal`](BlockManager::seal).
//!
//! | call | cost |
//! |---|---|
//! | [`open`](BlockManager::open), [`admit`](BlockManager::admit), [`lookup`](BlockManager::lookup), [`probe`](BlockManager::probe) | O(b) found, each hashed and compared |
//! | [`reserve`](BlockManager::reserve), [`truncate`](BlockManager::truncate), [`release`](BlockManager::release), [`release_before`](BlockManager::release_before), [`fork`](BlockManager::fork), [`swap_out`](BlockManager::swap_out), [`swap_in`](BlockManager::swap_in) | O(b) |
//! | [`commit`](BlockManager::commit) | O(n) |
//! | [`seal_into`](BlockManager::seal_into), [`complete`](BlockManager::complete) | O(transfers) |
//! | [`blocks`](BlockManager::blocks), [`slot`](BlockManager::slot), [`stats`](BlockManager::stats), [`blocks_needed`](BlockManager::blocks_needed) | O(1) |
//! | [`drain_events`](BlockManager::drain_events) | O(events) |
//! | [`reset_prefix_cache`](BlockManager::reset_prefix_cache) | O(cached blocks) |
//! | [`new`](BlockManager::new), [`check`](BlockManager::check) | O(all blocks) |
//!
//! The index is a hash table at most half full; should deletion marks pile up in it, one insertion
//! rehashes in place, which its size amortises.
//!
//! # Errors and bugs
//!
//! A full tier is a result, [`OutOfBlocks`], and changes nothing. Wrong use is a bug of the caller
//! and panics, in release builds too, with a message that names it: a table released twice or used
//! after, written while swapped out, a commit past the reservation, a step completed twice.
//!
//! # Example
//!
//! An engine in miniature, over a cache that is a `Vec<f32>`; `examples/swap.rs` has one with a
//! host tier:
//!
//! ```
//! use pageloom_block_manager::{
//!     BlockManager, Config, Namespace, OutOfBlocks, StepId, TableId, TokenId,
//! };
//!
//! /// A model in miniature: a token's key and value is one number, and attention adds them up.
//! struct Engine {
//!     blocks: BlockManager,
//!     cache: Vec<f32>,
//!     num_steps: u64,
//! }
//!
//! impl Engine {
//!     /// Computes `tokens` at the end of the table and returns the token that follows them.
//!     fn forward(&mut self, t: TableId, tokens: &[TokenId]) -> Result<TokenId, OutOfBlocks> {
//!         let start = self.blocks.num_tokens(t);
//!         self.blocks.reserve(t, tokens.len())?;
//!
//!         let step = StepId(self.num_steps);
//!         self.num_steps += 1;
//!         let size = self.blocks.config().block_size;
//!         for copy in self.blocks.seal(step).copies {
//!             let (src, dst) = (copy.src.index() * size, copy.dst.index() * size);
//!             self.cache.copy_within(src..src + size, dst);
//!         }
//!         self.blocks.complete(step);
//!
//!         for (position, &token) in (start..).zip(tokens) {
//!             self.cache[self.blocks.slot(t, position)] = token as f32;
//!         }
//!         self.blocks.commit(t, tokens);
//!
//!         let positions = 0..self.blocks.num_tokens(t);
//!         let sum: f32 = positions.map(|i| self.cache[self.blocks.slot(t, i)]).sum();
//!         Ok(sum as TokenId)
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let config = Config {
//!         block_size: 4,
//!         num_blocks: 8,
//!         ..Config::default()
//!     };
//!     let mut engine = Engine {
//!         cache: vec![0.0; config.num_blocks * config.block_size],
//!         blocks: BlockManager::new(config)?,
//!         num_steps: 0,
//!     };
//!
//!     // Prefill: seven tokens in two blocks.
//!     let prompt = [1, 2, 3, 4, 5, 6, 7];
//!     let (a, num_cached) = engine.blocks.open(&prompt, Namespace(0));
//!     assert_eq!(num_cached, 0);
//!     assert_eq!(engine.forward(a, &prompt)?, 28);
//!
//!     // Two samples of one prompt share both blocks until one of them writes.
//!     let b = engine.blocks.fork(a);
//!     assert_eq!(engine.forward(a, &[100])?, 128);
//!     assert_eq!(engine.forward(b, &[200])?, 228);
//!     assert_eq!(engine.blocks.stats().num_copies, 1);
//!     assert_eq!(engine.blocks.stats().device.num_referenced, 3);
//!     engine.blocks.release(a);
//!     engine.blocks.release(b);
//!
//!     // The prompt once more: its full block is still there.
//!     let (c, num_cached) = engine.blocks.open(&prompt, Namespace(0));
//!     assert_eq!(num_cached, 4);
//!     assert_eq!(engine.forward(c, &prompt[num_cached..])?, 28);
//!     engine.blocks.release(c);
//!     assert_eq!(engine.blocks.stats().device.num_referenced, 0);
//!     Ok(())
//! }
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod block;
mod check;
mod config;
mod events;
mod hash;
mod ids;
mod index;
mod manager;
mod memory;
mod ops;
mod pool;
mod query;
mod size;
mod stats;
mod store;
mod swap;
mod table;

pub use check::Violation;
pub use config::{Config, ConfigError, Eviction, OutOfBlocks};
pub use events::{CacheEvent, ContentId, Parent};
pub use ids::{BlockId, HostBlockId, Namespace, StepId, TableId, Tier, TokenId};
pub use manager::BlockManager;
pub use ops::{BlockCopy, BlockOps, SwapIn, SwapOut};
pub use stats::{PrefixHit, Stats, TierStats};

/// The README's example is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
