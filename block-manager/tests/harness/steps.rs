//! Steps: planned, sealed, run, committed, completed.

use pageloom_block_manager::{BlockId, StepId, TokenId};

use super::{
    Fault, Replaced, Seq, World, agree,
    device::{Step, Work},
};

/// Sealed for transfers that a fault lets go at once.
const LOOSE: StepId = StepId(u64::MAX);

impl World {
    pub(super) fn plan(&mut self, seq: u8, num_tokens: u8, token: u8) -> Result<(), String> {
        let group = self.group(seq, 1, |seq| !seq.in_flight && seq.left.is_none());
        let Some(&at) = group.first() else {
            return Ok(());
        };
        let seq = &mut self.seqs[at];
        let mut num_tokens = usize::from(num_tokens % 12);
        if !seq.prompt.is_empty() {
            num_tokens = num_tokens.min(seq.prompt.len());
        }
        let needed = self.manager.blocks_needed(seq.id, num_tokens);
        let before = self.manager.blocks(seq.id).to_vec();
        let num_refs: Vec<usize> = before
            .iter()
            .map(|&block| self.manager.num_references(block))
            .collect();
        let result = self.manager.reserve(seq.id, num_tokens);
        if let Err(error) = result
            && (error.needed != needed || error.available >= needed)
        {
            return Err(format!("{error:?}, {needed} needed"));
        }
        if let Some(model) = &mut self.model {
            agree("reserve", model.reserve(seq.id, num_tokens), result)?;
        }
        if result.is_err() {
            return Ok(());
        }
        let after = self.manager.blocks(seq.id);
        if let Some(place) = (0..before.len()).find(|&i| before[i] != after[i]) {
            self.replaced.push(Replaced {
                src: before[place],
                dst: after[place],
                is_published: num_refs[place] == 1,
            });
        }
        let mut tokens: Vec<TokenId> = seq.prompt.iter().copied().take(num_tokens).collect();
        tokens.resize(num_tokens, u32::from(token) % 3);
        seq.planned = tokens;
        if self.setup.fault == Fault::CopiesUnpinned {
            self.unpin();
        }
        Ok(())
    }

    /// Lets the endpoints of the transfers ordered so far go, for a fault.
    fn unpin(&mut self) {
        let mut ops = self.manager.seal(LOOSE);
        self.manager.complete(LOOSE);
        self.loose.swap_outs.append(&mut ops.swap_outs);
        self.loose.swap_ins.append(&mut ops.swap_ins);
        self.loose.copies.append(&mut ops.copies);
    }

    /// Lets the endpoints of swaps go, if that is the fault; those of copies stay pinned.
    pub(super) fn unpin_swaps(&mut self) {
        if self.setup.fault == Fault::SwapsUnpinned && self.replaced.is_empty() {
            self.unpin();
        }
    }

    pub(super) fn seal(&mut self) -> Result<(), String> {
        if self.sealed.len() + self.ran.len() >= 3 {
            return Ok(());
        }
        let id = StepId(self.next_step);
        self.next_step += 1;
        let mut ops = std::mem::take(&mut self.loose);
        let mut sealed = self.manager.seal(id);
        if let Some(model) = &mut self.model {
            model.seal(id, &sealed)?;
        }
        ops.swap_outs.append(&mut sealed.swap_outs);
        ops.swap_ins.append(&mut sealed.swap_ins);
        ops.copies.append(&mut sealed.copies);
        self.num_filled = self.count_filled();
        let replaced = std::mem::take(&mut self.replaced);
        let mut works = Vec::new();
        for at in 0..self.seqs.len() {
            if !self.seqs[at].planned.is_empty() {
                works.push(self.work(&self.seqs[at], &replaced)?);
                self.seqs[at].in_flight = true;
            }
        }
        self.sealed.push_back(Step { id, ops, works });
        for at in 0..self.seqs.len() {
            if self.setup.commit_early {
                self.commit(at);
            }
            if !self.seqs[at].in_flight {
                self.seqs[at].planned.clear();
            }
        }
        Ok(())
    }

    /// What the step being sealed computes for a sequence.
    fn work(&self, seq: &Seq, replaced: &[Replaced]) -> Result<Work, String> {
        let block_size = self.setup.config.block_size;
        let tokens: Vec<TokenId> = [&seq.tokens[..], &seq.planned].concat();
        let start = seq.tokens.len();
        let blocks = self.manager.blocks(seq.id).to_vec();
        if let Some(model) = &self.model {
            let first = start / block_size - seq.num_passed;
            let end = tokens.len().div_ceil(block_size) - seq.num_passed;
            let shared = |block: &&BlockId| !model.is_writable(block.index());
            if let Some(block) = blocks[first..end].iter().find(shared) {
                return Err(format!("block {block} is to be written while shared"));
            }
        }
        let is_wrong = |replaced: &&Replaced| match self.setup.fault {
            Fault::SharedTailWritten => !replaced.is_published,
            Fault::PublishedTailWritten => replaced.is_published,
            _ => false,
        };
        let also = |replaced: &Replaced| {
            let place = blocks.iter().position(|&block| block == replaced.dst)?;
            Some((place, replaced.src))
        };
        Ok(Work {
            seq: seq.id,
            ns: seq.ns,
            also_written: replaced.iter().filter(is_wrong).filter_map(also).collect(),
            blocks,
            num_passed: seq.num_passed,
            tokens,
            start,
        })
    }

    /// Commits what the sequence's last step computed, unless a fork or a cut took it back.
    fn commit(&mut self, at: usize) {
        let seq = &mut self.seqs[at];
        if !std::mem::take(&mut seq.in_flight) {
            return;
        }
        let tokens = std::mem::take(&mut seq.planned);
        self.manager.commit(seq.id, &tokens);
        if let Some(model) = &mut self.model {
            model.commit(seq.id, &tokens);
        }
        seq.prompt.drain(..tokens.len().min(seq.prompt.len()));
        seq.tokens.extend(tokens);
    }

    pub(super) fn run_step(&mut self) -> Result<(), String> {
        let Some(step) = self.sealed.pop_front() else {
            return Ok(());
        };
        self.device.run(&step)?;
        if !self.setup.commit_early {
            for work in &step.works {
                let at = self.seqs.iter().position(|seq| seq.id == work.seq);
                if let Some(at) = at {
                    self.commit(at);
                }
            }
        }
        self.ran.push_back(step.id);
        if self.sealed.is_empty() && self.count_filled() == self.num_filled {
            // Nothing is on its way: every committed slot of every table can be read.
            self.read_all()?;
        }
        Ok(())
    }

    /// Blocks of the device that transfers filled or are to fill.
    fn count_filled(&self) -> u64 {
        let stats = self.manager.stats();
        stats.num_copies + stats.num_swapped_in + stats.num_promoted
    }

    pub(super) fn read_all(&self) -> Result<(), String> {
        let resident = self.seqs.iter().filter(|seq| seq.left.is_none());
        let mut all = resident.map(|seq| (seq, self.manager.blocks(seq.id)));
        all.try_for_each(|(seq, blocks)| {
            self.device
                .read(seq.ns, &seq.tokens, blocks, seq.num_passed)
        })
    }

    pub(super) fn complete(&mut self) {
        if let Some(step) = self.ran.pop_front() {
            self.manager.complete(step);
            if let Some(model) = &mut self.model {
                model.complete(step);
            }
        }
    }
}
