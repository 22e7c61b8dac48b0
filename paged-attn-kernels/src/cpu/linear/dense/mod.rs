//! Products with weights kept as numbers, f32 or bf16, in f32 throughout.
//!
//! Every output is one chain of fused multiply-adds in the order of the inputs, whatever rows
//! share the batch, however many threads there are, and with AVX-512 as with AVX2. General matrix
//! libraries choose their blocking, and with it the order of summation, by the shape of the whole
//! product.
//!
//! Few rows stream the weights from memory and widen bf16 in registers; many rows widen a panel
//! once into a scratch buffer that stays in the second cache level and reuse it for every tile of
//! 12 rows.

mod tile;

use half::bf16;
use tile::{Inputs, MAX_ROWS, Weight};

use super::storage::Storage;
use super::{Isa, Output};
use crate::cpu::{ThreadPool, disjoint::DisjointSlice};

/// Most rows that are read in place; more are first copied into tiles.
const MAX_DIRECT_ROWS: usize = 4;

/// Output rows that lie side by side in a panel: two AVX-512 vectors, four AVX2 ones.
const PANEL: usize = 32;

/// How the elements of a matrix that is not quantised are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixDtype {
    /// 4 bytes an element, exact.
    F32,
    /// 2 bytes an element: the upper half of an f32, rounded to nearest even.
    Bf16,
}

/// Weights `[rows, cols]`: `rows` outputs of `cols` inputs.
///
/// ```text
/// panel p holds the output rows 32 p .. 32 p + 31:
///
///   input 0: row 0, row 1, ... row 31 | input 1: row 0, ... row 31 | ... | input cols - 1
/// ```
///
/// A vector load thus gives one input's weights for many outputs, and every
/// output has a lane of its own: its sum is one chain of fused multiply-adds
/// in the order of the inputs, on every instruction set and for every batch.
/// The rows of the last panel past `rows` are zero.
pub(super) struct DenseMatrix {
    rows: usize,
    cols: usize,
    dtype: MatrixDtype,
    storage: Storage,
}

impl DenseMatrix {
    /// Packs a matrix whose rows `read_row(row, out)` provides, `out` being `cols` long.
    ///
    /// Panels are packed in parallel. Rows may be read in any order, each once.
    ///
    /// # Errors
    /// The first error `read_row` gives.
    pub(super) fn pack<E: Send>(
        pool: &ThreadPool,
        (rows, cols): (usize, usize),
        dtype: MatrixDtype,
        read_row: impl Fn(usize, &mut [f32]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        let num_panels = rows.div_ceil(PANEL);
        let panel_len = cols * PANEL;
        let bytes = num_panels * panel_len * dtype.bytes();
        let mut storage = Storage::zeroed(bytes);
        let error = std::sync::Mutex::new(None);
        let elements = DisjointSlice::new(storage.bytes_mut());
        pool.for_each(num_panels, |panel| {
            let panel_bytes = panel_len * dtype.bytes();
            // SAFETY: every panel is its own range of bytes and one task's alone.
            let out = unsafe { elements.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
            let panel_rows = panel * PANEL..rows.min((panel + 1) * PANEL);
            if let Err(e) = pack_panel(panel_rows, cols, dtype, &read_row, out) {
                *error
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
            }
        });
        match error
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            Some(e) => Err(e),
            None => Ok(DenseMatrix {
                rows,
                cols,
                dtype,
                storage,
            }),
        }
    }

    /// Number of outputs.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Memory the matrix takes.
    pub(super) fn num_bytes(&self) -> usize {
        self.storage.bytes().len()
    }

    /// Copies one row out, `out` being `cols` long.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let lane = row % PANEL;
        match self.panel(row / PANEL) {
            Panel::F32(panel) => {
                for (x, w) in out.iter_mut().zip(panel.chunks_exact(PANEL)) {
                    *x = w[lane];
                }
            }
            Panel::Bf16(panel) => {
                for (x, w) in out.iter_mut().zip(panel.chunks_exact(PANEL)) {
                    *x = w[lane].to_f32();
                }
            }
        }
    }

