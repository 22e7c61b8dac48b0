//! Every invariant, written down once more.

use alloc::{vec, vec::Vec};
use core::fmt;

#[cfg(test)]
mod tests;

use crate::{
    BlockId, BlockManager, TableId, Tier,
    index::{Chain, PrefixIndex},
    memory::Memory,
    table::Table,
};

/// An invariant that does not hold: a bug in this crate. Blocks are named by their index in
/// their tier.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A block's count of references is not the number of table entries that name it.
    References {
        /// Where the block is.
        tier: Tier,
        /// The block.
        block: usize,
        /// What the block says.
        counted: usize,
        /// What the tables say.
        held: usize,
    },
    /// A block's count of pins is not the number of uncompleted transfers that name it.
    Pins {
        /// Where the block is.
        tier: Tier,
        /// The block.
        block: usize,
        /// What the block says.
        counted: usize,
        /// What the transfers say.
        held: usize,
    },
    /// The links of the list of free and cached blocks are broken.
    ListBroken {
        /// Whose list.
        tier: Tier,
    },
    /// A block is on the list though held, or not on it though nobody holds it.
    ListMembership {
        /// Where the block is.
        tier: Tier,
        /// The block.
        block: usize,
        /// Whether it is on the list.
        listed: bool,
    },
    /// A block comes after one that must be taken later.
    ListOrder {
        /// Where the block is.
        tier: Tier,
        /// The block that comes too late.
        block: usize,
    },
    /// Free, cached, pinned, referenced or published blocks are not counted right.
    Counts {
        /// Where the blocks are.
        tier: Tier,
        /// What was counted, by kind.
        kind: &'static str,
        /// What the pool says.
        counted: usize,
        /// What there is.
        found: usize,
    },
    /// A published block cannot be found by its contents.
    Unfindable {
        /// Where the block is.
        tier: Tier,
        /// The block.
        block: usize,
    },
    /// The same contents have different names in the two tiers, or one name has two contents.
    Twins {
        /// The host's block.
        block: usize,
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
    /// A table counts slots as writable that it has not, or reserved ones as not writable.
    TableSlots {
        /// The table.
        table: TableId,
        /// Slots reserved.
        num_reserved: usize,
        /// Slots known to be writable.
        num_writable: usize,
    },
    /// A full block of a table is not published after the block before it.
    Chain {
        /// The table.
        table: TableId,
        /// The block.
        block: usize,
    },
    /// A reserved slot lies in a block that is shared or published, or on the host.
    Unwritable {
        /// The table.
        table: TableId,
        /// The block.
        block: usize,
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
        for tier in [Tier::Device, Tier::Host] {
            self.check_holders(tier)?;
            let memory = self.store.memory(tier);
            check_list(tier, memory)?;
            if let Some(index) = &memory.index {
                check_index(tier, memory, index)?;
            }
        }
        self.check_twins()?;
        self.tables
            .iter()
            .try_for_each(|(id, table)| self.check_table(id, table))
    }

    /// References and pins, recounted.
    fn check_holders(&self, tier: Tier) -> Result<(), Violation> {
        let pool = &self.store.memory(tier).pool;
        let mut refs = vec![0usize; pool.len()];
        let mut pins = vec![0usize; pool.len()];
        for (_, table) in self.tables.iter().filter(|(_, table)| table.tier == tier) {
            table.blocks.iter().for_each(|b| refs[b.index()] += 1);
        }
        for transfer in self.store.transfers.iter() {
            for (_, block) in transfer.pinned().filter(|(at, _)| *at == tier) {
                pins[block.index()] += 1;
            }
        }
        for (id, entry) in pool.iter() {
            let block = id.index();
            let (counted, held) = (entry.refs as usize, refs[block]);
            if counted != held {
                return Err(Violation::References {
                    tier,
                    block,
                    counted,
                    held,
                });
            }
            let (counted, held) = (entry.pins as usize, pins[block]);
            if counted != held {
                return Err(Violation::Pins {
                    tier,
                    block,
                    counted,
                    held,
                });
            }
        }
        Ok(())
    }

    /// A name stands for the same contents in both tiers, and contents for one name.
    fn check_twins(&self) -> Result<(), Violation> {
        let (device, host) = (&self.store.device, &self.store.host);
        let (Some(on_device), Some(on_host)) = (&device.index, &host.index) else {
            return Ok(());
        };
        for (block, entry) in host.pool.iter().filter(|(_, entry)| entry.is_published()) {
            let (identity, tokens) = (entry.identity(), on_host.tokens(block));
            let named = on_device.find_identity(&device.pool, identity);
            let alike = on_device.find(&device.pool, identity.before(), identity.hash, tokens);
            if named != alike {
                let block = block.index();
                return Err(Violation::Twins { block });
            }
        }
        Ok(())
    }

    fn check_table(&self, id: TableId, table: &Table) -> Result<(), Violation> {
        let block_size = self.config.block_size;
        let memory = self.store.memory(table.tier);
        let num_slots = table.num_tokens + table.num_reserved;
        let num_blocks = table.num_passed + table.blocks.len();
        if num_blocks < num_slots.div_ceil(block_size) {
            return Err(Violation::TableLength {
                table: id,
                num_blocks,
                num_slots,
            });
        }
        let num_full = table.num_tokens / block_size - table.num_passed;
        if let Some(index) = &memory.index {
            let mut chain = table.base;
            for &block in &table.blocks[..num_full] {
                let tokens = index.tokens(block);
                let hash = index.hash(chain, tokens);
                if index.find(&memory.pool, chain, hash, tokens) != Some(block) {
                    return Err(Violation::Chain {
                        table: id,
                        block: block.index(),
                    });
                }
                chain = Chain::after(memory.pool.get(block).identity());
            }
        }
        if table.num_reserved > table.num_writable || table.num_writable > table.room(self.size) {
            return Err(Violation::TableSlots {
                table: id,
                num_reserved: table.num_reserved,
                num_writable: table.num_writable,
            });
        }
        let writable_from = if table.num_writable > 0 {
            num_full
        } else {
            table.num_tokens.div_ceil(block_size) - table.num_passed
        };
        for &block in &table.blocks[writable_from..] {
            if table.tier == Tier::Host || !memory.pool.get(block).is_writable() {
                return Err(Violation::Unwritable {
                    table: id,
                    block: block.index(),
                });
            }
        }
        Ok(())
    }
}

