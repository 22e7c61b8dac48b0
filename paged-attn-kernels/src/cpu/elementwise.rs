//! The cheap operations between linear layers: norms, rotary embedding, activation.
//!
//! Mostly plain Rust, which the compiler vectorises for the machine's instructions. Each works on a row at a time in a fixed order, so a row's
//! result does not depend on the rows beside it.

use super::simd::{Kernel, LANES as VECTOR, Simd, Wide, dispatch};
use super::{Isa, ThreadPool, disjoint::DisjointSlice};
use crate::KernelError;
use crate::error::check_len;

/// Below this many elements a parallel region costs more than it saves.
const MIN_PARALLEL: usize = 8192;

/// Calls `f(first_row, rows)` on chunks of whole rows, in parallel where it pays, compiled for the
/// machine's instructions.
fn for_each_rows(
    pool: &ThreadPool,
    data: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    let num_rows = data.len() / width.max(1);
    let isa = Isa::of_machine();
    let num_tasks = if data.len() < MIN_PARALLEL {
        1
    } else {
        pool.num_threads() * 4
    };
    let per_task = num_rows.div_ceil(num_tasks).max(1);
    let slice = DisjointSlice::new(data);
    pool.for_each(num_rows.div_ceil(per_task), |task| {
        let rows = task * per_task..num_rows.min((task + 1) * per_task);
        // SAFETY: each task has its own rows.
        let out = unsafe { slice.part(rows.start * width..rows.end * width) };
        dispatch(isa, Wide(|| f(rows.start, out)));
    });
}

/// Lanes of a sum of squares: a fixed number, so that every instruction set sums in one order.
const LANES: usize = 16;

/// `1 / sqrt(mean(x^2) + eps)`.
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v * v;
        }
    }
    for (sum, v) in sums.iter_mut().zip(rest) {
        *sum += v * v;
    }
    let sum: f32 = sums.iter().sum();
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// Root-mean-square norm of each row: `out = weight * x / sqrt(mean(x^2) + eps)`.
///
/// `x`, `out`: `[num_rows, width]`, dense; `weight`: `[width]`.
///
/// # Errors
/// [`KernelError::Length`] if the lengths do not agree, [`KernelError::Zero`] for an empty weight.
///
/// Source: Zhang and Sennrich 2019.
pub fn rms_norm(
    pool: &ThreadPool,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let width = weight.len();
    if width == 0 {
        return Err(KernelError::Zero {
            name: "rms_norm: weight",
        });
    }
    check_len("rms_norm: x", x.len() / width * width, x.len())?;
    check_len("rms_norm: out", x.len(), out.len())?;
    for_each_rows(pool, out, width, |first, out| {
        let x = x[first * width..].chunks_exact(width);
        for (x, out) in x.zip(out.chunks_exact_mut(width)) {
            let scale = inverse_rms(x, eps);
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = w * (x * scale);
            }
        }
    });
    Ok(())
}

/// A range of heads inside the rows of a fused projection.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// First element of the first head in a row.
    pub offset: usize,
    /// Number of heads, side by side.
    pub num_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
}

impl Heads {
    /// Refuses heads that reach past rows of `width`.
    pub(crate) fn check(&self, width: usize) -> Result<(), KernelError> {
        for (name, value) in [("heads: head_dim", self.head_dim), ("heads: width", width)] {
            if value == 0 {
                return Err(KernelError::Zero { name });
            }
        }
        let end = self
            .num_heads
            .checked_mul(self.head_dim)
            .and_then(|n| n.checked_add(self.offset));
        match end {
            Some(end) if end <= width => Ok(()),
            _ => Err(KernelError::Rows {
                name: "heads",
                num_rows: 1,
                width: end.unwrap_or(usize::MAX),
                stride: width,
                len: width,
            }),
        }
    }

    fn of_row<'a>(&self, row: &'a mut [f32]) -> impl Iterator<Item = &'a mut [f32]> {
        row[self.offset..][..self.num_heads * self.head_dim].chunks_exact_mut(self.head_dim)
    }
}

/// [`rms_norm`] of every head in place, with one weight `[head_dim]` for all of them.
///
/// `x`: `[num_rows, width]`.
///
/// # Errors
/// [`KernelError::Rows`] if the heads reach past a row, [`KernelError::Length`] for other lengths.
pub fn rms_norm_heads(
    pool: &ThreadPool,
    x: &mut [f32],
    width: usize,
    heads: Heads,
    weight: &[f32],
    eps: f32,
) -> Result<(), KernelError> {
    heads.check(width)?;
    check_len("rms_norm_heads: x", x.len() / width * width, x.len())?;
    check_len("rms_norm_heads: weight", heads.head_dim, weight.len())?;
    for_each_rows(pool, x, width, |_, rows| {
        for head in rows
            .chunks_exact_mut(width)
            .flat_map(|row| heads.of_row(row))
        {
            let scale = inverse_rms(head, eps);
            for (x, w) in head.iter_mut().zip(weight) {
                *x = w * (*x * scale);
            }
        }
    });
    Ok(())
}

