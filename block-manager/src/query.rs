//! What can be asked of a manager without changing it.

use crate::{
    BlockId, BlockManager, Config, Namespace, PrefixHit, Stats, TableId, Tier, TierStats, TokenId,
    memory::Memory,
};

impl BlockManager {
    /// The configuration this manager was made from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How many tokens [`open`](Self::open) would start with. Changes nothing.
    ///
    /// O(blocks found).
    #[must_use]
    pub fn lookup(&self, tokens: &[TokenId], ns: Namespace) -> usize {
        self.probe(tokens, ns).num_tokens
    }

    /// What [`open`](Self::open) would find, and what that would take from
    /// [`num_available_blocks`](Self::num_available_blocks). Changes nothing.
    ///
    /// A sequence fits at `n` tokens if `n.div_ceil(block_size) - hit.num_blocks`, plus
    /// `hit.num_available_blocks`, is at most the number available; [`admit`](Self::admit)
    /// checks just that.
    ///
    /// O(blocks found).
    #[must_use]
    pub fn probe(&self, tokens: &[TokenId], ns: Namespace) -> PrefixHit {
        let block_size = self.size.tokens();
        let mut hit = self.store.usable(self.store.hits(tokens, block_size, ns));
        hit.num_tokens = hit.num_blocks * block_size;
        hit
    }

    /// Blocks that [`reserve`](Self::reserve) would take for `num_slots` slots, the copy of a
    /// shared tail included. Changes nothing. O(1).
    ///
    /// # Panics
    /// If `t` is not open, or swapped out.
    #[must_use]
    #[track_caller]
    pub fn blocks_needed(&self, t: TableId, num_slots: usize) -> usize {
        let table = self.tables.resident(t);
        if num_slots <= table.num_reserved {
            return 0;
        }
        let tail = self.store.shared_tail(table, self.size);
        table.num_missing(num_slots, self.size) + usize::from(tail.is_some())
    }

    /// The table's blocks in order: those of the committed tokens, then of the reserved slots.
    /// O(1).
    ///
    /// The first holds position 0, or what follows the
    /// [`num_passed_blocks`](Self::num_passed_blocks) that were released before it.
    ///
    /// # Panics
    /// If `t` is not open, or swapped out.
    #[must_use]
    #[track_caller]
    pub fn blocks(&self, t: TableId) -> &[BlockId] {
        &self.tables.resident(t).blocks
    }

    /// Blocks that [`release_before`](Self::release_before) took from the table's head. O(1).
    ///
    /// # Panics
    /// If `t` is not open.
    #[must_use]
    #[track_caller]
    pub fn num_passed_blocks(&self, t: TableId) -> usize {
        self.tables.get(t).num_passed
    }

    /// The tier all blocks of the table are in. O(1).
    ///
    /// # Panics
    /// If `t` is not open.
    #[must_use]
    #[track_caller]
    pub fn tier(&self, t: TableId) -> Tier {
        self.tables.get(t).tier
    }

    /// Tokens committed to the table; their keys and values are in the cache, but for those of
    /// the blocks passed. O(1).
    ///
    /// # Panics
    /// If `t` is not open.
    #[must_use]
    #[track_caller]
    pub fn num_tokens(&self, t: TableId) -> usize {
        self.tables.get(t).num_tokens
    }

    /// Slots after the committed tokens that may be written. O(1).
    ///
    /// # Panics
    /// If `t` is not open.
    #[must_use]
    #[track_caller]
    pub fn num_reserved(&self, t: TableId) -> usize {
        self.tables.get(t).num_reserved
    }

    /// The slot, counted over the whole cache, of the table's token at `position`. O(1).
    ///
    /// # Panics
    /// If `t` is not open or swapped out, or `position` is past its committed and reserved
    /// tokens or in a block released before.
    #[must_use]
    #[track_caller]
    pub fn slot(&self, t: TableId, position: usize) -> usize {
        let table = self.tables.resident(t);
        let slots = table.num_passed * self.size.tokens()..table.num_tokens + table.num_reserved;
        assert!(
            slots.contains(&position),
            "table {t} has no slot at position {position}, only at {slots:?}"
        );
        let (place, offset) = self.size.split(position);
        table.blocks[place - table.num_passed].index() * self.size.tokens() + offset
    }

    /// Tables that hold the device's `block`. O(1).
    ///
    /// # Panics
    /// If `block` is of another manager and past this one's pool.
    #[must_use]
    pub fn num_references(&self, block: BlockId) -> usize {
        self.store.device.pool.get(block).refs as usize
    }

    /// Device blocks that [`reserve`](Self::reserve) can take: free ones and cached ones. O(1).
    #[must_use]
    pub fn num_available_blocks(&self) -> usize {
        self.store.device.pool.num_available()
    }

    /// The state of both tiers and what happened so far. O(1).
    #[must_use]
    pub fn stats(&self) -> Stats {
        let copied = &self.store.copied;
        Stats {
            device: tier_stats(&self.store.device),
            host: tier_stats(&self.store.host),
            num_tables: self.tables.len(),
            num_queried_tokens: self.num_queried_tokens,
            num_hit_tokens: self.num_hit_tokens,
            num_copies: copied.on_write,
            num_swapped_out: copied.by_swap_out,
            num_swapped_in: copied.by_swap_in,
            num_demoted: copied.by_eviction,
            num_promoted: copied.by_hit,
        }
    }
}

fn tier_stats(memory: &Memory) -> TierStats {
    let pool = &memory.pool;
    let num_unreferenced = pool.num_available() + pool.num_pinned;
    TierStats {
        num_blocks: pool.len(),
        num_free: pool.num_free,
        num_cached: pool.num_cached,
        num_referenced: pool.len() - num_unreferenced,
        num_pinned: pool.num_pinned,
        num_references: pool.num_references,
        num_evictions: memory.num_evictions,
    }
}
