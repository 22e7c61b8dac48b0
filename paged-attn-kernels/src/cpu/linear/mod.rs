//! Linear layers: rows of activations times a packed weight matrix.
//!
//! A row's result is a function of the row and the weights alone: every output
//! is one chain of fused multiply-adds in the order of the inputs, whatever
//! rows share the batch, however many threads there are, and with AVX-512 as
//! with AVX2. General matrix libraries choose their blocking, and with it the
//! order of summation, by the shape of the whole product.
//!
//! Few rows stream the weights from memory and widen bf16 in registers; many
//! rows widen a panel once into a scratch buffer that stays in the second cache
//! level and reuse it for every tile of 12 rows.

mod packed;
mod storage;
mod tile;

pub use packed::{MatrixDtype, PackedMatrix};

use packed::{PANEL, Panel};
use tile::{Inputs, MAX_ROWS, Weight};

use super::{Isa, ThreadPool, disjoint::DisjointSlice};
use crate::KernelError;
use crate::error::check_len;

/// What happens to what `out` holds.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Overwrites `out`.
    Store,
    /// Overwrites `out`; adds a bias, one value an output.
    Bias(&'a [f32]),
    /// Adds to `out`: the residual connection.
    Add,
}

/// Buffers of [`linear`] that live from call to call, so that a step does not allocate.
#[derive(Default)]
pub struct LinearScratch {
    /// Input rows in tiles, `[tile][cols][MAX_ROWS]`.
    tiles: Vec<f32>,
    /// A widened panel for each thread, `[cols, PANEL]`.
    panels: Vec<f32>,
}

/// Most rows that are read in place; more are first copied into tiles.
const MAX_DIRECT_ROWS: usize = 4;

/// `out = x * w^T`, with an epilogue.
///
/// `x`: `[num_rows, w.cols()]`, `out`: `[num_rows, w.rows()]`, both row-major and dense.
/// Sums are f32, in the order of the inputs.
///
/// # Errors
/// [`KernelError::Length`] if `x`, `out` or the bias is not as long as the shapes say.
pub fn linear(
    pool: &ThreadPool,
    isa: Isa,
    scratch: &mut LinearScratch,
    x: &[f32],
    w: &PackedMatrix,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let num_rows = check_shapes(x, w, epilogue, out)?;
    if num_rows == 0 || w.rows() == 0 {
        return Ok(());
    }
    let isa = if isa.is_supported() { isa } else { Isa::Scalar };
    let direct = num_rows <= MAX_DIRECT_ROWS;
    if !direct {
        tile_inputs(pool, x, w.cols(), num_rows, &mut scratch.tiles);
    }
    let widen = w.dtype() == MatrixDtype::Bf16 && num_rows > MAX_ROWS;
    if widen {
        scratch
            .panels
            .resize(pool.num_threads() * w.cols() * PANEL, 0.0);
    }
    let panels = DisjointSlice::new(&mut scratch.panels);
    let product = Product {
        isa,
        inputs: if direct { x } else { &scratch.tiles },
        direct,
        num_rows,
        w,
        epilogue,
        out: DisjointSlice::new(out),
    };
    // About 16 tasks a thread: dynamic enough to even out noise, coarse enough to be cheap.
    let per_task = w.num_panels().div_ceil(pool.num_threads() * 16);
    pool.for_each_with_worker(w.num_panels().div_ceil(per_task), |worker, task| {
        let range = task * per_task..w.num_panels().min((task + 1) * per_task);
        for index in range {
            let panel = w.panel(index);
            match panel {
                Panel::Bf16(weights) if widen => {
                    let len = weights.len();
                    // SAFETY: each worker has a range of its own.
                    let wide = unsafe { panels.part(worker * len..(worker + 1) * len) };
                    for (wide, weight) in wide.iter_mut().zip(weights) {
                        *wide = weight.widen();
                    }
                    product.panel(index, &*wide);
                }
                Panel::Bf16(weights) => product.panel(index, weights),
                Panel::F32(weights) => product.panel(index, weights),
            }
        }
    });
    Ok(())
}

