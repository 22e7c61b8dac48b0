//! Draws tokens from logits: the same tokens as the CPU's sampler.
//!
//! ```text
//! SampleBatch --prepare--> device lists --run--> adjust_logits -> sample -> logprobs --output--> SampleOutput
//!             (uploads)                 (launches only: may be captured)            (downloads)
//! ```
//!
//! A draw is a function of the logits, the row's parameters, its seed and its position. Weights are
//! rounded to whole units of 2^-40, so that sums are exact: the division of a row among threads
//! cannot change a token, and neither can another device.

mod batch;
mod output;
mod params;

pub use batch::{LogprobRow, LogprobToken, MAX_TOP, MAX_VOCAB_SIZE, SampleBatch, SampleRow};
pub use output::{RowLogprobs, SampleFault, SampleOutput};

use bytemuck::Pod;

use batch::Packed;
use params::{
    LogprobParams, RankedToken, RawDraw, RawLogprobRow, RawLogprobs, RawSampleRow, SampleParams,
};

use super::driver::{Kernel, LaunchShape};
use super::params::RowsView;
use super::{Buffer, CudaError, Device, Rows, Stream, code};

/// A batch of draws on a device: its parameters, scratch memory and results.
///
/// Buffers keep their longest size. A captured [`run`](Self::run) may be replayed after a
/// [`prepare`](Self::prepare) with as many draws, adjusted draws and log-probability rows, of the
/// same vocabulary, as long as no buffer grows.
#[derive(Debug)]
pub struct Sampling {
    packed: Packed,
    rows: Buffer<RawSampleRow>,
    tokens: Buffer<u32>,
    bias_tokens: Buffer<u32>,
    bias: Buffer<f32>,
    adjusted: Buffer<f32>,
    draws: Buffer<RawDraw>,
    logprob_rows: Buffer<RawLogprobRow>,
    logprobs: Buffer<RawLogprobs>,
    top: Buffer<RankedToken>,
}

impl Sampling {
    /// An empty batch.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            packed: Packed::default(),
            rows: device.alloc(0)?,
            tokens: device.alloc(0)?,
            bias_tokens: device.alloc(0)?,
            bias: device.alloc(0)?,
            adjusted: device.alloc(0)?,
            draws: device.alloc(0)?,
            logprob_rows: device.alloc(0)?,
            logprobs: device.alloc(0)?,
            top: device.alloc(0)?,
        })
    }

    /// Checks `batch`, makes room for it and uploads it.
    ///
    /// # Errors
    /// [`CudaError::Argument`] for a parameter out of its range, [`CudaError::OtherDevice`],
    /// [`CudaError::Capturing`], [`CudaError::Driver`]. The batch is empty then.
    pub fn prepare(&mut self, stream: &Stream, batch: &SampleBatch<'_>) -> Result<(), CudaError> {
        let mut packed = std::mem::take(&mut self.packed);
        packed.fill(batch)?;
        self.adjusted
            .reserve(packed.num_adjusted * packed.vocab_size)?;
        self.draws.reserve(packed.rows.len())?;
        self.logprobs.reserve(packed.logprobs.len())?;
        self.top.reserve(packed.logprobs.len() * packed.max_top)?;
        upload(&mut self.rows, stream, &packed.rows)?;
        upload(&mut self.tokens, stream, &packed.tokens)?;
        upload(&mut self.bias_tokens, stream, &packed.bias_tokens)?;
        upload(&mut self.bias, stream, &packed.bias)?;
        upload(&mut self.logprob_rows, stream, &packed.logprobs)?;
        self.packed = packed;
        Ok(())
    }

    /// Draws from `logits`, `[rows, vocab_size]`, what [`prepare`](Self::prepare) was given.
    ///
    /// Only launches: it may be captured in a graph. A row that is not a number fails alone.
    ///
    /// # Errors
    /// [`CudaError::Kernel`] if the logits have too few or too short rows,
    /// [`CudaError::OtherDevice`], [`CudaError::Driver`].
    pub fn run(&mut self, stream: &Stream, logits: Rows<'_>) -> Result<(), CudaError> {
        let packed = &self.packed;
        let device = stream.device();
        device.check_same("sampling", self.rows.device())?;
        logits.check("logits", device, packed.num_logits_rows, packed.vocab_size)?;
        let params = SampleParams {
            logits: RowsView::new(&logits),
            adjusted: RowsView::new(&self.adjusted.rows(packed.vocab_size)),
            rows: self.rows.address(),
            tokens: self.tokens.address(),
            bias_tokens: self.bias_tokens.address(),
            bias: self.bias.address(),
            results: self.draws.address(),
            vocab_size: packed.vocab_size as u32,
            dtype: logits.dtype() as u32,
        };
        if packed.num_adjusted > 0 {
            self.launch(stream, "adjust_logits", packed.rows.len(), &params)?;
        }
        self.launch(stream, "sample", packed.rows.len(), &params)?;
        let params = LogprobParams {
            logits: RowsView::new(&logits),
            rows: self.logprob_rows.address(),
            drawn: self.draws.address(),
            results: self.logprobs.address(),
            top: self.top.address(),
            top_stride: packed.max_top as u32,
            vocab_size: packed.vocab_size as u32,
            dtype: logits.dtype() as u32,
            padding: 0,
        };
        self.launch(stream, "logprobs", packed.logprobs.len(), &params)
    }

    /// Waits for what [`run`](Self::run) drew.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Capturing`], [`CudaError::Driver`], also for
    /// kernels that failed.
    pub fn output(&self, stream: &Stream) -> Result<SampleOutput, CudaError> {
        let num_rows = self.packed.rows.len();
        let draws = self.draws.download(stream)?;
        let tokens = draws[..num_rows].iter().map(output::draw).collect();
        let mut logprobs = Vec::new();
        let rows = &self.packed.logprobs;
        if !rows.is_empty() {
            let raw = self.logprobs.download(stream)?;
            let top = self.top.download(stream)?;
            let top_of = |row: usize| &top[row * self.packed.max_top..][..self.packed.max_top];
            let each = raw[..rows.len()].iter().enumerate();
            logprobs.extend(each.map(|(i, raw)| output::logprobs(raw, top_of(i))));
        }
        Ok(SampleOutput { tokens, logprobs })
    }

    /// One CTA a row.
    fn launch<P: Pod>(
        &self,
        stream: &Stream,
        entry: &'static str,
        num_rows: usize,
        params: &P,
    ) -> Result<(), CudaError> {
        let kernel = Kernel {
            code: code::find(entry, &[])?,
            entry,
        };
        let shape = LaunchShape {
            grid: [num_rows as u32, 1, 1],
            threads: num_threads(self.packed.vocab_size),
            shared_bytes: 0,
        };
        stream.launch(kernel, shape, params)
    }
}

/// Threads of a CTA: each has eight tokens or more, up to the most that a CTA can have.
fn num_threads(vocab_size: usize) -> u32 {
    (vocab_size / 8).next_power_of_two().clamp(64, 1024) as u32
}

fn upload<T: Pod>(buffer: &mut Buffer<T>, stream: &Stream, data: &[T]) -> Result<(), CudaError> {
    buffer.reserve(data.len())?;
    buffer.upload(stream, data)
}
