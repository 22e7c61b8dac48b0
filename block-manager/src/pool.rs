//! The physical blocks: who holds each, and the list of those nobody holds.

use alloc::vec::Vec;

use crate::BlockId;

/// Neither linked nor the destination of an unsealed copy.
const NONE: u32 = u32::MAX;

/// What is known of one physical block. 40 bytes; the budget is 64 with the index's share.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Tables that hold it.
    pub(crate) refs: u32,
    /// Copies not yet completed that read or write it.
    pub(crate) pins: u32,
    prev: u32,
    /// Linked blocks: the next one. Pinned blocks are never linked, so for them it is the place
    /// of the unsealed copy that fills them, if there is one.
    next: u32,
    /// Unique over the manager's life for each publication; 0 while not published.
    pub(crate) serial: u64,
    /// Serial of the block before it, or the namespace when `depth` is 0. Published blocks only.
    pub(crate) parent: u64,
    /// Hash of everything up to its last token. Published blocks only.
    pub(crate) hash: u32,
    /// Blocks before it in its sequence. Published blocks only.
    pub(crate) depth: u32,
}

impl Block {
    #[inline]
    pub(crate) fn is_published(&self) -> bool {
        self.serial != 0
    }

    /// The rule that joins sharing and caching.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.refs == 1 && !self.is_published()
    }
}

/// All blocks, and one circular list of those with neither references nor pins:
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
            depth: 0,
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

    /// Published blocks that no table holds and no copy pins.
    pub(crate) fn num_cached(&self) -> usize {
        self.num_cached
    }

    /// Blocks that no table holds and a copy pins.
    pub(crate) fn num_pinned(&self) -> usize {
        self.num_pinned
    }

    pub(crate) fn num_available(&self) -> usize {
        self.num_free + self.num_cached
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

    /// One more uncompleted copy touches `block`, which a table or another copy holds.
    pub(crate) fn pin(&mut self, block: BlockId) {
        let entry = self.get_mut(block);
        let held = entry.refs > 0 || entry.pins > 0;
        assert!(held, "block {block} pinned while nobody holds it");
        entry.pins += 1;
    }

    /// One uncompleted copy fewer touches `block`.
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

    /// The unsealed copy that fills `block`, if one does.
    pub(crate) fn unsealed_copy(&self, block: BlockId) -> Option<usize> {
        let entry = self.get(block);
        (entry.pins > 0 && entry.next != NONE).then_some(entry.next as usize)
    }

    /// Notes, or with `None` forgets, the unsealed copy that fills the pinned `block`.
    pub(crate) fn set_unsealed_copy(&mut self, block: BlockId, copy: Option<usize>) {
        let entry = self.get_mut(block);
        debug_assert!(entry.pins > 0, "only a pinned block is filled by a copy");
        entry.next = copy.map_or(NONE, |place| place as u32);
    }

    /// Makes every cached block free. The caller has taken them out of the index.
    pub(crate) fn forget_cached(&mut self) {
        // They are behind the free ones already and none is before another for a reason any more.
        self.num_free += self.num_cached;
        self.num_cached = 0;
    }

    /// The cached block released last, or `None`; `before` continues from an earlier answer.
    pub(crate) fn last_cached(&self, before: Option<BlockId>) -> Option<BlockId> {
        let from = before.map_or(self.sentinel(), |block| block.0);
        let last = self.blocks[from as usize].prev;
        (last != self.sentinel() && self.blocks[last as usize].is_published())
            .then_some(BlockId(last))
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
        pool.get_mut(ids[2]).serial = 1;
        pool.get_mut(ids[0]).serial = 2;
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
