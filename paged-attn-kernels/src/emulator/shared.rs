//! Shared memory of a block, and who touched which byte since the last barrier.
//!
//! A clock ticks at every barrier of the block and at every instruction that synchronises a warp.
//! An access is ordered before another if it is of the same thread, or older than the block's
//! last barrier, or of the same warp and older than the warp's last synchronisation. A byte keeps
//! its last writer and its last readers; an access that is not ordered after them is a race.
//!
//! ```text
//! cell: | flags 2 | thread 10 | tick 20 |     tick 0: never
//! ```

use super::fault::{Cause, Extent};
use super::memory::POISON;
use super::ty::Space;

const TICK: u32 = (1 << 20) - 1;
const FLAGS: u32 = 3 << 30;
/// A writer's flag: atomic or volatile, which may meet its like.
const STRONG: u32 = 1 << 30;
/// A writer's flag: an asynchronous copy under way.
const PENDING: u32 = 2 << 30;
/// A reader's flag: several threads of one warp.
const WARP: u32 = 1 << 30;
/// A reader's flag: threads of several warps.
const MANY: u32 = 2 << 30;

/// A thread's access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct By {
    /// Index in the block.
    pub(crate) thread: u32,
    /// Volatile, relaxed or atomic.
    pub(crate) strong: bool,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    writer: u32,
    reader: u32,
}

pub(crate) struct Shared {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    tick: u32,
    block_tick: u32,
    warp_ticks: Vec<u32>,
}

impl Shared {
    pub(crate) fn new(bytes: usize, num_warps: usize) -> Self {
        Self {
            bytes: vec![POISON; bytes],
            cells: vec![Cell::default(); bytes],
            tick: 1,
            block_tick: 1,
            warp_ticks: vec![1; num_warps],
        }
    }

    /// As it is when a block starts.
    pub(crate) fn reset(&mut self) {
        self.bytes.fill(POISON);
        self.forget();
    }

    fn forget(&mut self) {
        self.cells.fill(Cell::default());
        self.tick = 1;
        self.block_tick = 1;
        self.warp_ticks.fill(1);
    }

    fn advance(&mut self) -> u32 {
        if self.tick == TICK {
            // Copies under way stay so; everything else is forgotten, which hides races at worst.
            for cell in &mut self.cells {
                let pending = cell.writer & FLAGS == PENDING;
                *cell = Cell {
                    writer: if pending { cell.writer } else { 0 },
                    reader: 0,
                };
            }
            self.tick = 1;
            self.block_tick = 1;
            self.warp_ticks.fill(1);
        }
        self.tick += 1;
        self.tick
    }

    /// All threads have met at a barrier.
    pub(crate) fn sync_block(&mut self) {
        self.block_tick = self.advance();
    }

    /// Threads of a warp have met.
    pub(crate) fn sync_warp(&mut self, warp: usize) {
        let tick = self.advance();
        self.warp_ticks[warp] = tick;
    }

    /// Checks bounds and alignment; the index of the first byte.
    fn range(&self, address: u64, bytes: usize) -> Result<usize, Cause> {
        let space = Space::Shared;
        let end = address.checked_add(bytes as u64);
        if end.is_none_or(|end| end > self.bytes.len() as u64) {
            let nearest = Some(Extent {
                address: 0,
                bytes: self.bytes.len(),
            });
            return Err(Cause::OutOfBounds {
                space,
                address,
                bytes,
                nearest,
            });
        }
        if !address.is_multiple_of(bytes as u64) {
            return Err(Cause::Misaligned {
                space,
                address,
                bytes,
            });
        }
        Ok(address as usize)
    }

    fn is_ordered(&self, cell: u32, thread: u32) -> bool {
        let (tick, other) = (cell & TICK, cell >> 20 & 1023);
        tick < self.block_tick
            || other == thread
            || (other / 32 == thread / 32 && tick < self.warp_ticks[(thread / 32) as usize])
    }

    fn check_writer(&self, at: usize, by: By, access: &'static str) -> Result<(), Cause> {
        let writer = self.cells[at].writer;
        let (address, thread) = (at as u64, writer >> 20 & 1023);
        if writer & FLAGS == PENDING {
            return Err(Cause::CopyPending { address, thread });
        }
        if self.is_ordered(writer, by.thread) || (by.strong && writer & STRONG != 0) {
            return Ok(());
        }
        Err(Cause::Race {
            access,
            address,
            other: "write",
            thread,
        })
    }

