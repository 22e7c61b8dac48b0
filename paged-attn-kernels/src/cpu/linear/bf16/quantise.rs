//! Weights to blocks, when a model is to be kept smaller than its file.

use half::f16;

use super::format::BlockFormat;

/// Quantises one row to blocks of `Q8_0` (8.5 bits a weight) or `Q4_1` (5 bits).
///
/// `x.len()` is a multiple of 32 and `out` as long as the blocks. `Q8_0` scales each block by its
/// largest magnitude over 127; `Q4_1` spans each block from its least to its largest weight.
///
/// # Panics
/// For another format, or if lengths do not agree.
pub fn quantise_row(format: BlockFormat, x: &[f32], out: &mut [u8]) {
    let (len, bytes) = (format.block_len(), format.block_bytes());
    assert!(x.len().is_multiple_of(len), "a row of whole blocks");
    assert_eq!(
        out.len(),
        x.len() / len * bytes,
        "room for the row's blocks"
    );
    for (x, out) in x.chunks_exact(len).zip(out.chunks_exact_mut(bytes)) {
        match format {
            BlockFormat::Q8_0 => q8_0(x, out),
            BlockFormat::Q4_1 => q4_1(x, out),
            _ => panic!("rows are quantised to Q8_0 or Q4_1, not to {format:?}"),
        }
    }
}

fn q8_0(x: &[f32], out: &mut [u8]) {
    let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = inverse(scale);
    out[..2].copy_from_slice(&scale.to_le_bytes());
    for (q, x) in out[2..].iter_mut().zip(x) {
        *q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
}

fn q4_1(x: &[f32], out: &mut [u8]) {
    let least = x.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = f16::from_f32(least);
    let scale = f16::from_f32((largest - min.to_f32()) / 15.0);
    let inverse = inverse(scale);
    out[..2].copy_from_slice(&scale.to_le_bytes());
    out[2..4].copy_from_slice(&min.to_le_bytes());
    let code = |x: f32| {
        ((x - min.to_f32()) * inverse)
            .round_ties_even()
            .clamp(0.0, 15.0) as u8
    };
    for (j, q) in out[4..].iter_mut().enumerate() {
        *q = code(x[j]) | code(x[j + 16]) << 4;
    }
}

/// Zero for a block of equal weights, whose codes are then all zero.
fn inverse(scale: f16) -> f32 {
    if scale == f16::ZERO {
        0.0
    } else {
        1.0 / scale.to_f32()
    }
}
