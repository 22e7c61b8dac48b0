//! The physical blocks of one tier: who holds each, and the list of those nobody holds.

use alloc::vec::Vec;

use crate::{
    BlockId, OutOfBlocks, Tier,
    block::{Block, NONE},
};

/// All blocks of a tier, and one circular list of those with neither references nor pins:
///
/// ```text
/// sentinel -> free ... -> cached, oldest release first ... -> protected, likewise ... -> sentinel
///             taken first                                                 evicted last
/// ```
///
/// Segmented LRU (Karedla et al. 1994): blocks that a prompt found again are protected from
/// those that nobody ever asked for twice, as long as they are few. When they become more than
/// `most_protected`, the oldest loses protection, which in this list only moves the border.
/// With `most_protected` 0 this is plain LRU.
#[derive(Debug)]
pub(crate) struct Pool {
    /// One more than there are blocks: the last is the list's sentinel.
    blocks: Vec<Block>,
    /// Blocks that hold nothing.
    pub(crate) num_free: usize,
    /// Published blocks that no table holds and no transfer pins, protected ones included.
    pub(crate) num_cached: usize,
    /// Blocks that no table holds and a transfer pins.
    pub(crate) num_pinned: usize,
    /// Sum over all blocks of the tables that hold them.
    pub(crate) num_references: usize,
    pub(crate) num_protected: usize,
    pub(crate) most_protected: usize,
    /// The sentinel if none is protected.
    first_protected: u32,
}

