//! The product, row by row, on any instruction set.

use super::inputs::{TILE_ROWS, TILE_STEP};
use super::panel::{Format, LANES, PanelLayout, STEP};
use super::weights::{Steps, decode, with_bits};
use crate::cpu::simd::{Kernel, Simd};

/// Most rows of a [`Direct`] product.
pub(super) const MAX_DIRECT_ROWS: usize = 4;

/// A few rows times one or two panels, whose weights are widened in registers and used at once.
pub(super) struct Direct<'a> {
    pub(super) layout: &'a PanelLayout,
    pub(super) panels: &'a [&'a [u8]],
    /// Inputs of the rows' tile, `[step][TILE_ROWS][STEP]`.
    pub(super) x: &'a [f32],
    /// At most [`MAX_DIRECT_ROWS`].
    pub(super) num_rows: usize,
    /// Sums of each panel's rows, from zero.
    pub(super) sums: &'a mut [[[f32; LANES]; TILE_ROWS]; 2],
}

impl Kernel for Direct<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        match self.num_rows {
            1 => self.rows::<S, 1>(simd),
            2 => self.rows::<S, 2>(simd),
            3 => self.rows::<S, 3>(simd),
            MAX_DIRECT_ROWS => self.rows::<S, MAX_DIRECT_ROWS>(simd),
            num_rows => unreachable!("{num_rows} rows at once"),
        }
    }
}

impl Direct<'_> {
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(self, simd: S) {
        let num_steps = self.layout.num_steps;
        assert!(self.x.len() >= num_steps * TILE_STEP && ROWS <= TILE_ROWS);
        for (panel, out) in self.panels.iter().zip(self.sums) {
            let steps = Steps::new(self.layout, panel, 0, num_steps).ahead(1);
            let mut sums = [simd.splat(0.0); ROWS];
            // SAFETY: there are `num_steps` steps of weights and of inputs, as asserted.
            unsafe {
                with_bits!(
                    self.layout.format,
                    direct[ROWS](simd, steps, self.x.as_ptr(), &mut sums)
                );
                for (out, sum) in out.iter_mut().zip(sums) {
                    simd.store(out.as_mut_ptr(), sum);
                }
            }
        }
    }
}

/// Adds all steps of a panel to the sums of rows.
///
/// # Safety
/// `LOW`, `HIGH` and `GROUPS` are the format's; `steps` is at the first step of the panel, and `x`
/// at the rows of as many steps of a tile.
#[inline(always)]
unsafe fn direct<
    S: Simd,
    const LOW: u32,
    const HIGH: u32,
    const GROUPS: usize,
    const ROWS: usize,
>(
    simd: S,
    mut steps: Steps<'_>,
    mut x: *const f32,
    sums: &mut [S::F; ROWS],
) {
    for _ in 0..steps.len() {
        let mut chains = [[simd.splat(0.0); 2]; ROWS];
        // SAFETY: the caller's promise.
        unsafe {
            let step = steps.next::<S, LOW, HIGH, GROUPS>(simd);
            step.pairs(|pair, even, odd| {
                // Weights that are bf16 already need not be cut.
                let (even, odd) = match LOW {
                    16 => (even, odd),
                    _ => (simd.truncate_to_bf16(even), simd.truncate_to_bf16(odd)),
                };
                link(simd, &mut chains, x.add(2 * pair), [even, odd]);
            });
        }
        close(simd, sums, chains);
        x = x.wrapping_add(TILE_STEP);
    }
}

/// Adds a pair of inputs of each row to its chains.
///
/// # Safety
/// `x` is at a pair of inputs of `ROWS` rows of a tile's step.
#[inline(always)]
unsafe fn link<S: Simd, const ROWS: usize>(
    simd: S,
    chains: &mut [[S::F; 2]; ROWS],
    x: *const f32,
    weights: [S::F; 2],
) {
    for (r, chains) in chains.iter_mut().enumerate() {
        for (parity, chain) in chains.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let x = simd.splat(unsafe { *x.add(r * STEP + parity) });
            // The product of two bf16 is exact: fused or not, the result is the same.
            *chain = simd.fma(x, weights[parity], *chain);
        }
    }
}

/// Adds the chains of a step to the sums.
#[inline(always)]
fn close<S: Simd, const ROWS: usize>(simd: S, sums: &mut [S::F; ROWS], chains: [[S::F; 2]; ROWS]) {
    for (sum, [even, odd]) in sums.iter_mut().zip(chains) {
        *sum = simd.add(*sum, simd.add(even, odd));
    }
}

/// Widens steps of a panel for [`Decoded`].
pub(super) struct Decode<'a> {
    pub(super) layout: &'a PanelLayout,
    pub(super) panel: &'a [u8],
    pub(super) first_step: usize,
    /// `[step][pair][parity][LANES]`, for as many steps as are wanted.
    pub(super) weights: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let num_steps = self.weights.len() / (STEP * LANES);
        let steps = Steps::new(self.layout, self.panel, self.first_step, num_steps);
        // SAFETY: there are as many steps as there is room for.
        unsafe { with_bits!(self.layout.format, decode[](simd, steps, self.weights)) }
    }
}

/// Rows of a tile times steps of a panel that were widened before.
pub(super) struct Decoded<'a> {
    /// `[step][pair][parity][LANES]`.
    pub(super) weights: &'a [f32],
    /// Inputs of the tile, `[step][TILE_ROWS][STEP]`.
    pub(super) x: &'a [f32],
    /// Sums of the tile's first rows, added to; at most [`TILE_ROWS`].
    pub(super) sums: &'a mut [[f32; LANES]],
}

impl Kernel for Decoded<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(mut self, simd: S) {
        let num_steps = self.weights.len() / (STEP * LANES);
        assert!(self.sums.len() <= TILE_ROWS && self.x.len() >= num_steps * TILE_STEP);
        let mut first = 0;
        while first < self.sums.len() {
            // As many rows as there are registers for their chains.
            first += match self.sums.len() - first {
                8.. if S::COLS > 1 => self.rows::<S, 8>(simd, first),
                4.. if S::COLS > 1 => self.rows::<S, 4>(simd, first),
                2.. => self.rows::<S, 2>(simd, first),
                _ => self.rows::<S, 1>(simd, first),
            };
        }
    }
}

impl Decoded<'_> {
    /// Rows `first..first + ROWS`; returns their number.
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(&mut self, simd: S, first: usize) -> usize {
        let out = &mut self.sums[first..first + ROWS];
        let mut sums = [simd.splat(0.0); ROWS];
        // SAFETY: a row of sums is as long as a vector; the rows and as many steps of inputs as of
        // weights lie inside `x`, as `call` has checked.
        unsafe {
            for (sum, out) in sums.iter_mut().zip(&*out) {
                *sum = simd.load(out.as_ptr());
            }
            for (step, weights) in self.weights.chunks_exact(STEP * LANES).enumerate() {
                let x = self.x.as_ptr().add(step * TILE_STEP + first * STEP);
                let mut chains = [[simd.splat(0.0); 2]; ROWS];
                for (pair, weights) in weights.chunks_exact(2 * LANES).enumerate() {
                    let (even, odd) = weights.split_at(LANES);
                    let weights = [simd.load(even.as_ptr()), simd.load(odd.as_ptr())];
                    link(simd, &mut chains, x.add(2 * pair), weights);
                }
                close(simd, &mut sums, chains);
            }
            for (sum, out) in sums.into_iter().zip(out) {
                simd.store(out.as_mut_ptr(), sum);
            }
        }
        ROWS
    }
}
