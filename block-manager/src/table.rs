//! Block tables.

use alloc::vec::Vec;

use slab::Slab;
use smallvec::SmallVec;

use crate::{BlockId, Namespace, TableId};

/// Eight blocks of 16 tokens stay inline; longer lists go to the heap.
pub(crate) type BlockList = SmallVec<[BlockId; 8]>;

/// The blocks of one sequence.
#[derive(Debug)]
pub(crate) struct Table {
    generation: u64,
    pub(crate) namespace: Namespace,
    /// Blocks of the committed tokens, then of the reserved slots.
    pub(crate) blocks: BlockList,
    /// Tokens whose keys and values are in the cache.
    pub(crate) num_tokens: usize,
    /// Slots after them that may be written.
    pub(crate) num_reserved: usize,
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

    pub(crate) fn insert(
        &mut self,
        namespace: Namespace,
        blocks: BlockList,
        num_tokens: usize,
    ) -> TableId {
        let generation = self.next_generation;
        self.next_generation += 1;
        let index = self.open.insert(Table {
            generation,
            namespace,
            blocks,
            num_tokens,
            num_reserved: 0,
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
