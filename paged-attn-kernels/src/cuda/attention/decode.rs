//! The kernels for few rows of a sequence, `attend_decode` and `attend_f32`, and `attend_combine`.

use super::params::{AttendParams, CombineParams};
use super::split::{Slots, TILE_KEYS};
use super::work::Tiling;
use crate::cuda::driver::{Kernel, LaunchShape};
use crate::cuda::{CudaError, DeviceProperties, Dtype, Stream, code};
use crate::{CacheLayout, KvDtype};

/// Packed rows of an item: those of a tensor core's product.
const MAX_ROWS: usize = 16;

/// Keys of a piece where plans may not depend on the batch: long enough that what combining costs
/// is small (2 % of the keys' bytes), short enough to share a long context out.
const INVARIANT_KEYS: u32 = 1024;

const NUM_THREADS: u32 = 128;

/// Shared memory that a CTA takes besides its own.
const RESERVED_SHARED_BYTES: usize = 1024;

/// Which of the two kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FewRows {
    /// On tensor cores, for bf16 and f16.
    Halves,
    /// Without, for f32.
    F32,
}

impl FewRows {
    pub(super) fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => FewRows::F32,
            Dtype::Bf16 | Dtype::F16 => FewRows::Halves,
        }
    }

    /// How it wants its work on a device.
    ///
    /// # Errors
    /// [`CudaError::Argument`] if the device's shared memory is too small: for 16-bit pages of 256
    /// dimensions, 146 KiB are needed.
    pub(super) fn tiling(
        self,
        properties: &DeviceProperties,
        layout: &CacheLayout,
    ) -> Result<Tiling, CudaError> {
        Ok(Tiling {
            rows: MAX_ROWS,
            slots: Slots {
                num_ctas: self.num_ctas(properties, layout)?,
                min_tiles: 2,
            },
            invariant_keys: INVARIANT_KEYS,
        })
    }

    /// Computes the items of `params`, whose addresses and sizes were checked.
    pub(super) fn launch(
        self,
        stream: &Stream,
        layout: &CacheLayout,
        params: &AttendParams,
    ) -> Result<(), CudaError> {
        let head_dim = layout.head_dim.to_string();
        let (entry, code) = match self {
            FewRows::Halves => {
                let variant = [head_dim.as_str(), layout.dtype.name()];
                ("attend_decode", code::find("attend_decode", &variant)?)
            }
            FewRows::F32 => ("attend_f32", code::find("attend_f32", &[&head_dim])?),
        };
        let num_ctas = self.num_ctas(stream.device().properties(), layout)?;
        let shape = LaunchShape {
            grid: [num_ctas as u32, 1, 1],
            threads: NUM_THREADS,
            shared_bytes: self.shared_bytes(layout) as u32,
        };
        stream.launch(Kernel { code, entry }, shape, params)
    }

    /// CTAs that run at once.
    fn num_ctas(
        self,
        properties: &DeviceProperties,
        layout: &CacheLayout,
    ) -> Result<usize, CudaError> {
        let limit = properties.shared_bytes as usize + RESERVED_SHARED_BYTES;
        let fit = limit / (self.shared_bytes(layout) + RESERVED_SHARED_BYTES);
        if fit == 0 {
            return Err(CudaError::Argument {
                name: "head_dim",
                expected: "such that a tile of keys and values fits in the device's shared memory",
                found: layout.head_dim.to_string(),
            });
        }
        Ok(fit.min(self.ctas_by_registers(layout)) * properties.num_sms as usize)
    }

    /// CTAs of an SM whose registers fit: `CTAS_PER_SM` in `cuda/decode_ring.cuh`.
    fn ctas_by_registers(self, layout: &CacheLayout) -> usize {
        match (self, is_bytes(layout.dtype), layout.head_dim) {
            (FewRows::F32, ..) => 4,
            (_, true, 256) => 2,
            (_, true, 128) => 3,
            (_, true, _) => 4,
            (_, false, 256) => 1,
            (_, false, 96..) => 2,
            (_, false, _) => 3,
        }
    }

    /// What a CTA has: the structs `Shared` in the kernels' sources.
    fn shared_bytes(self, layout: &CacheLayout) -> usize {
        let (head_dim, bytes) = (layout.head_dim, is_bytes(layout.dtype));
        if self == FewRows::F32 {
            let (tokens, columns) = (32, head_dim + 4);
            return 4 * (MAX_ROWS * head_dim + 2 * tokens * columns + MAX_ROWS * tokens);
        }
        let stages = match (bytes, head_dim) {
            (_, 256) => 2,
            (true, 64) => 4,
            (false, 128) => 2,
            _ => 3,
        };
        let row = match bytes {
            true => head_dim.next_multiple_of(32) + size_of::<f32>(),
            false => 2 * head_dim,
        };
        let num_warps = NUM_THREADS as usize / 32;
        let merge = num_warps * MAX_ROWS * (32 + 4 + 2) * size_of::<f32>();
        stages * TILE_KEYS as usize * 2 * row + MAX_ROWS * head_dim * 2 + merge
    }
}

