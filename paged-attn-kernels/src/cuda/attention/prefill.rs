//! The kernel for many rows of a sequence, `attend_prefill`.

use super::params::AttendParams;
use super::split::Slots;
use super::work::Tiling;
use crate::cuda::driver::{Kernel, LaunchShape};
use crate::cuda::{CudaError, DeviceProperties, Rows, Stream, code};
use crate::{CacheLayout, KvDtype};

const NUM_THREADS: u32 = 128;

/// CTAs of an SM.
const CTAS_PER_SM: usize = 2;

/// How it wants its work on a device.
pub(super) fn tiling(properties: &DeviceProperties, layout: &CacheLayout) -> Tiling {
    Tiling {
        rows: rows(layout.head_dim),
        slots: Slots {
            num_ctas: properties.num_sms as usize * CTAS_PER_SM,
            min_tiles: 8,
        },
        invariant_keys: 4096,
    }
}

/// Packed rows of an item.
fn rows(head_dim: usize) -> usize {
    if head_dim <= 128 { 128 } else { 64 }
}

/// Computes the items of `params`, whose addresses and sizes were checked.
pub(super) fn launch(
    stream: &Stream,
    layout: &CacheLayout,
    params: &AttendParams,
) -> Result<(), CudaError> {
    let head_dim = layout.head_dim.to_string();
    let kernel = Kernel {
        code: code::find("attend_prefill", &[&head_dim, layout.dtype.name()])?,
        entry: "attend_prefill",
    };
    let num_ctas = tiling(stream.device().properties(), layout).slots.num_ctas;
    let shape = LaunchShape {
        grid: [num_ctas as u32, 1, 1],
        threads: NUM_THREADS,
        shared_bytes: shared_bytes(layout) as u32,
    };
    stream.launch(kernel, shape, params)
}

/// Refuses rows that it cannot load and store 16 bytes at a time.
pub(super) fn check_alignment(name: &'static str, rows: &Rows<'_>) -> Result<(), CudaError> {
    let element = size_of::<u16>();
    if rows.address().is_multiple_of(16) && (rows.stride() * element).is_multiple_of(16) {
        return Ok(());
    }
    Err(CudaError::Argument {
        name,
        expected: "16-byte aligned rows, at a stride of a multiple of 8",
        found: format!("at {:#x}, stride {}", rows.address(), rows.stride()),
    })
}

/// What a CTA has: `PrefillShape::SHARED_BYTES` in `cuda/prefill_shape.cuh`.
fn shared_bytes(layout: &CacheLayout) -> usize {
    let head_dim = layout.head_dim;
    let scaled = matches!(layout.dtype, KvDtype::Int8 | KvDtype::Fp8);
    let keys = if head_dim >= 128 && scaled { 32 } else { 64 };
    let rows = rows(head_dim);
    // 16-byte chunks of 8-bit elements, and lanes that copy a row of them.
    let chunks = head_dim / 16;
    let lanes = if chunks <= 4 { 4 } else { 8 };
    let raw = keys * chunks.next_multiple_of(lanes) * 16;
    let scales = 2 * 2 * keys * size_of::<f32>();
    let for_scaled = if scaled { 2 * raw + scales } else { 0 };
    let tiles = (rows + 2 * keys) * head_dim * 2;
    // Of each row its place and keys, of 8 keys twice their block and where they are; the item.
    tiles + for_scaled + rows * 16 + keys / 8 * 40 + 48
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Device;

    #[test]
    fn shared_memory_is_what_the_kernels_say() {
        let device = Device::emulated();
        let mut num_checked = 0;
        for head_dim in [64, 80, 96, 128, 256] {
            for dtype in [KvDtype::Bf16, KvDtype::F16, KvDtype::Int8, KvDtype::Fp8] {
                let layout = CacheLayout {
                    num_layers: 1,
                    num_blocks: 1,
                    block_size: 16,
                    num_kv_heads: 1,
                    head_dim,
                    dtype,
                };
                let name = head_dim.to_string();
                let code = code::find("attend_prefill", &[&name, dtype.name()]).unwrap();
                let said = code.ptx.split("// dynamic shared: ").nth(1).unwrap();
                let said: usize = said.split_whitespace().next().unwrap().parse().unwrap();
                assert_eq!(shared_bytes(&layout), said, "{layout:?}");
                // Of an SM of sm_86, the smallest.
                assert!(said <= 99 << 10, "{layout:?}");
                assert_eq!(tiling(device.properties(), &layout).rows % 64, 0);
                num_checked += 1;
            }
        }
        assert_eq!(num_checked, 20);
    }

    #[test]
    fn rows_off_16_bytes_are_refused() {
        let device = Device::emulated();
        let buffer = device.alloc::<half::bf16>(64).unwrap();
        let check = |offset, stride| check_alignment("q", &buffer.rows_from(offset, stride));
        assert_eq!(check(0, 16), Ok(()));
        assert_eq!(check(8, 24), Ok(()));
        for (offset, stride) in [(4, 16), (0, 20), (1, 16)] {
            let refused = matches!(
                check(offset, stride),
                Err(CudaError::Argument { name: "q", .. })
            );
            assert!(refused, "{offset} {stride}");
        }
    }
}
