//! Products on the matrix unit: of two panels at once, and of two tiles of rows after two.
//!
//! Weights are widened on the ports of vectors, a step at a time, between the products of the first
//! two tiles, so that both go on at once. Later tiles find them widened:
//!
//! ```text
//! widen:      step 0  step 1  step 2  step 3  ...
//! tiles 0, 1:                 step 0  step 1  ...           LAG steps behind
//! tiles 2, 3:                                      step 0  step 1  ...
//! ```
//!
//! Weights that are bf16 are packed as the unit reads them, and need no widening.

use std::ops::Range;

use super::amx::{self, InputStep, Session, WeightStep};
use super::inputs::TILE_ROWS;
use super::panel::{Format, LANES, LINE, PAIRS};
use super::weights::{PREFETCH, Steps, with_bits};
use super::{CHUNK_STEPS, Product, Scratch, ZERO_SUMS};
use crate::cpu::simd::{Avx512, Kernel, Simd};

/// Steps between widening and use: stores have then left for the cache, where tiles are read from.
const LAG: usize = 2;

/// Widened steps that are kept where only two tiles need them; a power of two above [`LAG`].
const RING: usize = 4;

/// The rows of a block times pairs of panels.
pub(super) fn run(
    block: Product<'_>,
    pairs: impl Iterator<Item = Range<usize>>,
    scratch: &mut Scratch,
) {
    // SAFETY: `linear` keeps an instruction set only if the machine supports it.
    let session = unsafe { Session::new(block.rows.len()) };
    // It is there where the matrix unit is.
    if let Some(simd) = Avx512::new() {
        simd.vectorize(Tiles {
            block,
            pairs,
            session,
            scratch,
        });
    }
}

struct Tiles<'a, I> {
    block: Product<'a>,
    pairs: I,
    session: Session,
    scratch: &'a mut Scratch,
}

impl<I: Iterator<Item = Range<usize>>> Kernel for Tiles<'_, I> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let (block, Scratch { weights, sums }) = (&self.block, self.scratch);
        let num_steps = block.w.layout.num_steps;
        let num_blocks = block.num_tiles().div_ceil(2);
        // Two tiles alone take all steps in one go: widened weights are not needed again.
        let (max_steps, num_kept) = match num_blocks {
            1 => (num_steps, RING),
            _ => (CHUNK_STEPS, CHUNK_STEPS),
        };
        weights.grow(2 * num_kept * size_of::<WeightStep>());
        let (left, right) = weights.as_mut_slice()[..2 * num_kept].split_at_mut(num_kept);
        let mut widened = [left, right];
        for pair in self.pairs {
            for steps in block.chunks(max_steps) {
                let (start, end) = (steps.start == 0, steps.end == num_steps);
                // Sums that are not carried on need no place of their own.
                let num_sums = if start && end { 1 } else { num_blocks };
                if sums.len() < num_sums {
                    sums.resize(num_sums, ZERO_SUMS);
                }
                for i in 0..num_blocks {
                    let num_tiles = (block.num_tiles() - 2 * i).min(2);
                    let tiles = [2 * i, 2 * i + num_tiles - 1];
                    let part = Part {
                        block,
                        session: &self.session,
                        panels: [pair.start, pair.end - 1],
                        steps: steps.clone(),
                        x: tiles.map(|tile| &block.x(tile).as_chunks().0[steps.clone()]),
                        num_tiles,
                    };
                    if end {
                        block.prefetch(&pair, 2 * i);
                    }
                    let sums = &mut sums[i % num_sums];
                    self.session.start(num_tiles, (!start).then_some(&*sums));
                    match block.w.layout.format {
                        Format::Bf16 => part.multiply_packed(simd),
                        Format::Blocks(_) if i == 0 => part.widen_and_multiply(simd, &mut widened),
                        Format::Blocks(_) => part.multiply(&widened),
                    }
                    self.session.store(num_tiles, sums);
                    if end {
                        block.finish(&pair, 2 * i, sums).call(simd);
                    }
                }
            }
        }
    }
}

/// Some steps of one or two tiles of rows and of two panels.
struct Part<'a> {
    block: &'a Product<'a>,
    session: &'a Session,
    /// The same twice where there is one: what the second gives is not stored.
    panels: [usize; 2],
    steps: Range<usize>,
    /// Inputs of the tiles; the same twice where there is one.
    x: [&'a [InputStep]; 2],
    num_tiles: usize,
}

