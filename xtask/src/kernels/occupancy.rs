//! How many warps of a kernel a multiprocessor holds at once.
//!
//! Source: NVIDIA's CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and
//! the rules of its occupancy calculator (`cuda_occupancy.h` of the toolkit).

/// Warps that a multiprocessor of either architecture holds at most.
pub(crate) const MAX_WARPS: u64 = 64;

const MAX_BLOCKS: u64 = 32;
const WARP: u64 = 32;
/// Of each of the multiprocessor's four partitions.
const REGISTERS: u64 = 16_384;
const PARTITIONS: u64 = 4;
/// A warp's registers are handed out in such portions, a block's shared memory in those below.
const REGISTER_UNIT: u64 = 256;
const SHARED_UNIT: u64 = 128;
/// Bytes of shared memory that the system keeps of every block.
const SHARED_RESERVED: u64 = 1024;

/// What limits occupancy on an architecture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Multiprocessor {
    /// Bytes for all blocks; one block may have all but what the system keeps of it.
    shared: u64,
}

/// A100.
pub(crate) const SM_80: Multiprocessor = Multiprocessor { shared: 164 << 10 };
/// H100 and H200.
pub(crate) const SM_90: Multiprocessor = Multiprocessor { shared: 228 << 10 };

/// What each block of a launch occupies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) threads: u64,
    /// Of each thread.
    pub(crate) registers: u64,
    /// Bytes, static and dynamic.
    pub(crate) shared: u64,
}

impl Multiprocessor {
    /// Warps that run at once, of [`MAX_WARPS`]; 0 if not even one block fits.
    pub(crate) fn warps(self, block: Block) -> u64 {
        let warps = block.threads.div_ceil(WARP).max(1);
        let of_a_warp = (block.registers.max(1) * WARP).next_multiple_of(REGISTER_UNIT);
        let by_registers = REGISTERS / of_a_warp * PARTITIONS / warps;
        let shared = (block.shared + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
        let by_shared = self.shared / shared;
        let blocks = by_registers
            .min(by_shared)
            .min(MAX_BLOCKS)
            .min(MAX_WARPS / warps);
        blocks * warps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(threads: u64, registers: u64, shared: u64) -> Block {
        Block {
            threads,
            registers,
            shared,
        }
    }

    #[test]
    fn the_scarcest_resource_decides() {
        // Warps, then blocks.
        assert_eq!(SM_90.warps(block(256, 32, 0)), 64);
        assert_eq!(SM_90.warps(block(768, 32, 0)), 48);
        assert_eq!(SM_90.warps(block(32, 32, 0)), 32);
        // Registers: 128 of them leave each partition 4 warps; 129 are handed out as 136, and 3.
        assert_eq!(SM_90.warps(block(128, 128, 0)), 16);
        assert_eq!(SM_90.warps(block(128, 129, 0)), 12);
        assert_eq!(SM_80.warps(block(1024, 65, 0)), 0);
        // Shared memory.
        assert_eq!(SM_80.warps(block(128, 32, 48 << 10)), 12);
        assert_eq!(SM_90.warps(block(128, 32, 48 << 10)), 16);
    }

    #[test]
    fn a_block_may_have_all_shared_memory_but_a_kilobyte() {
        assert_eq!(SM_80.warps(block(128, 32, 163 << 10)), 4);
        assert_eq!(SM_80.warps(block(128, 32, (163 << 10) + 1)), 0);
        assert_eq!(SM_90.warps(block(128, 32, 227 << 10)), 4);
        assert_eq!(SM_90.warps(block(128, 32, (227 << 10) + 1)), 0);
    }
}
