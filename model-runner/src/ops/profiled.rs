//! A back end whose operations are timed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Backend, Heads, Linear, QkvLayout};
use crate::batch::Batch;
use crate::error::RunError;
use crate::weights::{LoadError, Tensor};

/// What the time of a step is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Blocks swapped and copied.
    Transfer,
    /// What all layers share: the attention's work list, angles.
    Plan,
    /// Rows of the embedding table.
    Embed,
    /// Linear layers and what is fused with them, the output layer left out.
    Linear,
    /// The layer that makes logits.
    Output,
    /// Keys and values written, and attention over them.
    Attention,
    /// Root mean square norms, of rows and of heads.
    Norm,
    /// Rotation of queries and keys.
    Rope,
    /// Rows gathered for the output layer.
    Gather,
    /// Drawing tokens and taking log-probabilities.
    Sampling,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 10] = [
        Operation::Transfer,
        Operation::Plan,
        Operation::Embed,
        Operation::Linear,
        Operation::Output,
        Operation::Attention,
        Operation::Norm,
        Operation::Rope,
        Operation::Gather,
        Operation::Sampling,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Transfer => "transfer",
            Operation::Plan => "plan",
            Operation::Embed => "embed",
            Operation::Linear => "linear",
            Operation::Output => "output layer",
            Operation::Attention => "attention",
            Operation::Norm => "norm",
            Operation::Rope => "rope",
            Operation::Gather => "gather",
            Operation::Sampling => "sampling",
        }
    }
}

/// Time by operation over some steps, as the thread that runs them sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    times: [Duration; Operation::ALL.len()],
    /// Steps run.
    pub num_steps: u64,
    /// Time in the runner: all operations and what is between them.
    pub run_time: Duration,
    /// Time in parallel work, of all threads together.
    pub busy_time: Duration,
    /// Threads that compute.
    pub num_threads: usize,
}

impl Profile {
    /// Time spent on an operation.
    pub fn time(&self, operation: Operation) -> Duration {
        self.times[operation as usize]
    }

    pub(crate) fn add(&mut self, operation: Operation, time: Duration) {
        self.times[operation as usize] += time;
    }
}

/// A profile that a runner adds to while somebody else reads it.
#[derive(Debug, Clone, Default)]
pub struct SharedProfile(Arc<Mutex<Profile>>);

impl SharedProfile {
    /// What was added since the last call.
    pub fn take(&self) -> Profile {
        std::mem::take(&mut self.lock())
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, Profile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Another back end, timed if it has a profile; without one a call costs one branch more.
pub struct Profiled<B> {
    pub(crate) inner: B,
    pub(crate) profile: Option<SharedProfile>,
    /// Rows for the output layer were gathered: the next linear layer is that one.
    at_output: bool,
}

impl<B> Profiled<B> {
    /// A back end that is not timed yet.
    pub fn new(inner: B) -> Self {
        Profiled {
            inner,
            profile: None,
            at_output: false,
        }
    }

    fn timed<T>(&mut self, operation: Operation, call: impl FnOnce(&mut B) -> T) -> T {
        let Some(profile) = &self.profile else {
            return call(&mut self.inner);
        };
        let began = Instant::now();
        let result = call(&mut self.inner);
        profile.lock().add(operation, began.elapsed());
        result
    }
}

impl<B: Backend> Backend for Profiled<B> {
    type Matrix = B::Matrix;
    type Vector = B::Vector;
    type Rows = B::Rows;

    fn load_matrix(&self, parts: &[Tensor<'_>]) -> Result<B::Matrix, LoadError> {
        self.inner.load_matrix(parts)
    }

    fn load_gated(&self, gate: Tensor<'_>, up: Tensor<'_>) -> Result<B::Matrix, LoadError> {
        self.inner.load_gated(gate, up)
    }

    fn matrix_bytes(matrix: &B::Matrix) -> u64 {
        B::matrix_bytes(matrix)
    }

    fn load_vector(&self, parts: &[Tensor<'_>]) -> Result<B::Vector, LoadError> {
        self.inner.load_vector(parts)
    }

    fn rows(&self, width: usize) -> B::Rows {
        self.inner.rows(width)
    }

    fn set_num_rows(&self, rows: &mut B::Rows, num_rows: usize) {
        self.inner.set_num_rows(rows, num_rows);
    }

    fn transfer(&mut self, batch: &Batch) -> Result<(), RunError> {
        self.timed(Operation::Transfer, |b| b.transfer(batch))
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), RunError> {
        self.at_output = false;
        self.timed(Operation::Plan, |b| b.begin(batch))
    }

    fn embed(
        &mut self,
        batch: &Batch,
        table: &B::Matrix,
        out: &mut B::Rows,
    ) -> Result<(), RunError> {
        self.timed(Operation::Embed, |b| b.embed(batch, table, out))
    }

    fn rms_norm(
        &mut self,
        x: &B::Rows,
        weight: &B::Vector,
        eps: f32,
        out: &mut B::Rows,
    ) -> Result<(), RunError> {
        self.timed(Operation::Norm, |b| b.rms_norm(x, weight, eps, out))
    }

    fn linear(&mut self, x: &B::Rows, w: &Linear<Self>, out: &mut B::Rows) -> Result<(), RunError> {
        let operation = match self.at_output {
            true => Operation::Output,
            false => Operation::Linear,
        };
        self.timed(operation, |b| b.linear(x, w, out))
    }

    fn linear_add(
        &mut self,
        x: &B::Rows,
        w: &B::Matrix,
        out: &mut B::Rows,
    ) -> Result<(), RunError> {
        self.timed(Operation::Linear, |b| b.linear_add(x, w, out))
    }

    fn rms_norm_heads(
        &mut self,
        x: &mut B::Rows,
        heads: Heads,
        weight: &B::Vector,
        eps: f32,
    ) -> Result<(), RunError> {
        self.timed(Operation::Norm, |b| b.rms_norm_heads(x, heads, weight, eps))
    }

    fn rope(&mut self, qkv: &mut B::Rows, layout: QkvLayout) -> Result<(), RunError> {
        self.timed(Operation::Rope, |b| b.rope(qkv, layout))
    }

    fn attend(
        &mut self,
        batch: &Batch,
        layer: usize,
        qkv: &B::Rows,
        layout: QkvLayout,
        out: &mut B::Rows,
    ) -> Result<(), RunError> {
        self.timed(Operation::Attention, |b| {
            b.attend(batch, layer, qkv, layout, out)
        })
    }

    fn linear_silu_mul(
        &mut self,
        x: &B::Rows,
        w: &B::Matrix,
        out: &mut B::Rows,
    ) -> Result<(), RunError> {
        self.timed(Operation::Linear, |b| b.linear_silu_mul(x, w, out))
    }

    fn gather(
        &mut self,
        x: &B::Rows,
        rows: impl ExactSizeIterator<Item = u32>,
        out: &mut B::Rows,
    ) -> Result<(), RunError> {
        self.at_output = true;
        self.timed(Operation::Gather, |b| b.gather(x, rows, out))
    }
}
