//! Online softmax in powers of two, and the merging of segments.
//!
//! Scores are scaled by `scale * log2(e)`, so that probabilities are powers of two.

use super::micro::STEP_KEYS;
use crate::cpu::simd::{LANES, Simd};

/// Sums of one row over some of its keys, relative to the largest of their scores.
pub(super) struct Sums<'a> {
    /// The largest score, in log2.
    pub(super) max: &'a mut f32,
    /// Sum of the probabilities.
    pub(super) sum: &'a mut f32,
    /// Probabilities times values: `head_dim` rounded up to a multiple of 16.
    pub(super) acc: &'a mut [f32],
}

/// Where the scales of a step's keys and values lie: 16 for each tile of 16 keys.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) k: [*const f32; STEP_KEYS / LANES],
    pub(super) v: [*const f32; STEP_KEYS / LANES],
}

/// Turns a row's scores of a step into probabilities relative to the maximum so far.
///
/// The first `num_visible` (at least 1) of `num_tiles * 16` scores count; the others become 0.
/// Returns the new maximum and what the sums collected so far must be multiplied by.
/// `partial_sums` are 16 partial sums of the probabilities. With `scales`, scores are multiplied
/// by their keys' first, and each probability, once summed, by its value's.
///
/// # Safety
/// `scales` are valid for reads of `num_tiles` times 16.
#[inline(always)]
pub(super) unsafe fn softmax_step<S: Simd>(
    simd: S,
    scores: &mut [f32; STEP_KEYS],
    (num_visible, num_tiles): (usize, usize),
    (scale_log2, scales): (f32, Option<&Scales>),
    max: f32,
    partial_sums: &mut [f32; LANES],
) -> (f32, f32) {
    const TILES: usize = STEP_KEYS / LANES;
    let mut s = [simd.splat(f32::NEG_INFINITY); TILES];
    let mut highest = s[0];
    for tile in 0..num_tiles.min(TILES) {
        // SAFETY: tile < 4, so 16 elements of 64.
        s[tile] = unsafe { simd.load(scores.as_ptr().add(tile * LANES)) };
        if let Some(scales) = scales {
            // SAFETY: as this function's.
            s[tile] = simd.mul(s[tile], unsafe { simd.load(scales.k[tile]) });
        }
        let num_visible = num_visible.saturating_sub(tile * LANES);
        if num_visible < LANES {
            s[tile] = simd.keep_first(s[tile], num_visible, f32::NEG_INFINITY);
        }
        highest = simd.max(highest, s[tile]);
    }
    let new_max = larger(max, simd.reduce_max(highest) * scale_log2);
    let correction = simd.first(simd.exp2(simd.splat(max - new_max)));
    // SAFETY: 16 elements.
    let mut sum = unsafe { simd.load(partial_sums.as_ptr()) };
    sum = simd.mul(sum, simd.splat(correction));
    let (scale, negative_max) = (simd.splat(scale_log2), simd.splat(-new_max));
    for tile in 0..num_tiles.min(TILES) {
        let mut p = simd.exp2(simd.fma(s[tile], scale, negative_max));
        // Masked keys add exactly +0 to a sum of non-negative numbers: no bit changes.
        sum = simd.add(sum, p);
        if let Some(scales) = scales {
            // SAFETY: as this function's.
            p = simd.mul(p, unsafe { simd.load(scales.v[tile]) });
        }
        // SAFETY: as the load above.
        unsafe { simd.store(scores.as_mut_ptr().add(tile * LANES), p) };
    }
    // SAFETY: 16 elements.
    unsafe { simd.store(partial_sums.as_mut_ptr(), sum) };
    (new_max, correction)
}

/// Adds the sums of later keys to those of earlier ones.
#[inline(always)]
pub(super) fn merge<S: Simd>(simd: S, total: Sums<'_>, max: f32, sum: f32, acc: &[f32]) {
    let new_max = larger(*total.max, max);
    let w_total = simd.exp2(simd.splat(*total.max - new_max));
    let w_part = simd.exp2(simd.splat(max - new_max));
    *total.max = new_max;
    *total.sum = *total.sum * simd.first(w_total) + sum * simd.first(w_part);
    for (total, part) in total
        .acc
        .chunks_exact_mut(LANES)
        .zip(acc.chunks_exact(LANES))
    {
        // SAFETY: both chunks have 16 elements.
        unsafe {
            let part = simd.mul(simd.load(part.as_ptr()), w_part);
            let merged = simd.fma(simd.load(total.as_ptr()), w_total, part);
            simd.store(total.as_mut_ptr(), merged);
        }
    }
}

/// `out = acc / sum`: the row's attention.
#[inline(always)]
pub(super) fn normalize<S: Simd>(simd: S, acc: &mut [f32], sum: f32, out: &mut [f32]) {
    let divisor = simd.splat(sum);
    for (acc, out) in acc.chunks_exact_mut(LANES).zip(out.chunks_mut(LANES)) {
        // SAFETY: the chunk has 16 elements.
        let quotient = simd.div(unsafe { simd.load(acc.as_ptr()) }, divisor);
        if out.len() == LANES {
            // SAFETY: as said.
            unsafe { simd.store(out.as_mut_ptr(), quotient) };
        } else {
            // SAFETY: the chunk has 16 elements.
            unsafe { simd.store(acc.as_mut_ptr(), quotient) };
            out.iter_mut().zip(acc).for_each(|(out, x)| *out = *x);
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
