//! State of a warp: registers of its lanes, and where each of them is.

use std::collections::VecDeque;

use super::lanes::Lanes;
use super::memory::POISON;
use super::program::{Entry, Special};

/// Up to 16 bytes on their way to shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) to: u64,
    pub(crate) data: [u8; 16],
    pub(crate) bytes: usize,
}

/// Asynchronous copies of a thread.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// Not yet in a group.
    pub(crate) open: Vec<InFlight>,
    /// Oldest first.
    pub(crate) groups: VecDeque<Vec<InFlight>>,
}

impl Copies {
    pub(crate) fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }
}

/// 32 threads: each is ended, running, waiting for its warp, or waiting at a barrier.
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) regs: Vec<Lanes>,
    pub(crate) preds: Vec<u32>,
    pub(crate) carry: u32,
    pub(crate) local: Vec<u8>,
    pub(crate) local_bytes: usize,
    pub(crate) pc: [usize; 32],
    /// Lanes that have not ended.
    pub(crate) alive: u32,
    /// Lanes that can go on.
    pub(crate) running: u32,
    /// Lanes that wait at a collective instruction for others.
    pub(crate) gathering: u32,
    /// Lanes that wait at a barrier: its number and count.
    pub(crate) at_barrier: u32,
    pub(crate) barriers: [(u32, u32); 32],
    pub(crate) copies: [Copies; 32],
}

/// What a block's special registers tell.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) index: [u32; 3],
    pub(crate) dynamic_shared_bytes: u32,
}

impl Place {
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// The index of a thread given its number, x first.
    pub(crate) fn thread(&self, number: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [number % x, number / x % y, number / x / y]
    }
}

impl Warp {
    pub(crate) fn new(entry: &Entry, index: usize) -> Self {
        let local_bytes = entry.local_bytes.next_multiple_of(16);
        let mut warp = Self {
            index,
            regs: vec![[u64::MAX; 32]; entry.num_regs],
            preds: vec![0; entry.num_preds],
            carry: 0,
            local: vec![POISON; local_bytes * 32],
            local_bytes,
            pc: [0; 32],
            alive: 0,
            running: 0,
            gathering: 0,
            at_barrier: 0,
            barriers: [(0, 0); 32],
            copies: Default::default(),
        };
        for (reg, value) in &entry.constants {
            warp.regs[*reg as usize] = [*value; 32];
        }
        if let Some(pred) = entry.always {
            warp.preds[pred as usize] = u32::MAX;
        }
        warp
    }

    /// As it is when a block starts. Registers keep what they held: nothing may depend on it.
    pub(crate) fn start(&mut self, entry: &Entry, place: &Place) {
        let first = self.index as u32 * 32;
        let threads = (place.threads() - first).min(32);
        self.alive = u32::MAX >> (32 - threads);
        self.running = self.alive;
        self.gathering = 0;
        self.at_barrier = 0;
        self.pc = [0; 32];
        self.local.fill(POISON);
        self.copies = Default::default();
        for (reg, special) in &entry.specials {
            self.regs[*reg as usize] = std::array::from_fn(|lane| {
                u64::from(special_value(
                    *special,
                    place,
                    (self.index as u32, lane as u32),
                ))
            });
        }
    }

    pub(crate) fn place(&mut self, mask: u32, pc: usize) {
        for lane in super::exec::lanes(mask) {
            self.pc[lane] = pc;
        }
    }

    pub(crate) fn exit(&mut self, mask: u32) {
        self.alive &= !mask;
        self.running &= !mask;
    }

    /// Lanes of a mask that stand at a position.
    pub(crate) fn standing(&self, mask: u32, pc: usize) -> u32 {
        let here = |lane: &usize| self.pc[*lane] == pc;
        super::exec::lanes(mask)
            .filter(here)
            .fold(0, |mask, lane| mask | 1 << lane)
    }

    pub(crate) fn thread(&self, lane: usize) -> u32 {
        self.index as u32 * 32 + lane as u32
    }
}

fn special_value(special: Special, place: &Place, (warp, lane): (u32, u32)) -> u32 {
    match special {
        Special::Thread(dimension) => place.thread(warp * 32 + lane)[dimension],
        Special::BlockThreads(dimension) => place.block[dimension],
        Special::Block(dimension) => place.index[dimension],
        Special::GridBlocks(dimension) => place.grid[dimension],
        Special::Lane => lane,
        Special::Warp => warp,
        Special::Warps => place.threads().div_ceil(32),
        Special::LaneMask {
            equal,
            less,
            greater,
        } => {
            let bit = 1u32 << lane;
            let mut mask = 0;
            mask |= if equal { bit } else { 0 };
            mask |= if less { bit - 1 } else { 0 };
            mask |= if greater { !(bit | (bit - 1)) } else { 0 };
            mask
        }
        Special::DynamicSharedBytes => place.dynamic_shared_bytes,
    }
}