    fn check_reader(&self, at: usize, by: By, access: &'static str) -> Result<(), Cause> {
        let reader = self.cells[at].reader;
        let (tick, thread) = (reader & TICK, reader >> 20 & 1023);
        let same_warp = thread / 32 == by.thread / 32;
        let ordered = tick < self.block_tick
            || match reader & FLAGS {
                0 => self.is_ordered(reader, by.thread),
                WARP => same_warp && tick < self.warp_ticks[(by.thread / 32) as usize],
                _ => false,
            };
        if ordered || by.strong {
            return Ok(());
        }
        Err(Cause::Race {
            access,
            address: at as u64,
            other: "read",
            thread,
        })
    }

    /// Reads bytes.
    pub(crate) fn read(&mut self, address: u64, out: &mut [u8], by: By) -> Result<(), Cause> {
        let start = self.range(address, out.len())?;
        let mine = by.thread << 20 | self.tick;
        let warp_tick = self.warp_ticks[(by.thread / 32) as usize];
        for at in start..start + out.len() {
            let writer = self.cells[at].writer;
            if writer & TICK >= self.block_tick || writer & FLAGS == PENDING {
                self.check_writer(at, by, "read")?;
            }
            // Volatile readers race with nothing that this module checks.
            if by.strong {
                continue;
            }
            let reader = &mut self.cells[at].reader;
            let (tick, other) = (*reader & TICK, *reader >> 20 & 1023);
            *reader = if tick < self.block_tick || (*reader & FLAGS == 0 && other == by.thread) {
                mine
            } else if *reader & FLAGS == MANY || other / 32 != by.thread / 32 {
                mine | MANY
            } else if tick < warp_tick {
                mine
            } else {
                mine | WARP
            };
        }
        out.copy_from_slice(&self.bytes[start..start + out.len()]);
        Ok(())
    }

    /// Writes bytes. Threads that write the same value to a byte do not race with each other.
    pub(crate) fn write(&mut self, address: u64, data: &[u8], by: By) -> Result<(), Cause> {
        let start = self.range(address, data.len())?;
        let flags = if by.strong { STRONG } else { 0 };
        let mine = by.thread << 20 | self.tick | flags;
        for (at, byte) in (start..).zip(data) {
            let checked = self.check_writer(at, by, "write");
            if let Err(Cause::Race { .. }) = checked {
                if self.bytes[at] != *byte {
                    return checked;
                }
            } else {
                checked?;
            }
            self.check_reader(at, by, "write")?;
            self.cells[at].writer = mine;
            self.bytes[at] = *byte;
        }
        Ok(())
    }

    /// An atomic read and write, which only plain accesses race with.
    pub(crate) fn atomic(
        &mut self,
        address: u64,
        bytes: usize,
        thread: u32,
    ) -> Result<&mut [u8], Cause> {
        let start = self.range(address, bytes)?;
        let by = By {
            thread,
            strong: true,
        };
        for at in start..start + bytes {
            self.check_writer(at, by, "atomic")?;
            self.check_reader(
                at,
                By {
                    thread,
                    strong: false,
                },
                "atomic",
            )?;
            self.cells[at].writer = thread << 20 | self.tick | STRONG;
        }
        Ok(&mut self.bytes[start..start + bytes])
    }

    /// An asynchronous copy starts to write: nobody may touch the bytes until it has landed.
    pub(crate) fn begin_copy(
        &mut self,
        address: u64,
        bytes: usize,
        thread: u32,
    ) -> Result<(), Cause> {
        let start = self.range(address, bytes)?;
        let by = By {
            thread,
            strong: false,
        };
        for at in start..start + bytes {
            self.check_writer(at, by, "copy")?;
            self.check_reader(at, by, "copy")?;
            self.cells[at].writer = thread << 20 | self.tick | PENDING;
        }
        Ok(())
    }

    /// The thread has waited for its copy.
    pub(crate) fn land_copy(&mut self, address: u64, data: &[u8], thread: u32) {
        for (at, byte) in (address as usize..).zip(data) {
            self.bytes[at] = *byte;
            self.cells[at].writer = thread << 20 | self.tick;
        }
    }
}
