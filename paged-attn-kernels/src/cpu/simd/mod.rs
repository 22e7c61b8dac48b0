//! Vectors of 16 f32 lanes, the same on every instruction set.
//!
//! AVX-512 holds one in a register, AVX2 in two, plain Rust in an array. The kernels are written
//! once over [`Simd`]; since every operation is defined lane by lane and the sums across lanes
//! have a fixed tree, AVX-512 and AVX2 give the same bits. Plain Rust gives them too where the
//! target has a fused multiply-add; elsewhere it rounds the product, since a software fused
//! multiply-add costs some hundred times as much.
//!
//! A value of the vector type's token (`Avx512`, `Avx2`) is proof that the machine has the
//! instructions, so operations on registers are safe to call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
use half::bf16;
pub(crate) use scalar::Scalar;

use crate::cpu::Isa;
use crate::element::Element;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Exponents below this give zero: 2^x is then smaller than any normal f32.
const EXP2_MIN: f32 = -126.0;

/// Coefficients of q in 2^f = 1 + f q(f) for f in [-0.5, 0.5]: minimax in relative error (2.0e-9
/// before rounding), fitted by iteratively reweighted least squares.
const EXP2_Q: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_48,
    0.055_503_324,
    0.009_618_437,
    0.001_339_887_5,
    0.000_153_533_62,
];

