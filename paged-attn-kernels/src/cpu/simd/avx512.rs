//! One zmm register a vector.

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, Simd};
use crate::cpu::Isa;

/// Proof that the machine has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// None where the machine has no such instructions.
    pub(crate) fn new() -> Option<Self> {
        Isa::Avx512.is_supported().then_some(Self(()))
    }
}

/// The upper half of each word of `even` below that of `odd`.
///
/// As assembly: the compiler makes a shift and a blend of the one instruction, which costs a tenth
/// of widening weights.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn upper_halves(even: __m512i, odd: __m512i) -> __m512i {
    // In each 16 bytes, where the lower two of a word come from.
    let bytes = _mm512_set4_epi32(0x0000_0f0e, 0x0000_0b0a, 0x0000_0706, 0x0000_0302);
    let lower: __mmask64 = 0x3333_3333_3333_3333;
    let mut pairs = odd;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!("vpshufb {pairs} {{{lower}}}, {even}, {bytes}",
            pairs = inout(zmm_reg) pairs, lower = in(kreg) lower, even = in(zmm_reg) even,
            bytes = in(zmm_reg) bytes, options(pure, nomem, nostack, preserves_flags));
    }
    pairs
}

impl Simd for Avx512 {
    type F = __m512;
    type Words = __m512i;

    // 6 x 4 accumulators, 4 loads and a broadcast of the 32 registers.
    const COLS: usize = 4;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn call<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
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
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::F {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe {
            let raw = _mm256_loadu_si256(p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(raw)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::F {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u32) -> Self::Words {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    fn widen_halves(self, bytes: &[u8; 32]) -> Self::F {
        // SAFETY: as long as the load; `self` proves the features.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn widen_u8(self, bytes: &[u8; 16]) -> Self::F {
        // SAFETY: as long as the load; `self` proves the features.
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        }
    }

    #[inline(always)]
    fn widen_i8(self, bytes: &[u8; 16]) -> Self::F {
        // SAFETY: as long as the load; `self` proves the features.
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
        }
    }

    #[inline(always)]
    fn low_bits<const BITS: u32>(self, words: Self::Words) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            if BITS == 4 {
                // A look-up minds the low four bits only, and takes another port than arithmetic.
                let table = _mm512_set_ps(
                    15.0, 14.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0,
                    1.0, 0.0,
                );
                _mm512_permutexvar_ps(words, table)
            } else {
                let mask = _mm512_set1_epi32((1 << BITS) - 1);
                _mm512_cvtepi32_ps(_mm512_and_si512(words, mask))
            }
        }
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, words: Self::Words) -> Self::Words {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_srli_epi32::<BITS>(words) }
    }

    #[inline(always)]
    fn halves(self, words: Self::Words) -> [Self::F; 2] {
        // SAFETY: `self` proves the features.
        unsafe {
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
                _mm512_castsi512_ps(_mm512_and_si512(words, upper)),
            ]
        }
    }

    #[inline(always)]
    fn truncate_to_bf16(self, a: Self::F) -> Self::F {
        let [_, upper] = self.halves(
            // SAFETY: `self` proves the features.
            unsafe { _mm512_castps_si512(a) },
        );
        upper
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: `p` is valid for 16 elements; `self` proves the features.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u16, even: Self::F, odd: Self::F) {
        // SAFETY: `p` is valid for 32 elements; `self` proves the features.
        unsafe {
            let pairs = upper_halves(_mm512_castps_si512(even), _mm512_castps_si512(odd));
            _mm512_storeu_si512(p.cast(), pairs);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn zero_where_less(self, v: Self::F, x: Self::F, limit: f32) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(keep, v)
        }
    }

    #[inline(always)]
    fn keep_first(self, v: Self::F, n: usize, fill: f32) -> Self::F {
        let keep = (1u32 << n.min(16)).wrapping_sub(1) as __mmask16;
        // SAFETY: `self` proves the features.
        unsafe { _mm512_mask_blend_ps(keep, _mm512_set1_ps(fill), v) }
    }

    #[inline(always)]
    fn swap_blocks<const HALF: usize>(self, v: Self::F) -> Self::F {
        // SAFETY: `self` proves the features.
        unsafe {
            match HALF {
                1 => _mm512_permute_ps::<0b10_11_00_01>(v),
                2 => _mm512_permute_ps::<0b01_00_11_10>(v),
                4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v),
                _ => _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v),
            }
        }
    }

    #[inline(always)]
    fn first(self, v: Self::F) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_cvtss_f32(v) }
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::F) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe {
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::reduce_max_256(v)
        }
    }

    #[inline(always)]
    fn reduce_sum(self, v: Self::F) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::reduce_sum_256(v)
        }
    }
}
