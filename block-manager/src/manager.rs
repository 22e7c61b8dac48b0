//! The block manager.

use crate::{
    BlockId, BlockOps, Config, ConfigError, Namespace, OutOfBlocks, StepId, TableId, TokenId,
    index::{Chain, PrefixIndex},
    ops::CopyLog,
    pool::Pool,
    size::BlockSize,
    table::{Table, Tables},
};

/// Decides which physical block belongs to which sequence; never touches the blocks' memory.
///
/// See the [crate page](crate) for the life of a block and the rules an executor keeps.
#[derive(Debug)]
pub struct BlockManager {
    pub(crate) config: Config,
    pub(crate) size: BlockSize,
    pub(crate) pool: Pool,
    /// `None` without prefix caching.
    pub(crate) index: Option<PrefixIndex>,
    pub(crate) tables: Tables,
    pub(crate) copies: CopyLog,
    pub(crate) counters: Counters,
}

/// What happened since the manager was made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) num_queried_tokens: u64,
    pub(crate) num_hit_tokens: u64,
    pub(crate) num_evictions: u64,
    pub(crate) num_copies: u64,
}

impl BlockManager {
    /// Makes a manager whose blocks are all free.
    ///
    /// Allocates, per block, about 60 bytes and, with prefix caching, 4 for each of its tokens.
    /// O(blocks).
    ///
    /// # Errors
    /// Those of [`Config::validate`].
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let index = config
            .prefix_caching
            .then(|| PrefixIndex::new(config.hash_seed, config.block_size, config.num_blocks));
        Ok(Self {
            size: BlockSize::new(config.block_size),
            pool: Pool::new(config.num_blocks),
            index,
            tables: Tables::new(config.num_blocks),
            copies: CopyLog::default(),
            counters: Counters::default(),
            config,
        })
    }

    /// Opens a table that shares the longest cached prefix of `tokens`.
    ///
    /// Returns the table and how many tokens it starts with, which count as committed. Only
    /// full blocks are shared, and at least one token is always left to compute, since its
    /// output is what the caller is after. `open(&[], ns)` opens an empty table and looks
    /// nothing up. Never fails: an open table may hold no block.
    ///
    /// O(blocks shared).
    pub fn open(&mut self, tokens: &[TokenId], ns: Namespace) -> (TableId, usize) {
        let mut blocks = self.tables.take_list();
        blocks.extend(hits(&self.pool, self.index.as_ref(), tokens, ns));
        for &block in &blocks {
            self.pool.acquire(block);
        }
        let num_tokens = blocks.len() * self.size.tokens();
        self.counters.num_queried_tokens += tokens.len() as u64;
        self.counters.num_hit_tokens += num_tokens as u64;
        (self.tables.insert(ns, blocks, num_tokens), num_tokens)
    }

    /// Makes the slots of the `num_slots` tokens after the committed ones writable.
    ///
    /// Allocates what is missing, evicting cached blocks when no free one is left. If the first
    /// of those slots lies in a block that others hold or that is published, the table gets a
    /// copy of its own (copy-on-write), which the next [`seal`](Self::seal) orders; the last
    /// holder of an unpublished block writes in place. All or nothing, and does nothing if as
    /// many slots are reserved already.
    ///
    /// O(blocks allocated).
    ///
    /// # Errors
    /// [`OutOfBlocks`] if fewer are available than [`blocks_needed`](Self::blocks_needed).
    ///
    /// # Panics
    /// If `t` is not open.
    #[track_caller]
    pub fn reserve(&mut self, t: TableId, num_slots: usize) -> Result<(), OutOfBlocks> {
        let table = self.tables.get_mut(t);
        if num_slots <= table.num_reserved {
            return Ok(());
        }
        let tail = shared_tail(&self.pool, table, self.size);
        let num_new = missing_blocks(table, num_slots, self.size);
        let needed = num_new + usize::from(tail.is_some());
        let available = self.pool.num_available();
        if needed > available {
            return Err(OutOfBlocks { needed, available });
        }
        table.num_reserved = num_slots;
        if let Some(place) = tail {
            self.copy_on_write(t, place);
        }
        if num_new > 0 {
            let table = self.tables.get_mut(t);
            for _ in 0..num_new {
                let block = allocate(&mut self.pool, &mut self.index, &mut self.counters);
                table.blocks.push(block);
            }
        }
        Ok(())
    }

    /// Notes that the keys and values of `tokens` were computed into the reserved slots.
    ///
    /// Publishes each block that became full. If the same contents were published meanwhile
    /// (two sequences computed one prompt in the same step), the table takes the published
    /// block and its own becomes free: every full block of a table is then published, and its
    /// children can be found. That is sound because both were computed from the same tokens in
    /// the same namespace, and the published one was committed before this one; steps already
    /// given to the executor still read the old block, which can only be written by later ones.
    /// Ask [`blocks`](Self::blocks) again after a commit.
    ///
    /// O(tokens).
    ///
    /// # Panics
    /// If `t` is not open, if `tokens` go past the reservation, or if they were computed into a
    /// copy that no step was sealed for.
    #[track_caller]
    pub fn commit(&mut self, t: TableId, mut tokens: &[TokenId]) {
        let block_size = self.size.tokens();
        let table = self.tables.get_mut(t);
        let num_reserved = table.num_reserved;
        assert!(
            tokens.len() <= num_reserved,
            "commit of {} tokens to table {t}, which has {num_reserved} slots reserved",
            tokens.len(),
        );
        while !tokens.is_empty() {
            let (place, offset) = self.size.split(table.num_tokens);
            let block = table.blocks[place];
            assert!(
                self.pool.get(block).is_writable(),
                "block {block} of table {t} was written while shared or published"
            );
            assert!(
                self.pool.unsealed_copy(block).is_none(),
                "commit to block {block} of table {t} before its copy was sealed"
            );
            let (written, rest) = tokens.split_at(tokens.len().min(block_size - offset));
            table.num_tokens += written.len();
            table.num_reserved -= written.len();
            if let Some(index) = &mut self.index {
                index.write(block, offset, written);
                if offset + written.len() == block_size {
                    publish(&mut self.pool, index, table, place);
                }
            }
            tokens = rest;
        }
    }

    /// Opens a table with the same committed tokens, sharing every block that holds some.
    ///
    /// Never allocates a block, so it cannot fail; whichever table writes a shared tail first
    /// copies it. Slots reserved in that tail are no longer writable and must be reserved anew.
    ///
    /// O(blocks shared).
    ///
    /// # Panics
    /// If `t` is not open.
    #[track_caller]
    pub fn fork(&mut self, t: TableId) -> TableId {
        let mut blocks = self.tables.take_list();
        let table = self.tables.get_mut(t);
        let num_tokens = table.num_tokens;
        let (num_full, in_tail) = self.size.split(num_tokens);
        if in_tail > 0 {
            table.num_reserved = 0;
        }
        let num_shared = num_full + usize::from(in_tail > 0);
        blocks.extend_from_slice(&table.blocks[..num_shared]);
        let namespace = table.namespace;
        for &block in &blocks {
            self.pool.acquire(block);
        }
        self.tables.insert(namespace, blocks, num_tokens)
    }

    /// Takes the table back to its first `num_tokens` tokens and gives up every reserved slot.
    ///
    /// If the cut falls into a published block, the next [`reserve`](Self::reserve) copies it.
    ///
    /// O(blocks given up).
    ///
    /// # Panics
    /// If `t` is not open or has fewer tokens.
    #[track_caller]
    pub fn truncate(&mut self, t: TableId, num_tokens: usize) {
        let table = self.tables.get_mut(t);
        assert!(
            num_tokens <= table.num_tokens,
            "truncate of table {t} to {num_tokens} tokens, which has {}",
            table.num_tokens
        );
        let num_kept = self.size.blocks_for(num_tokens);
        for &block in table.blocks[num_kept..].iter().rev() {
            self.pool.drop_ref(block);
        }
        table.blocks.truncate(num_kept);
        table.num_tokens = num_tokens;
        table.num_reserved = 0;
    }

    /// Closes the table. Published blocks that nobody else holds stay findable until evicted.
    ///
    /// O(blocks).
    ///
    /// # Panics
    /// If `t` is not open, which a second release is.
    #[track_caller]
    pub fn release(&mut self, t: TableId) {
        let table = self.tables.remove(t);
        // Tails first: a later prefix hit needs the head, not the tail.
        for &block in table.blocks.iter().rev() {
            self.pool.drop_ref(block);
        }
        self.tables.give_list(table.blocks);
    }

    /// Frees every cached block and returns how many there were. Blocks that tables hold stay
    /// findable. O(cached blocks).
    pub fn reset_prefix_cache(&mut self) -> usize {
        let num_cached = self.pool.num_cached();
        if let Some(index) = &mut self.index {
            let mut at = None;
            while let Some(block) = self.pool.last_cached(at) {
                index.unpublish(&mut self.pool, block);
                at = Some(block);
            }
            self.pool.forget_cached();
        }
        num_cached
    }

    /// Hands the copies ordered since the last seal to `step`.
    ///
    /// Allocates the returned list; [`seal_into`](Self::seal_into) reuses one. O(copies).
    ///
    /// # Panics
    /// If `step` was sealed and not completed.
    #[must_use = "the copies must be done before the step writes the cache"]
    #[track_caller]
    pub fn seal(&mut self, step: StepId) -> BlockOps {
        let mut ops = BlockOps::default();
        self.seal_into(step, &mut ops);
        ops
    }

    /// [`seal`](Self::seal) into a list of the caller's, whose contents are replaced.
    ///
    /// # Panics
    /// If `step` was sealed and not completed.
    #[track_caller]
    pub fn seal_into(&mut self, step: StepId, ops: &mut BlockOps) {
        self.copies.seal_into(&mut self.pool, step, ops);
    }

    /// Notes that the executor has done the operations of `step`, whose blocks may be reused.
    /// O(copies).
    ///
    /// # Panics
    /// If `step` is not sealed, or was completed before.
    #[track_caller]
    pub fn complete(&mut self, step: StepId) {
        self.copies.complete(&mut self.pool, step);
    }

    /// Replaces the shared block at `place` by a copy of the table's own.
    fn copy_on_write(&mut self, t: TableId, place: usize) {
        let dst = allocate(&mut self.pool, &mut self.index, &mut self.counters);
        let table = self.tables.get_mut(t);
        let src = core::mem::replace(&mut table.blocks[place], dst);
        if let Some(index) = &mut self.index {
            index.copy(src, dst, self.size.split(table.num_tokens).1);
        }
        self.copies.push(&mut self.pool, src, dst);
        self.pool.drop_ref(src);
        self.counters.num_copies += 1;
    }
}

