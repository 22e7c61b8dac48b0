//! The blocks of both tiers, what they hold, and what moves between them.

use crate::{
    BlockId, BlockOps, Config, Namespace, PrefixHit, StepId, Tier, TokenId,
    events::EventLog,
    index::{Chain, Identity, PrefixIndex},
    memory::Memory,
    ops::{Transfer, TransferLog},
    size::BlockSize,
    table::Table,
};

/// A block that holds the next tokens of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    pub(crate) tier: Tier,
    pub(crate) block: BlockId,
}

/// Where the contents of a block are before the operations of the unsealed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Device(BlockId),
    Host(BlockId),
}

/// Blocks copied since the manager was made, by reason.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    pub(crate) on_write: u64,
    pub(crate) by_swap_out: u64,
    pub(crate) by_swap_in: u64,
    pub(crate) by_eviction: u64,
    pub(crate) by_hit: u64,
}

/// Both tiers.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) device: Memory,
    pub(crate) host: Memory,
    pub(crate) transfers: TransferLog,
    /// `None` unless asked for.
    pub(crate) events: Option<EventLog>,
    pub(crate) copied: Copied,
    /// What the device evicts goes to the host.
    pub(crate) keeps_evicted: bool,
    next_serial: u64,
}

impl Store {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            device: Memory::new(config.num_blocks, config),
            host: Memory::new(config.num_host_blocks, config),
            transfers: TransferLog::default(),
            events: config.events.then(EventLog::default),
            copied: Copied::default(),
            keeps_evicted: true,
            next_serial: 1,
        }
    }

    #[inline]
    pub(crate) fn memory(&self, tier: Tier) -> &Memory {
        match tier {
            Tier::Device => &self.device,
            Tier::Host => &self.host,
        }
    }

    #[inline]
    pub(crate) fn memory_mut(&mut self, tier: Tier) -> &mut Memory {
        match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
        }
    }

    /// The cached blocks of `tokens` from the first on, one token left to compute; where both
    /// tiers have one, the device's.
    pub(crate) fn hits<'a>(
        &'a self,
        tokens: &'a [TokenId],
        block_size: usize,
        ns: Namespace,
    ) -> impl Iterator<Item = Hit> + Clone + 'a {
        let most = tokens.len().saturating_sub(1);
        let mut chain = Chain::root(ns);
        tokens[..most]
            .chunks_exact(block_size)
            .map_while(move |chunk| {
                let index = self.device.index.as_ref()?;
                let hash = index.hash(chain, chunk);
                let hit = self.find(chain, hash, chunk)?;
                let entry = self.memory(hit.tier).pool.get(hit.block);
                // The hash just computed, not the block's: the next need not wait for the look-up.
                chain = Chain::following(entry.serial(), hash);
                Some(hit)
            })
    }

    /// The block that holds `tokens`, whose hash this is, after `chain`: the device's, or else
    /// the host's.
    #[inline]
    fn find(&self, chain: Chain, hash: u32, tokens: &[TokenId]) -> Option<Hit> {
        let index = self.device.index.as_ref()?;
        match index.find(&self.device.pool, chain, hash, tokens) {
            Some(block) => Some(Hit {
                tier: Tier::Device,
                block,
            }),
            None => self.find_on_host(chain, hash, tokens),
        }
    }

    #[inline(never)]
    fn find_on_host(&self, chain: Chain, hash: u32, tokens: &[TokenId]) -> Option<Hit> {
        let index = self.host.index.as_ref()?;
        let block = index.find(&self.host.pool, chain, hash, tokens)?;
        Some(Hit {
            tier: Tier::Host,
            block,
        })
    }

    /// The part of a prefix's hits that opening can use: it holds all those on the device, then
    /// brings in those on the host one by one, as far as blocks are left.
    pub(crate) fn usable(&self, hits: impl Iterator<Item = Hit> + Clone) -> PrefixHit {
        let pool = &self.device.pool;
        let count = |hit: Hit, found: &mut PrefixHit| {
            let on_host = hit.tier == Tier::Host;
            found.num_blocks += 1;
            found.num_host_blocks += usize::from(on_host);
            let takes_one = on_host || pool.is_available(hit.block);
            found.num_available_blocks += usize::from(takes_one);
        };
        let mut all = PrefixHit::default();
        hits.clone().for_each(|hit| count(hit, &mut all));
        if all.num_available_blocks <= pool.num_available() {
            return all;
        }
        let room = pool.num_available() + all.num_host_blocks - all.num_available_blocks;
        let mut found = PrefixHit::default();
        for hit in hits {
            if hit.tier == Tier::Host && found.num_host_blocks == room {
                break;
            }
            count(hit, &mut found);
        }
        found
    }

    /// The place in `table` of the partly filled block that it must copy before it writes on.
    #[inline]
    pub(crate) fn shared_tail(&self, table: &Table, size: BlockSize) -> Option<usize> {
        let (place, filled) = size.split(table.num_tokens);
        let place = place - table.num_passed;
        (filled > 0 && !self.device.pool.get(table.blocks[place]).is_writable()).then_some(place)
    }

    /// Notes the tokens computed into slots of the device's `block`, from `offset` on.
    #[inline]
    #[track_caller]
    pub(crate) fn write(&mut self, block: BlockId, offset: usize, tokens: &[TokenId]) {
        let entry = self.device.pool.get(block);
        if !entry.is_writable() || entry.unsealed_write().is_some() {
            wrong_write(block, entry.is_writable());
        }
        if let Some(index) = &mut self.device.index {
            index.write(block, offset, tokens);
        }
    }

    /// Publishes the device's full `block` after `chain`, or names the block of the device
    /// published with the same contents before. Without prefix caching does nothing.
    pub(crate) fn publish(&mut self, chain: Chain, block: BlockId) -> Option<BlockId> {
        let index = self.device.index.as_ref()?;
        let hash = index.hash(chain, index.tokens(block));
        let identity = match self.find(chain, hash, index.tokens(block)) {
            Some(Hit {
                tier: Tier::Device,
                block,
            }) => return Some(block),
            // The same contents keep their name, and with it all that follows them.
            Some(Hit {
                tier: Tier::Host,
                block,
            }) => self.host.pool.get(block).identity(),
            None => {
                self.next_serial += 1;
                Identity::new(self.next_serial - 1, chain, hash)
            }
        };
        self.insert(Tier::Device, block, identity);
        None
    }

    /// Makes `block`, which holds the contents known as `identity`, findable in `tier`.
    fn insert(&mut self, tier: Tier, block: BlockId, identity: Identity) {
        let memory = match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
        };
        let index = memory.index.as_mut().expect("only indexed blocks publish");
        index.insert(&mut memory.pool, block, identity);
        if let Some(events) = &mut self.events {
            events.stored(tier, identity, index.tokens(block));
        }
    }

    fn remove(&mut self, tier: Tier, block: BlockId) {
        let memory = self.memory_mut(tier);
        let serial = memory.pool.get(block).serial();
        memory.unpublish(block);
        if let Some(events) = &mut self.events {
            events.removed(tier, serial);
        }
    }

    /// Takes a block of the device, of which one is available, for the one table that will hold
    /// it. What it evicts is kept on the host if there is room.
    #[inline]
    pub(crate) fn take(&mut self) -> BlockId {
        let block = self.device.pool.front().expect("availability was checked");
        self.device.pool.acquire(block);
        if self.device.pool.get(block).is_published() {
            self.evict(block);
        }
        block
    }

    #[inline(never)]
    fn evict(&mut self, block: BlockId) {
        self.demote(block);
        self.remove(Tier::Device, block);
        self.device.num_evictions += 1;
    }

    /// Takes a block of the host, of which one is available, for whoever fills it.
    fn take_host(&mut self) -> BlockId {
        let block = self.host.pool.front().expect("availability was checked");
        self.host.pool.acquire(block);
        if self.host.pool.get(block).is_published() {
            self.remove(Tier::Host, block);
            self.host.num_evictions += 1;
        }
        block
    }

    /// Keeps what the device's published `block`, about to be overwritten, holds on the host.
    fn demote(&mut self, block: BlockId) {
        let identity = self.device.pool.get(block).identity();
        if let Some(twin) = self.host.find_identity(identity) {
            self.host.pool.touch(twin);
        } else if self.keeps_evicted && self.host.pool.front().is_some() {
            let kept = self.copy_out(block, block);
            self.host.pool.drop_ref(kept);
            self.copied.by_eviction += 1;
        }
    }

    /// Gives what the device's `block` holds, and `src` with it, a block of the host, of which
    /// one is available, and returns that, held once.
    pub(crate) fn copy_out(&mut self, block: BlockId, src: BlockId) -> BlockId {
        let dst = self.take_host();
        if let (Some(from), Some(to)) = (&self.device.index, &mut self.host.index) {
            to.write(dst, 0, from.tokens(block));
        }
        if let Some(identity) = self.device.identity(block) {
            self.insert(Tier::Host, dst, identity);
            if self.device.pool.get(block).reused {
                self.host.pool.note_reuse(dst);
            }
        }
        self.order(Transfer::Out { src, dst });
        dst
    }

    /// Gives what the host's `block` holds a block of the device, of which one is available, and
    /// returns that, held once.
    pub(crate) fn copy_in(&mut self, block: BlockId) -> BlockId {
        let dst = self.take();
        if let (Some(from), Some(to)) = (&self.host.index, &mut self.device.index) {
            to.write(dst, 0, from.tokens(block));
        }
        if let Some(identity) = self.host.identity(block) {
            self.insert(Tier::Device, dst, identity);
            if self.host.pool.get(block).reused {
                self.device.pool.note_reuse(dst);
            }
        }
        self.order(Transfer::In { src: block, dst });
        dst
    }

    /// Copies the first `num_tokens` tokens of `src` to a block taken for it, which is returned.
    pub(crate) fn copy_on_write(&mut self, src: BlockId, num_tokens: usize) -> BlockId {
        let dst = self.take();
        if let Some(index) = &mut self.device.index {
            index.copy(src, dst, num_tokens);
        }
        // Copies of a step have no order among them: a block that is itself still to be copied
        // is read at its origin. That is pinned, so its committed slots keep their contents.
        let src = match self.unsealed_write(src) {
            Some(Transfer::Copy { src, .. }) => src,
            _ => src,
        };
        self.order(Transfer::Copy { src, dst });
        self.copied.on_write += 1;
        dst
    }

    /// Where the contents of the device's `block` are to be read by a swap, which comes before
    /// all else that the unsealed step does.
    pub(crate) fn origin(&self, block: BlockId) -> Origin {
        match self.unsealed_write(block) {
            None | Some(Transfer::Out { .. }) => Origin::Device(block),
            Some(Transfer::In { src, .. }) => Origin::Host(src),
            // At most once: a copy's source is not the destination of another.
            Some(Transfer::Copy { src, .. }) => self.origin(src),
        }
    }

    /// The unsealed transfer that fills the device's `block`, if one does.
    pub(crate) fn unsealed_write(&self, block: BlockId) -> Option<Transfer> {
        let place = self.device.pool.get(block).unsealed_write()?;
        Some(self.transfers.unsealed()[place])
    }

    /// Orders a transfer between blocks that are held, and pins them.
    fn order(&mut self, transfer: Transfer) {
        let place = self.transfers.push(transfer);
        for (tier, block) in transfer.pinned() {
            self.memory_mut(tier).pool.pin(block);
        }
        if let Some(block) = transfer.fills() {
            self.device.pool.set_unsealed_write(block, Some(place));
        }
    }

    #[track_caller]
    pub(crate) fn seal_into(&mut self, step: StepId, ops: &mut BlockOps) {
        let filled = self.transfers.unsealed().iter().filter_map(|t| t.fills());
        for block in filled {
            self.device.pool.set_unsealed_write(block, None);
        }
        self.transfers.seal_into(step, ops);
    }

    #[track_caller]
    pub(crate) fn complete(&mut self, step: StepId) {
        let transfers = self.transfers.complete(step);
        for transfer in &transfers {
            for (tier, block) in transfer.pinned() {
                self.memory_mut(tier).pool.unpin(block);
            }
        }
        self.transfers.recycle(transfers);
    }

    /// Frees every cached block of both tiers and returns how many there were.
    pub(crate) fn reset(&mut self) -> usize {
        let num_cached = |memory: &Memory| memory.pool.num_cached;
        let num_freed = num_cached(&self.device) + num_cached(&self.host);
        let published = |memory: &Memory| memory.index.as_ref().map_or(0, PrefixIndex::len);
        let clears_all = published(&self.device) + published(&self.host) == num_freed;
        for tier in [Tier::Device, Tier::Host] {
            while let Some(block) = self.memory(tier).pool.last_cached() {
                self.memory_mut(tier).pool.acquire(block);
                if clears_all {
                    self.memory_mut(tier).unpublish(block);
                } else {
                    self.remove(tier, block);
                }
                self.memory_mut(tier).pool.drop_ref(block);
            }
        }
        if let Some(events) = self.events.as_mut().filter(|_| clears_all && num_freed > 0) {
            events.cleared();
        }
        num_freed
    }
}

#[cold]
#[track_caller]
fn wrong_write(block: BlockId, is_writable: bool) -> ! {
    assert!(
        is_writable,
        "block {block} was written while shared or published"
    );
    panic!("commit to block {block} before the copy that fills it was sealed");
}