impl Pool {
    pub(crate) fn new(num_blocks: usize, most_protected: usize) -> Self {
        let sentinel = num_blocks as u32;
        let ring = |i: u32| {
            let prev = if i == 0 { sentinel } else { i - 1 };
            Block::free(prev, if i == sentinel { 0 } else { i + 1 })
        };
        Self {
            blocks: (0..=sentinel).map(ring).collect(),
            num_free: num_blocks,
            num_cached: 0,
            num_pinned: 0,
            num_references: 0,
            num_protected: 0,
            most_protected,
            first_protected: sentinel,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len() - 1
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
        let available = self.num_available();
        // Where nothing is needed, too, `keep` must be there.
        if needed > available || keep > available - needed {
            return Err(OutOfBlocks {
                tier,
                needed,
                available: available.saturating_sub(keep),
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
        self.num_references += 1;
        let entry = self.get_mut(block);
        entry.refs += 1;
        if entry.refs == 1 {
            self.take_back(block);
        }
    }

    /// One more table holds each of `blocks`, which some table holds already.
    #[inline]
    pub(crate) fn share(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            let entry = self.get_mut(block);
            debug_assert!(entry.refs > 0);
            entry.refs += 1;
        }
        self.num_references += blocks.len();
    }

    /// A table holds `block` that none held. Apart, so that sharing is a few instructions.
    #[inline(never)]
    fn take_back(&mut self, block: BlockId) {
        if self.get(block).pins > 0 {
            self.num_pinned -= 1;
        } else {
            self.unlink(block);
        }
    }

    /// One table fewer holds `block`.
    #[inline]
    pub(crate) fn drop_ref(&mut self, block: BlockId) {
        self.drop_uncounted(block);
        self.num_references -= 1;
    }

    /// One table fewer holds each of `blocks`. The last is released first: a later prefix hit needs
    /// the head, not the tail.
    #[inline]
    pub(crate) fn drop_refs(&mut self, blocks: &[BlockId]) {
        for &block in blocks.iter().rev() {
            self.drop_uncounted(block);
        }
        self.num_references -= blocks.len();
    }

    #[inline]
    fn drop_uncounted(&mut self, block: BlockId) {
        let entry = self.get_mut(block);
        assert!(
            entry.refs > 0,
            "block {block} released more often than held"
        );
        entry.refs -= 1;
        if entry.refs == 0 {
            self.let_go(block);
        }
    }

    /// No table holds `block` any more. Apart for the same reason.
    #[inline(never)]
    fn let_go(&mut self, block: BlockId) {
        if self.get(block).pins > 0 {
            self.num_pinned += 1;
        } else {
            self.link(block);
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
        self.get(block).is_available()
    }

    /// The cached block that would be evicted last.
    pub(crate) fn last_cached(&self) -> Option<BlockId> {
        let last = self.blocks[self.sentinel() as usize].prev;
        (self.num_cached > 0).then_some(BlockId(last))
    }

    /// A prompt found the published `block`, which is held.
    #[inline]
    pub(crate) fn note_reuse(&mut self, block: BlockId) {
        let entry = self.get_mut(block);
        debug_assert!(entry.refs > 0 && entry.is_published());
        entry.reused = true;
    }

    #[inline]
    fn link(&mut self, block: BlockId) {
        // Contents nobody can find again are taken first, and while still warm; findable ones
        // queue up behind everything of their kind released before them.
        let sentinel = self.sentinel();
        let entry = self.get(block);
        let (published, reused) = (entry.is_published(), entry.reused);
        let next = match (published, reused) {
            (false, _) => self.blocks[sentinel as usize].next,
            (true, false) => self.first_protected,
            (true, true) => sentinel,
        };
        let prev = core::mem::replace(&mut self.blocks[next as usize].prev, block.0);
        self.blocks[prev as usize].next = block.0;
        let entry = self.get_mut(block);
        entry.prev = prev;
        entry.next = next;
        if !published {
            self.num_free += 1;
            return;
        }
        self.num_cached += 1;
        if reused {
            if self.num_protected == 0 {
                self.first_protected = block.0;
            }
            self.num_protected += 1;
            if self.num_protected > self.most_protected {
                let oldest = BlockId(self.first_protected);
                self.get_mut(oldest).reused = false;
                self.unprotect(oldest);
            }
        }
    }

    /// Moves the border past the first protected block.
    #[inline]
    fn unprotect(&mut self, first: BlockId) {
        debug_assert_eq!(self.first_protected, first.0);
        self.first_protected = self.get(first).next;
        self.num_protected -= 1;
    }

    #[inline]
    fn unlink(&mut self, block: BlockId) {
        let entry = self.get(block);
        let (published, reused) = (entry.is_published(), entry.reused);
        if published {
            self.num_cached -= 1;
            if self.first_protected == block.0 {
                self.unprotect(block);
            } else if reused {
                self.num_protected -= 1;
            }
        } else {
            self.num_free -= 1;
        }
        let entry = self.get_mut(block);
        let prev = core::mem::replace(&mut entry.prev, NONE);
        let next = core::mem::replace(&mut entry.next, NONE);
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
    use crate::index::Identity;

    fn publish(pool: &mut Pool, block: BlockId) {
        pool.get_mut(block).set_identity(Identity {
            serial: 1,
            parent: 0,
            hash: 0,
            is_root: true,
        });
    }

    #[test]
    fn unfindable_blocks_are_taken_before_cached_ones_and_those_oldest_first() {
        let mut pool = Pool::new(4, 0);
        let ids: Vec<BlockId> = (0..4).map(BlockId).collect();
        for &id in &ids {
            assert_eq!(pool.front(), Some(id));
            pool.acquire(id);
        }
        assert_eq!(pool.front(), None);
        publish(&mut pool, ids[2]);
        publish(&mut pool, ids[0]);
        for at in [2, 0, 1, 3] {
            pool.drop_ref(ids[at]);
        }
        let list = pool.verified_list().unwrap();
        assert_eq!(list, [ids[3], ids[1], ids[2], ids[0]]);
        assert_eq!((pool.num_free, pool.num_cached), (2, 2));
    }

    #[test]
    fn reused_blocks_are_evicted_last_and_only_a_few_are() {
        let mut pool = Pool::new(6, 2);
        let ids: Vec<BlockId> = (0..6).map(BlockId).collect();
        for &id in &ids {
            pool.acquire(id);
            publish(&mut pool, id);
        }
        for at in [0, 1, 2, 4] {
            pool.note_reuse(ids[at]);
        }
        for &id in &ids[..4] {
            pool.drop_ref(id);
        }
        // A third reused block takes the place of the oldest, which joins the others as newest.
        let list = pool.verified_list().unwrap();
        assert_eq!(list, [ids[0], ids[3], ids[1], ids[2]]);
        assert_eq!(pool.num_protected, 2);
        pool.drop_ref(ids[4]);
        pool.drop_ref(ids[5]);
        let list = pool.verified_list().unwrap();
        assert_eq!(list, [ids[0], ids[3], ids[1], ids[5], ids[2], ids[4]]);

        // Taking the first protected block, then the last, leaves a border that still works.
        pool.acquire(ids[2]);
        pool.acquire(ids[4]);
        assert_eq!(pool.num_protected, 0);
        pool.drop_ref(ids[2]);
        pool.drop_ref(ids[4]);
        let list = pool.verified_list().unwrap();
        assert_eq!(list, [ids[0], ids[3], ids[1], ids[5], ids[2], ids[4]]);
    }

    #[test]
    fn a_pinned_block_is_not_taken_until_its_last_pin_goes() {
        let mut pool = Pool::new(1, 0);
        let id = BlockId(0);
        pool.acquire(id);
        pool.pin(id);
        pool.pin(id);
        pool.drop_ref(id);
        assert_eq!((pool.front(), pool.num_pinned), (None, 1));
        pool.unpin(id);
        assert_eq!(pool.front(), None);
        pool.unpin(id);
        assert_eq!((pool.front(), pool.num_pinned), (Some(id), 0));
    }

    #[test]
    #[should_panic(expected = "pinned while nobody holds it")]
    fn pinning_what_nobody_holds_panics() {
        Pool::new(1, 0).pin(BlockId(0));
    }

    #[test]
    #[should_panic(expected = "unpinned more often than pinned")]
    fn unpinning_what_is_not_pinned_panics() {
        let mut pool = Pool::new(1, 0);
        pool.acquire(BlockId(0));
        pool.unpin(BlockId(0));
    }

    #[test]
    #[should_panic(expected = "released more often than held")]
    fn dropping_a_reference_nobody_has_panics() {
        Pool::new(1, 0).drop_ref(BlockId(0));
    }
}