    fn num_panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Elements of a panel, `[cols, PANEL]`.
    fn panel(&self, panel: usize) -> Panel<'_> {
        let range = panel * self.cols * PANEL..(panel + 1) * self.cols * PANEL;
        match self.dtype {
            MatrixDtype::F32 => Panel::F32(&bytemuck::cast_slice(self.storage.bytes())[range]),
            MatrixDtype::Bf16 => Panel::Bf16(&bytemuck::cast_slice(self.storage.bytes())[range]),
        }
    }
}

impl MatrixDtype {
    /// Bytes an element takes.
    pub fn bytes(self) -> usize {
        match self {
            MatrixDtype::F32 => 4,
            MatrixDtype::Bf16 => 2,
        }
    }
}

/// A panel's elements, `[cols, PANEL]`.
#[derive(Clone, Copy)]
enum Panel<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

fn pack_panel<E>(
    rows: std::ops::Range<usize>,
    cols: usize,
    dtype: MatrixDtype,
    read_row: &impl Fn(usize, &mut [f32]) -> Result<(), E>,
    out: &mut [u8],
) -> Result<(), E> {
    let mut source = vec![0.0f32; rows.len() * cols];
    for (row, values) in rows.clone().zip(source.chunks_exact_mut(cols.max(1))) {
        read_row(row, values)?;
    }
    match dtype {
        MatrixDtype::F32 => interleave(&source, cols, bytemuck::cast_slice_mut(out), |x| x),
        MatrixDtype::Bf16 => {
            interleave(&source, cols, bytemuck::cast_slice_mut(out), bf16::from_f32);
        }
    }
    Ok(())
}

/// `[rows, cols]` to `[cols, PANEL]`, in square pieces that fit the first cache level.
fn interleave<T: Copy>(source: &[f32], cols: usize, out: &mut [T], convert: impl Fn(f32) -> T) {
    for first in (0..cols).step_by(PANEL) {
        let last = cols.min(first + PANEL);
        for (lane, row) in source.chunks_exact(cols).enumerate() {
            for col in first..last {
                out[col * PANEL + lane] = convert(row[col]);
            }
        }
    }
}

/// Buffers that live from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    /// Input rows in tiles, `[tile][cols][MAX_ROWS]`.
    tiles: Vec<f32>,
    /// A widened panel for each thread, `[cols, PANEL]`.
    panels: Vec<f32>,
}

/// The rows of `x` times a matrix.
pub(super) fn run(
    pool: &ThreadPool,
    isa: Isa,
    scratch: &mut Scratch,
    x: &[f32],
    w: &DenseMatrix,
    out: &Output<'_>,
) {
    let direct = out.num_rows <= MAX_DIRECT_ROWS;
    if !direct {
        tile_inputs(pool, x, w.cols, out.num_rows, &mut scratch.tiles);
    }
    let widen = w.dtype == MatrixDtype::Bf16 && out.num_rows > MAX_ROWS;
    if widen {
        scratch
            .panels
            .resize(pool.num_threads() * w.cols * PANEL, 0.0);
    }
    let panels = DisjointSlice::new(&mut scratch.panels);
    let product = Product {
        isa: isa.vectors(),
        inputs: if direct { x } else { &scratch.tiles },
        direct,
        w,
        out,
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
    w: &'a DenseMatrix,
    out: &'a Output<'a>,
}

impl Product<'_> {
    /// All rows against one panel.
    fn panel<W: Weight>(&self, panel: usize, weights: &[W]) {
        let mut first = 0;
        while first < self.out.num_rows {
            first += match self.out.num_rows - first {
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
                values: &self.inputs[first * self.w.cols..],
                row_stride: self.w.cols,
                input_stride: 1,
            }
        } else {
            let start = first / MAX_ROWS * self.w.cols * MAX_ROWS + first % MAX_ROWS;
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
        let num_rows = ROWS.min(self.out.num_rows - first);
        let start = panel * PANEL;
        let lanes = PANEL.min(self.w.rows - start);
        for (row, sums) in (first..).zip(&sums[..num_rows]) {
            self.out.store(row, start, &sums[..lanes]);
        }
        num_rows
    }
}