fn check_shapes(
    x: &[f32],
    w: &PackedMatrix,
    epilogue: Epilogue<'_>,
    out: &[f32],
) -> Result<usize, KernelError> {
    let num_rows = if w.cols() == 0 { 0 } else { x.len() / w.cols() };
    check_len("linear: x", num_rows * w.cols(), x.len())?;
    check_len("linear: out", num_rows * w.rows(), out.len())?;
    match epilogue {
        Epilogue::Bias(bias) => check_len("linear: bias", w.rows(), bias.len())?,
        Epilogue::Store | Epilogue::Add => {}
    }
    Ok(num_rows)
}

/// Copies rows into tiles `[cols][MAX_ROWS]`, so that a tile's inputs are read as one stream.
/// The last tile's missing rows keep what they held: their sums are not stored.
fn tile_inputs(pool: &ThreadPool, x: &[f32], cols: usize, num_rows: usize, tiles: &mut Vec<f32>) {
    let num_tiles = num_rows.div_ceil(MAX_ROWS);
    tiles.resize(num_tiles * cols * MAX_ROWS, 0.0);
    let tiles = DisjointSlice::new(tiles);
    pool.for_each(num_tiles, |tile| {
        // SAFETY: one task a tile.
        let out = unsafe { tiles.part(tile * cols * MAX_ROWS..(tile + 1) * cols * MAX_ROWS) };
        let first = tile * MAX_ROWS;
        for (r, row) in x.chunks_exact(cols).skip(first).take(MAX_ROWS).enumerate() {
            for (&value, slot) in row.iter().zip(out[r..].iter_mut().step_by(MAX_ROWS)) {
                *slot = value;
            }
        }
    });
}

/// A product under way: everything a panel's task reads.
struct Product<'a> {
    isa: Isa,
    inputs: &'a [f32],
    direct: bool,
    num_rows: usize,
    w: &'a PackedMatrix,
    epilogue: Epilogue<'a>,
    out: DisjointSlice<'a, f32>,
}

impl Product<'_> {
    /// All rows against one panel.
    fn panel<W: Weight>(&self, panel: usize, weights: &[W]) {
        let mut first = 0;
        while first < self.num_rows {
            first += match self.num_rows - first {
                1 => self.tile::<1, W>(panel, weights, first),
                2 => self.tile::<2, W>(panel, weights, first),
                3 => self.tile::<3, W>(panel, weights, first),
                4 => self.tile::<4, W>(panel, weights, first),
                5..=8 => self.tile::<8, W>(panel, weights, first),
                _ => self.tile::<MAX_ROWS, W>(panel, weights, first),
            };
        }
    }

    fn tile<const ROWS: usize, W: Weight>(
        &self,
        panel: usize,
        weights: &[W],
        first: usize,
    ) -> usize {
        let inputs = if self.direct {
            Inputs {
                values: &self.inputs[first * self.w.cols()..],
                row_stride: self.w.cols(),
                input_stride: 1,
            }
        } else {
            let start = first / MAX_ROWS * self.w.cols() * MAX_ROWS + first % MAX_ROWS;
            Inputs {
                values: &self.inputs[start..],
                row_stride: 1,
                input_stride: MAX_ROWS,
            }
        };
        let mut sums = [[0.0; PANEL]; ROWS];
        match self.isa {
            // SAFETY: `linear` keeps an instruction set only if the machine supports it.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { tile::x86::avx512(inputs, weights, &mut sums) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { tile::x86::avx2(inputs, weights, &mut sums) },
            _ => tile::scalar(inputs, weights, &mut sums),
        }
        let num_rows = ROWS.min(self.num_rows - first);
        self.store(panel, first, &sums[..num_rows]);
        num_rows
    }

    fn store(&self, panel: usize, first: usize, sums: &[[f32; PANEL]]) {
        let (start, n) = (panel * PANEL, self.w.rows());
        let lanes = PANEL.min(n - start);
        for (r, sums) in sums.iter().enumerate() {
            let at = (first + r) * n + start;
            // SAFETY: a panel's columns belong to one task.
            let out = unsafe { self.out.part(at..at + lanes) };
            match self.epilogue {
                Epilogue::Store => out.copy_from_slice(&sums[..lanes]),
                Epilogue::Bias(bias) => {
                    for ((out, sum), b) in out.iter_mut().zip(sums).zip(&bias[start..]) {
                        *out = sum + b;
                    }
                }
                Epilogue::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
            }
        }
    }
}

#[cfg(test)]
mod tests;
