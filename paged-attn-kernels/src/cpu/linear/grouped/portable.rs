//! The definition of a grouped product, in plain Rust, compiled for each instruction set.

use super::inputs::{TILE_ROWS, TILE_STEP};
use super::panel::{LANES, LOW_BYTES, PAIRS, PanelLayout, STEP};
use crate::cpu::Isa;

/// Elements of a step's decoded codes, one plane: `[pair][parity][LANES]`.
const PLANE: usize = STEP * LANES;

/// Steps of a panel, decoded: `[step][plane][pair][parity][LANES]`, the high plane first, and the
/// scales and minima of their groups.
pub(super) struct Decoded<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) scales: &'a mut [[[f32; LANES]; 2]],
}

/// Elements of [`Decoded::values`] for each step.
pub(super) fn step_len(layout: &PanelLayout) -> usize {
    num_planes(layout) * PLANE
}

pub(super) fn num_planes(layout: &PanelLayout) -> usize {
    1 + usize::from(layout.format.high_bits() > 0)
}

/// Decodes the steps from `first_step` on, as many as `out` has room for.
#[inline(always)]
fn decode(layout: &PanelLayout, panel: &[u8], first_step: usize, out: &mut Decoded<'_>) {
    let (low_zero, high_zero) = layout.format.zeros();
    let low_zero = low_zero as f32;
    let high_zero = high_zero as f32;
    for (step, out) in (first_step..).zip(out.values.chunks_exact_mut(step_len(layout))) {
        let (high_out, low_out) = out.split_at_mut(out.len() - PLANE);
        let low = &panel[layout.low(step)..][..LOW_BYTES];
        decode_plane::<4>(low, low_zero, 1.0, low_out);
        let high = &panel[layout.high(step)..][..layout.high_bytes()];
        match layout.format.high_bits() {
            1 => decode_plane::<1>(high, high_zero, 16.0, high_out),
            2 => decode_plane::<2>(high, high_zero, 16.0, high_out),
            4 => decode_plane::<4>(high, high_zero, 16.0, high_out),
            _ => {}
        }
    }
    let groups_per_step = STEP / layout.format.group_len();
    for (group, out) in (first_step * groups_per_step..).zip(out.scales.iter_mut()) {
        layout.scales(panel, group, out);
    }
}

