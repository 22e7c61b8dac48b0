//! Moving the tables of a group between the tiers.

use alloc::vec::Vec;

use hashbrown::HashTable;

use crate::{
    BlockId, BlockManager, OutOfBlocks, TableId, Tier,
    hash::spread,
    store::{Origin, Store},
};

/// The distinct blocks of a group, and where the contents of each go.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    list: Vec<Move>,
    /// Places in the list, by the block that moves.
    places: HashTable<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Move {
    from: BlockId,
    to: Target,
}

/// The block of the other tier that takes a block's place.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// One that holds the same already.
    Existing(BlockId),
    /// One to be filled from `src`.
    New { src: BlockId },
}

impl Moves {
    fn clear(&mut self) {
        self.list.clear();
        self.places.clear();
    }

    fn place(&self, from: BlockId) -> Option<usize> {
        let same = |&place: &usize| self.list[place].from == from;
        self.places.find(spread(from.0), same).copied()
    }

    fn add(&mut self, from: BlockId, to: impl FnOnce() -> Target) {
        if self.place(from).is_some() {
            return;
        }
        let list = &self.list;
        self.places
            .insert_unique(spread(from.0), list.len(), |&place| {
                spread(list[place].from.0)
            });
        self.list.push(Move { from, to: to() });
    }

    /// Where `from` went, once every target exists.
    fn destination(&self, from: BlockId) -> BlockId {
        let place = self.place(from).expect("every block of the group moves");
        match self.list[place].to {
            Target::Existing(block) => block,
            Target::New { .. } => unreachable!("every target was made"),
        }
    }

    /// Blocks `to` must have available: those to be filled, and those that hold the contents
    /// already but would not be available any more.
    fn num_needed(&self, store: &Store, to: Tier) -> usize {
        let pool = &store.memory(to).pool;
        let needs = |step: &&Move| match step.to {
            Target::Existing(block) => pool.is_available(block),
            Target::New { .. } => true,
        };
        self.list.iter().filter(needs).count()
    }
}

impl Store {
    /// Where what the device's `block` holds is, or can be copied from, for the host.
    fn target_out(&self, block: BlockId) -> Target {
        let twin = |identity| self.host.find_identity(identity);
        if let Some(twin) = self.device.identity(block).and_then(twin) {
            return Target::Existing(twin);
        }
        match self.origin(block) {
            Origin::Device(src) => Target::New { src },
            // Brought in by this very step: what it came from is still there.
            Origin::Host(src) => Target::Existing(src),
        }
    }

    /// Where what the host's `block` holds is, or can be copied from, for the device.
    fn target_in(&self, block: BlockId) -> Target {
        let twin = |identity| self.device.find_identity(identity);
        match self.host.identity(block).and_then(twin) {
            Some(twin) => Target::Existing(twin),
            None => Target::New { src: block },
        }
    }
}

impl BlockManager {
    /// Moves the tables of a group to the host, and frees their blocks on the device at once.
    ///
    /// Tables that share blocks still share them there, and a published block that is on the
    /// host already is not copied again. Reserved slots are given up. Blocks that tables outside
    /// the group hold stay where they are too. The next [`seal`](Self::seal) orders the copies.
    /// All or nothing.
    ///
    /// O(blocks of the group).
    ///
    /// # Errors
    /// [`OutOfBlocks`] if the host has too few blocks available. Release the tables and compute
    /// them again later.
    ///
    /// # Panics
    /// If a table is not open, is swapped out already, or is named twice.
    #[track_caller]
    pub fn swap_out(&mut self, group: &[TableId]) -> Result<(), OutOfBlocks> {
        self.moves.clear();
        for &t in group {
            let table = self.tables.resident(t);
            for &block in table.committed_blocks(self.size) {
                self.moves.add(block, || self.store.target_out(block));
            }
        }
        let needed = self.moves.num_needed(&self.store, Tier::Host);
        self.store
            .host
            .pool
            .check_available(Tier::Host, needed, 0)?;
        for &t in group {
            let table = self.tables.resident_mut(t);
            table.drop_reserved(&mut self.store, self.size);
        }
        self.relocate(group, Tier::Device, Tier::Host);
        Ok(())
    }

    /// Moves the tables of a group back to the device, if `keep` blocks stay available there
    /// (see [`admit`](Self::admit)).
    ///
    /// Tables that share blocks still share them, and a published block that is on the device
    /// already is shared instead of copied. Published ones stay findable on the host until
    /// evicted. The next [`seal`](Self::seal) orders the copies; reserve slots anew. All or
    /// nothing.
    ///
    /// O(blocks of the group).
    ///
    /// # Errors
    /// [`OutOfBlocks`] if the device has too few blocks available.
    ///
    /// # Panics
    /// If a table is not open, is not swapped out, or is named twice.
    #[track_caller]
    pub fn swap_in(&mut self, group: &[TableId], keep: usize) -> Result<(), OutOfBlocks> {
        self.moves.clear();
        for &t in group {
            let table = self.tables.get(t);
            assert!(table.tier == Tier::Host, "table {t} is not swapped out");
            for &block in &table.blocks {
                self.moves.add(block, || self.store.target_in(block));
            }
        }
        let needed = self.moves.num_needed(&self.store, Tier::Device);
        let pool = &self.store.device.pool;
        pool.check_available(Tier::Device, needed, keep)?;
        self.relocate(group, Tier::Host, Tier::Device);
        Ok(())
    }

    /// Makes every target of the moves and gives them to the tables of the group.
    #[track_caller]
    fn relocate(&mut self, group: &[TableId], from: Tier, to: Tier) {
        let store = &mut self.store;
        // Held first, so that making the others does not evict them.
        for step in &self.moves.list {
            if let Target::Existing(block) = step.to {
                store.memory_mut(to).pool.acquire(block);
            }
        }
        for step in &mut self.moves.list {
            if let Target::New { src } = step.to {
                step.to = Target::Existing(match to {
                    Tier::Host => {
                        store.copied.by_swap_out += 1;
                        store.copy_out(step.from, src)
                    }
                    Tier::Device => {
                        store.copied.by_swap_in += 1;
                        store.copy_in(src)
                    }
                });
            }
        }
        for &t in group {
            let table = self.tables.get_mut(t);
            assert!(table.tier == from, "table {t} is named twice in one group");
            table.tier = to;
            // Tails first, as in a release.
            for block in table.blocks.iter_mut().rev() {
                let moved = self.moves.destination(*block);
                store.memory_mut(to).pool.acquire(moved);
                store.memory_mut(from).pool.drop_ref(*block);
                *block = moved;
            }
        }
        for step in &self.moves.list {
            if let Target::Existing(block) = step.to {
                store.memory_mut(to).pool.drop_ref(block);
            }
        }
    }
}
