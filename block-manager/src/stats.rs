//! Figures for metrics and admission.

/// What one tier holds now.
///
/// `num_free + num_cached + num_referenced + num_pinned == num_blocks`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierStats {
    /// Blocks in the tier.
    pub num_blocks: usize,
    /// Blocks that hold nothing.
    pub num_free: usize,
    /// Published blocks no table holds: findable, and evicted when no free block is left.
    pub num_cached: usize,
    /// Blocks at least one table holds.
    pub num_referenced: usize,
    /// Blocks no table holds but a transfer that was not completed still reads or writes.
    pub num_pinned: usize,
    /// Blocks by the tables: each counts for every table that holds it. Sharing saves
    /// `1 - num_referenced / num_references` of the memory that tables would take without it.
    pub num_references: usize,
    /// Published blocks whose contents made way for new ones, since the manager was made.
    pub num_evictions: u64,
}

/// What both tiers hold now, and what happened since the manager was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The device's blocks.
    pub device: TierStats,
    /// The host's blocks.
    pub host: TierStats,
    /// Tables open, in either tier.
    pub num_tables: usize,
    /// Tokens given to [`open`](crate::BlockManager::open) so far.
    pub num_queried_tokens: u64,
    /// Tokens of them that were found in the cache, in either tier.
    pub num_hit_tokens: u64,
    /// Blocks copied because a shared one was to be written.
    pub num_copies: u64,
    /// Blocks copied to the host by [`swap_out`](crate::BlockManager::swap_out).
    pub num_swapped_out: u64,
    /// Blocks copied back by [`swap_in`](crate::BlockManager::swap_in).
    pub num_swapped_in: u64,
    /// Blocks copied to the host because the device evicted them.
    pub num_demoted: u64,
    /// Blocks copied back because [`open`](crate::BlockManager::open) found them there.
    pub num_promoted: u64,
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
    /// Blocks of those that are on the host only, and would be copied to the device.
    pub num_host_blocks: usize,
    /// Device blocks that are available now and would not be after opening: those of the prefix
    /// that no table holds yet, and one for each that is on the host.
    pub num_available_blocks: usize,
}
