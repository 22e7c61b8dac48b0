//! Every invariant, written down once more.

use alloc::{vec, vec::Vec};
use core::fmt;

use crate::{
    BlockId, BlockManager, TableId,
    index::{Chain, PrefixIndex},
    table::Table,
};

/// An invariant that does not hold: a bug in this crate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A block's count of references is not the number of table entries that name it.
    References {
        /// The block.
        block: BlockId,
        /// What the block says.
        counted: usize,
        /// What the tables say.
        held: usize,
    },
    /// A block's count of pins is not the number of uncompleted copies that name it.
    Pins {
        /// The block.
        block: BlockId,
        /// What the block says.
        counted: usize,
        /// What the copies say.
        held: usize,
    },
    /// The links of the list of free and cached blocks are broken.
    ListBroken,
    /// A block is on the list though held, or not on it though nobody holds it.
    ListMembership {
        /// The block.
        block: BlockId,
        /// Whether it is on the list.
        listed: bool,
    },
    /// A cached block comes before a free one, so it would be evicted needlessly.
    ListOrder {
        /// The free block.
        block: BlockId,
    },
    /// Free, cached, pinned and referenced blocks are not counted right.
    Counts {
        /// What was counted, by kind.
        kind: &'static str,
        /// What the pool says.
        counted: usize,
        /// What there is.
        found: usize,
    },
    /// A published block cannot be found by its contents.
    Unfindable {
        /// The block.
        block: BlockId,
    },
    /// A table holds another number of blocks than its tokens and reserved slots need.
    TableLength {
        /// The table.
        table: TableId,
        /// Blocks it holds.
        num_blocks: usize,
        /// Committed tokens and reserved slots.
        num_slots: usize,
    },
    /// A full block of a table is not published after the block before it.
    Chain {
        /// The table.
        table: TableId,
        /// The block.
        block: BlockId,
    },
    /// A reserved slot lies in a block that is shared or published.
    Unwritable {
        /// The table.
        table: TableId,
        /// The block.
        block: BlockId,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block manager invariant broken: {self:?}")
    }
}

impl core::error::Error for Violation {}

impl BlockManager {
    /// Checks every invariant. For tests and debugging: O(blocks + table entries), allocates.
    ///
    /// # Errors
    /// The first [`Violation`] found, which is a bug in this crate.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_counts()?;
        self.check_list()?;
        if let Some(index) = &self.index {
            self.check_index(index)?;
        }
        self.tables
            .iter()
            .try_for_each(|(id, table)| self.check_table(id, table))
    }

    fn check_counts(&self) -> Result<(), Violation> {
        let mut refs = vec![0usize; self.pool.len()];
        let mut pins = vec![0usize; self.pool.len()];
        for (_, table) in self.tables.iter() {
            table.blocks.iter().for_each(|b| refs[b.index()] += 1);
        }
        for copy in self.copies.iter() {
            pins[copy.src.index()] += 1;
            pins[copy.dst.index()] += 1;
        }
        for (block, entry) in self.pool.iter() {
            let (counted, held) = (entry.refs as usize, refs[block.index()]);
            if counted != held {
                return Err(Violation::References {
                    block,
                    counted,
                    held,
                });
            }
            let (counted, held) = (entry.pins as usize, pins[block.index()]);
            if counted != held {
                return Err(Violation::Pins {
                    block,
                    counted,
                    held,
                });
            }
        }
        Ok(())
    }

    fn check_list(&self) -> Result<(), Violation> {
        let list = self.pool.verified_list().ok_or(Violation::ListBroken)?;
        let mut is_listed = vec![false; self.pool.len()];
        let mut cached_seen = false;
        for &block in &list {
            is_listed[block.index()] = true;
            let published = self.pool.get(block).is_published();
            if cached_seen && !published {
                return Err(Violation::ListOrder { block });
            }
            cached_seen |= published;
        }
        for (block, entry) in self.pool.iter() {
            let listed = is_listed[block.index()];
            if listed == (entry.refs > 0 || entry.pins > 0) {
                return Err(Violation::ListMembership { block, listed });
            }
        }
        let blocks: Vec<_> = self.pool.iter().map(|(_, entry)| entry).collect();
        let count = |kind, counted, found| {
            if counted == found {
                return Ok(());
            }
            Err(Violation::Counts {
                kind,
                counted,
                found,
            })
        };
        let idle = |b: &&&crate::pool::Block| b.refs == 0 && b.pins == 0;
        let cached = blocks.iter().filter(idle).filter(|b| b.is_published());
        let pinned = blocks.iter().filter(|b| b.refs == 0 && b.pins > 0);
        let referenced = blocks.iter().filter(|b| b.refs > 0);
        let num_cached = cached.count();
        let stats = self.stats();
        count("cached", stats.num_cached, num_cached)?;
        count("free", stats.num_free, list.len() - num_cached)?;
        count("pinned", stats.num_pinned, pinned.count())?;
        count("referenced", stats.num_referenced, referenced.count())
    }

    fn check_index(&self, index: &PrefixIndex) -> Result<(), Violation> {
        let mut num_published = 0;
        for (block, _) in self.pool.iter().filter(|(_, entry)| entry.is_published()) {
            num_published += 1;
            if index.find_again(&self.pool, block) != Some(block) {
                return Err(Violation::Unfindable { block });
            }
        }
        if num_published != index.len() {
            return Err(Violation::Counts {
                kind: "published",
                counted: index.len(),
                found: num_published,
            });
        }
        Ok(())
    }

    fn check_table(&self, id: TableId, table: &Table) -> Result<(), Violation> {
        let block_size = self.config.block_size;
        let num_slots = table.num_tokens + table.num_reserved;
        if table.blocks.len() < num_slots.div_ceil(block_size) {
            return Err(Violation::TableLength {
                table: id,
                num_blocks: table.blocks.len(),
                num_slots,
            });
        }
        if let Some(index) = &self.index {
            let mut chain = Chain::root(table.namespace);
            for &block in &table.blocks[..table.num_tokens / block_size] {
                if index.follow(&self.pool, &mut chain, index.tokens(block)) != Some(block) {
                    return Err(Violation::Chain { table: id, block });
                }
            }
        }
        let first = if table.num_reserved > 0 {
            table.num_tokens / block_size
        } else {
            table.num_tokens.div_ceil(block_size)
        };
        for &block in &table.blocks[first..] {
            if !self.pool.get(block).is_writable() {
                return Err(Violation::Unwritable { table: id, block });
            }
        }
        Ok(())
    }
}
