//! The block manager.

use alloc::vec::Vec;

use crate::{
    BlockOps, CacheEvent, Config, ConfigError, Namespace, OutOfBlocks, StepId, TableId, Tier,
    TokenId,
    index::Chain,
    size::BlockSize,
    store::{Hit, Store},
    swap::Moves,
    table::{Table, Tables},
};

/// Decides which physical block belongs to which sequence; never touches the blocks' memory.
///
/// See the [crate page](crate) for the life of a block and the rules an executor keeps.
#[derive(Debug)]
pub struct BlockManager {
    pub(crate) config: Config,
    pub(crate) size: BlockSize,
    pub(crate) store: Store,
    pub(crate) tables: Tables,
    pub(crate) num_queried_tokens: u64,
    pub(crate) num_hit_tokens: u64,
    /// Buffers kept so that opening and swapping allocate nothing once warm.
    hits: Vec<Hit>,
    pub(crate) moves: Moves,
}

impl BlockManager {
    /// Makes a manager whose blocks are all free.
    ///
    /// Allocates, per block of either tier, at most 64 bytes and, with prefix caching, 4 for
    /// each of its tokens. O(blocks).
    ///
    /// # Errors
    /// Those of [`Config::validate`].
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            size: BlockSize::new(config.block_size),
            store: Store::new(&config),
            tables: Tables::new(config.num_blocks),
            num_queried_tokens: 0,
            num_hit_tokens: 0,
            hits: Vec::new(),
            moves: Moves::default(),
            config,
        })
    }

    /// Opens a table that shares the longest cached prefix of `tokens`.
    ///
    /// Returns the table and how many tokens it starts with, which count as committed. Only
    /// full blocks are shared, and at least one token is always left to compute, since its
    /// output is what the caller is after. Blocks found on the host are brought to the device,
    /// which the next [`seal`](Self::seal) orders, as far as blocks are available there.
    /// `open(&[], ns)` opens an empty table and looks nothing up. Never fails: an open table may
    /// hold no block.
    ///
    /// O(blocks shared).
    pub fn open(&mut self, tokens: &[TokenId], ns: Namespace) -> (TableId, usize) {
        let store = &mut self.store;
        let mut hits = core::mem::take(&mut self.hits);
        hits.extend(store.hits(tokens, self.size.tokens(), ns));
        hits.truncate(store.usable(hits.iter().copied()).num_blocks);
        for hit in &hits {
            let pool = &mut store.memory_mut(hit.tier).pool;
            pool.acquire(hit.block);
            pool.note_reuse(hit.block);
        }
        let mut blocks = self.tables.take_list();
        for hit in hits.drain(..) {
            blocks.push(match hit.tier {
                Tier::Device => hit.block,
                Tier::Host => {
                    let block = store.copy_in(hit.block);
                    store.host.pool.drop_ref(hit.block);
                    store.copied.by_hit += 1;
                    block
                }
            });
        }
        self.hits = hits;
        let num_tokens = blocks.len() * self.size.tokens();
        self.num_queried_tokens += tokens.len() as u64;
        self.num_hit_tokens += num_tokens as u64;
        let table = Table::new(Chain::root(ns), blocks, num_tokens);
        (self.tables.insert(table), num_tokens)
    }

    /// Opens a table that shares the longest cached prefix of `tokens` and reserves the slots it
    /// lacks to hold `num_tokens` tokens, if `keep` blocks of the device stay available.
    ///
    /// `keep` is a watermark: blocks left for the sequences that already run, so that they need
    /// not be preempted at once. The PagedAttention authors' own engine leaves 1 % of the pool
    /// when it admits or swaps in; leave none when nothing else runs. All or nothing.
    ///
    /// O(blocks of the table).
    ///
    /// # Errors
    /// [`OutOfBlocks`] if the blocks needed, those of the prefix that no table holds yet
    /// included, are more than are available less `keep`.
    pub fn admit(
        &mut self,
        tokens: &[TokenId],
        num_tokens: usize,
        ns: Namespace,
        keep: usize,
    ) -> Result<(TableId, usize), OutOfBlocks> {
        let hit = self.probe(tokens, ns);
        let num_new = self
            .size
            .blocks_for(num_tokens)
            .saturating_sub(hit.num_blocks);
        let needed = num_new + hit.num_available_blocks;
        self.store
            .device
            .pool
            .check_available(Tier::Device, needed, keep)?;
        let (table, num_cached) = self.open(tokens, ns);
        self.reserve(table, num_tokens.saturating_sub(num_cached))?;
        Ok((table, num_cached))
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
    /// If `t` is not open, or swapped out.
    #[inline]
    #[track_caller]
    pub fn reserve(&mut self, t: TableId, num_slots: usize) -> Result<(), OutOfBlocks> {
        let table = self.tables.resident_mut(t);
        if num_slots <= table.num_writable {
            table.num_reserved = table.num_reserved.max(num_slots);
            return Ok(());
        }
        self.reserve_blocks(t, num_slots)
    }

    /// [`reserve`](Self::reserve) where blocks are to be looked at or taken.
    #[inline(never)]
    #[track_caller]
    fn reserve_blocks(&mut self, t: TableId, num_slots: usize) -> Result<(), OutOfBlocks> {
        let table = self.tables.resident_mut(t);
        let tail = self.store.shared_tail(table, self.size);
        let num_new = table.num_missing(num_slots, self.size);
        let needed = num_new + usize::from(tail.is_some());
        let pool = &self.store.device.pool;
        pool.check_available(Tier::Device, needed, 0)?;
        if let Some(place) = tail {
            let src = table.blocks[place];
            let num_tokens = self.size.split(table.num_tokens).1;
            table.blocks[place] = self.store.copy_on_write(src, num_tokens);
            self.store.device.pool.drop_ref(src);
        }
        for _ in 0..num_new {
            table.blocks.push(self.store.take());
        }
        table.num_reserved = num_slots;
        table.num_writable = table.room(self.size);
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
    /// If `t` is not open or swapped out, if `tokens` go past the reservation, or if they were
    /// computed into a copy that no step was sealed for.
    #[inline]
    #[track_caller]
    pub fn commit(&mut self, t: TableId, mut tokens: &[TokenId]) {
        let table = self.tables.resident_mut(t);
        let num_reserved = table.num_reserved;
        if tokens.len() > num_reserved {
            commit_past_reservation(t, tokens.len(), num_reserved);
        }
        while !tokens.is_empty() {
            let (place, offset) = self.size.split(table.num_tokens);
            let room = self.size.tokens() - offset;
            let (written, rest) = tokens.split_at(tokens.len().min(room));
            let place = place - table.num_passed;
            self.store.write(table.blocks[place], offset, written);
            table.num_tokens += written.len();
            table.num_reserved -= written.len();
            table.num_writable -= written.len();
            if written.len() == room {
                publish(&mut self.store, table, place);
            }
            tokens = rest;
        }
    }

    /// Opens a table with the same committed tokens, sharing every block that holds some.
    ///
    /// Never allocates a block, so it cannot fail; whichever table writes a shared tail first
    /// copies it. Slots reserved in that tail are no longer writable and must be reserved anew.
    /// The fork of a table that is swapped out is swapped out too.
    ///
    /// O(blocks shared).
    ///
    /// # Panics
    /// If `t` is not open.
    #[track_caller]
    pub fn fork(&mut self, t: TableId) -> TableId {
        let mut blocks = self.tables.take_list();
        let table = self.tables.get_mut(t);
        if self.size.split(table.num_tokens).1 > 0 {
            table.forget_reserved();
        }
        blocks.extend_from_slice(table.committed_blocks(self.size));
        self.store.memory_mut(table.tier).pool.share(&blocks);
        let child = table.sharing(blocks);
        self.tables.insert(child)
    }

    /// Takes the table back to its first `num_tokens` tokens and gives up every reserved slot.
    ///
    /// If the cut falls into a published block, the next [`reserve`](Self::reserve) copies it.
    ///
    /// O(blocks given up).
    ///
    /// # Panics
    /// If `t` is not open, has fewer tokens, or the cut falls into blocks that
    /// [`release_before`](Self::release_before) took.
    #[track_caller]
    pub fn truncate(&mut self, t: TableId, num_tokens: usize) {
        let table = self.tables.get_mut(t);
        assert!(
            num_tokens <= table.num_tokens,
            "truncate of table {t} to {num_tokens} tokens, which has {}",
            table.num_tokens
        );
        let num_passed = table.num_passed * self.size.tokens();
        assert!(
            num_tokens >= num_passed,
            "truncate of table {t} to {num_tokens} tokens, whose first {num_passed} were released"
        );
        table.num_tokens = num_tokens;
        table.drop_reserved(&mut self.store, self.size);
    }

    /// Releases the blocks whose tokens all lie before `position`, for attention over a sliding
    /// window: they fell out of it. Returns how many.
    ///
    /// The table keeps its length and its positions; [`blocks`](Self::blocks) starts with the
    /// first block kept, which [`num_passed_blocks`](Self::num_passed_blocks) come before.
    /// Published ones stay findable until evicted.
    ///
    /// O(blocks released, and of the table kept).
    ///
    /// # Panics
    /// If `t` is not open or swapped out, or has fewer than `position` tokens.
    #[track_caller]
    pub fn release_before(&mut self, t: TableId, position: usize) -> usize {
        let table = self.tables.resident_mut(t);
        assert!(
            position <= table.num_tokens,
            "release of table {t} before position {position}, which has {} tokens",
            table.num_tokens
        );
        let num_passed = self.size.split(position).0.max(table.num_passed);
        let num_released = num_passed - table.num_passed;
        if let Some(last) = num_released.checked_sub(1) {
            if let Some(identity) = self.store.device.identity(table.blocks[last]) {
                table.base = Chain::after(identity);
            }
            table.num_passed = num_passed;
            let released = table.blocks.drain(..num_released);
            // Tails first, as always: a later prefix hit needs the head.
            for block in released.rev() {
                self.store.device.pool.drop_ref(block);
            }
        }
        num_released
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
        let pool = &mut self.store.memory_mut(table.tier).pool;
        pool.drop_refs(&table.blocks);
        self.tables.give_list(table.blocks);
    }

    /// Frees every cached block of both tiers and returns how many there were. Blocks that
    /// tables hold stay findable. O(cached blocks).
    pub fn reset_prefix_cache(&mut self) -> usize {
        self.store.reset()
    }

    /// Hands the transfers ordered since the last seal to `step`.
    ///
    /// Allocates the returned lists; [`seal_into`](Self::seal_into) reuses some. O(transfers).
    ///
    /// # Panics
    /// If `step` was sealed and not completed.
    #[must_use = "the transfers must be done before the step writes the cache"]
    #[track_caller]
    pub fn seal(&mut self, step: StepId) -> BlockOps {
        let mut ops = BlockOps::default();
        self.seal_into(step, &mut ops);
        ops
    }

    /// [`seal`](Self::seal) into lists of the caller's, whose contents are replaced.
    ///
    /// # Panics
    /// If `step` was sealed and not completed.
    #[track_caller]
    pub fn seal_into(&mut self, step: StepId, ops: &mut BlockOps) {
        self.store.seal_into(step, ops);
    }

    /// Notes that the executor has done the operations of `step`, whose blocks may be reused.
    /// O(transfers).
    ///
    /// # Panics
    /// If `step` is not sealed, or was completed before.
    #[track_caller]
    pub fn complete(&mut self, step: StepId) {
        self.store.complete(step);
    }

    /// Whether published blocks that the device evicts are kept on the host from now on, where there
    /// is room; they are at first. O(1).
    pub fn keep_evicted(&mut self, keep: bool) {
        self.store.keeps_evicted = keep;
    }

    /// Shows each [`CacheEvent`] since the last call once, oldest first. Nothing is noted unless
    /// [`Config::events`] is set.
    ///
    /// A block is stored when [`commit`](Self::commit)ted, swapped out or demoted; the step that
    /// fills it may still be under way. O(events).
    pub fn drain_events(&mut self, read: impl FnMut(CacheEvent<'_>)) {
        if let Some(events) = &mut self.store.events {
            events.drain(self.size.tokens(), read);
        }
    }
}

#[cold]
#[track_caller]
fn commit_past_reservation(t: TableId, num_tokens: usize, num_reserved: usize) -> ! {
    panic!("commit of {num_tokens} tokens to table {t}, which has {num_reserved} slots reserved");
}

/// Publishes the table's full block at `place`, or takes the one published before it.
#[inline(never)]
fn publish(store: &mut Store, table: &mut Table, place: usize) {
    if store.device.index.is_none() {
        return;
    }
    let chain = match place.checked_sub(1) {
        Some(before) => Chain::after(store.device.pool.get(table.blocks[before]).identity()),
        None => table.base,
    };
    let block = table.blocks[place];
    if let Some(canonical) = store.publish(chain, block) {
        store.device.pool.acquire(canonical);
        store.device.pool.drop_ref(block);
        table.blocks[place] = canonical;
    }
}
