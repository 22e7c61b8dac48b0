//! The paged cache on a device, or behind it in pinned host memory.
//!
//! ```text
//! slab:      | layer 0                 | layer 1 | ...
//! a layer:   | block 0 | block 1 | ...           |
//! a block:   | K [kv_head][block_size][head_dim] | V, as K | K scales [kv_head][block_size] | V scales |
//! ```
//!
//! A token's key of a head is one contiguous row: what a warp reads at once. A block of a layer is
//! one run of bytes, scales included, so that copies and swaps move one run for each.

use half::{bf16, f16};

use super::driver::Address;
use super::params::KvView;
use super::{CudaError, Device, Stream, fp8};
use crate::element::Element;
use crate::error::check_len;
use crate::reference::ReadKv;
use crate::{CacheLayout, KernelError, KvDtype};

/// Head dimensions that attention is compiled for.
pub(super) const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

/// Keys and values of all layers, in blocks, in device memory or pinned host memory.
///
/// Contents are unspecified until they are written. Who owns which block is not its business: see
/// the block manager.
#[derive(Debug)]
pub struct KvCache {
    device: Device,
    layout: CacheLayout,
    address: Address,
    pinned: bool,
}

/// A copy of a [`KvCache`] on the host, to look at.
#[derive(Debug, Clone)]
pub struct KvSnapshot {
    layout: CacheLayout,
    bytes: Vec<u8>,
}

impl KvCache {
    /// Allocates a cache in device memory.
    ///
    /// # Errors
    /// Those of [`CacheLayout::validate`]; [`CudaError::Argument`] for a block size that is not a
    /// power of two from 8 to 128 or a head dimension other than 64, 80, 96, 128 and 256;
    /// [`CudaError::Driver`] if there is not enough memory.
    pub fn new(device: &Device, layout: CacheLayout) -> Result<Self, CudaError> {
        let bytes = check(&layout)?;
        Ok(Self {
            device: device.clone(),
            layout,
            address: device.driver().alloc(bytes)?,
            pinned: false,
        })
    }

    /// Allocates a cache in pinned host memory, as a tier to swap to.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_pinned(device: &Device, layout: CacheLayout) -> Result<Self, CudaError> {
        let bytes = check(&layout)?;
        Ok(Self {
            device: device.clone(),
            layout,
            address: device.driver().alloc_pinned(bytes)?,
            pinned: true,
        })
    }

    /// The cache's shape.
    pub fn layout(&self) -> &CacheLayout {
        &self.layout
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether it lies in host memory.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Sets every byte of it.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Driver`].
    pub fn fill(&mut self, stream: &Stream, byte: u8) -> Result<(), CudaError> {
        self.device.check_same("stream", stream.device())?;
        let bytes = self.layout.num_layers * self.layout.layer_bytes();
        let driver = self.device.driver();
        driver.fill(stream.handle(), self.address, byte, bytes)
    }

    /// Replaces all of it by `bytes`, which are laid out as the drawing above says: from a
    /// [`KvSnapshot`], a file, another engine.
    ///
    /// # Errors
    /// [`KernelError::Length`] if `bytes` are not as many as the cache's, [`CudaError::OtherDevice`],
    /// [`CudaError::Capturing`], [`CudaError::Driver`].
    pub fn upload(&mut self, stream: &Stream, bytes: &[u8]) -> Result<(), CudaError> {
        self.device.check_same("stream", stream.device())?;
        let expected = self.layout.num_layers * self.layout.layer_bytes();
        check_len("bytes", expected, bytes.len())?;
        let driver = self.device.driver();
        driver.copy_in(stream.handle(), self.address, bytes)
    }

    /// Copies all of it to the host, after what the stream does before.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Driver`].
    pub fn snapshot(&self, stream: &Stream) -> Result<KvSnapshot, CudaError> {
        self.device.check_same("stream", stream.device())?;
        let mut bytes = vec![0; self.layout.num_layers * self.layout.layer_bytes()];
        let driver = self.device.driver();
        driver.copy_out(stream.handle(), self.address, &mut bytes)?;
        Ok(KvSnapshot {
            layout: self.layout,
            bytes,
        })
    }

    /// Where its first layer starts.
    pub(super) fn address(&self) -> Address {
        self.address
    }

    /// What kernels are told of one layer, which exists.
    pub(super) fn view(&self, layer: usize) -> KvView {
        let layout = &self.layout;
        let parts = Parts::new(layout);
        let start = self.address + (layer * layout.layer_bytes()) as Address;
        let at = |bytes: usize| start + bytes as Address;
        let scaled = layout.dtype.scale_bytes() > 0;
        let scale_at = |bytes: usize| if scaled { at(bytes) } else { 0 };
        // `check` bounded every dimension: none of these is cut.
        KvView {
            k: at(0),
            v: at(parts.v),
            k_scales: scale_at(parts.k_scales),
            v_scales: scale_at(parts.v_scales),
            block_stride: (layout.block_bytes() / layout.dtype.bytes()) as i64,
            scale_block_stride: (layout.block_bytes() / size_of::<f32>()) as i64,
            head_stride: layout.panel_len() as u32,
            token_stride: layout.head_dim as u32,
            scale_head_stride: layout.block_size as u32,
            block_shift: layout.block_size.trailing_zeros(),
        }
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        match self.pinned {
            true => self.device.driver().free_pinned(self.address),
            false => self.device.driver().free(self.address),
        }
    }
}

