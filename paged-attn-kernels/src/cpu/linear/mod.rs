//! Linear layers: rows of activations times a packed weight matrix.
//!
//! A row's result is a function of the row and the weights alone, bit for bit, whatever rows share
//! the batch and however many threads there are.
//!
//! | weights | inputs | sums | file |
//! |---|---|---|---|
//! | f32, bf16 | f32 | one chain of f32 an output | [`dense`] |
//! | bf16, quantised | rounded to bf16 | f32, two chains every 32 inputs | [`bf16`] |

mod bf16;
mod dense;
mod matrix;
mod storage;
#[cfg(test)]
mod tests;

pub use bf16::{BlockFormat, quantise_row};
pub use dense::MatrixDtype;
pub use matrix::PackedMatrix;
use matrix::Weights;

use super::elementwise::silu_mul;
use super::simd::{LANES, Simd};
use super::{Isa, ThreadPool, disjoint::DisjointSlice};
use crate::KernelError;
use crate::error::check_len;

/// What happens to what `out` holds.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Overwrites `out`.
    Store,
    /// Overwrites `out`; adds a bias, one value an output.
    Bias(&'a [f32]),
    /// Adds to `out`: the residual connection.
    Add,
}

/// Buffers of [`linear`] that live from call to call, so that a step does not allocate.
#[derive(Default)]
pub struct LinearScratch {
    dense: dense::Scratch,
    /// Inputs rounded to bf16.
    inputs: bf16::Inputs,
    /// One for each thread.
    bf16: Vec<bf16::Scratch>,
    /// Gates and what they gate, where both are not consumed at once.
    gate_up: Vec<f32>,
}

/// `out = x * w^T`, with an epilogue.
///
/// `x`: `[num_rows, w.cols()]`, `out`: `[num_rows, w.rows()]`, both row-major and dense.
/// Sums are f32, in an order that depends on the matrix alone. Where weights are quantised, `x` is
/// rounded to bf16 on the way.
///
/// # Errors
/// [`KernelError::Length`] if `x`, `out` or the bias is not as long as the shapes say.
pub fn linear(
    pool: &ThreadPool,
    isa: Isa,
    scratch: &mut LinearScratch,
    x: &[f32],
    w: &PackedMatrix,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let num_rows = check_shapes(x, w, epilogue, out)?;
    if num_rows == 0 || w.rows() == 0 {
        return Ok(());
    }
    let isa = if isa.is_supported() { isa } else { Isa::Scalar };
    let mut out = Output {
        out: DisjointSlice::new(out),
        num_rows,
        width: w.rows(),
        first: 0,
        epilogue,
        is_gated: false,
    };
    let mut is_loaded = false;
    for part in w.parts() {
        match part {
            Weights::Dense(w) => dense::run(pool, isa, &mut scratch.dense, x, w, &out),
            Weights::Bf16(w) => {
                if !is_loaded {
                    bf16::load(&mut scratch.inputs, pool, isa, x, x.len() / num_rows);
                    scratch
                        .bf16
                        .resize_with(pool.num_threads(), Default::default);
                    is_loaded = true;
                }
                bf16::run(pool, isa, &mut scratch.bf16, &scratch.inputs, w, &out);
            }
        }
        out.first += part.rows();
    }
    Ok(())
}

