//! What moves between the tiers of the model.

use std::collections::BTreeMap;

use pageloom_block_manager::{BlockOps, OutOfBlocks, StepId, TableId, Tier};

use super::{Model, Place, pinned};

/// A block that moves, and the block of the other tier that holds the same already.
type Move = (usize, Option<usize>);

impl Model {
    pub(crate) fn swap_out(&mut self, group: &[TableId]) -> Result<(), OutOfBlocks> {
        let moves = self.moves(group, Self::on_host);
        self.check_room(&moves, Tier::Host, 0)?;
        for &id in group {
            // Gives up what is reserved.
            let num_tokens = self.tables[&id].tokens.len();
            self.truncate(id, num_tokens);
        }
        self.relocate(group, &moves, Tier::Host);
        Ok(())
    }

    pub(crate) fn swap_in(&mut self, group: &[TableId], keep: usize) -> Result<(), OutOfBlocks> {
        let moves = self.moves(group, |model, block| {
            let contents = model.host.published.get(&block)?;
            model.device.numbered(contents.number)
        });
        self.check_room(&moves, Tier::Device, keep)?;
        self.relocate(group, &moves, Tier::Device);
        Ok(())
    }

    /// The blocks with committed tokens of a group, each once, as they are first met.
    fn moves(
        &self,
        group: &[TableId],
        existing: impl Fn(&Self, usize) -> Option<usize>,
    ) -> Vec<Move> {
        let mut moves: Vec<Move> = Vec::new();
        for id in group {
            let table = &self.tables[id];
            let num_blocks = table.tokens.len().div_ceil(self.config.block_size);
            for &block in &table.blocks[..num_blocks - table.num_passed] {
                if moves.iter().all(|&(from, _)| from != block) {
                    moves.push((block, existing(self, block)));
                }
            }
        }
        moves
    }

    /// The host's block with the same contents, or the one that `block` is about to be filled
    /// from, directly or by way of a copy.
    fn on_host(&self, block: usize) -> Option<usize> {
        let contents = self.device.published.get(&block);
        let twin = contents.and_then(|contents| self.host.numbered(contents.number));
        twin.or_else(|| match self.origin(block) {
            (Tier::Host, src) => Some(src),
            (Tier::Device, _) => None,
        })
    }

    /// Where what the device's `block` will hold is, before anything unsealed is done.
    fn origin(&self, block: usize) -> Place {
        match self.filled_by(block) {
            None => (Tier::Device, block),
            Some(fill) if fill.src.0 == Tier::Host => fill.src,
            Some(copy) => self.origin(copy.src.1),
        }
    }

    fn check_room(&self, moves: &[Move], to: Tier, keep: usize) -> Result<(), OutOfBlocks> {
        let memory = self.memory(to);
        let takes = |&&(_, existing): &&Move| existing.is_none_or(|b| memory.idle.contains(b));
        memory.check_available(moves.iter().filter(takes).count(), keep)
    }

    fn relocate(&mut self, group: &[TableId], moves: &[Move], to: Tier) {
        for &(_, existing) in moves {
            if let Some(block) = existing {
                self.memory_mut(to).idle.remove(block);
            }
        }
        let mut went = BTreeMap::new();
        for &(from, existing) in moves {
            let moved = existing.unwrap_or_else(|| match to {
                Tier::Host => self.copy_out(from),
                Tier::Device => {
                    self.counters.swapped_in += 1;
                    self.copy_in(from)
                }
            });
            went.insert(from, moved);
        }
        for &id in group {
            let table = self.table(id);
            let from = std::mem::replace(&mut table.tier, to);
            let moved = table.blocks.iter().map(|block| went[block]).collect();
            let left = std::mem::replace(&mut table.blocks, moved);
            for block in left.into_iter().rev() {
                self.let_go((from, block));
            }
        }
    }

    fn copy_out(&mut self, block: usize) -> usize {
        let (dst, _) = self.host.take();
        if let Some((contents, asked_again)) = self.device.contents(block) {
            self.host.publish(dst, contents, asked_again);
        }
        self.order(self.origin(block), (Tier::Host, dst));
        self.counters.swapped_out += 1;
        dst
    }

    /// Gives what the host's `block` holds a block of the device.
    pub(super) fn copy_in(&mut self, block: usize) -> usize {
        let dst = self.take();
        if let Some((contents, asked_again)) = self.host.contents(block) {
            self.device.publish(dst, contents, asked_again);
        }
        self.order((Tier::Host, block), (Tier::Device, dst));
        dst
    }

    /// Seals the step and says how `ops`, whose order does not matter, differ from what was
    /// ordered.
    pub(crate) fn seal(&mut self, step: StepId, ops: &BlockOps) -> Result<(), String> {
        let outs = ops.swap_outs.iter().map(|out| {
            let (src, dst) = (out.src.index(), out.dst.index());
            ((Tier::Device, src), (Tier::Host, dst))
        });
        let ins = ops.swap_ins.iter().map(|swap| {
            let (src, dst) = (swap.src.index(), swap.dst.index());
            ((Tier::Host, src), (Tier::Device, dst))
        });
        let copies = ops.copies.iter().map(|copy| {
            let (src, dst) = (copy.src.index(), copy.dst.index());
            ((Tier::Device, src), (Tier::Device, dst))
        });
        let mut real: Vec<(Place, Place)> = outs.chain(ins).chain(copies).collect();
        let ordered = std::mem::take(&mut self.unsealed);
        let mut model: Vec<_> = ordered.iter().map(|t| (t.src, t.dst)).collect();
        real.sort();
        model.sort();
        if model != real {
            return Err(format!(
                "transfers: the model says {model:?}, the manager {real:?}"
            ));
        }
        self.steps.push((step, pinned(&ordered).collect()));
        Ok(())
    }
}
