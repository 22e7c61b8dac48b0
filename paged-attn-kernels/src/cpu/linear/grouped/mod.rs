//! Products with quantised weights, which stay packed.
//!
//! What is computed, for a row of inputs and an output:
//!
//! ```text
//! x'   = the inputs, rounded to bf16
//! for each group of inputs with one scale (32 of them; 16 with Q6_K):
//!   for the high part of the codes, if there is one, then the low part:
//!     even = x'[0] q[0] + x'[2] q[2] + ...      each a chain of fused multiply-adds from zero
//!     odd  = x'[1] q[1] + x'[3] q[3] + ...
//!     s    = s + (even + odd)                   s begins at zero
//!   out = fma(s, scale, out)
//!   out = fma(sum of the group's x', min, out)  if the format has minima
//! ```
//!
//! The codes are integers of at most 8 bits, exact in bf16; their products with bf16 inputs are
//! exact in f32. All back ends compute these sums in this order, so they agree bit for bit
//! (numbers below 2^-126 apart, which the matrix unit takes for zero), and a row's result does not
//! depend on the rows beside it.
//!
//! Rounding the inputs is the only approximation. It errs by at most one part in 512 of each input,
//! so a few huge ones ("massive activations") do not crush their neighbours as they do when a
//! group of inputs shares one 8-bit scale.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
mod format;
mod inputs;
#[cfg(target_arch = "x86_64")]
mod lookup;
mod panel;
mod portable;
mod quantise;
#[cfg(test)]
mod tests;

use std::ops::Range;

use format::Block;
pub use format::BlockFormat;
pub(super) use inputs::Inputs;
use inputs::TILE_ROWS;
use panel::{LANES, PanelLayout, STEP};
pub use quantise::quantise_row;

use super::storage::{Lines, Storage};
use super::{Isa, Output, ThreadPool};
use crate::cpu::attention::simd::dispatch;
use crate::cpu::disjoint::DisjointSlice;

/// Rows whose inputs stay in the second cache level while panels pass by.
const BLOCK_ROWS: usize = 256;

/// Most steps that are decoded at once, one plane: what the first cache level holds.
const CHUNK_STEPS: usize = 24;

/// Most rows that are multiplied one by one where there is a matrix unit.
const MAX_SINGLE_ROWS: usize = 1;

/// Quantised weights, `[rows, cols]`, in panels.
pub(super) struct GroupedMatrix {
    rows: usize,
    layout: PanelLayout,
    #[cfg(target_arch = "x86_64")]
    tables: lookup::Tables,
    storage: Storage,
}

