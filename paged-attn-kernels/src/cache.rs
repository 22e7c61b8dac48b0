//! The paged KV cache: one slab of fixed-size blocks for every layer.
//!
//! ```text
//! slab:        | layer 0                     | layer 1 | ...
//! a layer:     | block 0 | block 1 | ...     |            num_blocks
//! a block:     | head 0         | head 1 | ...            num_kv_heads
//! a head:      | K panel | V panel |
//! K panel:     | keys 0..16: [head_dim][16] | keys 16..32 | ... | the rest: [head_dim][< 16] |
//! V panel:     [block_size][head_dim]
//! ```
//!
//! Keys are transposed in tiles of 16 tokens: one vector load is 16 keys' values of one dimension,
//! so scores need no sum across lanes. Transposing whole blocks (`[head_dim][block_size]`) would
//! be the same for blocks of 16, but reads larger ones in strides (measured: 15 % slower decodes
//! at 256).
//!
//! A block of a layer is one contiguous run, so copying it is one `memcpy`, and a head of it is
//! another (8 KiB for 16 tokens of 64 dimensions in f32), which is what attention streams.
//! The layer is the outermost dimension: the blocks that one kernel call touches then lie near
//! each other, which spares the TLB.

use bytemuck::Pod;
use half::bf16;
use memmap2::MmapMut;

use crate::layout::KEY_TILE;
use crate::{CacheLayout, KernelError, KvDtype};

/// Vector loads may run past the last V row of the slab by less than this many elements.
pub(crate) const TAIL_ELEMENTS: usize = 16;

/// An element of a page.
pub(crate) trait Element: Pod + Send + Sync {
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Keys and values of all layers, in blocks.
///
/// The memory is reserved at once and zero; the system backs a part of it when it is first
/// written, so blocks that were never used cost no resident memory. Who owns which block is not
/// its business: see the block manager.
#[derive(Debug)]
pub struct KvCache {
    layout: CacheLayout,
    slab: MmapMut,
}

impl KvCache {
    /// Reserves a cache of zeros.
    ///
    /// # Errors
    /// Those of [`CacheLayout::validate`], and [`KernelError::OutOfMemory`] if the system refuses.
    pub fn new(layout: CacheLayout) -> Result<Self, KernelError> {
        let bytes = layout.total_bytes()?;
        let slab =
            MmapMut::map_anon(bytes + TAIL_ELEMENTS * layout.dtype.bytes()).map_err(|e| {
                KernelError::OutOfMemory {
                    bytes,
                    reason: e.to_string(),
                }
            })?;
        Ok(Self { layout, slab })
    }

    /// The cache's shape.
    pub fn layout(&self) -> &CacheLayout {
        &self.layout
    }

    /// Copies the key of one token out: `key[0..head_dim]`.
    ///
    /// # Errors
    /// [`KernelError::Layer`], [`KernelError::Slot`], [`KernelError::HeadGroups`] for a head the
    /// cache does not have, [`KernelError::Rows`] if `key` is not `head_dim` long.
    pub fn read_key(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        key: &mut [f32],
    ) -> Result<(), KernelError> {
        let (panel, offset) = self.find(layer, slot, head, key.len(), "key")?;
        let (start, width) = self.layout.key_tile(offset);
        for (d, x) in key.iter_mut().enumerate() {
            *x = self.get(panel + start + d * width + offset % KEY_TILE);
        }
        Ok(())
    }

    /// Copies the value of one token out: `value[0..head_dim]`.
    ///
    /// # Errors
    /// As [`read_key`](Self::read_key).
    pub fn read_value(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        value: &mut [f32],
    ) -> Result<(), KernelError> {
        let (panel, offset) = self.find(layer, slot, head, value.len(), "value")?;
        let row = panel + self.layout.panel_len() + offset * self.layout.head_dim;
        for (d, x) in value.iter_mut().enumerate() {
            *x = self.get(row + d);
        }
        Ok(())
    }

    /// All elements, [`TAIL_ELEMENTS`] beyond the last block included.
    pub(crate) fn elements<E: Element>(&self) -> &[E] {
        assert_eq!(size_of::<E>(), self.layout.dtype.bytes());
        bytemuck::cast_slice(&self.slab)
    }

    /// As [`elements`](Self::elements).
    pub(crate) fn elements_mut<E: Element>(&mut self) -> &mut [E] {
        assert_eq!(size_of::<E>(), self.layout.dtype.bytes());
        bytemuck::cast_slice_mut(&mut self.slab)
    }

    /// Index of the head's K panel, and the token's offset in its block.
    fn find(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        len: usize,
        name: &'static str,
    ) -> Result<(usize, usize), KernelError> {
        let layout = &self.layout;
        layout.check_layer(layer)?;
        if slot as usize >= layout.num_slots() {
            return Err(KernelError::Slot {
                token: 0,
                slot,
                num_slots: layout.num_slots(),
            });
        }
        if head >= layout.num_kv_heads {
            return Err(KernelError::HeadGroups {
                num_heads: head + 1,
                num_kv_heads: layout.num_kv_heads,
            });
        }
        if len != layout.head_dim {
            return Err(KernelError::Rows {
                name,
                num_rows: 1,
                width: layout.head_dim,
                stride: layout.head_dim,
                len,
            });
        }
        let block = slot as usize / layout.block_size;
        let panel =
            layer * layout.layer_len() + block * layout.block_len() + head * 2 * layout.panel_len();
        Ok((panel, slot as usize % layout.block_size))
    }

    fn get(&self, index: usize) -> f32 {
        match self.layout.dtype {
            KvDtype::F32 => self.elements::<f32>()[index],
            KvDtype::Bf16 => self.elements::<bf16>()[index].to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: CacheLayout = CacheLayout {
        num_layers: 2,
        num_blocks: 3,
        block_size: 16,
        num_kv_heads: 3,
        head_dim: 64,
        dtype: KvDtype::Bf16,
    };

    #[test]
    fn memory_the_system_does_not_have_is_an_error() {
        let layout = CacheLayout {
            num_blocks: 1 << 27,
            num_layers: 1 << 15,
            ..LAYOUT
        };
        assert!(matches!(
            KvCache::new(layout),
            Err(KernelError::OutOfMemory { .. })
        ));
    }

    #[test]
    fn a_new_cache_reads_as_zeros() {
        let cache = KvCache::new(LAYOUT).unwrap();
        let mut row = [1.0; 64];
        cache.read_value(1, 47, 2, &mut row).unwrap();
        assert_eq!(row, [0.0; 64]);
        assert!(cache.read_key(1, 48, 2, &mut row).is_err());
    }
}
