//! What becomes of sums: they are stored, added, or gate each other.

use std::ops::Range;

use super::inputs::TILE_ROWS;
use super::panel::LANES;
use super::{Output, Sums};
use crate::cpu::simd::{Kernel, Simd};

/// Stores what becomes of the sums of two tiles and panels.
pub(super) struct Finish<'a> {
    pub(super) out: &'a Output<'a>,
    pub(super) sums: &'a Sums,
    pub(super) rows: Range<usize>,
    pub(super) panels: &'a Range<usize>,
    /// Of all panels.
    pub(super) num_outputs: usize,
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        // Those past the last output are not stored.
        let lanes = |start: usize, end: usize| end.saturating_sub(start).min(LANES);
        let tiles = self.rows.clone().step_by(TILE_ROWS);
        for (first, [left, right]) in tiles.zip(self.sums) {
            let rows = (first..self.rows.end).zip(left.iter().zip(right));
            if self.out.is_gated {
                let start = self.panels.start / 2 * LANES;
                let lanes = lanes(start, self.out.width);
                for (row, (gate, up)) in rows {
                    let gated = simd.silu_mul_lanes(gate, up);
                    self.out.store_lanes(simd, row, start, &gated, lanes);
                }
                continue;
            }
            let start = self.panels.start * LANES;
            let (first, second) = (
                lanes(start, self.num_outputs),
                lanes(start + LANES, self.num_outputs),
            );
            for (row, (left, right)) in rows {
                self.out.store_lanes(simd, row, start, left, first);
                if self.panels.len() == 2 {
                    self.out
                        .store_lanes(simd, row, start + LANES, right, second);
                }
            }
        }
    }
}