impl GroupedMatrix {
    /// Packs rows of blocks, which `read_row(row, out)` provides.
    ///
    /// `cols` is a multiple of the block length.
    pub(super) fn pack(
        pool: &ThreadPool,
        (rows, cols): (usize, usize),
        format: BlockFormat,
        read_row: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Self {
        let layout = PanelLayout::new(format, cols);
        let num_panels = rows.div_ceil(LANES);
        let panel_bytes = layout.num_bytes();
        let mut storage = Storage::zeroed(num_panels * panel_bytes);
        let row_bytes = cols / format.block_len() * format.block_bytes();
        let bytes = DisjointSlice::new(storage.bytes_mut());
        pool.for_each(num_panels, |panel| {
            // SAFETY: every panel is its own range of bytes and one task's alone.
            let out = unsafe { bytes.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
            let (mut row_of_blocks, mut block) = (vec![0; row_bytes], Block::empty());
            for (lane, row) in (panel * LANES..rows.min((panel + 1) * LANES)).enumerate() {
                read_row(row, &mut row_of_blocks);
                for (i, b) in row_of_blocks.chunks_exact(format.block_bytes()).enumerate() {
                    block.read(format, b);
                    layout.place(out, lane, i, &block);
                }
            }
        });
        GroupedMatrix {
            rows,
            layout,
            #[cfg(target_arch = "x86_64")]
            tables: lookup::Tables::new(format),
            storage,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.storage.bytes().len()
    }

    /// One row, `scale * code + min`.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        self.layout
            .read_row(self.panel(row / LANES), row % LANES, out);
    }

    fn num_panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    fn panel(&self, panel: usize) -> &[u8] {
        let len = self.layout.num_bytes();
        &self.storage.bytes()[panel * len..(panel + 1) * len]
    }
}

/// Rounds the rows of `x` for [`run`].
pub(super) fn load(inputs: &mut Inputs, pool: &ThreadPool, isa: Isa, x: &[f32], cols: usize) {
    match isa {
        Isa::Amx if x.len() / cols > MAX_SINGLE_ROWS => inputs.load::<u16>(pool, x, cols),
        _ => inputs.load::<f32>(pool, x, cols),
    }
}

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Decoded codes.
    values: Lines,
    /// Scales and minima of the decoded groups.
    scales: Vec<[[f32; LANES]; 2]>,
    /// Sums of a panel's outputs, `[row][LANES]`.
    acc: Vec<[[f32; LANES]; TILE_ROWS]>,
    #[cfg(target_arch = "x86_64")]
    ring: amx::Ring,
}

/// The rows of `inputs` times a matrix.
pub(super) fn run(
    pool: &ThreadPool,
    isa: Isa,
    scratch: &mut [Scratch],
    inputs: &Inputs,
    w: &GroupedMatrix,
    out: &Output<'_>,
) {
    let num_blocks = out.num_rows.div_ceil(BLOCK_ROWS);
    // About 16 tasks a thread: dynamic enough to even out noise, coarse enough to be cheap.
    let per_task = (w.num_panels() * num_blocks).div_ceil(pool.num_threads() * 16);
    let tasks_per_block = w.num_panels().div_ceil(per_task);
    let scratch = DisjointSlice::new(scratch);
    pool.for_each_with_worker(num_blocks * tasks_per_block, |worker, task| {
        // SAFETY: no two tasks run at once with the same worker.
        let scratch = unsafe { &mut scratch.part(worker..worker + 1)[0] };
        let first_row = task / tasks_per_block * BLOCK_ROWS;
        let first_panel = task % tasks_per_block * per_task;
        let product = Product {
            isa,
            inputs,
            w,
            out,
            rows: first_row..out.num_rows.min(first_row + BLOCK_ROWS),
        };
        product.panels(
            first_panel..w.num_panels().min(first_panel + per_task),
            scratch,
        );
    });
}

/// A block of rows times a matrix.
struct Product<'a> {
    isa: Isa,
    inputs: &'a Inputs,
    w: &'a GroupedMatrix,
    out: &'a Output<'a>,
    rows: Range<usize>,
}

