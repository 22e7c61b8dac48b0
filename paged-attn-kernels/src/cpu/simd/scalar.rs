//! Vectors as arrays, left to the compiler.

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};
use crate::element::Element;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    // Without the instruction, `mul_add` calls a C function for each element.
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type Words = [u32; LANES];

    const COLS: usize = 1;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // A function of its own, as on the other instruction sets: the kernels are big.
        #[inline(never)]
        fn call<K: Kernel>(kernel: K) -> K::Output {
            kernel.call(Scalar)
        }
        call(kernel)
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: `p` is valid for 16 elements.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::F {
        // SAFETY: `p` is valid for 16 elements.
        let raw = unsafe { p.cast::<[bf16; LANES]>().read_unaligned() };
        raw.map(Element::to_f32)
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::F {
        // SAFETY: `p` is valid for 16 elements.
        let raw = unsafe { p.cast::<[i8; LANES]>().read_unaligned() };
        raw.map(Element::to_f32)
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u32) -> Self::Words {
        // SAFETY: `p` is valid for 16 elements.
        unsafe { p.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn widen_halves(self, bytes: &[u8; 2 * LANES]) -> Self::F {
        let half = |i: usize| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32();
        std::array::from_fn(half)
    }

    #[inline(always)]
    fn widen_u8(self, bytes: &[u8; LANES]) -> Self::F {
        bytes.map(f32::from)
    }

    #[inline(always)]
    fn widen_i8(self, bytes: &[u8; LANES]) -> Self::F {
        bytes.map(|byte| f32::from(byte as i8))
    }

    #[inline(always)]
    fn low_bits<const BITS: u32>(self, words: Self::Words) -> Self::F {
        words.map(|word| (word & ((1 << BITS) - 1)) as f32)
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, words: Self::Words) -> Self::Words {
        words.map(|word| word >> BITS)
    }

    #[inline(always)]
    fn halves(self, words: Self::Words) -> [Self::F; 2] {
        [
            words.map(|word| f32::from_bits(word << 16)),
            words.map(|word| f32::from_bits(word & 0xffff_0000)),
        ]
    }

    #[inline(always)]
    fn truncate_to_bf16(self, a: Self::F) -> Self::F {
        a.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: `p` is valid for 16 elements.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_pairs(self, p: *mut u16, even: Self::F, odd: Self::F) {
        for i in 0..LANES {
            // SAFETY: `p` is valid for 32 elements.
            unsafe {
                p.add(2 * i).write((even[i].to_bits() >> 16) as u16);
                p.add(2 * i + 1).write((odd[i].to_bits() >> 16) as u16);
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..LANES {
            out[i] = fma(a[i], b[i], c[i]);
        }
        out
    }

    #[inline(always)]
    fn fused(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // Adding and taking away 1.5 * 2^23 rounds to an integer, ties to even, for |a| < 2^22;
        // `round_ties_even` is a call where the target has no such instruction. Larger values
        // (only ever far below zero) are integers up to 2 in this range's precision, and their
        // powers of two are flushed to zero anyway.
        const MAGIC: f32 = 12_582_912.0;
        zip(a, a, |a, _| (a + MAGIC) - MAGIC)
    }

    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        zip(n, n, |n, _| {
            f32::from_bits(((n as i32).wrapping_add(127) as u32).wrapping_shl(23))
        })
    }

    #[inline(always)]
    fn zero_where_less(self, v: Self::F, x: Self::F, limit: f32) -> Self::F {
        zip(v, x, |v, x| if x < limit { 0.0 } else { v })
    }

    #[inline(always)]
    fn keep_first(self, v: Self::F, n: usize, fill: f32) -> Self::F {
        let mut out = v;
        for (i, x) in out.iter_mut().enumerate() {
            *x = if i < n { *x } else { fill };
        }
        out
    }

    #[inline(always)]
    fn swap_blocks<const HALF: usize>(self, v: Self::F) -> Self::F {
        std::array::from_fn(|i| v[i ^ HALF])
    }

    #[inline(always)]
    fn first(self, v: Self::F) -> f32 {
        v[0]
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::F) -> f32 {
        let mut v = v;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] = if v[i] > v[i + half] {
                    v[i]
                } else {
                    v[i + half]
                };
            }
        }
        v[0]
    }

    #[inline(always)]
    fn reduce_sum(self, v: Self::F) -> f32 {
        let mut v = v;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
}