impl Part<'_> {
    /// Adds the products of a step of all tiles and one of the panels.
    #[inline(always)]
    fn add(&self, step: usize, panel: usize, weights: &WeightStep) {
        for tile in 0..2 {
            self.add_tile(tile, step, panel, weights);
        }
    }

    /// Adds the products of a step of one of the tiles, if there is such, and one of the panels.
    #[inline(always)]
    fn add_tile(&self, tile: usize, step: usize, panel: usize, weights: &WeightStep) {
        if tile < self.num_tiles {
            self.session.add(tile, panel, &self.x[tile][step], weights);
        }
    }

    /// With weights that were widened before.
    #[inline(always)]
    fn multiply(&self, widened: &[&mut [WeightStep]; 2]) {
        for step in 0..self.steps.len() {
            for (panel, widened) in widened.iter().enumerate() {
                self.add(step, panel, &widened[step]);
            }
        }
    }

    /// With weights that are bf16, as they lie.
    #[inline(always)]
    fn multiply_packed<S: Simd>(&self, simd: S) {
        let w = self.block.w;
        let bytes = w.layout.low(self.steps.start)..w.layout.low(self.steps.end);
        let panels = self.panels.map(|panel| &w.panel(panel)[bytes.clone()]);
        let panels = panels.map(bytemuck::cast_slice::<u8, WeightStep>);
        for step in 0..self.steps.len() {
            for (panel, weights) in panels.iter().enumerate() {
                let weights = &weights[step];
                for line in 0..PAIRS {
                    simd.prefetch(weights.as_ptr().wrapping_byte_add(PREFETCH + line * LINE));
                }
                self.add(step, panel, weights);
            }
        }
    }

    /// With weights that are widened on the way, and kept in `widened`: the last of them, where it
    /// has not room for all.
    #[inline(always)]
    fn widen_and_multiply<S: Simd>(&self, simd: S, widened: &mut [&mut [WeightStep]; 2]) {
        let w = self.block.w;
        let walks = self.panels.map(|panel| {
            Steps::new(
                &w.layout,
                w.panel(panel),
                self.steps.start,
                self.steps.len(),
            )
            .ahead(2)
        });
        // SAFETY: the bits are the format's.
        unsafe { with_bits!(w.layout.format, widen_and_multiply[](simd, self, walks, widened)) }
    }
}

/// # Safety
/// `LOW`, `HIGH` and `GROUPS` are the format's.
#[inline(always)]
unsafe fn widen_and_multiply<S: Simd, const LOW: u32, const HIGH: u32, const GROUPS: usize>(
    simd: S,
    part: &Part<'_>,
    mut walks: [Steps<'_>; 2],
    widened: &mut [&mut [WeightStep]; 2],
) {
    let num_steps = part.steps.len();
    let mask = if widened[0].len() < num_steps {
        RING - 1
    } else {
        usize::MAX
    };
    for step in 0..num_steps {
        for (panel, walk) in walks.iter_mut().enumerate() {
            let out = widened[panel][step & mask].as_mut_ptr();
            // SAFETY: there are so many steps; the caller's promise.
            let weights = unsafe { walk.next::<S, LOW, HIGH, GROUPS>(simd) };
            // One product after each half: it takes half of the multipliers, for as long as half of
            // the half needs all of them. (Four in a row: a sixth slower.)
            for half in 0..2 {
                weights.half(half, |pair, even, odd| {
                    // SAFETY: a step has room for all its pairs.
                    unsafe { simd.store_pairs(out.add(pair * 2 * LANES), even, odd) };
                });
                if let Some(ready) = step.checked_sub(LAG) {
                    part.add_tile(half, ready, panel, &widened[panel][ready & mask]);
                }
            }
        }
    }
    for step in num_steps.saturating_sub(LAG)..num_steps {
        for (panel, widened) in widened.iter().enumerate() {
            part.add(step, panel, &widened[step & mask]);
        }
    }
}

impl Product<'_> {
    /// Asks for what [`finish`](Self::finish) will write, to write it.
    fn prefetch(&self, panels: &Range<usize>, first_tile: usize) {
        let start = match self.out.is_gated {
            true => panels.start / 2 * LANES,
            false => panels.start * LANES,
        };
        let first_row = self.rows.start + first_tile * TILE_ROWS;
        for row in first_row..self.rows.end.min(first_row + 2 * TILE_ROWS) {
            let at = self.out.address(row, start);
            amx::prefetch_to_write(at);
            if !self.out.is_gated {
                amx::prefetch_to_write(at.wrapping_add(LANES));
            }
        }
    }
}
