//! The physical blocks of one tier: who holds each, and the list of those nobody holds.

use alloc::vec::Vec;

use crate::{BlockId, OutOfBlocks, Tier, index::Identity};

/// Neither linked nor filled by an unsealed transfer.
const NONE: u32 = u32::MAX;

/// What is known of one physical block. 40 bytes; the budget is 64 with the index's share.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Tables that hold it.
    pub(crate) refs: u32,
    /// Transfers not yet completed that read or write it.
    pub(crate) pins: u32,
    prev: u32,
    /// Linked blocks: the next one. Pinned blocks are never linked, so for them it is the place
    /// of the unsealed transfer that fills them, if there is one.
    next: u32,
    /// The fields of its [`Identity`], side by side because nested they would take 8 bytes more.
    /// `serial` is 0 while the block is not published, and then the others mean nothing.
    serial: u64,
    parent: u64,
    hash: u32,
    is_root: bool,
}

impl Block {
    #[inline]
    pub(crate) fn is_published(&self) -> bool {
        self.serial != 0
    }

    /// What the block is known by, while it is published.
    #[inline]
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            serial: self.serial,
            parent: self.parent,
            hash: self.hash,
            is_root: self.is_root,
        }
    }

    #[inline]
    pub(crate) fn set_identity(&mut self, identity: Identity) {
        self.serial = identity.serial;
        self.parent = identity.parent;
        self.hash = identity.hash;
        self.is_root = identity.is_root;
    }

    #[inline]
    pub(crate) fn forget_identity(&mut self) {
        self.serial = 0;
    }

    /// The place of the unsealed transfer that fills the block, if one does.
    #[inline]
    pub(crate) fn unsealed_write(&self) -> Option<usize> {
        (self.pins > 0 && self.next != NONE).then_some(self.next as usize)
    }

    /// The rule that joins sharing and caching.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.refs == 1 && !self.is_published()
    }
}

/// All blocks of a tier, and one circular list of those with neither references nor pins:
///
/// ```text
/// sentinel -> free, free, ... -> cached (released first) ... cached (released last) -> sentinel
///             taken first                                    evicted last
/// ```
#[derive(Debug)]
pub(crate) struct Pool {
    /// One more than there are blocks: the last is the list's sentinel.
    blocks: Vec<Block>,
    num_free: usize,
    num_cached: usize,
    num_pinned: usize,
}

