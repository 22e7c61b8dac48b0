//! Shape of a paged cache, and how its elements are numbered.

use std::fmt::Debug;

use half::bf16;

use crate::KernelError;

/// Largest head dimension the kernels take.
pub(crate) const MAX_HEAD_DIM: usize = 256;
/// Largest block size the kernels take, in tokens.
pub(crate) const MAX_BLOCK_SIZE: usize = 256;

/// Keys that are transposed together: the lanes of a vector.
pub(crate) const KEY_TILE: usize = 16;

/// Number format of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvDtype {
    /// 32-bit floats: exact.
    F32,
    /// bfloat16, rounded to nearest even: half the memory, 8 bits of precision.
    Bf16,
    /// 8-bit integers of -127 to 127 with an f32 scale for each token and head, keys and values
    /// apart: the largest magnitude over 127. Keys are stored after a Walsh-Hadamard rotation, which
    /// queries go through too and scores are invariant under.
    ///
    /// Each number of a value is within a 254th of the largest of its `head_dim`; so is each of a
    /// rotated key. A key or value with an infinity or a NaN reads as NaN throughout; one that is
    /// below 1.5e-36 throughout, as zeros. Keys above 2e37 may overflow in the rotation and read as
    /// NaN. With 64 dimensions a token takes 53 % of what it takes in bf16.
    Int8,
    /// IEEE half precision: half the memory, 11 bits of precision, numbers up to 65504. On CUDA
    /// devices only.
    F16,
    /// 8-bit floats (e4m3: 4 bits of precision) with an f32 scale for each token and head, keys and
    /// values apart: the largest magnitude over 448. On CUDA devices only.
    Fp8,
}

impl KvDtype {
    /// Bytes an element, scales apart.
    pub fn bytes(self) -> usize {
        match self {
            KvDtype::F32 => size_of::<f32>(),
            KvDtype::Bf16 | KvDtype::F16 => size_of::<bf16>(),
            KvDtype::Int8 | KvDtype::Fp8 => size_of::<i8>(),
        }
    }

    /// Bytes of the scale that a token's key or value of a head has.
    pub fn scale_bytes(self) -> usize {
        match self {
            KvDtype::F32 | KvDtype::Bf16 | KvDtype::F16 => 0,
            KvDtype::Int8 | KvDtype::Fp8 => size_of::<f32>(),
        }
    }

    /// Name as the command line spells it: `f32`, `bf16`, `f16`, `int8`, `fp8`.
    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::Bf16 => "bf16",
            KvDtype::Int8 => "int8",
            KvDtype::F16 => "f16",
            KvDtype::Fp8 => "fp8",
        }
    }
}

/// Shape of a [`KvCache`](crate::KvCache).
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

    /// Bytes that one block takes over all layers, keys, values and scales together.
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
        (self.head_len() * self.dtype.bytes())
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

    /// As [`panel_len`](Self::panel_len), with the scales behind it.
    pub(crate) fn scaled_panel_len(&self) -> usize {
        // An element of a format with scales is a byte.
        self.panel_len() + self.block_size * self.dtype.scale_bytes()
    }

    /// Elements of one head in one block: K, then V.
    pub(crate) fn head_len(&self) -> usize {
        2 * self.scaled_panel_len()
    }

    /// Elements of one block in one layer.
    pub(crate) fn block_len(&self) -> usize {
        self.head_len() * self.num_kv_heads
    }

    /// Bytes of one block in one layer.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block_len() * self.dtype.bytes()
    }

    /// Bytes of one layer.
    pub(crate) fn layer_bytes(&self) -> usize {
        self.block_bytes() * self.num_blocks
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

    /// Refuses a layer, slot or head that the cache does not have.
    pub(crate) fn check_token(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
    ) -> Result<(), KernelError> {
        self.check_layer(layer)?;
        if slot as usize >= self.num_slots() {
            return Err(KernelError::Slot {
                token: 0,
                slot,
                num_slots: self.num_slots(),
            });
        }
        if head >= self.num_kv_heads {
            return Err(KernelError::HeadGroups {
                num_heads: head + 1,
                num_kv_heads: self.num_kv_heads,
            });
        }
        Ok(())
    }

    /// Refuses caches whose blocks are not alike; how many blocks each has does not matter.
    pub(crate) fn check_swap(&self, to: &CacheLayout) -> Result<(), KernelError> {
        let fail = |name, from: &dyn Debug, to: &dyn Debug| {
            Err(KernelError::LayoutMismatch {
                name,
                from: format!("{from:?}"),
                to: format!("{to:?}"),
            })
        };
        // Taken apart, so that a field added later cannot be forgotten here.
        let CacheLayout {
            num_layers,
            num_blocks: _,
            block_size,
            num_kv_heads,
            head_dim,
            dtype,
        } = self;
        for (name, from, to) in [
            ("num_layers", num_layers, &to.num_layers),
            ("block_size", block_size, &to.block_size),
            ("num_kv_heads", num_kv_heads, &to.num_kv_heads),
            ("head_dim", head_dim, &to.head_dim),
        ] {
            if from != to {
                return fail(name, from, to);
            }
        }
        if *dtype != to.dtype {
            return fail("dtype", dtype, &to.dtype);
        }
        Ok(())
    }

    fn overflow(&self) -> KernelError {
        KernelError::SizeOverflow {
            num_blocks: self.num_blocks,
            num_layers: self.num_layers,
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
        let int8 = CacheLayout {
            dtype: KvDtype::Int8,
            ..LAYOUT
        };
        // Elements, and a scale for each token's key and value of each head.
        assert_eq!(int8.bytes_per_block(), Ok(2 * 2 * 16 * 3 * (64 + 4)));
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
            layout.validate(),
            Err(KernelError::TooManySlots { .. })
        ));
        let layout = CacheLayout {
            num_blocks: 1 << 24,
            num_layers: usize::MAX / 1024,
            ..LAYOUT
        };
        assert!(matches!(
            layout.validate(),
            Err(KernelError::SizeOverflow { .. })
        ));
    }
}