/// `zero + unit * code` of every code of a step.
#[inline(always)]
fn decode_plane<const BITS: u32>(lines: &[u8], zero: f32, unit: f32, out: &mut [f32]) {
    let per_line = 16 / BITS as usize * 2 * LANES;
    for (line, out) in lines
        .as_chunks::<64>()
        .0
        .iter()
        .zip(out.chunks_exact_mut(per_line))
    {
        let mut words = [0u32; LANES];
        for (word, bytes) in words.iter_mut().zip(line.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        for (i, out) in (0..).zip(out.as_chunks_mut::<{ 2 * LANES }>().0) {
            let (even, odd) = out.split_at_mut(LANES);
            for lane in 0..LANES {
                let (low, high) = (words[lane] >> (BITS * i), words[lane] >> (16 + BITS * i));
                let mask = (1 << BITS) - 1;
                even[lane] = zero + unit * (low & mask) as i32 as f32;
                odd[lane] = zero + unit * (high & mask) as i32 as f32;
            }
        }
    }
}

/// Adds decoded steps to a tile's sums, `[TILE_ROWS][LANES]`, for its first `num_rows` rows.
///
/// `x`: `[step][TILE_ROWS][STEP]`; `x_sums`: `[step][TILE_ROWS]`.
#[inline(always)]
fn accumulate<const FMA: bool>(
    layout: &PanelLayout,
    decoded: &Decoded<'_>,
    (x, x_sums): (&[f32], &[f32]),
    acc: &mut [[f32; LANES]],
) {
    let mut rows = acc;
    let mut first = 0;
    while rows.len() >= 4 {
        let (four, rest) = rows.split_at_mut(4);
        rows_of::<4, FMA>(
            layout,
            decoded,
            (&x[first * STEP..], &x_sums[first..]),
            four,
        );
        rows = rest;
        first += 4;
    }
    for row in rows {
        let row = std::slice::from_mut(row);
        rows_of::<1, FMA>(layout, decoded, (&x[first * STEP..], &x_sums[first..]), row);
        first += 1;
    }
}

#[inline(always)]
fn rows_of<const ROWS: usize, const FMA: bool>(
    layout: &PanelLayout,
    decoded: &Decoded<'_>,
    (x, x_sums): (&[f32], &[f32]),
    acc: &mut [[f32; LANES]],
) {
    let (group_len, has_min) = (layout.format.group_len(), layout.format.has_min());
    let groups_per_step = STEP / group_len;
    let steps = decoded.values.chunks_exact(step_len(layout));
    for (step, values) in steps.enumerate() {
        for group in 0..groups_per_step {
            let mut sums = [[0.0; LANES]; ROWS];
            for plane in values.chunks_exact(PLANE) {
                let pairs = PAIRS / groups_per_step;
                let plane = &plane[group * pairs * 2 * LANES..][..pairs * 2 * LANES];
                let mut chains = [[[0.0; LANES]; 2]; ROWS];
                for (pair, w) in plane.as_chunks::<{ 2 * LANES }>().0.iter().enumerate() {
                    let at = step * TILE_STEP + group * group_len + 2 * pair;
                    for (r, chain) in chains.iter_mut().enumerate() {
                        let x = &x[at + r * STEP..][..2];
                        for lane in 0..LANES {
                            chain[0][lane] = exact_fma::<FMA>(x[0], w[lane], chain[0][lane]);
                            chain[1][lane] =
                                exact_fma::<FMA>(x[1], w[LANES + lane], chain[1][lane]);
                        }
                    }
                }
                for (sum, chain) in sums.iter_mut().zip(&chains) {
                    for lane in 0..LANES {
                        sum[lane] += chain[0][lane] + chain[1][lane];
                    }
                }
            }
            let [scale, min] = &decoded.scales[step * groups_per_step + group];
            for (r, (acc, sum)) in acc.iter_mut().zip(&sums).enumerate() {
                for lane in 0..LANES {
                    acc[lane] = sum[lane].mul_add(scale[lane], acc[lane]);
                }
                if has_min {
                    let x = x_sums[step * TILE_ROWS + r];
                    for lane in 0..LANES {
                        acc[lane] = x.mul_add(min[lane], acc[lane]);
                    }
                }
            }
        }
    }
}

/// `a * b + c` where the product of a bf16 and a code has no more than 16 bits: with a fused
/// instruction or without, the result is the same, and without is faster where there is none.
#[inline(always)]
fn exact_fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

macro_rules! compiled_for {
    ($name:ident, $fma:literal $(, #[$attribute:meta])?) => {
        pub(super) mod $name {
            use super::*;

            $(#[$attribute])?
            pub(in super::super) fn decode(
                layout: &PanelLayout,
                panel: &[u8],
                first_step: usize,
                out: &mut Decoded<'_>,
            ) {
                super::decode(layout, panel, first_step, out);
            }

            $(#[$attribute])?
            pub(in super::super) fn accumulate(
                layout: &PanelLayout,
                decoded: &Decoded<'_>,
                x: (&[f32], &[f32]),
                acc: &mut [[f32; LANES]],
            ) {
                super::accumulate::<$fma>(layout, decoded, x, acc);
            }
        }
    };
}

compiled_for!(scalar, false);
#[cfg(target_arch = "x86_64")]
compiled_for!(avx2, true, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
compiled_for!(avx512, true, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]);

/// Decodes with the instructions of `isa`, which the machine supports.
pub(super) fn decode_with(
    isa: Isa,
    layout: &PanelLayout,
    panel: &[u8],
    first_step: usize,
    out: &mut Decoded<'_>,
) {
    match isa {
        // SAFETY: the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::decode(layout, panel, first_step, out) },
        // SAFETY: the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::decode(layout, panel, first_step, out) },
        _ => scalar::decode(layout, panel, first_step, out),
    }
}

/// Adds to a tile's sums with the instructions of `isa`, which the machine supports.
pub(super) fn accumulate_with(
    isa: Isa,
    layout: &PanelLayout,
    decoded: &Decoded<'_>,
    x: (&[f32], &[f32]),
    acc: &mut [[f32; LANES]],
) {
    match isa {
        // SAFETY: the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::accumulate(layout, decoded, x, acc) },
        // SAFETY: the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::accumulate(layout, decoded, x, acc) },
        _ => scalar::accumulate(layout, decoded, x, acc),
    }
}