fn check_list(tier: Tier, memory: &Memory) -> Result<(), Violation> {
    let pool = &memory.pool;
    let list = pool.verified_list().ok_or(Violation::ListBroken { tier })?;
    let mut is_listed = vec![false; pool.len()];
    let mut rank_before = 0;
    for &id in &list {
        let block = id.index();
        is_listed[block] = true;
        let entry = pool.get(id);
        let rank = match (entry.is_published(), entry.reused) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        if rank < rank_before {
            return Err(Violation::ListOrder { tier, block });
        }
        rank_before = rank;
    }
    for (id, _) in pool.iter() {
        let (block, listed) = (id.index(), is_listed[id.index()]);
        if listed != pool.is_available(id) {
            return Err(Violation::ListMembership {
                tier,
                block,
                listed,
            });
        }
    }
    let blocks: Vec<_> = pool.iter().map(|(_, entry)| entry).collect();
    let cached = list.iter().filter(|&&id| pool.get(id).is_published());
    let num_cached = cached.count();
    let protected = |id: &&BlockId| pool.get(**id).is_published() && pool.get(**id).reused;
    let num_protected = list.iter().filter(protected).count();
    let counted = pool.num_protected;
    count(tier, "protected", counted, num_protected)?;
    let at_most = counted.min(pool.most_protected);
    count(tier, "protected too many", counted, at_most)?;
    let pinned = blocks.iter().filter(|b| b.refs == 0 && b.pins > 0);
    count(tier, "cached", pool.num_cached, num_cached)?;
    count(tier, "free", pool.num_free, list.len() - num_cached)?;
    count(tier, "pinned", pool.num_pinned, pinned.count())?;
    let references = blocks.iter().map(|b| b.refs as usize).sum();
    count(tier, "references", pool.num_references, references)
}

fn check_index(tier: Tier, memory: &Memory, index: &PrefixIndex) -> Result<(), Violation> {
    let pool = &memory.pool;
    let mut num_published = 0;
    for (id, _) in pool.iter().filter(|(_, entry)| entry.is_published()) {
        num_published += 1;
        if index.find_again(pool, id) != Some(id) {
            let block = id.index();
            return Err(Violation::Unfindable { tier, block });
        }
    }
    count(tier, "published", index.len(), num_published)
}

fn count(tier: Tier, kind: &'static str, counted: usize, found: usize) -> Result<(), Violation> {
    if counted == found {
        return Ok(());
    }
    Err(Violation::Counts {
        tier,
        kind,
        counted,
        found,
    })
}
