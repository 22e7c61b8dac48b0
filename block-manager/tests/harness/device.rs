//! The cache's memory and the executor that runs steps over it, in order.

use pageloom_block_manager::{BlockCopy, BlockId, Namespace, StepId, TableId, TokenId};

use super::{Fault, Setup};

/// A sequence's part of a step.
pub(crate) struct Work {
    pub(crate) seq: TableId,
    pub(crate) ns: Namespace,
    pub(crate) blocks: Vec<BlockId>,
    /// All tokens up to the step's last.
    pub(crate) tokens: Vec<TokenId>,
    /// Those from here on are computed by the step.
    pub(crate) start: usize,
}

pub(crate) struct Step {
    pub(crate) id: StepId,
    pub(crate) copies: Vec<BlockCopy>,
    pub(crate) works: Vec<Work>,
}

/// Shadow memory: a fingerprint for each slot instead of keys and values.
pub(crate) struct Device {
    block_size: usize,
    memory: Vec<u64>,
    fault: Fault,
    shuffle: u64,
}

impl Device {
    pub(crate) fn new(setup: &Setup) -> Self {
        let block_size = setup.config.block_size;
        Self {
            block_size,
            memory: vec![0; setup.config.num_blocks * block_size],
            fault: setup.fault,
            shuffle: setup.shuffle_seed,
        }
    }

    /// Copies, then writes the step's slots, then reads all it attends to.
    pub(crate) fn run(&mut self, step: &Step) -> Result<(), String> {
        if !matches!(self.fault, Fault::CopiesSkipped | Fault::CopiesLate) {
            self.copy(&step.copies);
        }
        for work in &step.works {
            let cells = fingerprints(work.ns, &work.tokens);
            for (i, &cell) in cells.iter().enumerate().skip(work.start) {
                let block = work.blocks[i / self.block_size].index();
                self.memory[block * self.block_size + i % self.block_size] = cell;
            }
        }
        if self.fault == Fault::CopiesLate {
            self.copy(&step.copies);
        }
        let read = |work: &Work| self.read(work.ns, &work.tokens, &work.blocks);
        step.works.iter().try_for_each(read)
    }

    /// Applies the copies of a step in any order, as a batched kernel does.
    fn copy(&mut self, copies: &[BlockCopy]) {
        let mut copies = copies.to_vec();
        for i in (1..copies.len()).rev() {
            // xorshift64*: any order will do, but the same one for the same seed.
            self.shuffle ^= self.shuffle >> 12;
            self.shuffle ^= self.shuffle << 25;
            self.shuffle ^= self.shuffle >> 27;
            let random = self.shuffle.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
            copies.swap(i, random as usize % (i + 1));
        }
        for copy in copies {
            let start = copy.src.index() * self.block_size;
            let dst = copy.dst.index() * self.block_size;
            self.memory.copy_within(start..start + self.block_size, dst);
        }
    }

    /// Whether the slots of `tokens` hold what they must.
    pub(crate) fn read(
        &self,
        ns: Namespace,
        tokens: &[TokenId],
        blocks: &[BlockId],
    ) -> Result<(), String> {
        let block_size = self.block_size;
        for (i, cell) in fingerprints(ns, tokens).into_iter().enumerate() {
            let block = blocks[i / block_size];
            if self.memory[block.index() * block_size + i % block_size] != cell {
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
