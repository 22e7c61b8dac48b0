//! The fused operations a decoder is written over, and their back ends.
//!
//! A model file says what is computed; a back end says how. Adding a model
//! touches [`models`](crate::models) only, adding a device touches this
//! folder only.

mod cpu;
mod profiled;

pub use cpu::{CpuBackend, CpuRows, Quantization, WeightDtype, WeightOptions};
pub use pageloom_paged_attn_kernels::cpu::Heads;
pub use profiled::{Operation, Profile, Profiled, SharedProfile};

use crate::batch::Batch;
use crate::error::RunError;
use crate::weights::{LoadError, Tensor};

/// Where the heads lie in a row of the fused query, key and value projection.
///
/// ```text
/// | q head 0 | q head 1 | ... | k head 0 | ... | v head 0 | ... |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvLayout {
    /// Query heads.
    pub num_heads: usize,
    /// Key heads, and as many value heads.
    pub num_kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
}

impl QkvLayout {
    /// Elements of a row.
    pub fn width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// The query heads.
    pub fn q(&self) -> Heads {
        Heads {
            offset: 0,
            num_heads: self.num_heads,
            head_dim: self.head_dim,
        }
    }

    /// The key heads.
    pub fn k(&self) -> Heads {
        let offset = self.num_heads * self.head_dim;
        Heads {
            offset,
            num_heads: self.num_kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// The value heads.
    pub fn v(&self) -> Heads {
        let offset = (self.num_heads + self.num_kv_heads) * self.head_dim;
        Heads {
            offset,
            num_heads: self.num_kv_heads,
            head_dim: self.head_dim,
        }
    }
}

/// A linear layer: a matrix and perhaps a bias.
pub struct LinearOf<Matrix, Vector> {
    /// `[outputs, inputs]`.
    pub weight: Matrix,
    /// `[outputs]`.
    pub bias: Option<Vector>,
}

/// A linear layer of a back end. Back ends that share their weights' types share this too.
pub type Linear<B> = LinearOf<<B as Backend>::Matrix, <B as Backend>::Vector>;

/// What a decoder needs of a device.
///
/// Activations are rows, `[num_rows, width]` in f32. A row's result depends on
/// that row alone (and, in `attend`, on the sequence it belongs to): not on the
/// rows it is batched with.
pub trait Backend {
    /// A weight matrix, in whatever order the back end computes with.
    type Matrix;
    /// A norm's weights or a bias.
    type Vector;
    /// Activations, `[num_rows, width]`.
    type Rows;

    /// Loads matrices of equal width, stacked into one: `[sum of rows, cols]`.
    ///
    /// # Errors
    /// [`LoadError`] if a tensor cannot be read.
    fn load_matrix(&self, parts: &[Tensor<'_>]) -> Result<Self::Matrix, LoadError>;

    /// Loads the matrices of gates and of what they gate, of one shape, as one.
    ///
    /// # Errors
    /// [`LoadError`] if a tensor cannot be read.
    fn load_gated(&self, gate: Tensor<'_>, up: Tensor<'_>) -> Result<Self::Matrix, LoadError>;

    /// Memory a matrix takes.
    fn matrix_bytes(matrix: &Self::Matrix) -> u64;

    /// Loads vectors, one after the other.
    ///
    /// # Errors
    /// [`LoadError`] if a tensor cannot be read.
    fn load_vector(&self, parts: &[Tensor<'_>]) -> Result<Self::Vector, LoadError>;

    /// Activations without rows, `width` elements a row.
    fn rows(&self, width: usize) -> Self::Rows;

    /// Sets the number of rows. Contents are unspecified afterwards.
    fn set_num_rows(&self, rows: &mut Self::Rows, num_rows: usize);

    /// Moves the step's blocks: `swap_outs`, then `swap_ins`, then `copies`. Once a step, before
    /// [`begin`](Self::begin).
    ///
    /// # Errors
    /// [`RunError`] if a list names a block that its tier does not have. That list and those after
    /// it are not done then; [`Batch::check_transfers`] tells before anything is moved.
    fn transfer(&mut self, batch: &Batch) -> Result<(), RunError>;

    /// Starts a step: plans what all layers share.
    ///
    /// # Errors
    /// [`RunError`] if the batch contradicts itself or the cache.
    fn begin(&mut self, batch: &Batch) -> Result<(), RunError>;

    /// Row `i` of `out` becomes the embedding of the step's token `i`.
    ///
    /// # Errors
    /// [`RunError`] for a token outside the table.
    fn embed(
        &mut self,
        batch: &Batch,
        table: &Self::Matrix,
        out: &mut Self::Rows,
    ) -> Result<(), RunError>;

    /// `out = weight * x / rms(x)`, row by row.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if shapes do not agree.
    fn rms_norm(
        &mut self,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Rows,
    ) -> Result<(), RunError>;

    /// `out = x * w^T (+ bias)`.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if shapes do not agree.
    fn linear(
        &mut self,
        x: &Self::Rows,
        w: &Linear<Self>,
        out: &mut Self::Rows,
    ) -> Result<(), RunError>
    where
        Self: Sized;

    /// `out += x * w^T`: a projection back into the residual stream.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if shapes do not agree.
    fn linear_add(
        &mut self,
        x: &Self::Rows,
        w: &Self::Matrix,
        out: &mut Self::Rows,
    ) -> Result<(), RunError>;

    /// RMS norm of each of the heads, in place.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if shapes do not agree.
    fn rms_norm_heads(
        &mut self,
        x: &mut Self::Rows,
        heads: Heads,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<(), RunError>;

    /// Rotates queries and keys by the step's positions, in place.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if shapes do not agree.
    fn rope(&mut self, qkv: &mut Self::Rows, layout: QkvLayout) -> Result<(), RunError>;

    /// Writes the rows' keys and values to the step's slots of `layer`, then attends each query
    /// row to its sequence's keys up to its own: `out: [num_rows, num_heads * head_dim]`.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if shapes do not agree.
    fn attend(
        &mut self,
        batch: &Batch,
        layer: usize,
        qkv: &Self::Rows,
        layout: QkvLayout,
        out: &mut Self::Rows,
    ) -> Result<(), RunError>;

    /// `out = silu(x * gate^T) * (x * up^T)`, `w` being of [`load_gated`](Self::load_gated).
    ///
    /// # Errors
    /// [`RunError::Kernel`] if shapes do not agree.
    fn linear_silu_mul(
        &mut self,
        x: &Self::Rows,
        w: &Self::Matrix,
        out: &mut Self::Rows,
    ) -> Result<(), RunError>;

    /// Row `i` of `out` becomes row `rows[i]` of `x`.
    ///
    /// # Errors
    /// [`RunError::Batch`] for a row that `x` does not have.
    fn gather(
        &mut self,
        x: &Self::Rows,
        rows: impl ExactSizeIterator<Item = u32>,
        out: &mut Self::Rows,
    ) -> Result<(), RunError>;
}