/// `out = silu(x * gate^T) * (x * up^T)`, `silu(x) = x / (1 + exp(-x))`: the gated activation of
/// LLaMA with the linear layers before it.
///
/// `w` has the rows of `gate` and `up` interleaved as [`gated_row`](crate::cpu::gated_row) says;
/// `x`: `[num_rows, w.cols()]`; `out`: `[num_rows, width]`, `w.rows()` being twice the width rounded
/// up to 16. Rounds as [`linear`] does.
///
/// # Errors
/// [`KernelError::Length`] if lengths do not agree.
///
/// Source: Shazeer 2020.
pub fn linear_silu_mul(
    pool: &ThreadPool,
    isa: Isa,
    scratch: &mut LinearScratch,
    x: &[f32],
    w: &PackedMatrix,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let num_rows = if w.cols() == 0 { 0 } else { x.len() / w.cols() };
    check_len("linear_silu_mul: x", num_rows * w.cols(), x.len())?;
    let width = out.len().checked_div(num_rows).unwrap_or(0);
    check_len("linear_silu_mul: out", num_rows * width, out.len())?;
    if num_rows == 0 {
        return Ok(());
    }
    check_len(
        "linear_silu_mul: w",
        2 * width.next_multiple_of(16),
        w.rows(),
    )?;
    let isa = if isa.is_supported() { isa } else { Isa::Scalar };
    if let [Weights::Bf16(w)] = w.parts() {
        bf16::load(&mut scratch.inputs, pool, isa, x, x.len() / num_rows);
        scratch
            .bf16
            .resize_with(pool.num_threads(), Default::default);
        let out = Output {
            out: DisjointSlice::new(out),
            num_rows,
            width,
            first: 0,
            epilogue: Epilogue::Store,
            is_gated: true,
        };
        bf16::run(pool, isa, &mut scratch.bf16, &scratch.inputs, w, &out);
        return Ok(());
    }
    let mut gate_up = std::mem::take(&mut scratch.gate_up);
    gate_up.resize(num_rows * w.rows(), 0.0);
    let made = linear(pool, isa, scratch, x, w, Epilogue::Store, &mut gate_up);
    silu_mul(pool, &gate_up, width, out);
    scratch.gate_up = gate_up;
    made
}

fn check_shapes(
    x: &[f32],
    w: &PackedMatrix,
    epilogue: Epilogue<'_>,
    out: &[f32],
) -> Result<usize, KernelError> {
    let num_rows = if w.cols() == 0 { 0 } else { x.len() / w.cols() };
    check_len("linear: x", num_rows * w.cols(), x.len())?;
    check_len("linear: out", num_rows * w.rows(), out.len())?;
    match epilogue {
        Epilogue::Bias(bias) => check_len("linear: bias", w.rows(), bias.len())?,
        Epilogue::Store | Epilogue::Add => {}
    }
    Ok(num_rows)
}

/// Where results go.
struct Output<'a> {
    /// `[num_rows, width]`.
    out: DisjointSlice<'a, f32>,
    num_rows: usize,
    width: usize,
    /// Column of the part's first output.
    first: usize,
    epilogue: Epilogue<'a>,
    /// Whether the matrix's first panel of each pair gates the second, and products are stored.
    is_gated: bool,
}

impl Output<'_> {
    /// Where an output of a row lies.
    fn address(&self, row: usize, start: usize) -> *const f32 {
        self.out.address(row * self.width + self.first + start)
    }

    /// [`store`](Self::store) of the first `lanes` sums of a panel; all of them as one vector, since
    /// the compiler would add a residual number by number.
    #[inline(always)]
    fn store_lanes<S: Simd>(
        &self,
        simd: S,
        row: usize,
        start: usize,
        sums: &[f32; LANES],
        lanes: usize,
    ) {
        if lanes < LANES {
            return self.store(row, start, &sums[..lanes]);
        }
        let start = self.first + start;
        let at = row * self.width + start;
        // SAFETY: a panel's outputs of a row belong to one task; a vector's worth is stored.
        unsafe {
            let out = self.out.part(at..at + LANES).as_mut_ptr();
            let sums = simd.load(sums.as_ptr());
            let result = match self.epilogue {
                Epilogue::Store => sums,
                Epilogue::Bias(bias) => {
                    simd.add(sums, simd.load(bias[start..start + LANES].as_ptr()))
                }
                Epilogue::Add => simd.add(simd.load(out), sums),
            };
            simd.store(out, result);
        }
    }

    /// Stores sums of one row: of the part's outputs from `start` on, which are the calling task's
    /// alone.
    #[inline(always)]
    fn store(&self, row: usize, start: usize, sums: &[f32]) {
        let start = self.first + start;
        let at = row * self.width + start;
        // SAFETY: a panel's outputs of a row belong to one task.
        let out = unsafe { self.out.part(at..at + sums.len()) };
        match self.epilogue {
            Epilogue::Store => out.copy_from_slice(sums),
            Epilogue::Bias(bias) => {
                for ((out, sum), b) in out.iter_mut().zip(sums).zip(&bias[start..]) {
                    *out = sum + b;
                }
            }
            Epilogue::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
        }
    }
}

/// Whether the machine has a matrix unit that the process may use.
pub(super) fn has_matrix_unit() -> bool {
    #[cfg(target_arch = "x86_64")]
    return bf16::amx::is_available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}
