//! Products of bf16 weights and bf16 inputs, summed in f32.
//!
//! Weights are bf16 or quantised; quantised ones stay packed and are widened on the way. What is
//! computed, for a row of inputs and an output:
//!
//! ```text
//! x'  = the inputs, rounded to bf16
//! w'  = the weights; quantised ones: scale' * code + min', rounded once to f32, then cut to bf16,
//!       where scale' and min' are the file's times 1 + ln 2 / 256
//! for each step of 32 inputs:
//!   even = x'[0] w'[0] + x'[2] w'[2] + ...      each a chain of multiply-adds from zero
//!   odd  = x'[1] w'[1] + x'[3] w'[3] + ...
//!   out  = out + (even + odd)
//! ```
//!
//! Products of two bf16 are exact in f32, and all back ends add them in this order: they agree bit
//! for bit (numbers below 2^-126 apart, which the matrix unit takes for zero), and a row's result
//! does not depend on the rows beside it.
//!
//! Inputs err by at most one part in 512 of each of them, so a few huge ones ("massive
//! activations") do not crush their neighbours, as they do when a group of inputs shares one 8-bit
//! scale. Cutting weights is an instruction less than rounding them, for each weight of each token;
//! stretched by half a bit before, they are right on average.
//!
//! Scaling the sums of each group instead would keep weights exact, and was measured: three times
//! slower from 64 rows on, since each tile's sums then leave the matrix unit every 32 inputs.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
mod finish;
mod format;
mod inputs;
mod panel;
mod quantise;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod weights;

use std::ops::Range;

use finish::Finish;
use format::Block;
pub use format::BlockFormat;
pub(super) use inputs::Inputs;
use inputs::{TILE_ROWS, TILE_STEP};
use panel::{Format, LANES, OVERRUN, PanelLayout, STEP};
pub use quantise::quantise_row;

use super::storage::Storage;
use super::{Isa, Output, ThreadPool};
use crate::cpu::aligned::Lines;
use crate::cpu::disjoint::DisjointSlice;
use crate::cpu::simd::{Kernel, Simd, dispatch};

/// Rows whose inputs stay in the second cache level while panels pass by.
const BLOCK_ROWS: usize = 256;

/// Most steps of a panel that are widened at once for the matrix unit: two panels of them and the
/// inputs of two tiles fit the first cache level. For vectors, half as many.
const CHUNK_STEPS: usize = 18;

/// Most rows whose weights are widened in registers where there is a matrix unit.
const MAX_DIRECT_ROWS_BESIDE_TILES: usize = 1;

/// Weights, `[rows, cols]`, in panels.
pub(super) struct Bf16Matrix {
    rows: usize,
    layout: PanelLayout,
    storage: Storage,
}

