//! Block tables.

use alloc::vec::Vec;

use slab::Slab;
use smallvec::SmallVec;

use crate::{BlockId, TableId, Tier, index::Chain, size::BlockSize, store::Store};

/// Eight blocks of 16 tokens stay inline; longer lists go to the heap.
pub(crate) type BlockList = SmallVec<[BlockId; 8]>;

/// The blocks of one sequence.
#[derive(Debug)]
pub(crate) struct Table {
    generation: u64,
    /// What the first of `blocks` follows.
    pub(crate) base: Chain,
    /// Blocks before the first of `blocks` that were released one by one.
    pub(crate) num_passed: usize,
    /// Blocks of the committed tokens, then of the reserved slots; all in `tier`.
    pub(crate) blocks: BlockList,
    pub(crate) tier: Tier,
    /// Tokens whose keys and values are, or were, in the cache.
    pub(crate) num_tokens: usize,
    /// Slots after them that may be written.
    pub(crate) num_reserved: usize,
    /// Slots after them that could be reserved without looking at a block: those of the blocks
    /// held, unless the first of them has been shared since it was last looked at.
    pub(crate) num_writable: usize,
}

/// All open tables.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    open: Slab<Table>,
    next_generation: u64,
    /// Heap lists of released tables, for the next ones to be opened.
    spare: Vec<BlockList>,
    /// Sum of their capacities, which `max_spare` bounds.
    num_spare: usize,
    max_spare: usize,
}

impl Table {
    /// A table of committed `blocks` on the device.
    pub(crate) fn new(base: Chain, blocks: BlockList, num_tokens: usize) -> Self {
        Self {
            generation: 0,
            base,
            num_passed: 0,
            blocks,
            tier: Tier::Device,
            num_tokens,
            num_reserved: 0,
            num_writable: 0,
        }
    }

    /// A table with the same tokens, in `blocks`, which are those it shares.
    pub(crate) fn sharing(&self, blocks: BlockList) -> Self {
        Self {
            num_passed: self.num_passed,
            tier: self.tier,
            ..Self::new(self.base, blocks, self.num_tokens)
        }
    }

    /// The blocks that hold committed tokens.
    #[inline]
    pub(crate) fn committed_blocks(&self, size: BlockSize) -> &[BlockId] {
        &self.blocks[..size.blocks_for(self.num_tokens) - self.num_passed]
    }

    /// Slots after its committed tokens in the blocks it holds.
    pub(crate) fn room(&self, size: BlockSize) -> usize {
        (self.num_passed + self.blocks.len()) * size.tokens() - self.num_tokens
    }

    /// Blocks it lacks for `num_slots` slots after its committed tokens.
    pub(crate) fn num_missing(&self, num_slots: usize, size: BlockSize) -> usize {
        size.blocks_for(num_slots.saturating_sub(self.room(size)))
    }

    /// Gives up the reserved slots and the blocks that hold nothing else.
    pub(crate) fn drop_reserved(&mut self, store: &mut Store, size: BlockSize) {
        let num_kept = self.committed_blocks(size).len();
        let pool = &mut store.memory_mut(self.tier).pool;
        for &block in self.blocks[num_kept..].iter().rev() {
            pool.drop_ref(block);
        }
        self.blocks.truncate(num_kept);
        self.forget_reserved();
    }

    /// Notes that no slot is reserved, nor known to be writable.
    pub(crate) fn forget_reserved(&mut self) {
        self.num_reserved = 0;
        self.num_writable = 0;
    }
}

impl Tables {
    /// Keeps lists of at most `max_spare` blocks in all for reuse.
    pub(crate) fn new(max_spare: usize) -> Self {
        Self {
            max_spare,
            ..Self::default()
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn insert(&mut self, content: Table) -> TableId {
        let generation = self.next_generation;
        self.next_generation += 1;
        let index = self.open.insert(Table {
            generation,
            ..content
        });
        TableId {
            index: u32::try_from(index).expect("fewer than 2^32 tables are open"),
            generation,
        }
    }

    #[inline]
    #[track_caller]
    pub(crate) fn get(&self, id: TableId) -> &Table {
        match self.open.get(id.index as usize) {
            Some(table) if table.generation == id.generation => table,
            _ => stale(id),
        }
    }

    #[inline]
    #[track_caller]
    pub(crate) fn get_mut(&mut self, id: TableId) -> &mut Table {
        match self.open.get_mut(id.index as usize) {
            Some(table) if table.generation == id.generation => table,
            _ => stale(id),
        }
    }

    /// The table, whose blocks are on the device.
    #[inline]
    #[track_caller]
    pub(crate) fn resident(&self, id: TableId) -> &Table {
        let table = self.get(id);
        if table.tier != Tier::Device {
            swapped_out(id);
        }
        table
    }

    /// The table, whose blocks are on the device.
    #[inline]
    #[track_caller]
    pub(crate) fn resident_mut(&mut self, id: TableId) -> &mut Table {
        let table = self.get_mut(id);
        if table.tier != Tier::Device {
            swapped_out(id);
        }
        table
    }

    /// Closes the table; the caller drops its references and hands the list back.
    #[track_caller]
    pub(crate) fn remove(&mut self, id: TableId) -> Table {
        self.get(id);
        self.open.remove(id.index as usize)
    }

    /// An empty list, with room from an earlier table if there is one.
    pub(crate) fn take_list(&mut self) -> BlockList {
        let list = self.spare.pop().unwrap_or_default();
        if list.spilled() {
            self.num_spare -= list.capacity();
        }
        list
    }

    /// Keeps the list's room for a table to come.
    pub(crate) fn give_list(&mut self, mut list: BlockList) {
        if list.spilled() && self.num_spare + list.capacity() <= self.max_spare {
            list.clear();
            self.num_spare += list.capacity();
            self.spare.push(list);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TableId, &Table)> {
        self.open.iter().map(|(index, table)| {
            let id = TableId {
                index: index as u32,
                generation: table.generation,
            };
            (id, table)
        })
    }
}

#[cold]
#[track_caller]
fn stale(id: TableId) -> ! {
    panic!("table {id} is not open: released before, or of another manager")
}

#[cold]
#[track_caller]
fn swapped_out(id: TableId) -> ! {
    panic!("table {id} is swapped out")
}
