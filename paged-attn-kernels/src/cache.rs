//! The paged KV cache: one slab of fixed-size blocks for every layer.
//!
//! ```text
//! slab:        | layer 0                     | layer 1 | ...
//! a layer:     | block 0 | block 1 | ...     |            num_blocks
//! a block:     | head 0         | head 1 | ...            num_kv_heads
//! a head:      | K panel | K scales | V panel | V scales |
//! K panel:     | keys 0..16: [head_dim][16] | keys 16..32 | ... | the rest: [head_dim][< 16] |
//! V panel:     [block_size][head_dim]
//! scales:      [block_size] f32, in int8 pages only
//! ```
//!
//! Keys are transposed in tiles of 16 tokens: one vector load is 16 keys' values of one dimension,
//! so scores need no sum across lanes. Transposing whole blocks (`[head_dim][block_size]`) would
//! be the same for blocks of 16, but reads larger ones in strides (measured: 15 % slower decodes
//! at 256).
//!
//! Compressed pages hold each token's key and value of each head as integers of its own scale,
//! keys rotated by a Walsh-Hadamard transform (see `element.rs`), as queries are for them.
//! The scales lie in the head's run, so a block is copied with them, and 16 keys' scales are one
//! vector.
//!
//! A block of a layer is one contiguous run, so copying it is one `memcpy`, and a head of it is
//! another (8 KiB for 16 tokens of 64 dimensions in f32), which is what attention streams.
//! The layer is the outermost dimension: the blocks that one kernel call touches then lie near
//! each other, which spares the TLB.

use half::bf16;
use memmap2::MmapMut;

use crate::element::Element;
use crate::layout::KEY_TILE;
use crate::{CacheLayout, KernelError, KvDtype};

/// Vector loads may run past the last V row of the slab by less than this many elements.
pub(crate) const TAIL_ELEMENTS: usize = 16;

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
    /// Those of [`CacheLayout::validate`], [`KernelError::KvDtype`] for a format that the CPU back
    /// end does not have, and [`KernelError::OutOfMemory`] if the system refuses.
    pub fn new(layout: CacheLayout) -> Result<Self, KernelError> {
        if matches!(layout.dtype, KvDtype::F16 | KvDtype::Fp8) {
            return Err(KernelError::KvDtype {
                dtype: layout.dtype,
            });
        }
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

    /// Copies the key of one token out: `key[0..head_dim]`, as the kernels understand it.
    ///
    /// From int8 pages: the integers times their scale, rotated back.
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
        let scale = self.scale(panel, offset);
        for (d, x) in key.iter_mut().enumerate() {
            *x = scale * self.get(panel + start + d * width + offset % KEY_TILE);
        }
        if self.layout.dtype == KvDtype::Int8 {
            i8::rotate_back(key);
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
        let panel = panel + self.layout.scaled_panel_len();
        let row = panel + offset * self.layout.head_dim;
        let scale = self.scale(panel, offset);
        for (d, x) in value.iter_mut().enumerate() {
            *x = scale * self.get(row + d);
        }
        Ok(())
    }

    /// All bytes of the blocks of all layers.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.slab[..self.layout.num_layers * self.layout.layer_bytes()]
    }

    /// As [`bytes`](Self::bytes).
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.slab[..self.layout.num_layers * self.layout.layer_bytes()]
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
        layout.check_token(layer, slot, head)?;
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
            layer * layout.layer_len() + block * layout.block_len() + head * layout.head_len();
        Ok((panel, slot as usize % layout.block_size))
    }

    fn get(&self, index: usize) -> f32 {
        match self.layout.dtype {
            KvDtype::F32 => self.elements::<f32>()[index],
            KvDtype::Bf16 => self.elements::<bf16>()[index].to_f32(),
            KvDtype::Int8 => self.elements::<i8>()[index].to_f32(),
            KvDtype::F16 | KvDtype::Fp8 => unreachable!("refused by KvCache::new"),
        }
    }

    /// What a token's elements of a panel are multiplied by.
    fn scale(&self, panel: usize, offset: usize) -> f32 {
        match self.layout.dtype {
            KvDtype::F32 | KvDtype::Bf16 | KvDtype::F16 | KvDtype::Fp8 => 1.0,
            KvDtype::Int8 => {
                let at = panel + self.layout.panel_len() + offset * size_of::<f32>();
                bytemuck::pod_read_unaligned(&self.slab[at..at + size_of::<f32>()])
            }
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
