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
    type Words = (__m256i, __m256i);

    // 6 x 1 pairs of accumulators, a pair of loads and a broadcast of the 16 registers.
    const COLS: usize = 1;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
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
    unsafe fn load_words(self, p: *const u32) -> Self::Words {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe {
            (
                _mm256_loadu_si256(p.cast()),
                _mm256_loadu_si256(p.add(8).cast()),
            )
        }
    }

    #[inline(always)]
    fn widen_halves(self, bytes: &[u8; 32]) -> Self::F {
        // SAFETY: both loads lie inside `bytes`; `self` proves the features.
        unsafe {
            let half = |at: usize| _mm_loadu_si128(bytes.as_ptr().add(at).cast());
            (_mm256_cvtph_ps(half(0)), _mm256_cvtph_ps(half(16)))
        }
    }

    #[inline(always)]
    fn widen_u8(self, bytes: &[u8; 16]) -> Self::F {
        // SAFETY: both loads lie inside `bytes`; `self` proves the features.
        unsafe {
            let half = |at: usize| {
                let bytes = _mm_loadl_epi64(bytes.as_ptr().add(at).cast());
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
            };
            (half(0), half(8))
        }
    }

    #[inline(always)]
    fn widen_i8(self, bytes: &[u8; 16]) -> Self::F {
        // SAFETY: both loads lie inside `bytes`; `self` proves the features.
        unsafe {
            let half = |at: usize| {
                let bytes = _mm_loadl_epi64(bytes.as_ptr().add(at).cast());
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
            };
            (half(0), half(8))
        }
    }

    #[inline(always)]
    fn low_bits<const BITS: u32>(self, words: Self::Words) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            let mask = _mm256_set1_epi32((1 << BITS) - 1);
            (
                _mm256_cvtepi32_ps(_mm256_and_si256(words.0, mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(words.1, mask)),
            )
        }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, words: Self::Words) -> Self::Words {
        // SAFETY: `self` proves the features.
        unsafe {
            let by = _mm_cvtsi32_si128(BITS as i32);
            (_mm256_srl_epi32(words.0, by), _mm256_srl_epi32(words.1, by))
        }
    }

    #[inline(always)]
    fn halves(self, words: Self::Words) -> [Self::F; 2] {
        // SAFETY: `self` proves the features.
        unsafe {
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let low = |w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
            let high = |w| _mm256_castsi256_ps(_mm256_and_si256(w, upper));
            [(low(words.0), low(words.1)), (high(words.0), high(words.1))]
        }
    }

    #[inline(always)]
    fn truncate_to_bf16(self, a: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        let words = unsafe { (_mm256_castps_si256(a.0), _mm256_castps_si256(a.1)) };
        let [_, upper] = self.halves(words);
        upper
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
    unsafe fn store_pairs(self, p: *mut u16, even: Self::F, odd: Self::F) {
        for (i, (even, odd)) in [(even.0, odd.0), (even.1, odd.1)].into_iter().enumerate() {
            // SAFETY: `p` is valid for 32 elements; `self` proves the features.
            unsafe {
                let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(even));
                let pairs = _mm256_blend_epi16::<0xaa>(low, _mm256_castps_si256(odd));
                _mm256_storeu_si256(p.add(16 * i).cast(), pairs);
            }
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
