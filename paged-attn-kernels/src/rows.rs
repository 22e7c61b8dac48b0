//! Strided views of row-major activations.

use crate::KernelError;

/// Rows of f32 values at a fixed distance: a column range of a row-major matrix.
///
/// A fused projection writes q, k and v side by side in one row; each is a view
/// with the same stride that starts at its own column:
///
/// ```text
/// data:  | q q q q | k k | v v | q q q q | k k | v v | ...
/// k:               ^start      <---- stride --->
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Row `i` starts at `data[i * stride]`.
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride }
    }

    /// Checks that `num_rows` rows of `width` lie inside of the data.
    pub(crate) fn check(
        &self,
        name: &'static str,
        num_rows: usize,
        width: usize,
    ) -> Result<(), KernelError> {
        check(name, num_rows, width, self.stride, self.data.len())
    }

    /// Row `i`, `width` elements.
    ///
    /// # Panics
    /// If the row does not lie inside of the data; see [`check`](Self::check).
    pub(crate) fn row(&self, i: usize, width: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..width]
    }

    /// First element and stride, for kernels that walk rows which have been checked.
    pub(crate) fn as_ptr(&self) -> (*const f32, usize) {
        (self.data.as_ptr(), self.stride)
    }
}

/// As [`Rows`], for an output.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    stride: usize,
}

impl<'a> RowsMut<'a> {
    /// Row `i` starts at `data[i * stride]`.
    pub fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self { data, stride }
    }

    /// Checks that `num_rows` rows of `width` lie inside of the data and do not overlap.
    pub(crate) fn check(
        &self,
        name: &'static str,
        num_rows: usize,
        width: usize,
    ) -> Result<(), KernelError> {
        check(name, num_rows, width, self.stride, self.data.len())?;
        if num_rows > 1 && self.stride < width {
            return Err(KernelError::OverlappingRows {
                name,
                width,
                stride: self.stride,
            });
        }
        Ok(())
    }

    /// First element and stride, for kernels that write disjoint rows from several threads.
    pub(crate) fn as_mut_ptr(&mut self) -> (*mut f32, usize) {
        (self.data.as_mut_ptr(), self.stride)
    }
}

/// Checks that `num_rows` rows of `width` at `stride` lie inside of `len` elements.
pub(crate) fn check(
    name: &'static str,
    num_rows: usize,
    width: usize,
    stride: usize,
    len: usize,
) -> Result<(), KernelError> {
    let fits = num_rows == 0
        || (num_rows - 1)
            .checked_mul(stride)
            .and_then(|start| start.checked_add(width))
            .is_some_and(|end| end <= len);
    if fits {
        return Ok(());
    }
    Err(KernelError::Rows {
        name,
        num_rows,
        width,
        stride,
        len,
    })
}
