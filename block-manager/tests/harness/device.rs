//! The memory of both tiers and the executor that runs steps over it, in order.

use pageloom_block_manager::{BlockId, BlockOps, Namespace, StepId, TableId, TokenId};

use super::{Fault, Setup};

/// A sequence's part of a step.
pub(crate) struct Work {
    pub(crate) seq: TableId,
    pub(crate) ns: Namespace,
    pub(crate) blocks: Vec<BlockId>,
    /// Blocks of the sequence before the first of `blocks`, which are not read any more.
    pub(crate) num_passed: usize,
    /// All tokens up to the step's last.
    pub(crate) tokens: Vec<TokenId>,
    /// Those from here on are computed by the step.
    pub(crate) start: usize,
    /// Blocks written beside those at the same place, by a fault.
    pub(crate) also_written: Vec<(usize, BlockId)>,
}

pub(crate) struct Step {
    pub(crate) id: StepId,
    pub(crate) ops: BlockOps,
    pub(crate) works: Vec<Work>,
}

/// Shadow memory: a fingerprint for each slot instead of keys and values.
pub(crate) struct Device {
    block_size: usize,
    device: Vec<u64>,
    host: Vec<u64>,
    fault: Fault,
    shuffle: u64,
}

impl Device {
    pub(crate) fn new(setup: &Setup) -> Self {
        let block_size = setup.config.block_size;
        Self {
            block_size,
            device: vec![0; setup.config.num_blocks * block_size],
            host: vec![0; setup.config.num_host_blocks * block_size],
            fault: setup.fault,
            shuffle: setup.shuffle_seed,
        }
    }

    /// Does what the manager ordered, then writes the step's slots, then reads all it attends to.
    pub(crate) fn run(&mut self, step: &Step) -> Result<(), String> {
        let ops = &step.ops;
        match self.fault {
            Fault::CopiesSkipped | Fault::CopiesLate => {
                self.swap_out(ops);
                self.swap_in(ops);
            }
            Fault::SwapsSkipped => self.copy(ops),
            Fault::SwapInsFirst => {
                self.swap_in(ops);
                self.swap_out(ops);
                self.copy(ops);
            }
            Fault::CopiesFirst => {
                self.copy(ops);
                self.swap_out(ops);
                self.swap_in(ops);
            }
            _ => {
                self.swap_out(ops);
                self.swap_in(ops);
                self.copy(ops);
            }
        }
        step.works.iter().for_each(|work| self.write(work));
        if self.fault == Fault::CopiesLate {
            self.copy(ops);
        }
        let read = |work: &Work| self.read(work.ns, &work.tokens, &work.blocks, work.num_passed);
        step.works.iter().try_for_each(read)
    }

    fn write(&mut self, work: &Work) {
        let cells = fingerprints(work.ns, &work.tokens);
        for (i, &cell) in cells.iter().enumerate().skip(work.start) {
            let place = i / self.block_size - work.num_passed;
            let also = work.also_written.iter().filter(|also| also.0 == place);
            for block in also.map(|also| also.1).chain([work.blocks[place]]) {
                self.device[block.index() * self.block_size + i % self.block_size] = cell;
            }
        }
    }

    fn swap_out(&mut self, ops: &BlockOps) {
        let size = self.block_size;
        for swap in self.shuffled(&ops.swap_outs) {
            let (src, dst) = (swap.src.index() * size, swap.dst.index() * size);
            self.host[dst..dst + size].copy_from_slice(&self.device[src..src + size]);
        }
    }

    fn swap_in(&mut self, ops: &BlockOps) {
        let size = self.block_size;
        for swap in self.shuffled(&ops.swap_ins) {
            let (src, dst) = (swap.src.index() * size, swap.dst.index() * size);
            self.device[dst..dst + size].copy_from_slice(&self.host[src..src + size]);
        }
    }

    fn copy(&mut self, ops: &BlockOps) {
        let size = self.block_size;
        for copy in self.shuffled(&ops.copies) {
            let (src, dst) = (copy.src.index() * size, copy.dst.index() * size);
            self.device.copy_within(src..src + size, dst);
        }
    }

    /// The transfers of one list in any order, as a batched kernel does them.
    fn shuffled<T: Copy>(&mut self, transfers: &[T]) -> Vec<T> {
        let mut transfers = transfers.to_vec();
        for i in (1..transfers.len()).rev() {
            // xorshift64*: any order will do, but the same one for the same seed.
            self.shuffle ^= self.shuffle >> 12;
            self.shuffle ^= self.shuffle << 25;
            self.shuffle ^= self.shuffle >> 27;
            let random = self.shuffle.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
            transfers.swap(i, random as usize % (i + 1));
        }
        transfers
    }

    /// Whether the slots of `tokens`, but for those in the blocks passed, hold what they must.
    pub(crate) fn read(
        &self,
        ns: Namespace,
        tokens: &[TokenId],
        blocks: &[BlockId],
        num_passed: usize,
    ) -> Result<(), String> {
        let block_size = self.block_size;
        let cells = fingerprints(ns, tokens).into_iter().enumerate();
        for (i, cell) in cells.skip(num_passed * block_size) {
            let block = blocks[i / block_size - num_passed];
            if self.device[block.index() * block_size + i % block_size] != cell {
                return Err(format!(
                    "position {i}, in block {block}, does not hold its token"
                ));
            }
        }
        Ok(())
    }
}

/// What each slot must hold: a chain over the namespace and the tokens so far.
fn fingerprints(ns: Namespace, tokens: &[TokenId]) -> Vec<u64> {
    let mut state = ns.0 + 1;
    let step = |&token: &TokenId| {
        state =
            (state ^ u64::from(token) ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        state ^= state >> 32;
        state
    };
    tokens.iter().map(step).collect()
}