impl Product<'_> {
    fn panels(&self, panels: Range<usize>, scratch: &mut Scratch) {
        let num_tiles = self.rows.len().div_ceil(TILE_ROWS);
        scratch.acc.resize(num_tiles, [[0.0; LANES]; TILE_ROWS]);
        #[cfg(target_arch = "x86_64")]
        let is_single = self.isa == Isa::Amx && self.out.num_rows <= MAX_SINGLE_ROWS;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `linear` keeps an instruction set only if the machine supports it.
        let session = (self.isa == Isa::Amx && !is_single)
            .then(|| unsafe { amx::Session::new(self.rows.len(), &self.w.layout) });
        for panel in panels {
            scratch.acc.fill([[0.0; LANES]; TILE_ROWS]);
            #[cfg(target_arch = "x86_64")]
            match &session {
                Some(session) => self.panel_amx(panel, session, scratch),
                None if is_single => self.panel_of_single_rows(panel, scratch),
                None => self.panel_portable(panel, scratch),
            }
            #[cfg(not(target_arch = "x86_64"))]
            self.panel_portable(panel, scratch);
            let start = panel * LANES;
            let lanes = LANES.min(self.w.rows - start);
            for (row, sums) in self.rows.clone().zip(scratch.acc.as_flattened()) {
                match lanes {
                    // Of constant length, which spares a call for each.
                    LANES => self.out.store(row, start, &sums[..LANES]),
                    lanes => self.out.store(row, start, &sums[..lanes]),
                }
            }
        }
    }

    /// The steps of a panel in equal parts that the first cache level holds.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let num_steps = self.w.layout.num_steps;
        let len = num_steps.div_ceil(num_steps.div_ceil(CHUNK_STEPS));
        (0..num_steps)
            .step_by(len)
            .map(move |start| start..num_steps.min(start + len))
    }

    fn tiles(&self) -> Range<usize> {
        self.rows.start / TILE_ROWS..self.rows.end.div_ceil(TILE_ROWS)
    }

    fn panel_portable(&self, panel: usize, scratch: &mut Scratch) {
        let layout = &self.w.layout;
        let groups_per_step = STEP / layout.format.group_len();
        for steps in self.chunks() {
            let len = steps.len() * portable::step_len(layout);
            scratch.values.resize(len * size_of::<f32>());
            scratch
                .scales
                .resize(steps.len() * groups_per_step, [[0.0; LANES]; 2]);
            let mut decoded = portable::Decoded {
                values: &mut scratch.values.as_mut_slice()[..len],
                scales: &mut scratch.scales,
            };
            let decode = portable::Decode {
                layout,
                panel: self.w.panel(panel),
                first_step: steps.start,
                out: &mut decoded,
            };
            dispatch(self.isa, decode);
            for (tile, acc) in self.tiles().zip(&mut scratch.acc) {
                let num_rows = TILE_ROWS.min(self.rows.end - tile * TILE_ROWS);
                let accumulate = portable::Accumulate {
                    layout,
                    decoded: &decoded,
                    x: &self.inputs.tile(tile)[steps.start * inputs::TILE_STEP..],
                    x_sums: &self.inputs.sums(tile)[steps.start * TILE_ROWS..],
                    acc: &mut acc[..num_rows],
                };
                dispatch(self.isa, accumulate);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn panel_of_single_rows(&self, panel: usize, scratch: &mut Scratch) {
        for (row, sums) in scratch.acc[0][..self.rows.len()].iter_mut().enumerate() {
            let x = &self.inputs.tile::<f32>(0)[row * STEP..];
            let x_sums = &self.inputs.sums(0)[row..];
            let (tables, panel) = (&self.w.tables, self.w.panel(panel));
            // SAFETY: the caller has seen the matrix unit, and with it AVX-512.
            unsafe { tables.row(&self.w.layout, panel, (x, x_sums), sums) };
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn panel_amx(&self, panel: usize, session: &amx::Session, scratch: &mut Scratch) {
        let layout = &self.w.layout;
        let groups_per_step = STEP / layout.format.group_len();
        for steps in self.chunks() {
            let len = steps.len() * lookup::step_len(layout);
            scratch.values.resize(len * size_of::<u16>());
            scratch
                .scales
                .resize(steps.len() * groups_per_step, [[0.0; LANES]; 2]);
            let mut decoded = lookup::Decoded {
                values: &mut scratch.values.as_mut_slice()[..len],
                scales: &mut scratch.scales,
            };
            // SAFETY: a session exists only where the matrix unit does, and with it AVX-512.
            unsafe { self.w.tables.decode(layout, self.w.panel(panel), steps.start, &mut decoded) };
            for (tile, acc) in self.tiles().zip(&mut scratch.acc) {
                let x = &self.inputs.tile(tile)[steps.start * inputs::TILE_STEP..];
                let x_sums = &self.inputs.sums(tile)[steps.start * TILE_ROWS..];
                session.accumulate(layout, &decoded, (x, x_sums), (acc, &mut scratch.ring));
            }
        }
    }
}
