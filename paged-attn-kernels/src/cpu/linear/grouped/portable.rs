//! The definition of a grouped product, over vectors of any instruction set.

use super::inputs::{TILE_ROWS, TILE_STEP};
use super::panel::{LANES, LOW_BYTES, PanelLayout, STEP};
use crate::cpu::attention::simd::{Kernel, Simd};

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
pub(super) struct Decode<'a, 'b> {
    pub(super) layout: &'a PanelLayout,
    pub(super) panel: &'a [u8],
    pub(super) first_step: usize,
    pub(super) out: &'a mut Decoded<'b>,
}

impl Kernel for Decode<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        let Decode {
            layout,
            panel,
            first_step,
            out,
        } = self;
        let (low_zero, high_zero) = layout.format.zeros();
        let (low_zero, high_zero) = (low_zero as f32, high_zero as f32);
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

/// Adds decoded steps to sums, `[row][LANES]`.
pub(super) struct Accumulate<'a> {
    pub(super) layout: &'a PanelLayout,
    pub(super) decoded: &'a Decoded<'a>,
    /// A tile's inputs, `[step][TILE_ROWS][STEP]`.
    pub(super) x: &'a [f32],
    /// Sums of their steps, `[step][TILE_ROWS]`.
    pub(super) x_sums: &'a [f32],
    /// One for each row; at most [`TILE_ROWS`].
    pub(super) acc: &'a mut [[f32; LANES]],
}

impl Kernel for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(mut self, simd: S) {
        let num_steps = self.decoded.values.len() / step_len(self.layout);
        assert!(self.acc.len() <= TILE_ROWS);
        assert!(self.x.len() >= num_steps * TILE_STEP);
        assert!(self.x_sums.len() >= num_steps * TILE_ROWS);
        assert!(self.decoded.scales.len() >= num_steps * STEP / self.layout.format.group_len());
        let mut first = 0;
        while first < self.acc.len() {
            // As many rows as there are registers for their two chains.
            first += match self.acc.len() - first {
                8.. if S::COLS > 1 => self.rows::<8, S>(simd, first),
                4.. if S::COLS > 1 => self.rows::<4, S>(simd, first),
                2.. => self.rows::<2, S>(simd, first),
                _ => self.rows::<1, S>(simd, first),
            };
        }
    }
}

impl Accumulate<'_> {
    /// `ROWS` rows from `first` on.
    #[inline(always)]
    fn rows<const ROWS: usize, S: Simd>(&mut self, simd: S, first: usize) -> usize {
        let (group_len, has_min) = (
            self.layout.format.group_len(),
            self.layout.format.has_min(),
        );
        let groups_per_step = STEP / group_len;
        let num_pairs = group_len / 2;
        let num_planes = num_planes(self.layout);
        let num_groups = self.decoded.values.len() / step_len(self.layout) * groups_per_step;
        let acc = self.acc[first..first + ROWS].as_mut_ptr().cast::<f32>();
        let mut total = [simd.splat(0.0); ROWS];
        // SAFETY: all lies inside the slices by the lengths that `call` has checked: a group's
        // pairs inside its planes, rows `first..first + ROWS` inside tile and sums.
        unsafe {
            for (r, total) in total.iter_mut().enumerate() {
                *total = simd.load(acc.add(r * LANES));
            }
            for group in 0..num_groups {
                let (step, part) = (group / groups_per_step, group % groups_per_step);
                let x = self.x.as_ptr().add(step * TILE_STEP + first * STEP + part * group_len);
                let values = self.decoded.values.as_ptr().add(step * step_len(self.layout));
                let mut sums = [simd.splat(0.0); ROWS];
                for plane in 0..num_planes {
                    let mut w = values.add(plane * PLANE + part * num_pairs * 2 * LANES);
                    let mut chains = [[simd.splat(0.0); 2]; ROWS];
                    for pair in 0..num_pairs {
                        let (even, odd) = (simd.load(w), simd.load(w.add(LANES)));
                        for (r, chain) in chains.iter_mut().enumerate() {
                            let x = x.add(r * STEP + 2 * pair);
                            // Such a product is exact: fused or not, the result is the same.
                            chain[0] = simd.fma(simd.splat(*x), even, chain[0]);
                            chain[1] = simd.fma(simd.splat(*x.add(1)), odd, chain[1]);
                        }
                        w = w.add(2 * LANES);
                    }
                    for (sum, chain) in sums.iter_mut().zip(chains) {
                        *sum = simd.add(*sum, simd.add(chain[0], chain[1]));
                    }
                }
                let scales = self.decoded.scales.as_ptr().add(group).cast::<f32>();
                let scale = simd.load(scales);
                for (total, sum) in total.iter_mut().zip(sums) {
                    *total = simd.fused(sum, scale, *total);
                }
                if has_min {
                    let min = simd.load(scales.add(LANES));
                    let x_sums = self.x_sums.as_ptr().add(step * TILE_ROWS + first);
                    for (r, total) in total.iter_mut().enumerate() {
                        *total = simd.fused(simd.splat(*x_sums.add(r)), min, *total);
                    }
                }
            }
            for (r, total) in total.into_iter().enumerate() {
                simd.store(acc.add(r * LANES), total);
            }
        }
        ROWS
    }
}
