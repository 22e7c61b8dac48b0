//! A weight matrix in the order the linear kernels read it.

use super::ThreadPool;
use super::bf16::{Bf16Matrix, BlockFormat};
use super::dense::{DenseMatrix, MatrixDtype};
use crate::KernelError;
use crate::error::check_len;

/// A matrix `[rows, cols]` packed for [`linear`](super::linear()): `rows` outputs of `cols` inputs.
///
/// It may be stacked of parts whose weights are kept differently, as the fused query, key and value
/// projections of a file that quantises them differently.
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    parts: Vec<Weights>,
}

/// Weights that are all kept in one way.
pub(super) enum Weights {
    Dense(DenseMatrix),
    Bf16(Bf16Matrix),
}

impl Weights {
    pub(super) fn rows(&self) -> usize {
        match self {
            Weights::Dense(w) => w.rows(),
            Weights::Bf16(w) => w.rows(),
        }
    }
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
        let part = DenseMatrix::pack(pool, (rows, cols), dtype, read_row)?;
        let parts = vec![Weights::Dense(part)];
        Ok(PackedMatrix { rows, cols, parts })
    }

    /// Packs a quantised matrix whose rows `read_row(row, out)` provides as blocks of `format`:
    /// `cols / block_len * block_bytes` bytes.
    ///
    /// Weights keep their codes and scales; they take 4.6 to 8.6 bits each, as in the file.
    ///
    /// # Errors
    /// [`KernelError::Length`] if `cols` is not a whole number of blocks.
    pub fn pack_blocks(
        pool: &ThreadPool,
        (rows, cols): (usize, usize),
        format: BlockFormat,
        read_row: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<Self, KernelError> {
        let whole = cols / format.block_len() * format.block_len();
        check_len("packed matrix: a row of whole blocks", whole, cols)?;
        let part = Bf16Matrix::pack_blocks(pool, (rows, cols), format, read_row);
        let parts = vec![Weights::Bf16(part)];
        Ok(PackedMatrix { rows, cols, parts })
    }

    /// Packs a matrix whose rows `read_row(row, out)` provides, rounded to bf16, for products with
    /// inputs that are rounded to bf16 too.
    ///
    /// # Errors
    /// [`KernelError::Length`] if `cols` is not a multiple of 32.
    pub fn pack_bf16(
        pool: &ThreadPool,
        (rows, cols): (usize, usize),
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, KernelError> {
        check_len("packed matrix: a row of whole steps", cols / 32 * 32, cols)?;
        let part = Bf16Matrix::pack_numbers(pool, (rows, cols), read_row);
        let parts = vec![Weights::Bf16(part)];
        Ok(PackedMatrix { rows, cols, parts })
    }

    /// Puts matrices of equal width on top of each other: the outputs of the first come first.
    ///
    /// # Errors
    /// [`KernelError::Length`] if widths differ.
    pub fn stack(matrices: Vec<PackedMatrix>) -> Result<Self, KernelError> {
        let cols = matrices.first().map_or(0, PackedMatrix::cols);
        for matrix in &matrices {
            check_len("stacked matrices: inputs", cols, matrix.cols)?;
        }
        Ok(PackedMatrix {
            rows: matrices.iter().map(PackedMatrix::rows).sum(),
            cols,
            parts: matrices.into_iter().flat_map(|m| m.parts).collect(),
        })
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Memory the matrix takes.
    pub fn num_bytes(&self) -> usize {
        let bytes = |part: &Weights| match part {
            Weights::Dense(w) => w.num_bytes(),
            Weights::Bf16(w) => w.num_bytes(),
        };
        self.parts.iter().map(bytes).sum()
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
        let mut row = row;
        for part in &self.parts {
            if row < part.rows() {
                match part {
                    Weights::Dense(w) => w.read_row(row, out),
                    Weights::Bf16(w) => w.read_row(row, out),
                }
                return;
            }
            row -= part.rows();
        }
    }

    pub(super) fn parts(&self) -> &[Weights] {
        &self.parts
    }
}
