//! Input rows as the grouped kernels read them.

use super::panel::STEP;
use crate::cpu::aligned::Lines;
use crate::cpu::disjoint::DisjointSlice;
use crate::cpu::simd::{Kernel, Simd, dispatch};
use crate::cpu::{Isa, ThreadPool};

/// Rows of a tile of inputs.
pub(super) const TILE_ROWS: usize = 16;

/// Below this many elements a parallel region costs more than it saves.
const MIN_PARALLEL: usize = 8192;

/// Elements of a tile's step.
pub(super) const TILE_STEP: usize = TILE_ROWS * STEP;

/// Rows rounded to bf16, `[tile][step][TILE_ROWS][STEP]`.
///
/// Rows that the last tile lacks hold anything: what is computed of them is not stored.
#[derive(Default)]
pub(in super::super) struct Inputs {
    values: Lines,
    num_steps: usize,
}

/// How an input is kept.
pub(super) trait Value: bytemuck::Pod + Send + Sync {
    fn from_bf16(bits: u16) -> Self;
}

/// As it is, for the matrix unit.
impl Value for u16 {
    #[inline(always)]
    fn from_bf16(bits: u16) -> u16 {
        bits
    }
}

/// Widened, for all others.
impl Value for f32 {
    #[inline(always)]
    fn from_bf16(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
}

impl Inputs {
    /// Rounds rows, `cols` long each; `cols` is a multiple of [`STEP`].
    pub(super) fn load<T: Value>(&mut self, pool: &ThreadPool, isa: Isa, x: &[f32], cols: usize) {
        let num_rows = x.len() / cols;
        let num_tiles = num_rows.div_ceil(TILE_ROWS);
        self.num_steps = cols / STEP;
        let len = num_tiles * self.num_steps * TILE_STEP;
        self.values.grow(len * size_of::<T>());
        let values = DisjointSlice::new(&mut self.values.as_mut_slice::<T>()[..len]);
        // A few rows are sooner done than shared out.
        let num_tasks = if x.len() < MIN_PARALLEL {
            1
        } else {
            pool.num_threads() * 4
        };
        let per_task = num_rows.div_ceil(num_tasks);
        pool.for_each(num_rows.div_ceil(per_task), |task| {
            let rows = task * per_task..num_rows.min((task + 1) * per_task);
            dispatch(
                isa,
                Round {
                    rows,
                    x,
                    cols,
                    out: &values,
                },
            );
        });
    }

    /// A tile's values, `[step][TILE_ROWS][STEP]`.
    pub(super) fn tile<T: Value>(&self, tile: usize) -> &[T] {
        let len = self.num_steps * TILE_STEP;
        &self.values.as_slice()[tile * len..(tile + 1) * len]
    }
}

/// Rounds some rows.
struct Round<'a, T> {
    rows: std::ops::Range<usize>,
    /// `[row][cols]`.
    x: &'a [f32],
    cols: usize,
    /// `[tile][step][TILE_ROWS][STEP]`; these rows are touched by nobody else.
    out: &'a DisjointSlice<'a, T>,
}

impl<T: Value> Kernel for Round<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        let num_steps = self.cols / STEP;
        for row in self.rows {
            let (tile, r) = (row / TILE_ROWS, row % TILE_ROWS);
            let x = self.x[row * self.cols..][..self.cols].as_chunks::<STEP>().0;
            for (step, x) in x.iter().enumerate() {
                let start = (tile * num_steps + step) * TILE_STEP + r * STEP;
                // SAFETY: a row has its own elements.
                let out = unsafe { self.out.part(start..start + STEP) };
                for (x, out) in x.iter().zip(out) {
                    *out = T::from_bf16(round(*x));
                }
            }
        }
    }
}

/// An f32's bf16, rounded to nearest even. Subnormal numbers become zero, as the matrix
/// instructions treat them.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    let rounded = if magnitude < 0x0080_0000 {
        (bits >> 16) & 0x8000
    } else {
        rounded
    };
    let rounded = if magnitude > 0x7f80_0000 {
        (bits >> 16) | 0x40
    } else {
        rounded
    };
    rounded as u16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_and_keeps_what_is_no_number() {
        for x in [
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.003_906_3,
            1.011_718_8,
            3.4e38,
            f32::MAX,
            1e-30,
            -7.3,
        ] {
            assert_eq!(round(x), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert_eq!(round(f32::INFINITY), bf16::INFINITY.to_bits());
        assert_eq!(round(f32::NEG_INFINITY), bf16::NEG_INFINITY.to_bits());
        assert!(bf16::from_bits(round(f32::NAN)).is_nan());
        assert!(bf16::from_bits(round(f32::from_bits(0x7fff_ffff))).is_nan());
        assert_eq!(round(-1e-40), 0x8000);
    }
}