/// Cosines and sines of a step's positions, computed once and used by every layer.
#[derive(Debug, Default, Clone)]
pub struct RopeAngles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    num_pairs: usize,
}

impl RopeAngles {
    /// Angles of `positions` for the pairs' inverse frequencies, reusing the buffers.
    ///
    /// The product of position and frequency is rounded to f32, as the models were trained.
    pub fn compute(&mut self, positions: &[u32], inverse_frequencies: &[f32]) {
        self.num_pairs = inverse_frequencies.len();
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for &frequency in inverse_frequencies {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }
}

/// Rotary position embedding of heads in place, pairing element `i` with `i + head_dim / 2`.
///
/// `x`: `[num_rows, width]`, a row for each position of `angles`.
///
/// # Errors
/// [`KernelError::Rows`] if the heads reach past a row; [`KernelError::Length`] if `angles` are
/// not of `head_dim / 2` pairs and one position a row.
///
/// Source: Su et al. 2021; the half-split pairing is that of GPT-NeoX and of LLaMA in
/// transformers.
pub fn rope(
    pool: &ThreadPool,
    x: &mut [f32],
    width: usize,
    heads: Heads,
    angles: &RopeAngles,
) -> Result<(), KernelError> {
    heads.check(width)?;
    let pairs = angles.num_pairs;
    check_len("rope: angles of a position", heads.head_dim, 2 * pairs)?;
    check_len("rope: angles", x.len() / width * pairs, angles.cos.len())?;
    check_len("rope: x", x.len() / width * width, x.len())?;
    for_each_rows(pool, x, width, |first, rows| {
        let cos = angles.cos[first * pairs..].chunks_exact(pairs);
        let sin = angles.sin[first * pairs..].chunks_exact(pairs);
        for ((row, cos), sin) in rows.chunks_exact_mut(width).zip(cos).zip(sin) {
            for head in heads.of_row(row) {
                let (low, high) = head.split_at_mut(pairs);
                for i in 0..pairs {
                    let (a, b) = (low[i], high[i]);
                    low[i] = a * cos[i] - b * sin[i];
                    high[i] = b * cos[i] + a * sin[i];
                }
            }
        }
    });
    Ok(())
}

/// Gates and what they gate, interleaved by the lanes of a vector: 16 gates, then their 16 values.
///
/// Row `i` of a matrix that makes them is row `i / 32 * 16 + i % 16` of the gates' matrix if
/// `i % 32 < 16`, else of the values'. Rows past the end of either are zero.
pub fn gated_row(row: usize) -> (bool, usize) {
    let (pair, at) = (row / (2 * VECTOR), row % (2 * VECTOR));
    (at < VECTOR, pair * VECTOR + at % VECTOR)
}

/// The gated activation of LLaMA: `out = silu(gate) * up`, `silu(x) = x / (1 + exp(-x))`.
///
/// `gate_up`: `[num_rows, 2 * width rounded up to 16]`, interleaved as [`gated_row`] says; `out`:
/// `[num_rows, width]`.
///
/// Source: Shazeer 2020.
pub(super) fn silu_mul(pool: &ThreadPool, gate_up: &[f32], width: usize, out: &mut [f32]) {
    let gate_up_width = 2 * width.next_multiple_of(VECTOR);
    let isa = Isa::of_machine();
    let num_rows = out.len() / width.max(1);
    let out = DisjointSlice::new(out);
    let per_task = num_rows.div_ceil(pool.num_threads() * 4).max(1);
    pool.for_each(num_rows.div_ceil(per_task), |task| {
        for row in task * per_task..num_rows.min((task + 1) * per_task) {
            // SAFETY: each row is one task's.
            let out = unsafe { out.part(row * width..(row + 1) * width) };
            let gate_up = &gate_up[row * gate_up_width..][..gate_up_width];
            dispatch(isa, SiluMul { gate_up, out });
        }
    });
}

/// [`silu_mul`] of some gates of a row.
pub(super) struct SiluMul<'a> {
    /// Interleaved; at least as many as `out` is long, rounded up to a vector.
    pub(super) gate_up: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let vectors = self.gate_up.as_chunks::<VECTOR>().0;
        for (out, pair) in self.out.chunks_mut(VECTOR).zip(vectors.chunks_exact(2)) {
            let gated = simd.silu_mul_lanes(&pair[0], &pair[1]);
            out.copy_from_slice(&gated[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0)
            .collect()
    }

    #[test]
    fn rms_norm_agrees_with_f64() {
        let pool = ThreadPool::new(2);
        for (rows, width) in [(1, 1), (3, 7), (5, 16), (4, 33), (200, 72)] {
            let (x, w) = (numbers(rows * width), numbers(width));
            let mut out = vec![f32::NAN; x.len()];
            rms_norm(&pool, &x, &w, 1e-5, &mut out).unwrap();
            for (row, out) in x.chunks(width).zip(out.chunks(width)) {
                let sum: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                let scale = 1.0 / (sum / width as f64 + 1e-5).sqrt();
                for ((x, w), out) in row.iter().zip(&w).zip(out) {
                    let expected = f64::from(*x) * scale * f64::from(*w);
                    assert!((f64::from(*out) - expected).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn head_norms_leave_the_other_columns_alone() {
        let pool = ThreadPool::new(1);
        let heads = Heads {
            offset: 3,
            num_heads: 2,
            head_dim: 8,
        };
        let before = numbers(4 * 24);
        let mut x = before.clone();
        rms_norm_heads(&pool, &mut x, 24, heads, &[1.0; 8], 0.0).unwrap();
        for (row, old) in x.chunks(24).zip(before.chunks(24)) {
            assert_eq!((&row[..3], &row[19..]), (&old[..3], &old[19..]));
            for head in row[3..19].chunks(8) {
                let mean: f32 = head.iter().map(|v| v * v).sum::<f32>() / 8.0;
                assert!((mean - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn rope_rotates_each_pair_by_position_times_frequency() {
        let pool = ThreadPool::new(1);
        let frequencies = [1.0, 0.25, 0.01];
        let positions = [0, 1, 977];
        let mut angles = RopeAngles::default();
        angles.compute(&positions, &frequencies);
        let heads = Heads {
            offset: 1,
            num_heads: 2,
            head_dim: 6,
        };
        let before = numbers(3 * 14);
        let mut x = before.clone();
        rope(&pool, &mut x, 14, heads, &angles).unwrap();
        for (r, &position) in positions.iter().enumerate() {
            for head in 0..2 {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let at = r * 14 + 1 + head * 6 + i;
                    let (sin, cos) = (f64::from(position) * f64::from(*frequency)).sin_cos();
                    let (a, b) = (f64::from(before[at]), f64::from(before[at + 3]));
                    assert!((f64::from(x[at]) - (a * cos - b * sin)).abs() < 1e-4);
                    assert!((f64::from(x[at + 3]) - (b * cos + a * sin)).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn silu_mul_agrees_with_f64_on_every_instruction_set() {
        for isa in Isa::all_supported() {
            for width in [1, 5, 16, 72] {
                let padded = 2 * usize::next_multiple_of(width, 16);
                let mut gate_up: Vec<f32> = numbers(padded).iter().map(|x| x * 20.0).collect();
                gate_up[0] = -500.0;
                let mut out = vec![f32::NAN; width];
                let (g, o) = (&gate_up, &mut out);
                dispatch(isa, SiluMul { gate_up: g, out: o });
                for (i, out) in out.iter().enumerate() {
                    let at = i / 16 * 32 + i % 16;
                    assert_eq!((gated_row(at), gated_row(at + 16)), ((true, i), (false, i)));
                    let (g, u) = (f64::from(gate_up[at]), f64::from(gate_up[at + 16]));
                    let expected = g / (1.0 + (-g).exp()) * u;
                    assert!((f64::from(*out) - expected).abs() <= 1e-5 * expected.abs().max(1.0));
                }
            }
            let mut out = [0.0];
            let gate_up = [f32::NAN; 32];
            dispatch(
                isa,
                SiluMul {
                    gate_up: &gate_up,
                    out: &mut out,
                },
            );
            assert!(out[0].is_nan());
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let pool = ThreadPool::new(1);
        assert!(rms_norm(&pool, &[0.0; 5], &[1.0; 2], 0.0, &mut [0.0; 5]).is_err());
        let heads = Heads {
            offset: 0,
            num_heads: 3,
            head_dim: 4,
        };
        assert!(rms_norm_heads(&pool, &mut [0.0; 8], 8, heads, &[1.0; 4], 0.0).is_err());
        assert!(rope(&pool, &mut [0.0; 8], 8, heads, &RopeAngles::default()).is_err());
    }
}
