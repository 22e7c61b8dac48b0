//! Norms.

use super::params::NormParams;
use super::{Shape, count, kernel, weights};
use crate::KernelError;
use crate::cuda::driver::LaunchShape;
use crate::cuda::{CudaError, Dtype, Rows, RowsMut, Stream};

/// Threads of a CTA whose rows are short: several share it.
const SHARED_CTA: u32 = 256;

/// Most threads of a row: `NORM_MAX_THREADS`.
const MAX_THREADS: u32 = 1024;

/// Threads that a multiprocessor holds at once, if registers allow.
const THREADS_PER_SM: u32 = 1024;

/// What is normed.
#[derive(Debug)]
pub struct NormArgs<'a> {
    /// `[num_tokens, num_heads, width]`. `None`: `out`.
    pub x: Option<Rows<'a>>,
    /// Becomes `residual + x`, and that is normed, as it was rounded: as `x`.
    pub residual: Option<RowsMut<'a>>,
    /// Result: as `x`.
    pub out: RowsMut<'a>,
    /// `[width]`, of any type. `None`: ones.
    pub weight: Option<Rows<'a>>,
    /// `[width]`, of the weight's type. `None`: zeros.
    pub bias: Option<Rows<'a>>,
    /// Rows of the buffers.
    pub num_tokens: usize,
    /// Heads of a row, side by side, each of which is normed by itself: 1 for whole rows.
    pub num_heads: usize,
    /// Elements of a head.
    pub width: usize,
    /// Added to the mean of squares, or to the variance.
    pub eps: f32,
}

/// Root-mean-square norm: `out = weight * x / sqrt(mean(x^2) + eps) + bias`.
///
/// # Errors
/// [`KernelError::Zero`] for a width or a number of heads of zero, [`KernelError::Rows`] for buffers
/// that are too short, [`CudaError::Dtype`] or [`CudaError::OtherDevice`] for those that do not go
/// together, [`CudaError::Argument`] for more than 2^31 heads in all, [`CudaError::Driver`].
///
/// Source: Zhang and Sennrich 2019.
pub fn rms_norm(stream: &Stream, args: &NormArgs<'_>) -> Result<(), CudaError> {
    run(stream, "rms_norm", args)
}

/// Layer norm: `out = weight * (x - mean(x)) / sqrt(variance(x) + eps) + bias`.
///
/// # Errors
/// As [`rms_norm`].
///
/// Source: Ba et al. 2016.
pub fn layer_norm(stream: &Stream, args: &NormArgs<'_>) -> Result<(), CudaError> {
    run(stream, "layer_norm", args)
}

fn run(stream: &Stream, stem: &'static str, args: &NormArgs<'_>) -> Result<(), CudaError> {
    for (name, value) in [
        ("norm: width", args.width),
        ("norm: num_heads", args.num_heads),
    ] {
        if value == 0 {
            return Err(KernelError::Zero { name }.into());
        }
    }
    let columns = args.num_heads.saturating_mul(args.width);
    let heads = count(
        "heads of all tokens",
        args.num_tokens.saturating_mul(args.num_heads),
    )?;
    let shape = Shape {
        device: stream.device(),
        num_rows: args.num_tokens,
        width: columns,
        dtype: args.out.dtype(),
    };
    let out = shape.view_mut("out", Some(&args.out))?;
    let x = match &args.x {
        None => out,
        x => shape.view("x", x.as_ref())?,
    };
    let (weight, weight_dtype) = weights("weight", shape.device, args.width, args.weight.as_ref())?;
    let (bias, bias_dtype) = weights("bias", shape.device, args.width, args.bias.as_ref())?;
    let (has_weight, has_bias) = (args.weight.is_some(), args.bias.is_some());
    if has_weight && has_bias {
        super::check_dtype("bias", weight_dtype, bias_dtype)?;
    }
    let width = count("width", args.width)?;
    let num_sms = stream.device().properties().num_sms;
    let (group, launch) = shape_of(heads, width, shape.dtype, num_sms);
    let params = NormParams {
        x,
        residual: shape.view_mut("residual", args.residual.as_ref())?,
        out,
        weight,
        bias,
        num_tokens: count("num_tokens", args.num_tokens)?,
        num_heads: count("num_heads", args.num_heads)?,
        width,
        eps: args.eps,
        dtype: shape.dtype as u32,
        weight_dtype: if has_weight { weight_dtype } else { bias_dtype } as u32,
        group,
        reserved: 0,
    };
    stream.launch(kernel(stem)?, launch, &params)
}

/// Threads of a row, and how many CTAs of how many of such groups.
///
/// The group depends on the width alone, so that a row's result does not depend on the others.
fn shape_of(num_rows: u32, width: u32, dtype: Dtype, num_sms: u32) -> (u32, LaunchShape) {
    let pieces = width.div_ceil(16 / dtype.bytes() as u32);
    // Two pieces each, so that enough bytes are in flight.
    let wanted = pieces.div_ceil(2);
    let group = match wanted {
        ..=32 => wanted.next_power_of_two(),
        _ => wanted.next_multiple_of(32).min(MAX_THREADS),
    };
    let threads = if group <= 32 { SHARED_CTA } else { group };
    let most = num_sms.max(1).saturating_mul(THREADS_PER_SM / threads);
    let launch = LaunchShape {
        grid: [num_rows.div_ceil(threads / group).min(most), 1, 1],
        threads,
        shared_bytes: 0,
    };
    (group, launch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_powers_of_two_or_whole_ctas() {
        for width in (1..20_000).step_by(7) {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let (group, shape) = shape_of(5, width, dtype, 132);
                let fits = match group {
                    ..=32 => group.is_power_of_two() && shape.threads == SHARED_CTA,
                    _ => group % 32 == 0 && shape.threads == group && group <= MAX_THREADS,
                };
                assert!(fits && shape.grid[0] >= 1, "{width} {group} {shape:?}");
                // A thread keeps 16 elements, in pieces of 16 bytes.
                assert!(
                    16 * group >= width.min(16384),
                    "{width} is read again: {group}"
                );
            }
        }
    }

    #[test]
    fn groups_have_two_pieces_a_thread() {
        let group = |width, dtype| shape_of(1, width, dtype, 1).0;
        assert_eq!(group(1, Dtype::F32), 1);
        assert_eq!(group(64, Dtype::Bf16), 4);
        assert_eq!(group(128, Dtype::Bf16), 8);
        assert_eq!(group(576, Dtype::Bf16), 64);
        assert_eq!(group(4096, Dtype::Bf16), 256);
        assert_eq!(group(16384, Dtype::Bf16), 1024);
        assert_eq!(group(1 << 20, Dtype::F32), 1024);
    }

    #[test]
    fn no_rows_are_no_launch() {
        assert_eq!(shape_of(0, 64, Dtype::Bf16, 132).1.grid, [0, 1, 1]);
    }
}
