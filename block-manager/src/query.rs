//! What can be asked of a manager without changing it.

use crate::{
    BlockId, BlockManager, Config, Namespace, PrefixHit, Stats, TableId, TokenId,
    manager::{hits, missing_blocks, shared_tail},
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
    /// `hit.num_available_blocks`, is at most the number available.
    ///
    /// O(blocks found).
    #[must_use]
    pub fn probe(&self, tokens: &[TokenId], ns: Namespace) -> PrefixHit {
        let mut hit = PrefixHit::default();
        for block in hits(&self.pool, self.index.as_ref(), tokens, ns) {
            let entry = self.pool.get(block);
            hit.num_blocks += 1;
            hit.num_available_blocks += usize::from(entry.refs == 0 && entry.pins == 0);
        }
        hit.num_tokens = hit.num_blocks * self.size.tokens();
        hit
    }

    /// Blocks that [`reserve`](Self::reserve) would take for `num_slots` slots, the copy of a
    /// shared tail included. Changes nothing. O(1).
    ///
    /// # Panics
    /// If `t` is not open.
    #[must_use]
    #[track_caller]
    pub fn blocks_needed(&self, t: TableId, num_slots: usize) -> usize {
        let table = self.tables.get(t);
        if num_slots <= table.num_reserved {
            return 0;
        }
        let tail = shared_tail(&self.pool, table, self.size);
        missing_blocks(table, num_slots, self.size) + usize::from(tail.is_some())
    }

    /// The table's blocks in order: those of the committed tokens, then of the reserved slots.
    /// O(1).
    ///
    /// # Panics
    /// If `t` is not open.
    #[must_use]
    #[track_caller]
    pub fn blocks(&self, t: TableId) -> &[BlockId] {
        &self.tables.get(t).blocks
    }

    /// Tokens of the table whose keys and values are in the cache. O(1).
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
    /// If `t` is not open, or `position` is past its committed and reserved tokens.
    #[must_use]
    #[track_caller]
    pub fn slot(&self, t: TableId, position: usize) -> usize {
        let table = self.tables.get(t);
        let num_slots = table.num_tokens + table.num_reserved;
        assert!(
            position < num_slots,
            "table {t} has no slot at position {position}, only {num_slots}"
        );
        let (place, offset) = self.size.split(position);
        table.blocks[place].index() * self.size.tokens() + offset
    }

    /// Tables that hold `block`. O(1).
    ///
    /// # Panics
    /// If `block` is of another manager and past this one's pool.
    #[must_use]
    pub fn num_references(&self, block: BlockId) -> usize {
        self.pool.get(block).refs as usize
    }

    /// Blocks [`reserve`](Self::reserve) can take: free ones and cached ones. O(1).
    #[must_use]
    pub fn num_available_blocks(&self) -> usize {
        self.pool.num_available()
    }

    /// The pool's state and what happened so far. O(1).
    #[must_use]
    pub fn stats(&self) -> Stats {
        let pool = &self.pool;
        let num_unreferenced = pool.num_available() + pool.num_pinned();
        Stats {
            num_blocks: pool.len(),
            num_free: pool.num_free(),
            num_cached: pool.num_cached(),
            num_referenced: pool.len() - num_unreferenced,
            num_pinned: pool.num_pinned(),
            num_tables: self.tables.len(),
            num_queried_tokens: self.counters.num_queried_tokens,
            num_hit_tokens: self.counters.num_hit_tokens,
            num_evictions: self.counters.num_evictions,
            num_copies: self.counters.num_copies,
        }
    }
}