impl Pool {
    pub(crate) fn new(num_blocks: usize) -> Self {
        let sentinel = num_blocks as u32;
        let ring = |i: u32| Block {
            refs: 0,
            pins: 0,
            prev: if i == 0 { sentinel } else { i - 1 },
            next: if i == sentinel { 0 } else { i + 1 },
            serial: 0,
            parent: 0,
            hash: 0,
            is_root: false,
        };
        Self {
            blocks: (0..=sentinel).map(ring).collect(),
            num_free: num_blocks,
            num_cached: 0,
            num_pinned: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks that hold nothing.
    pub(crate) fn num_free(&self) -> usize {
        self.num_free
    }

    /// Published blocks that no table holds and no transfer pins.
    pub(crate) fn num_cached(&self) -> usize {
        self.num_cached
    }

    /// Blocks that no table holds and a transfer pins.
    pub(crate) fn num_pinned(&self) -> usize {
        self.num_pinned
    }

    pub(crate) fn num_available(&self) -> usize {
        self.num_free + self.num_cached
    }

    /// Whether `needed` blocks can be taken and `keep` left.
    #[inline]
    pub(crate) fn check_available(
        &self,
        tier: Tier,
        needed: usize,
        keep: usize,
    ) -> Result<(), OutOfBlocks> {
        let available = self.num_available().saturating_sub(keep);
        if needed > available {
            return Err(OutOfBlocks {
                tier,
                needed,
                available,
            });
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn get(&self, block: BlockId) -> &Block {
        &self.blocks[block.index()]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[block.index()]
    }

    fn sentinel(&self) -> u32 {
        (self.blocks.len() - 1) as u32
    }

    /// The block to take next: a free one if there is one, else the cached one released first.
    #[inline]
    pub(crate) fn front(&self) -> Option<BlockId> {
        let first = self.blocks[self.sentinel() as usize].next;
        (first != self.sentinel()).then_some(BlockId(first))
    }

    /// One more table holds `block`.
    #[inline]
    pub(crate) fn acquire(&mut self, block: BlockId) {
        let entry = self.get(block);
        if entry.refs == 0 {
            if entry.pins > 0 {
                self.num_pinned -= 1;
            } else {
                self.unlink(block);
            }
        }
        self.get_mut(block).refs += 1;
    }

    /// One table fewer holds `block`.
    #[inline]
    pub(crate) fn drop_ref(&mut self, block: BlockId) {
        let entry = self.get_mut(block);
        assert!(
            entry.refs > 0,
            "block {block} released more often than held"
        );
        entry.refs -= 1;
        if entry.refs == 0 {
            if entry.pins > 0 {
                self.num_pinned += 1;
            } else {
                self.link(block);
            }
        }
    }

    /// One more uncompleted transfer touches `block`, which a table or another transfer holds.
    pub(crate) fn pin(&mut self, block: BlockId) {
        let entry = self.get_mut(block);
        let held = entry.refs > 0 || entry.pins > 0;
        assert!(held, "block {block} pinned while nobody holds it");
        entry.pins += 1;
    }

    /// One uncompleted transfer fewer touches `block`.
    pub(crate) fn unpin(&mut self, block: BlockId) {
        let entry = self.get_mut(block);
        assert!(
            entry.pins > 0,
            "block {block} unpinned more often than pinned"
        );
        entry.pins -= 1;
        if entry.pins == 0 && entry.refs == 0 {
            self.num_pinned -= 1;
            self.link(block);
        }
    }

    /// Notes, or with `None` forgets, the unsealed transfer that fills the pinned `block`.
    pub(crate) fn set_unsealed_write(&mut self, block: BlockId, place: Option<usize>) {
        let entry = self.get_mut(block);
        debug_assert!(
            entry.pins > 0,
            "only a pinned block is filled by a transfer"
        );
        entry.next = place.map_or(NONE, |place| place as u32);
    }

    /// Counts a cached `block` as released now.
    pub(crate) fn touch(&mut self, block: BlockId) {
        if self.is_available(block) {
            self.unlink(block);
            self.link(block);
        }
    }

    /// Whether neither a table nor a transfer holds `block`.
    pub(crate) fn is_available(&self, block: BlockId) -> bool {
        let entry = self.get(block);
        entry.refs == 0 && entry.pins == 0
    }

    /// The cached block that would be evicted last.
    pub(crate) fn last_cached(&self) -> Option<BlockId> {
        let last = self.blocks[self.sentinel() as usize].prev;
        (self.num_cached > 0).then_some(BlockId(last))
    }

    #[inline]
    fn link(&mut self, block: BlockId) {
        // Contents nobody can find again are taken first, and while still warm; findable ones
        // queue up behind everything released before them.
        let published = self.get(block).is_published();
        let sentinel = self.sentinel();
        let (prev, next) = if published {
            self.num_cached += 1;
            (self.blocks[sentinel as usize].prev, sentinel)
        } else {
            self.num_free += 1;
            (sentinel, self.blocks[sentinel as usize].next)
        };
        self.blocks[prev as usize].next = block.0;
        self.blocks[next as usize].prev = block.0;
        let entry = self.get_mut(block);
        entry.prev = prev;
        entry.next = next;
    }

    #[inline]
    fn unlink(&mut self, block: BlockId) {
        let entry = self.get_mut(block);
        let (prev, next) = (entry.prev, entry.next);
        entry.prev = NONE;
        entry.next = NONE;
        if entry.is_published() {
            self.num_cached -= 1;
        } else {
            self.num_free -= 1;
        }
        self.blocks[prev as usize].next = next;
        self.blocks[next as usize].prev = prev;
    }

    /// The list from the block taken next to the one taken last, with its links verified;
    /// `None` where a link is broken.
    pub(crate) fn verified_list(&self) -> Option<Vec<BlockId>> {
        let sentinel = self.sentinel();
        let mut list = Vec::new();
        let (mut at, mut next) = (sentinel, self.blocks[sentinel as usize].next);
        while next != sentinel {
            let entry = self.blocks.get(next as usize)?;
            if entry.prev != at || list.len() == self.len() {
                return None;
            }
            list.push(BlockId(next));
            (at, next) = (next, entry.next);
        }
        (self.blocks[sentinel as usize].prev == at).then_some(list)
    }

    /// Every block with its id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (BlockId, &Block)> {
        let blocks = &self.blocks[..self.len()];
        (0u32..).map(BlockId).zip(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_costs_forty_bytes() {
        assert_eq!(size_of::<Block>(), 40);
    }

    #[test]
    fn unfindable_blocks_are_taken_before_cached_ones_and_those_oldest_first() {
        let mut pool = Pool::new(4);
        let ids: Vec<BlockId> = (0..4).map(BlockId).collect();
        for &id in &ids {
            assert_eq!(pool.front(), Some(id));
            pool.acquire(id);
        }
        assert_eq!(pool.front(), None);
        for (serial, at) in [(1, 2), (2, 0)] {
            pool.get_mut(ids[at]).serial = serial;
        }
        for at in [2, 0, 1, 3] {
            pool.drop_ref(ids[at]);
        }
        let list = pool.verified_list().unwrap();
        assert_eq!(list, [ids[3], ids[1], ids[2], ids[0]]);
        assert_eq!((pool.num_free(), pool.num_cached()), (2, 2));
    }

    #[test]
    fn a_pinned_block_is_not_taken_until_its_last_pin_goes() {
        let mut pool = Pool::new(1);
        let id = BlockId(0);
        pool.acquire(id);
        pool.pin(id);
        pool.pin(id);
        pool.drop_ref(id);
        assert_eq!((pool.front(), pool.num_pinned()), (None, 1));
        pool.unpin(id);
        assert_eq!(pool.front(), None);
        pool.unpin(id);
        assert_eq!((pool.front(), pool.num_pinned()), (Some(id), 0));
    }

    #[test]
    #[should_panic(expected = "released more often than held")]
    fn dropping_a_reference_nobody_has_panics() {
        Pool::new(1).drop_ref(BlockId(0));
    }
}
