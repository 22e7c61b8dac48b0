use super::WeightType;
use super::dequant::dequantise;

/// Order of the rows of a query or key projection inside each head.
///
/// GGUF files of the llama family store rotary pairs next to each other; callers always see the
/// halves that Hugging Face's checkpoints and the "rotate half" form of RoPE use:
///
/// ```text
/// caller   0 1 2 3 | 4 5 6 7      (x_j, x_{j + head_dim/2}) rotate together
/// file     0 2 4 6 | 1 3 5 7      row of the file that the caller's row is read from
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InterleavedHeads {
    pub(crate) head_dim: usize,
}

impl InterleavedHeads {
    fn stored(self, row: usize) -> usize {
        let (head, i) = (row / self.head_dim, row % self.head_dim);
        let half = self.head_dim / 2;
        head * self.head_dim + 2 * (i % half) + i / half
    }
}

/// A matrix or vector of a checkpoint, as it lies in the mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: WeightType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `rows * row_bytes` bytes, checked when the file was opened.
    pub(crate) data: &'a [u8],
    pub(crate) interleaved: Option<InterleavedHeads>,
}

impl<'a> Tensor<'a> {
    /// Name in the file's own spelling.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// How the elements are stored.
    pub fn dtype(&self) -> WeightType {
        self.dtype
    }

    /// Number of rows (output features); 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row (input features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one stored row.
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.rows
    }

    /// The stored bytes of a row, in blocks of [`WeightType`]'s layout.
    ///
    /// Rows come in the order of [`Tensor::read_row`]. The elements of a vector come as they are
    /// in the file; use [`Tensor::read_row`] for vectors.
    ///
    /// # Panics
    /// If `row >= rows()`.
    pub fn raw_row(&self, row: usize) -> &'a [u8] {
        assert!(
            row < self.rows,
            "row {row} of {} in {}",
            self.rows,
            self.name
        );
        let stored = match self.interleaved {
            Some(heads) if self.rows > 1 => heads.stored(row),
            _ => row,
        };
        let len = self.row_bytes();
        &self.data[stored * len..][..len]
    }

    /// Dequantises a row. Can be called from many threads at once.
    ///
    /// `out`: `[cols]`.
    ///
    /// # Panics
    /// If `row >= rows()` or `out.len() != cols()`.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "length of a row of {}", self.name);
        dequantise(self.dtype, self.raw_row(row), out);
        if let (Some(heads), 1) = (self.interleaved, self.rows) {
            let stored = out.to_vec();
            for (i, o) in out.iter_mut().enumerate() {
                *o = stored[heads.stored(i)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_interleaved_heads_come_as_halves() {
        let heads = InterleavedHeads { head_dim: 8 };
        let stored: Vec<usize> = (0..16).map(|r| heads.stored(r)).collect();
        assert_eq!(
            stored,
            [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
        );
    }

    #[test]
    fn a_bias_is_permuted_by_element_and_a_matrix_by_row() {
        let values: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let interleaved = Some(InterleavedHeads { head_dim: 4 });
        let mut tensor = Tensor {
            name: "bias",
            dtype: WeightType::F32,
            rows: 1,
            cols: 8,
            data: &values,
            interleaved,
        };
        let mut out = [0.0; 8];
        tensor.read_row(0, &mut out);
        assert_eq!(out, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        (tensor.rows, tensor.cols) = (4, 2);
        let mut out = [0.0; 2];
        tensor.read_row(1, &mut out);
        assert_eq!(out, [4.0, 5.0]);
    }
}