fn is_bytes(dtype: KvDtype) -> bool {
    matches!(dtype, KvDtype::Int8 | KvDtype::Fp8)
}

/// Sums partial results. The grid does not depend on their number, so that it can be captured.
pub(super) fn combine(stream: &Stream, params: &CombineParams) -> Result<(), CudaError> {
    let kernel = Kernel {
        code: code::find("attend_combine", &[])?,
        entry: "attend_combine",
    };
    // A CTA of four warps has the rows of a decode at once, or every 16th of those of a prefill.
    let shape = LaunchShape {
        grid: [stream.device().properties().num_sms, 4, 1],
        threads: NUM_THREADS,
        shared_bytes: 0,
    };
    stream.launch(kernel, shape, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> DeviceProperties {
        DeviceProperties {
            name: "H200".to_owned(),
            capability: (9, 0),
            num_sms: 132,
            shared_bytes: 227 * 1024,
            memory_bytes: 0,
            emulated: false,
        }
    }

    fn layout(head_dim: usize, dtype: KvDtype) -> CacheLayout {
        CacheLayout {
            num_layers: 1,
            num_blocks: 1,
            block_size: 16,
            num_kv_heads: 1,
            head_dim,
            dtype,
        }
    }

    #[test]
    fn shared_memory_is_what_the_kernels_say() {
        let check = |rows: FewRows, stem, variant: &[&str], layout: &CacheLayout| {
            let code = code::find(stem, variant).unwrap();
            let said = code.ptx.split("// dynamic shared: ").nth(1).unwrap();
            let said: usize = said.split_whitespace().next().unwrap().parse().unwrap();
            assert_eq!(rows.shared_bytes(layout), said, "{stem} {variant:?}");
        };
        for head_dim in [64, 80, 96, 128, 256] {
            let name = head_dim.to_string();
            for dtype in [KvDtype::Bf16, KvDtype::F16, KvDtype::Int8, KvDtype::Fp8] {
                let layout = layout(head_dim, dtype);
                let variant = [name.as_str(), dtype.name()];
                check(FewRows::Halves, "attend_decode", &variant, &layout);
            }
            let layout = layout(head_dim, KvDtype::F32);
            check(FewRows::F32, "attend_f32", &[&name], &layout);
        }
    }

    #[test]
    fn shared_memory_does_not_limit_the_ctas_of_an_h200() {
        for head_dim in [64, 80, 96, 128, 256] {
            for dtype in [KvDtype::Bf16, KvDtype::F16, KvDtype::Int8, KvDtype::Fp8] {
                let layout = layout(head_dim, dtype);
                let ctas = FewRows::Halves.num_ctas(&h200(), &layout).unwrap();
                let by_registers = FewRows::Halves.ctas_by_registers(&layout);
                assert_eq!(ctas, 132 * by_registers, "{head_dim} {dtype:?}");
            }
            let ctas = FewRows::F32.num_ctas(&h200(), &layout(head_dim, KvDtype::F32));
            assert!(ctas.unwrap() >= 264);
        }
    }

    #[test]
    fn a_device_with_little_shared_memory_says_what_does_not_fit() {
        let small = DeviceProperties {
            shared_bytes: 99 * 1024,
            ..h200()
        };
        for head_dim in [64, 80, 96, 128, 256] {
            for dtype in [KvDtype::Bf16, KvDtype::Fp8] {
                let ctas = FewRows::Halves.num_ctas(&small, &layout(head_dim, dtype));
                let fits = (head_dim, dtype) != (256, KvDtype::Bf16);
                assert_eq!(ctas.is_ok(), fits, "{head_dim} {dtype:?}: {ctas:?}");
            }
        }
    }
}
