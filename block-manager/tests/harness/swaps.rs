//! Groups of sequences that leave the device and come back.

use std::collections::BTreeMap;

use pageloom_block_manager::{BlockId, OutOfBlocks, TableId};

use super::{Fault, World, agree};

impl World {
    pub(super) fn swap_out(&mut self, seq: u8, others: u8) -> Result<(), String> {
        let group = self.group(seq, 1 + usize::from(others % 4), |seq| seq.left.is_none());
        if self.setup.fault != Fault::SwappedApart {
            return self.swap_out_group(&group);
        }
        let swap = self.next_swap;
        for at in group {
            self.next_swap = swap;
            self.swap_out_group(&[at])?;
        }
        Ok(())
    }

    fn swap_out_group(&mut self, group: &[usize]) -> Result<(), String> {
        let ids: Vec<TableId> = group.iter().map(|&at| self.seqs[at].id).collect();
        let left: Vec<Vec<BlockId>> = group
            .iter()
            .map(|&at| {
                let num_blocks = self.num_blocks(&self.seqs[at]);
                self.manager.blocks(self.seqs[at].id)[..num_blocks].to_vec()
            })
            .collect();
        let before = self.manager.stats();
        let result = self.manager.swap_out(&ids);
        if let Some(model) = &mut self.model {
            agree("swap out", model.swap_out(&ids), result)?;
        }
        self.check_failure(before, result)?;
        if result.is_ok() {
            for (&at, blocks) in group.iter().zip(left) {
                self.forget_plan(at);
                self.seqs[at].left = Some((self.next_swap, blocks));
            }
            self.next_swap += 1;
        }
        self.unpin_swaps();
        Ok(())
    }

    pub(super) fn swap_in(&mut self, seq: u8, others: u8, keep: u8) -> Result<(), String> {
        let group = self.group(seq, 1 + usize::from(others % 4), |seq| seq.left.is_some());
        let ids: Vec<TableId> = group.iter().map(|&at| self.seqs[at].id).collect();
        let keep = usize::from(keep % 5);
        let before = self.manager.stats();
        let result = self.manager.swap_in(&ids, keep);
        if let Some(model) = &mut self.model {
            agree("swap in", model.swap_in(&ids, keep), result)?;
        }
        self.check_failure(before, result)?;
        if result.is_ok() {
            self.check_sharing(&group)?;
            group.iter().for_each(|&at| self.seqs[at].left = None);
        }
        self.unpin_swaps();
        Ok(())
    }

    fn check_failure(
        &self,
        before: pageloom_block_manager::Stats,
        result: Result<(), OutOfBlocks>,
    ) -> Result<(), String> {
        if result.is_err() && self.manager.stats() != before {
            return Err(format!("{result:?}, and yet the manager changed"));
        }
        Ok(())
    }

    /// What was one block when a group left is one block when it is back.
    fn check_sharing(&self, group: &[usize]) -> Result<(), String> {
        let mut went: BTreeMap<(u64, BlockId), BlockId> = BTreeMap::new();
        for &at in group {
            let seq = &self.seqs[at];
            let (swap, left) = seq.left.as_ref().expect("it was swapped out");
            let now = self.manager.blocks(seq.id);
            agree("blocks swapped in", left.len(), now.len())?;
            for (&from, &to) in left.iter().zip(now) {
                let first = *went.entry((*swap, from)).or_insert(to);
                if first != to {
                    return Err(format!(
                        "sharing was lost in a swap: block {from} is now {first} and {to}"
                    ));
                }
            }
        }
        Ok(())
    }
}