impl Bf16Matrix {
    /// Packs rows of blocks, which `read_row(row, out)` provides.
    ///
    /// `cols` is a multiple of the block length.
    pub(super) fn pack_blocks(
        pool: &ThreadPool,
        (rows, cols): (usize, usize),
        format: BlockFormat,
        read_row: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Self {
        let layout = PanelLayout::new(Format::Blocks(format), cols);
        let row_bytes = cols / format.block_len() * format.block_bytes();
        Self::pack(pool, rows, layout, |rows, panel| {
            let (mut row_of_blocks, mut block) = (vec![0; row_bytes], Block::empty());
            for (lane, row) in rows.enumerate() {
                read_row(row, &mut row_of_blocks);
                for (i, b) in row_of_blocks.chunks_exact(format.block_bytes()).enumerate() {
                    block.read(format, b);
                    layout.place(panel, lane, i, &block);
                }
            }
        })
    }

    /// Packs rows of numbers, rounded to nearest even; `cols` is a multiple of 32.
    pub(super) fn pack_numbers(
        pool: &ThreadPool,
        (rows, cols): (usize, usize),
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let layout = PanelLayout::new(Format::Bf16, cols);
        Self::pack(pool, rows, layout, |rows, panel| {
            let mut numbers = vec![0.0; cols];
            for (lane, row) in rows.enumerate() {
                read_row(row, &mut numbers);
                layout.place_bf16(panel, lane, &numbers);
            }
        })
    }

    fn pack(
        pool: &ThreadPool,
        rows: usize,
        layout: PanelLayout,
        pack_panel: impl Fn(Range<usize>, &mut [u8]) + Sync,
    ) -> Self {
        let (num_panels, panel_bytes) = (rows.div_ceil(LANES), layout.num_bytes());
        let mut storage = Storage::zeroed(num_panels * panel_bytes + OVERRUN);
        let bytes = DisjointSlice::new(storage.bytes_mut());
        pool.for_each(num_panels, |panel| {
            // SAFETY: every panel is its own range of bytes and one task's alone.
            let out = unsafe { bytes.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
            pack_panel(panel * LANES..rows.min((panel + 1) * LANES), out);
        });
        Bf16Matrix {
            rows,
            layout,
            storage,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.storage.bytes().len()
    }

    /// One row, as the file has it: not cut to bf16.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        self.layout
            .read_row(self.panel(row / LANES), row % LANES, out);
    }

    fn num_panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// A panel, and the bytes after it that kernels may read.
    fn panel(&self, panel: usize) -> &[u8] {
        let len = self.layout.num_bytes();
        &self.storage.bytes()[panel * len..(panel + 1) * len + OVERRUN]
    }
}

/// How many rows are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    /// Few: weights are widened in registers.
    Direct,
    /// Weights are widened into a buffer first.
    Decoded,
    /// The same, for the matrix unit.
    Tiles,
}

impl Path {
    fn of(isa: Isa, num_rows: usize) -> Self {
        match isa {
            Isa::Amx if num_rows > MAX_DIRECT_ROWS_BESIDE_TILES => Path::Tiles,
            _ if num_rows <= rows::MAX_DIRECT_ROWS => Path::Direct,
            _ => Path::Decoded,
        }
    }
}

/// Rounds the rows of `x` for [`run`].
pub(super) fn load(inputs: &mut Inputs, pool: &ThreadPool, isa: Isa, x: &[f32], cols: usize) {
    match Path::of(isa, x.len() / cols) {
        Path::Tiles => inputs.load::<u16>(pool, isa, x, cols),
        Path::Direct | Path::Decoded => inputs.load::<f32>(pool, isa, x, cols),
    }
}

/// Rows that the panels are multiplied by before the next rows are.
///
/// Many rows are split over the threads rather than the outputs: each then mostly reads what it
/// wrote itself in the operation before.
fn block_rows(num_rows: usize, num_threads: usize) -> usize {
    let num_blocks = match num_rows.div_ceil(BLOCK_ROWS) {
        0 | 1 => 1,
        n => n.next_multiple_of(num_threads),
    };
    num_rows
        .div_ceil(num_blocks)
        .next_multiple_of(2 * TILE_ROWS)
}

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Widened weights.
    weights: Lines,
    /// Of each two tiles.
    sums: Vec<Sums>,
}

/// Sums of two tiles' rows, for two panels: `[tile][panel][row][LANES]`.
type Sums = [[[[f32; LANES]; TILE_ROWS]; 2]; 2];

const ZERO_SUMS: Sums = [[[[0.0; LANES]; TILE_ROWS]; 2]; 2];

/// The rows of `inputs` times a matrix.
pub(super) fn run(
    pool: &ThreadPool,
    isa: Isa,
    scratch: &mut [Scratch],
    inputs: &Inputs,
    w: &Bf16Matrix,
    out: &Output<'_>,
) {
    let product = Product {
        isa,
        inputs,
        w,
        out,
        rows: 0..out.num_rows,
    };
    product.run(pool, scratch);
}

/// A block of rows times panels of a matrix.
#[derive(Clone)]
struct Product<'a> {
    isa: Isa,
    inputs: &'a Inputs,
    w: &'a Bf16Matrix,
    out: &'a Output<'a>,
    rows: Range<usize>,
}