/// Where the parts of a block start, in bytes.
struct Parts {
    v: usize,
    k_scales: usize,
    v_scales: usize,
}

impl Parts {
    fn new(layout: &CacheLayout) -> Self {
        let elements = layout.num_kv_heads * layout.panel_len() * layout.dtype.bytes();
        let scales = layout.num_kv_heads * layout.block_size * size_of::<f32>();
        Self {
            v: elements,
            k_scales: 2 * elements,
            v_scales: 2 * elements + scales,
        }
    }
}

/// Refuses layouts that the kernels do not take; gives the cache's size in bytes.
fn check(layout: &CacheLayout) -> Result<usize, CudaError> {
    let bytes = layout.total_bytes()?;
    let argument = |name, expected, found: usize| {
        Err(CudaError::Argument {
            name,
            expected,
            found: found.to_string(),
        })
    };
    if !layout.block_size.is_power_of_two() || !(8..=128).contains(&layout.block_size) {
        return argument("block_size", "8, 16, 32, 64 or 128", layout.block_size);
    }
    if !HEAD_DIMS.contains(&layout.head_dim) {
        return argument("head_dim", "64, 80, 96, 128 or 256", layout.head_dim);
    }
    // Strides within a block are 32 bits.
    if layout.block_len() > u32::MAX as usize {
        return argument(
            "num_kv_heads",
            "small enough for a block of 2^32 elements",
            layout.num_kv_heads,
        );
    }
    Ok(bytes)
}

impl KvSnapshot {
    fn row(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        values: bool,
    ) -> Result<(usize, f32), KernelError> {
        let layout = &self.layout;
        layout.check_token(layer, slot, head)?;
        let (block, offset) = (
            slot as usize / layout.block_size,
            slot as usize % layout.block_size,
        );
        let parts = Parts::new(layout);
        let start = layer * layout.layer_bytes() + block * layout.block_bytes();
        let token = head * layout.block_size + offset;
        let (panel, scales) = match values {
            false => (start, start + parts.k_scales),
            true => (start + parts.v, start + parts.v_scales),
        };
        let scale = match layout.dtype.scale_bytes() {
            0 => 1.0,
            _ => bytemuck::pod_read_unaligned(&self.bytes[scales + 4 * token..][..4]),
        };
        Ok((
            panel + token * layout.head_dim * layout.dtype.bytes(),
            scale,
        ))
    }

    fn read(&self, start: usize, scale: f32, out: &mut [f32]) {
        let width = self.layout.dtype.bytes();
        for (d, out) in out.iter_mut().enumerate() {
            let bytes = &self.bytes[start + d * width..][..width];
            let number = match self.layout.dtype {
                KvDtype::F32 => bytemuck::pod_read_unaligned(bytes),
                KvDtype::Bf16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
                KvDtype::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f32(),
                KvDtype::Int8 => f32::from(bytes[0] as i8),
                KvDtype::Fp8 => fp8::decode(bytes[0]),
            };
            *out = scale * number;
        }
    }
}

impl ReadKv for KvSnapshot {
    fn layout(&self) -> &CacheLayout {
        &self.layout
    }

    fn read_key(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        key: &mut [f32],
    ) -> Result<(), KernelError> {
        let (start, scale) = self.row(layer, slot, head, false)?;
        self.read(start, scale, key);
        if self.layout.dtype == KvDtype::Int8 {
            i8::rotate_back(key);
        }
        Ok(())
    }

    fn read_value(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        value: &mut [f32],
    ) -> Result<(), KernelError> {
        let (start, scale) = self.row(layer, slot, head, true)?;
        self.read(start, scale, value);
        Ok(())
    }
}
