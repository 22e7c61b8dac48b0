//! Online softmax in powers of two, and the merging of segments.

use super::micro::STEP_KEYS;
use super::simd::{Kernel, LANES, Simd};

/// Running maximum and sum of one query row.
///
/// Scores are scaled by `scale * log2(e)`, so that probabilities are powers of two.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// The row's scores of this step; its probabilities afterwards.
    pub(super) scores: &'a [f32; STEP_KEYS],
}

/// Turns a row's scores of a step into probabilities relative to the maximum so far.
///
/// The first `num_visible` of `num_tiles * 16` scores count; the others become 0. Returns the
/// new maximum and what sums collected so far must be multiplied by. `sums` holds 16 partial
/// sums. A step of which the row sees nothing leaves every bit as it was: the maximum stays, the
/// factor is exactly 1, and zeros are added to sums of non-negative numbers.
#[inline(always)]
pub(super) fn softmax_step<S: Simd>(
    simd: S,
    scores: &mut [f32; STEP_KEYS],
    (num_visible, num_tiles): (usize, usize),
    scale_log2: f32,
    max: f32,
    sums: &mut [f32; LANES],
) -> (f32, f32) {
    const TILES: usize = STEP_KEYS / LANES;
    let num_tiles = num_tiles.min(TILES);
    let mut s = [simd.splat(f32::NEG_INFINITY); TILES];
    let mut highest = s[0];
    for (tile, s) in s.iter_mut().enumerate().take(num_tiles) {
        // SAFETY: tile < 4, so 16 elements of 64.
        *s = unsafe { simd.load(scores.as_ptr().add(tile * LANES)) };
        let num_visible = num_visible.saturating_sub(tile * LANES);
        if num_visible < LANES {
            *s = simd.keep_first(*s, num_visible, f32::NEG_INFINITY);
        }
        highest = simd.max(highest, *s);
    }
    let step_max = simd.reduce_max(highest) * scale_log2;
    let new_max = if max > step_max { max } else { step_max };
    let correction = exp2_scalar(simd, max - new_max);
    // SAFETY: 16 elements.
    let mut sum = unsafe { simd.load(sums.as_ptr()) };
    sum = simd.mul(sum, simd.splat(correction));
    let (scale, negative_max) = (simd.splat(scale_log2), simd.splat(-new_max));
    for (tile, s) in s.into_iter().enumerate().take(num_tiles) {
        let p = simd.exp2(simd.fma(s, scale, negative_max));
        sum = simd.add(sum, p);
        // SAFETY: as the load above.
        unsafe { simd.store(scores.as_mut_ptr().add(tile * LANES), p) };
    }
    // SAFETY: 16 elements.
    unsafe { simd.store(sums.as_mut_ptr(), sum) };
    (new_max, correction)
}