impl Product<'_> {
    /// All rows times all panels, in parallel.
    fn run(&self, pool: &ThreadPool, scratch: &mut [Scratch]) {
        let num_rows = self.out.num_rows;
        let block_rows = block_rows(num_rows, pool.num_threads());
        let num_blocks = num_rows.div_ceil(block_rows);
        let num_panels = self.w.num_panels();
        let num_pairs = num_panels.div_ceil(2);
        // About 32 tasks a thread: dynamic enough to even out noise, coarse enough to be cheap.
        let per_task = (num_pairs * num_blocks).div_ceil(pool.num_threads() * 32);
        let tasks_per_block = num_pairs.div_ceil(per_task);
        let scratch = DisjointSlice::new(scratch);
        pool.for_each_with_worker(num_blocks * tasks_per_block, |worker, task| {
            // SAFETY: no two tasks run at once with the same worker.
            let scratch = unsafe { &mut scratch.part(worker..worker + 1)[0] };
            let first_row = task / tasks_per_block * block_rows;
            let first_pair = task % tasks_per_block * per_task;
            let block = Product {
                rows: first_row..num_rows.min(first_row + block_rows),
                ..self.clone()
            };
            let pairs = first_pair..num_pairs.min(first_pair + per_task);
            let pairs = pairs.map(|pair| 2 * pair..num_panels.min(2 * pair + 2));
            match Path::of(self.isa, num_rows) {
                Path::Direct => dispatch(self.isa, Direct { block, pairs }),
                Path::Decoded => pairs.for_each(|pair| block.decoded(pair, scratch)),
                #[cfg(target_arch = "x86_64")]
                Path::Tiles => tiles::run(block, pairs, scratch),
                #[cfg(not(target_arch = "x86_64"))]
                Path::Tiles => pairs.for_each(|pair| block.decoded(pair, scratch)),
            }
        });
    }

    fn decoded(&self, pair: Range<usize>, scratch: &mut Scratch) {
        scratch.sums.clear();
        scratch.sums.resize(self.num_tiles().div_ceil(2), ZERO_SUMS);
        for (p, panel) in pair.clone().enumerate() {
            for steps in self.chunks(CHUNK_STEPS / 2) {
                let len = steps.len() * STEP * LANES;
                scratch.weights.grow(len * size_of::<f32>());
                let decode = rows::Decode {
                    layout: &self.w.layout,
                    panel: self.w.panel(panel),
                    first_step: steps.start,
                    weights: &mut scratch.weights.as_mut_slice()[..len],
                };
                dispatch(self.isa, decode);
                for tile in 0..self.num_tiles() {
                    let kernel = rows::Decoded {
                        weights: &scratch.weights.as_slice()[..len],
                        x: &self.x(tile)[steps.start * TILE_STEP..],
                        sums: &mut scratch.sums[tile / 2][tile % 2][p][..self.rows_of(tile)],
                    };
                    dispatch(self.isa, kernel);
                }
            }
        }
        for (i, sums) in scratch.sums.iter().enumerate() {
            dispatch(self.isa, self.finish(&pair, 2 * i, sums));
        }
    }

    fn num_tiles(&self) -> usize {
        self.rows.len().div_ceil(TILE_ROWS)
    }

    /// The steps of a panel in equal parts of at most `max_steps`.
    fn chunks(&self, max_steps: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let num_steps = self.w.layout.num_steps;
        let len = num_steps.div_ceil(num_steps.div_ceil(max_steps));
        (0..num_steps)
            .step_by(len)
            .map(move |start| start..num_steps.min(start + len))
    }

    /// Inputs of one of the block's tiles.
    fn x<T: inputs::Value>(&self, tile: usize) -> &[T] {
        self.inputs.tile(self.rows.start / TILE_ROWS + tile)
    }

    /// Rows of one of the block's tiles.
    fn rows_of(&self, tile: usize) -> usize {
        TILE_ROWS.min(self.rows.len() - tile * TILE_ROWS)
    }

    /// Stores what becomes of the sums of two tiles and panels.
    fn finish<'s>(
        &'s self,
        panels: &'s Range<usize>,
        first_tile: usize,
        sums: &'s Sums,
    ) -> Finish<'s> {
        let first_row = self.rows.start + first_tile * TILE_ROWS;
        Finish {
            out: self.out,
            sums,
            rows: first_row..self.rows.end.min(first_row + 2 * TILE_ROWS),
            panels,
            num_outputs: self.w.rows,
        }
    }
}

/// A few rows times pairs of panels: all in one kernel, since one alone takes a microsecond.
struct Direct<'a, I> {
    block: Product<'a>,
    pairs: I,
}

impl<I: Iterator<Item = Range<usize>>> Kernel for Direct<'_, I> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let block = &self.block;
        let mut sums = ZERO_SUMS;
        for pair in self.pairs {
            let panels = [pair.start, pair.end - 1].map(|panel| block.w.panel(panel));
            let kernel = rows::Direct {
                layout: &block.w.layout,
                panels: &panels[..pair.len()],
                x: block.inputs.tile(0),
                num_rows: block.rows.len(),
                sums: &mut sums[0],
            };
            kernel.call(simd);
            block.finish(&pair, 0, &sums).call(simd);
        }
    }
}
