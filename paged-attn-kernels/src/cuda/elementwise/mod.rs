//! The operations between linear layers: norms, rotary embedding, activations, embedding, bias.
//!
//! Rows may be strided and of any [`Dtype`]; arithmetic is f32. Kernels use 16-byte
//! accesses where every row starts at a multiple of 16 bytes and the width is as much, and single
//! elements elsewhere: same results, slower.
//!
//! An operation whose `x` is `None` works in place: on `out`.

mod activation;
mod add_bias;
mod embed;
mod norm;
mod params;
mod rope;

pub use activation::{ActivationArgs, GeluForm, gelu, relu, silu_mul};
pub use add_bias::{AddBiasArgs, add_bias};
pub use embed::{EmbedArgs, check_ids, embed};
pub use norm::{NormArgs, layer_norm, rms_norm};
pub(super) use rope::start_of;
pub use rope::{Pairing, RopeArgs, Rotary, RotaryTable, rope};

pub(super) use params::RotaryView;

use bytemuck::Zeroable;

use super::driver::{Kernel, LaunchShape};
use super::params::RowsView;
use super::{CudaError, Device, Dtype, Rows, RowsMut, code};

/// Threads of a CTA of every elementwise kernel but the norms: `ELEMENTWISE_THREADS`.
pub(super) const THREADS: u32 = 256;

/// CTAs of [`THREADS`] that a multiprocessor holds at once, if registers allow.
const CTAS_PER_SM: u32 = 2048 / THREADS;

/// The kernel that is all of its source file.
pub(super) fn kernel(stem: &'static str) -> Result<Kernel, CudaError> {
    Ok(Kernel {
        code: code::find(stem, &[])?,
        entry: stem,
    })
}

/// A count as kernels take it.
pub(super) fn count(name: &'static str, value: usize) -> Result<u32, CudaError> {
    match u32::try_from(value) {
        Ok(value) if value <= i32::MAX as u32 => Ok(value),
        _ => Err(CudaError::Argument {
            name,
            expected: "below 2^31",
            found: value.to_string(),
        }),
    }
}

/// CTAs for `num_turns` turns of one: one each, but no more than run at once, which take turns then.
pub(super) fn grid(num_turns: u64, num_sms: u32) -> LaunchShape {
    let most = num_sms.max(1).saturating_mul(CTAS_PER_SM);
    LaunchShape {
        grid: [num_turns.min(u64::from(most)) as u32, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
    }
}

/// CTAs for rows that are cut into pieces of 16 bytes, one for each thread.
fn grid_of_pieces(num_rows: u32, width: u32, dtype: Dtype, num_sms: u32) -> LaunchShape {
    let per_row = u64::from(width).div_ceil(16 / dtype.bytes() as u64);
    // Both below 2^31.
    grid(
        (u64::from(num_rows) * per_row).div_ceil(u64::from(THREADS)),
        num_sms,
    )
}

/// Refuses rows of another type than the output's.
pub(super) fn check_dtype(
    name: &'static str,
    expected: Dtype,
    found: Dtype,
) -> Result<(), CudaError> {
    match expected == found {
        true => Ok(()),
        false => Err(CudaError::Dtype {
            name,
            expected,
            found,
        }),
    }
}

/// How many rows an operation has, of what width, in what type, and where it runs.
struct Shape<'a> {
    device: &'a Device,
    num_rows: usize,
    width: usize,
    dtype: Dtype,
}

impl Shape<'_> {
    /// Checks rows of the operation's type; none are the null view.
    fn view(&self, name: &'static str, rows: Option<&Rows<'_>>) -> Result<RowsView, CudaError> {
        let Some(rows) = rows else {
            return Ok(RowsView::zeroed());
        };
        rows.check(name, self.device, self.num_rows, self.width)?;
        check_dtype(name, self.dtype, rows.dtype())?;
        Ok(RowsView::new(rows))
    }

    /// As [`view`](Self::view), of rows that are written.
    fn view_mut(
        &self,
        name: &'static str,
        rows: Option<&RowsMut<'_>>,
    ) -> Result<RowsView, CudaError> {
        let Some(rows) = rows else {
            return Ok(RowsView::zeroed());
        };
        rows.check(name, self.device, self.num_rows, self.width)?;
        check_dtype(name, self.dtype, rows.dtype())?;
        Ok(RowsView::new_mut(rows))
    }
}

/// Checks a vector of weights of any type: its address and type, or null.
fn weights(
    name: &'static str,
    device: &Device,
    width: usize,
    weights: Option<&Rows<'_>>,
) -> Result<(u64, Dtype), CudaError> {
    let Some(weights) = weights else {
        return Ok((0, Dtype::F32));
    };
    weights.check(name, device, 1, width)?;
    Ok((weights.address(), weights.dtype()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_have_a_thread_for_each_piece_until_the_device_is_full() {
        let ctas = |rows, width, dtype| grid_of_pieces(rows, width, dtype, 132).grid[0];
        assert_eq!(ctas(0, 4096, Dtype::Bf16), 0);
        assert_eq!(ctas(1, 1, Dtype::Bf16), 1);
        assert_eq!(ctas(1, 2048, Dtype::Bf16), 1);
        assert_eq!(ctas(1, 2056, Dtype::Bf16), 2);
        assert_eq!(ctas(2, 1024, Dtype::F32), 2);
        assert_eq!(ctas(16, 4096, Dtype::Bf16), 32);
        assert_eq!(ctas(i32::MAX as u32, i32::MAX as u32, Dtype::F32), 1056);
        assert_eq!(grid(7, 0).grid, [7, 1, 1]);
    }

    #[test]
    fn counts_are_below_two_to_the_31() {
        assert_eq!(count("n", (1 << 31) - 1), Ok((1 << 31) - 1));
        for n in [1 << 31, usize::MAX] {
            assert!(matches!(
                count("n", n),
                Err(CudaError::Argument { name: "n", .. })
            ));
        }
    }
}
