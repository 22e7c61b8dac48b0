//! Memory for weights: zeroed, aligned to cache lines, in huge pages where the system gives them.

use memmap2::MmapMut;

use crate::cpu::aligned::Line;

/// A run of bytes.
///
/// Every token reads every weight once, front to back. In pages of 4 KiB that walk misses the TLB
/// at each of them, and the hardware prefetcher starts anew.
pub(super) enum Storage {
    /// From the system, page by page.
    Mapped(MmapMut),
    /// Where the system has no mapping to give.
    Heap(Vec<Line>),
}

impl Storage {
    /// `num_bytes` zeros.
    pub(super) fn zeroed(num_bytes: usize) -> Self {
        match map(num_bytes) {
            Some(map) => Storage::Mapped(map),
            None => Storage::Heap(bytemuck::zeroed_vec(num_bytes.div_ceil(size_of::<Line>()))),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Heap(lines) => bytemuck::cast_slice(lines),
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Heap(lines) => bytemuck::cast_slice_mut(lines),
        }
    }
}

/// A mapping of zeros, in huge pages if the system has them.
#[cfg(not(miri))]
fn map(num_bytes: usize) -> Option<MmapMut> {
    let map = MmapMut::map_anon(num_bytes).ok()?;
    // A wish: without huge pages everything works, slower.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Some(map)
}

/// Miri knows no advice about mappings.
#[cfg(miri)]
fn map(_num_bytes: usize) -> Option<MmapMut> {
    None
}
