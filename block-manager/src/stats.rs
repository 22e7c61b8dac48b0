//! Figures for metrics and admission.

/// What the pool holds now, and what happened since the manager was made.
///
/// `num_free + num_cached + num_referenced + num_pinned == num_blocks`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Blocks that hold nothing.
    pub num_free: usize,
    /// Published blocks no table holds: findable, and evicted when no free block is left.
    pub num_cached: usize,
    /// Blocks at least one table holds.
    pub num_referenced: usize,
    /// Blocks no table holds but a copy that was not completed still reads or writes.
    pub num_pinned: usize,
    /// Tables open.
    pub num_tables: usize,
    /// Tokens given to [`open`](crate::BlockManager::open) so far.
    pub num_queried_tokens: u64,
    /// Tokens of them that were found in the cache.
    pub num_hit_tokens: u64,
    /// Published blocks whose contents made way for new ones.
    pub num_evictions: u64,
    /// Blocks copied because a shared one was to be written.
    pub num_copies: u64,
}

/// What [`open`](crate::BlockManager::open) would find, from
/// [`probe`](crate::BlockManager::probe).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefixHit {
    /// Tokens of the prefix that are cached; a multiple of the block size.
    pub num_tokens: usize,
    /// Blocks that hold them.
    pub num_blocks: usize,
    /// Blocks of them that count as available now and would not after opening, because no
    /// table holds them yet.
    pub num_available_blocks: usize,
}