/// Takes a block off the list, which is not empty, for the one table that will hold it.
#[inline]
fn allocate(pool: &mut Pool, index: &mut Option<PrefixIndex>, counters: &mut Counters) -> BlockId {
    let block = pool.front().expect("availability was checked");
    pool.acquire(block);
    if pool.get(block).is_published() {
        let index = index.as_mut().expect("published blocks are indexed");
        index.unpublish(pool, block);
        counters.num_evictions += 1;
    }
    block
}

/// The cached blocks of `tokens` from the first on, one token left to compute.
pub(crate) fn hits<'a>(
    pool: &'a Pool,
    index: Option<&'a PrefixIndex>,
    tokens: &'a [TokenId],
    ns: Namespace,
) -> impl Iterator<Item = BlockId> + 'a {
    let block_size = index.map_or(1, PrefixIndex::block_size);
    let most = tokens.len().saturating_sub(1);
    let mut chain = Chain::root(ns);
    tokens[..most]
        .chunks_exact(block_size)
        .map_while(move |chunk| index?.follow(pool, &mut chain, chunk))
}

/// The place of the partly filled block that `table` must copy before it writes on.
pub(crate) fn shared_tail(pool: &Pool, table: &Table, size: BlockSize) -> Option<usize> {
    let (place, filled) = size.split(table.num_tokens);
    (filled > 0 && !pool.get(table.blocks[place]).is_writable()).then_some(place)
}

/// Blocks `table` lacks for `num_slots` slots after its committed tokens.
pub(crate) fn missing_blocks(table: &Table, num_slots: usize, size: BlockSize) -> usize {
    let room = table.blocks.len() * size.tokens() - table.num_tokens;
    size.blocks_for(num_slots.saturating_sub(room))
}

/// Publishes the table's full block at `place`, or takes the one published before it.
#[inline(never)]
fn publish(pool: &mut Pool, index: &mut PrefixIndex, table: &mut Table, place: usize) {
    let chain = match place.checked_sub(1) {
        Some(before) => Chain::after(pool, table.blocks[before]),
        None => Chain::root(table.namespace),
    };
    let block = table.blocks[place];
    if let Some(canonical) = index.publish(pool, chain, block) {
        pool.acquire(canonical);
        pool.drop_ref(block);
        table.blocks[place] = canonical;
    }
}