/// Sixteen-lane f32 arithmetic.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type F: Copy;
    /// Sixteen lanes of 32 bits.
    type Words: Copy;

    /// Vectors side by side in a register tile of `MAX_ROWS` rows.
    const COLS: usize;

    /// Runs a kernel compiled for this instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// Hints that memory will be read soon; any address will do.
    fn prefetch<T>(self, p: *const T);
    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `p` is valid for reads of 16 elements.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// `p` is valid for reads of 16 elements.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::F;
    /// # Safety
    /// `p` is valid for reads of 16 elements.
    unsafe fn load_i8(self, p: *const i8) -> Self::F;
    /// # Safety
    /// `p` is valid for reads of 16 elements.
    unsafe fn load_words(self, p: *const u32) -> Self::Words;
    /// # Safety
    /// `p` is valid for writes of 16 elements.
    unsafe fn store(self, p: *mut f32, v: Self::F);

    /// Stores the upper halves of `even` and `odd` side by side, lane by lane.
    ///
    /// # Safety
    /// `p` is valid for writes of 32 elements.
    unsafe fn store_pairs(self, p: *mut u16, even: Self::F, odd: Self::F);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * b + c` rounded once on every instruction set, at whatever cost.
    #[inline(always)]
    fn fused(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.fma(a, b, c)
    }
    /// Sixteen f16, little-endian.
    fn widen_halves(self, bytes: &[u8; 2 * LANES]) -> Self::F;
    fn widen_u8(self, bytes: &[u8; LANES]) -> Self::F;
    fn widen_i8(self, bytes: &[u8; LANES]) -> Self::F;
    /// The number in the low `BITS` bits of each word.
    fn low_bits<const BITS: u32>(self, words: Self::Words) -> Self::F;
    /// Words without their low `BITS` bits, the others moved down.
    fn shift_right<const BITS: u32>(self, words: Self::Words) -> Self::Words;
    /// The bf16 in the lower and in the upper half of each word.
    fn halves(self, words: Self::Words) -> [Self::F; 2];
    /// The upper 16 bits of each number: a bf16, rounded towards zero.
    fn truncate_to_bf16(self, a: Self::F) -> Self::F;
    /// `a > b ? a : b` in each lane: `b` where either is not a number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// 2^n for lanes that are integers in -126..=127.
    fn pow2(self, n: Self::F) -> Self::F;
    /// `v` with zeros in the lanes where `x < limit`.
    fn zero_where_less(self, v: Self::F, x: Self::F, limit: f32) -> Self::F;
    /// `v` with `fill` in the lanes from `n` on.
    fn keep_first(self, v: Self::F, n: usize, fill: f32) -> Self::F;
    /// The lanes in blocks of `HALF` (1, 2, 4 or 8), each changed with its neighbour: lane i is
    /// lane i ^ HALF of `v`.
    fn swap_blocks<const HALF: usize>(self, v: Self::F) -> Self::F;
    /// Lane 0.
    fn first(self, v: Self::F) -> f32;
    /// Maximum over the lanes.
    fn reduce_max(self, v: Self::F) -> f32;
    /// Sum over the lanes, by halves: lane i with i + 8, then i + 4, i + 2, i + 1.
    fn reduce_sum(self, v: Self::F) -> f32;

    /// `gate / (1 + e^-gate) * up`.
    #[inline(always)]
    fn silu_mul(self, gate: Self::F, up: Self::F) -> Self::F {
        // Below -127 the quotient is as good as zero, which dividing by 2^127 makes of it.
        let exponent = self.mul(gate, self.splat(std::f32::consts::LOG2_E));
        let exponent = self.max(exponent, self.splat(-127.0));
        let e = self.exp2(self.sub(self.splat(0.0), exponent));
        self.mul(self.div(gate, self.add(self.splat(1.0), e)), up)
    }

    /// [`silu_mul`](Self::silu_mul) in memory.
    #[inline(always)]
    fn silu_mul_lanes(self, gate: &[f32; LANES], up: &[f32; LANES]) -> [f32; LANES] {
        let mut gated = [0.0; LANES];
        // SAFETY: all three are as long as a vector.
        unsafe {
            let product = self.silu_mul(self.load(gate.as_ptr()), self.load(up.as_ptr()));
            self.store(gated.as_mut_ptr(), product);
        }
        gated
    }

    /// 2^x within 1 ulp for x in [-126, 127], exactly 1 for 0, exactly 0 below -126.
    ///
    /// x = n + f with n whole; 2^f by a polynomial of degree 6. Flushing below the smallest
    /// normal number keeps slow denormals out of the sums; such a probability is below 1e-38.
    #[inline(always)]
    fn exp2(self, x: Self::F) -> Self::F {
        let n = self.round(x);
        let f = self.sub(x, n);
        let mut q = self.splat(EXP2_Q[5]);
        for &c in EXP2_Q[..5].iter().rev() {
            q = self.fma(q, f, self.splat(c));
        }
        let p = self.fma(q, f, self.splat(1.0));
        self.zero_where_less(self.mul(p, self.pow2(n)), x, EXP2_MIN)
    }
}

/// Code that is compiled once for each instruction set. `call` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn call<S: Simd>(self, simd: S) -> Self::Output;
}

/// Plain code, to be compiled for an instruction set by what calls it.
pub(crate) struct Wide<F>(pub(crate) F);

impl<F: FnOnce()> Kernel for Wide<F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        (self.0)()
    }
}

/// An element of a page that vectors can load.
pub(crate) trait Lanes: Element {
    /// # Safety
    /// `p` is valid for reads of 16 elements.
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::F;
}

impl Lanes for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::F {
        // SAFETY: as this function's.
        unsafe { simd.load(p) }
    }
}

impl Lanes for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::F {
        // SAFETY: as this function's.
        unsafe { simd.load_bf16(p) }
    }
}

impl Lanes for i8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::F {
        // SAFETY: as this function's.
        unsafe { simd.load_i8(p) }
    }
}

/// Runs `kernel` compiled for `isa`; for plain Rust where the machine has no such instructions,
/// which the callers have ruled out before.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Amx | Isa::Avx512 => {
            if let Some(simd) = Avx512::new() {
                return simd.vectorize(kernel);
            }
        }
        Isa::Avx2 => {
            if let Some(simd) = Avx2::new() {
                return simd.vectorize(kernel);
            }
        }
        Isa::Scalar => {}
    }
    let _ = isa;
    Scalar.vectorize(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp2<'a>(&'a [f32; LANES], &'a mut [f32; LANES]);

    impl Kernel for Exp2<'_> {
        type Output = ();
        #[inline(always)]
        fn call<S: Simd>(self, simd: S) {
            // SAFETY: both arrays hold 16 lanes.
            unsafe { simd.store(self.1.as_mut_ptr(), simd.exp2(simd.load(self.0.as_ptr()))) }
        }
    }

    fn exp2(isa: Isa, x: [f32; LANES]) -> [f32; LANES] {
        let mut y = [f32::NAN; LANES];
        dispatch(isa, Exp2(&x, &mut y));
        y
    }

    /// What the operations on words and bytes give, as bits.
    struct Words<'a>(&'a [u32; LANES]);

    impl Kernel for Words<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        fn call<S: Simd>(self, simd: S) -> Vec<u32> {
            let bytes: [u8; 2 * LANES] =
                std::array::from_fn(|i| (self.0[i / 2] >> (8 * (i % 2))) as u8);
            let first: &[u8; LANES] = bytes.first_chunk().unwrap();
            let mut bits = Vec::new();
            // SAFETY: both arrays are as long as what is loaded and stored.
            unsafe {
                let words = simd.load_words(self.0.as_ptr());
                let [low, high] = simd.halves(words);
                for v in [
                    simd.low_bits::<1>(words),
                    simd.low_bits::<2>(words),
                    simd.low_bits::<4>(words),
                    simd.low_bits::<8>(simd.shift_right::<8>(words)),
                    low,
                    high,
                    simd.truncate_to_bf16(simd.add(high, low)),
                    simd.widen_u8(first),
                    simd.widen_i8(first),
                    simd.widen_halves(&bytes),
                    simd.fused(low, high, high),
                ] {
                    let mut out = [0.0f32; LANES];
                    simd.store(out.as_mut_ptr(), v);
                    bits.extend(out.map(f32::to_bits));
                }
                let mut pairs = [0u16; 2 * LANES];
                simd.store_pairs(pairs.as_mut_ptr(), low, high);
                bits.extend(pairs.map(u32::from));
            }
            bits
        }
    }

    #[test]
    fn words_and_bytes_are_read_alike_by_every_instruction_set() {
        // Halves that are normal numbers, as bf16 and as f16.
        let half = |i: usize| 0x3c00 + (i * 0x2f) as u32 % 0x300;
        let words: [u32; LANES] = std::array::from_fn(|i| half(i) | (half(i + 40) | 0x8000) << 16);
        let expected = dispatch(Isa::Scalar, Words(&words));
        assert_eq!(expected[2 * LANES + 1], ((words[1] & 15) as f32).to_bits());
        assert_eq!(expected[5 * LANES + 1], words[1] & 0xffff_0000);
        let pairs = &expected[11 * LANES..];
        assert_eq!((pairs[2], pairs[3]), (words[1] & 0xffff, words[1] >> 16));
        for isa in Isa::all_supported() {
            assert_eq!(dispatch(isa, Words(&words)), expected, "{isa:?}");
        }
    }

    #[test]
    fn exp2_is_within_two_ulp_everywhere() {
        for isa in Isa::all_supported() {
            let mut worst = 0.0f64;
            for i in 0..200_000u32 {
                let base = -126.0 + 253.0 * (i as f32 / 200_000.0);
                let x: [f32; LANES] = std::array::from_fn(|lane| base + lane as f32 * 7.3e-5);
                for (x, y) in x.into_iter().zip(exp2(isa, x)) {
                    let exact = f64::from(x).exp2();
                    let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1))
                        - f64::from(exact as f32);
                    worst = worst.max((f64::from(y) - exact).abs() / ulp);
                }
            }
            // Without a fused multiply-add (plain Rust on x86-64) it is 1.6.
            assert!(worst < 2.0, "{isa:?}: {worst} ulp");
        }
    }

    #[test]
    fn exp2_is_exact_where_masking_relies_on_it() {
        let mut x = [0.0; LANES];
        x[1] = f32::NEG_INFINITY;
        x[2] = -126.5;
        x[3] = f32::MIN;
        x[4] = f32::NAN;
        x[5] = -126.0;
        x[6] = -1.0;
        for isa in Isa::all_supported() {
            let y = exp2(isa, x);
            assert_eq!(
                y[..4].iter().map(|y| y.to_bits()).collect::<Vec<_>>(),
                [1.0f32.to_bits(), 0, 0, 0]
            );
            assert!(y[4].is_nan());
            assert_eq!(y[5], f32::MIN_POSITIVE);
            assert_eq!(y[6], 0.5);
        }
    }

    struct Across<'a>(&'a [f32; LANES], usize);

    impl Kernel for Across<'_> {
        type Output = (f32, f32, f32);
        #[inline(always)]
        fn call<S: Simd>(self, simd: S) -> Self::Output {
            // SAFETY: the array holds 16 lanes.
            let v = unsafe { simd.load(self.0.as_ptr()) };
            let kept = simd.keep_first(v, self.1, -1.0);
            (
                simd.reduce_sum(v),
                simd.reduce_max(v),
                simd.reduce_sum(kept),
            )
        }
    }

    #[test]
    fn operations_across_lanes_are_the_same_on_every_instruction_set() {
        let v: [f32; LANES] =
            std::array::from_fn(|i| (i as f32 * 1.7).sin() * 1e3f32.powi(i as i32 % 3));
        for n in 0..=LANES {
            let mut kept = v;
            kept[n..].fill(-1.0);
            let by_halves = |v: [f32; LANES]| {
                let mut v = v;
                for half in [8, 4, 2, 1] {
                    for i in 0..half {
                        v[i] += v[i + half];
                    }
                }
                v[0]
            };
            let max = v.into_iter().fold(f32::MIN, f32::max);
            for isa in Isa::all_supported() {
                let expected = (by_halves(v), max, by_halves(kept));
                assert_eq!(dispatch(isa, Across(&v, n)), expected, "{isa:?}");
            }
        }
    }
}
