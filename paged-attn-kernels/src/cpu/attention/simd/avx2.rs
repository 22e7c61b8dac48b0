//! Two ymm registers a vector.

use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, Simd};
use crate::cpu::Isa;

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// None where the machine has no such instructions.
    pub(crate) fn new() -> Option<Self> {
        Isa::Avx2.is_supported().then_some(Self(()))
    }
}

/// Lanes 0 to 7 and 8 to 15.
type Pair = (__m256, __m256);

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn reduce_max_256(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn reduce_sum_256(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

impl Simd for Avx2 {
    type F = Pair;

    // 6 x 1 pairs of accumulators, a pair of loads and a broadcast of the 16 registers.
    const COLS: usize = 1;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        fn call<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.call(simd)
        }
        // SAFETY: `self` proves the features.
        unsafe { call(self, kernel) }
    }

    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: a hint that never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: `self` proves the features.
        let v = unsafe { _mm256_set1_ps(x) };
        (v, v)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::F {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::F {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe {
            let raw = _mm_loadu_si128(p.cast());
            let high = _mm_unpackhi_epi64(raw, raw);
            (
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            (
                _mm256_fmadd_ps(a.0, b.0, c.0),
                _mm256_fmadd_ps(a.1, b.1, c.1),
            )
        }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: `self` proves the features.
        unsafe { (_mm256_round_ps::<MODE>(a.0), _mm256_round_ps::<MODE>(a.1)) }
    }

    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias);
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            )
        }
    }

    #[inline(always)]
    fn zero_where_less(self, v: Self::F, x: Self::F, limit: f32) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            (
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, limit), v.0),
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x.1, limit), v.1),
            )
        }
    }

    #[inline(always)]
    fn keep_first(self, v: Self::F, n: usize, fill: f32) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            let n = _mm256_set1_epi32(n.min(16) as i32);
            let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
            let fill = _mm256_set1_ps(fill);
            let keep_low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, low));
            let keep_high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, high));
            (
                _mm256_blendv_ps(fill, v.0, keep_low),
                _mm256_blendv_ps(fill, v.1, keep_high),
            )
        }
    }

    #[inline(always)]
    fn swap_blocks<const HALF: usize>(self, v: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        let each = |v: __m256| unsafe {
            match HALF {
                1 => _mm256_permute_ps::<0b10_11_00_01>(v),
                2 => _mm256_permute_ps::<0b01_00_11_10>(v),
                _ => _mm256_permute2f128_ps::<1>(v, v),
            }
        };
        match HALF {
            8 => (v.1, v.0),
            _ => (each(v.0), each(v.1)),
        }
    }

    #[inline(always)]
    fn first(self, v: Self::F) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_cvtss_f32(v.0) }
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::F) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { reduce_max_256(_mm256_max_ps(v.0, v.1)) }
    }

    #[inline(always)]
    fn reduce_sum(self, v: Self::F) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { reduce_sum_256(_mm256_add_ps(v.0, v.1)) }
    }
}
