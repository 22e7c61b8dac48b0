//! A weight matrix in the order the linear kernels read it.

use half::bf16;

use super::storage::Storage;

use crate::cpu::{ThreadPool, disjoint::DisjointSlice};

/// Output rows that lie side by side in a panel: two AVX-512 vectors, four AVX2 ones.
pub(super) const PANEL: usize = 32;

/// How the elements of a [`PackedMatrix`] are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixDtype {
    /// 4 bytes an element, exact.
    F32,
    /// 2 bytes an element: the upper half of an f32, rounded to nearest even.
    Bf16,
}

/// A matrix `[rows, cols]` packed for [`linear`](super::linear()): `rows` outputs of `cols` inputs.
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
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    dtype: MatrixDtype,
    storage: Storage,
}

impl PackedMatrix {
    /// Packs a matrix whose rows `read_row(row, out)` provides, `out` being `cols` long.
    ///
    /// Panels are packed in parallel. Rows may be read in any order, each once.
    ///
    /// # Errors
    /// The first error `read_row` gives.
    pub fn pack<E: Send>(
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
            None => Ok(PackedMatrix {
                rows,
                cols,
                dtype,
                storage,
            }),
        }
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How elements are kept.
    pub fn dtype(&self) -> MatrixDtype {
        self.dtype
    }

    /// Memory the matrix takes.
    pub fn num_bytes(&self) -> usize {
        self.storage.bytes().len()
    }

    /// Copies one row out, `out` being [`cols`](Self::cols) long: an embedding look-up.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows) or `out` has another length.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows,
            "row {row} of a matrix with {} rows",
            self.rows
        );
        assert_eq!(out.len(), self.cols, "a row has {} elements", self.cols);
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

    pub(super) fn num_panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Elements of a panel, `[cols, PANEL]`.
    pub(super) fn panel(&self, panel: usize) -> Panel<'_> {
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
pub(super) enum Panel<'a> {
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
