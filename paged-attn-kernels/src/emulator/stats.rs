//! Counts of a launch.

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Instructions executed, one for each thread that took part.
    pub instructions: u64,
    /// Instructions executed, one for each group of threads of a warp that took part together.
    pub warp_instructions: u64,
    /// Bytes read from global memory, asynchronous copies included.
    pub global_load_bytes: u64,
    /// Bytes written to global memory.
    pub global_store_bytes: u64,
    /// Bytes read from shared memory.
    pub shared_load_bytes: u64,
    /// Bytes written to shared memory, asynchronous copies included.
    pub shared_store_bytes: u64,
    /// Matrix instructions executed, one for each warp.
    pub mma: u64,
    /// Barriers passed, one for each block.
    pub barriers: u64,
}

impl Stats {
    #[inline]
    pub(crate) fn count(&mut self, mask: u32) {
        self.instructions += u64::from(mask.count_ones());
        self.warp_instructions += 1;
    }
}
