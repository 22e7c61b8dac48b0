//! The inner loop: a few rows of input against one panel of weights.
//!
//! Every kernel computes, for each row `r` and lane `j`, the chain
//! `sum = fma(x[r][i], w[i][j], sum)` for `i` from 0 upwards, starting at zero.
//! The number of rows in a tile changes which registers hold the sums, not
//! their value: a row's result does not depend on the rows beside it.

use half::bf16;

use super::PANEL;

/// Most rows a tile has.
pub(super) const MAX_ROWS: usize = 12;

/// Inputs of a tile: row `r`, input `i` is at `r * row_stride + i * input_stride`.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) values: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) input_stride: usize,
}

impl Inputs<'_> {
    /// Panics unless `rows` rows of `cols` inputs are inside the slice.
    fn check(&self, rows: usize, cols: usize) {
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * self.row_stride + (cols - 1) * self.input_stride;
            assert!(
                last < self.values.len(),
                "inputs of a tile end past their slice"
            );
        }
    }
}

/// The type of a panel's elements, as the kernels load it.
pub(super) trait Weight: Copy {
    fn widen(self) -> f32;
    const IS_BF16: bool;
}

impl Weight for f32 {
    const IS_BF16: bool = false;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    const IS_BF16: bool = true;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// `out[r] = inputs[r] * panel` for `ROWS` rows, in plain Rust.
pub(super) fn scalar<const ROWS: usize, W: Weight>(
    inputs: Inputs<'_>,
    panel: &[W],
    out: &mut [[f32; PANEL]; ROWS],
) {
    inputs.check(ROWS, panel.len() / PANEL);
    for (r, sums) in out.iter_mut().enumerate() {
        *sums = [0.0; PANEL];
        for (i, weights) in panel.chunks_exact(PANEL).enumerate() {
            let x = inputs.values[r * inputs.row_stride + i * inputs.input_stride];
            for (sum, &w) in sums.iter_mut().zip(weights) {
                *sum = multiply_add(x, w.widen(), *sum);
            }
        }
    }
}

/// Fused where the target has it; elsewhere a call into the C library would cost 50 times more.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Inputs, PANEL, Weight};

    /// Tiles of at most this many rows wait for memory, not for arithmetic.
    const PREFETCH_ROWS: usize = 4;

    /// How many weights ahead to ask for. Panels follow each other in memory, so running past the
    /// end of one is a head start on the next.
    const PREFETCH: usize = 32 * PANEL;

    /// As [`scalar`](super::scalar): two registers a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(in super::super) fn avx512<const ROWS: usize, W: Weight>(
        inputs: Inputs<'_>,
        panel: &[W],
        out: &mut [[f32; PANEL]; ROWS],
    ) {
        let cols = panel.len() / PANEL;
        inputs.check(ROWS, cols);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let mut x = inputs.values.as_ptr();
        let mut w = panel.as_ptr();
        for _ in 0..cols {
            // SAFETY: `w` steps through `cols` groups of PANEL elements of `panel`; `x` and the
            // rows behind it stay inside `inputs.values` by `Inputs::check`.
            unsafe {
                if ROWS <= PREFETCH_ROWS {
                    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(PREFETCH).cast());
                }
                let (w0, w1) = (load16(w), load16(w.add(16)));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let xr = _mm512_set1_ps(*x.add(r * inputs.row_stride));
                    sum[0] = _mm512_fmadd_ps(xr, w0, sum[0]);
                    sum[1] = _mm512_fmadd_ps(xr, w1, sum[1]);
                }
                x = x.wrapping_add(inputs.input_stride);
                w = w.add(PANEL);
            }
        }
        for (row, sum) in out.iter_mut().zip(sums) {
            // SAFETY: `row` is PANEL = 32 floats.
            unsafe {
                _mm512_storeu_ps(row.as_mut_ptr(), sum[0]);
                _mm512_storeu_ps(row.as_mut_ptr().add(16), sum[1]);
            }
        }
    }

    /// # Safety
    /// `w` points at 16 readable elements.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn load16<W: Weight>(w: *const W) -> __m512 {
        // SAFETY: the caller's promise; `W` is bf16 or f32 as `IS_BF16` says.
        unsafe {
            if W::IS_BF16 {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(w.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            } else {
                _mm512_loadu_ps(w.cast())
            }
        }
    }

    /// As [`scalar`](super::scalar): four registers a row, two rows at a time.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn avx2<const ROWS: usize, W: Weight>(
        inputs: Inputs<'_>,
        panel: &[W],
        out: &mut [[f32; PANEL]; ROWS],
    ) {
        inputs.check(ROWS, panel.len() / PANEL);
        let mut rows = out.as_mut_slice();
        let mut first = 0;
        while rows.len() >= 2 {
            let (pair, rest) = rows.split_at_mut(2);
            avx2_rows::<2, W>(inputs, first, panel, pair);
            rows = rest;
            first += 2;
        }
        if !rows.is_empty() {
            avx2_rows::<1, W>(inputs, first, panel, rows);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2_rows<const N: usize, W: Weight>(
        inputs: Inputs<'_>,
        first: usize,
        panel: &[W],
        out: &mut [[f32; PANEL]],
    ) {
        let mut sums = [[_mm256_setzero_ps(); 4]; N];
        let mut x = inputs
            .values
            .as_ptr()
            .wrapping_add(first * inputs.row_stride);
        let mut w = panel.as_ptr();
        for _ in 0..panel.len() / PANEL {
            // SAFETY: as in `avx512`; the caller checked rows `first..first + N`.
            unsafe {
                let weights = [
                    load8(w),
                    load8(w.add(8)),
                    load8(w.add(16)),
                    load8(w.add(24)),
                ];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let xr = _mm256_set1_ps(*x.add(r * inputs.row_stride));
                    for (s, weight) in sum.iter_mut().zip(weights) {
                        *s = _mm256_fmadd_ps(xr, weight, *s);
                    }
                }
                x = x.wrapping_add(inputs.input_stride);
                w = w.add(PANEL);
            }
        }
        for (row, sum) in out.iter_mut().zip(sums) {
            for (part, s) in row.chunks_exact_mut(8).zip(sum) {
                // SAFETY: `part` is 8 floats.
                unsafe { _mm256_storeu_ps(part.as_mut_ptr(), s) };
            }
        }
    }

    /// # Safety
    /// `w` points at 8 readable elements.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8<W: Weight>(w: *const W) -> __m256 {
        // SAFETY: the caller's promise; `W` is bf16 or f32 as `IS_BF16` says.
        unsafe {
            if W::IS_BF16 {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(w.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            } else {
                _mm256_loadu_ps(w.cast())
            }
        }
    }
}
