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

use crate::KernelError;

/// Largest head dimension the kernels take.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// Largest block size the kernels take, in tokens.
pub(crate) const MAX_BLOCK_SIZE: usize = 256;

/// Keys that are transposed together: the lanes of a vector.
pub(crate) const KEY_TILE: usize = 16;

/// Vector loads may run past the last V row of the slab by less than this many elements.
pub(crate) const TAIL_ELEMENTS: usize = 16;

/// Number format of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvDtype {
    /// 32-bit floats: exact.
    F32,
    /// bfloat16, rounded to nearest even: half the memory, 8 bits of precision.
    Bf16,
}

impl KvDtype {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            KvDtype::F32 => size_of::<f32>(),
            KvDtype::Bf16 => size_of::<bf16>(),
        }
    }
}

/// Shape of a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheLayout {
    /// Transformer layers, each with its own keys and values.
    pub num_layers: usize,
    /// Blocks a layer. Block ids are the same in all layers.
    pub num_blocks: usize,
    /// Tokens a block, 1 to 256. Multiples of 16 are fastest.
    pub block_size: usize,
    /// Key-value heads.
    pub num_kv_heads: usize,
    /// Elements a head: a multiple of 8, up to 256.
    pub head_dim: usize,
    /// Number format.
    pub dtype: KvDtype,
}

impl CacheLayout {
    /// Checks every dimension and that the whole size fits in an address.
    ///
    /// # Errors
    /// [`KernelError::HeadDim`], [`KernelError::BlockSize`], [`KernelError::Zero`],
    /// [`KernelError::TooManySlots`] or [`KernelError::SizeOverflow`].
    pub fn validate(&self) -> Result<(), KernelError> {
        self.total_bytes().map(drop)
    }

    /// Bytes that one block takes over all layers, keys and values together.
    ///
    /// Does not look at `num_blocks`: this is what a memory budget is divided by to get it.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn bytes_per_block(&self) -> Result<usize, KernelError> {
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > MAX_HEAD_DIM {
            return Err(KernelError::HeadDim {
                head_dim: self.head_dim,
            });
        }
        if self.block_size == 0 || self.block_size > MAX_BLOCK_SIZE {
            return Err(KernelError::BlockSize {
                block_size: self.block_size,
            });
        }
        for (name, value) in [
            ("num_layers", self.num_layers),
            ("num_kv_heads", self.num_kv_heads),
        ] {
            if value == 0 {
                return Err(KernelError::Zero { name });
            }
        }
        (2 * self.panel_len() * self.dtype.bytes())
            .checked_mul(self.num_kv_heads)
            .and_then(|bytes| bytes.checked_mul(self.num_layers))
            .ok_or(self.overflow())
    }

    /// Bytes of the whole cache.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn total_bytes(&self) -> Result<usize, KernelError> {
        let block_bytes = self.bytes_per_block()?;
        if self.num_blocks == 0 {
            return Err(KernelError::Zero { name: "num_blocks" });
        }
        let num_slots = self.num_blocks.checked_mul(self.block_size);
        if num_slots.is_none_or(|slots| slots > u32::MAX as usize) {
            return Err(KernelError::TooManySlots {
                num_blocks: self.num_blocks,
                block_size: self.block_size,
            });
        }
        block_bytes
            .checked_mul(self.num_blocks)
            .filter(|&bytes| bytes < isize::MAX as usize - 4096)
            .ok_or(self.overflow())
    }

    /// Slots (token positions) of a layer.
    pub fn num_slots(&self) -> usize {
        self.num_blocks * self.block_size
    }

    /// Elements of one head's K (or V) in one block.
    pub(crate) fn panel_len(&self) -> usize {
        self.head_dim * self.block_size
    }

    /// Where a K panel holds the keys around `offset`: the start of their tile, and its width.
    ///
    /// Dimension `d` of the key is at `start + d * width + offset % 16`.
    #[inline(always)]
    pub(crate) fn key_tile(&self, offset: usize) -> (usize, usize) {
        let first = offset - offset % KEY_TILE;
        let width = KEY_TILE.min(self.block_size - first);
        (first * self.head_dim, width)
    }

    /// Elements of one block in one layer.
    pub(crate) fn block_len(&self) -> usize {
        2 * self.panel_len() * self.num_kv_heads
    }

    /// Elements of one layer.
    pub(crate) fn layer_len(&self) -> usize {
        self.block_len() * self.num_blocks
    }

    pub(crate) fn check_layer(&self, layer: usize) -> Result<(), KernelError> {
        if layer < self.num_layers {
            return Ok(());
        }
        Err(KernelError::Layer {
            layer,
            num_layers: self.num_layers,
        })
    }

    fn overflow(&self) -> KernelError {
        KernelError::SizeOverflow {
            num_blocks: self.num_blocks,
            num_layers: self.num_layers,
        }
    }
}

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
    fn a_block_takes_keys_and_values_of_all_heads_and_layers() {
        assert_eq!(LAYOUT.bytes_per_block(), Ok(2 * 2 * 16 * 3 * 64 * 2));
        assert_eq!(LAYOUT.total_bytes(), Ok(3 * 24576));
    }

    #[test]
    fn unsupported_dimensions_are_named() {
        for head_dim in [0, 4, 12, 264, usize::MAX] {
            let layout = CacheLayout { head_dim, ..LAYOUT };
            assert_eq!(layout.validate(), Err(KernelError::HeadDim { head_dim }));
        }
        for block_size in [0, 257, usize::MAX] {
            let layout = CacheLayout {
                block_size,
                ..LAYOUT
            };
            assert_eq!(
                layout.validate(),
                Err(KernelError::BlockSize { block_size })
            );
        }
    }

    #[test]
    fn sizes_that_overflow_are_errors() {
        let layout = CacheLayout {
            num_blocks: usize::MAX / 8,
            ..LAYOUT
        };
        assert!(matches!(
            KvCache::new(layout),
            Err(KernelError::TooManySlots { .. })
        ));
        let layout = CacheLayout {
            num_blocks: 1 << 24,
            num_layers: usize::MAX / 1024,
            ..LAYOUT
        };
        assert!(matches!(
            KvCache::new(layout),
            Err(KernelError::SizeOverflow { .. })
        ));
    }

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
