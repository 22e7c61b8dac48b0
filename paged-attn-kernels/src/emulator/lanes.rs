//! Values of the 32 lanes of a warp, and the macros that lift a function of values to them.
//!
//! A register holds 64 bits a lane whatever its declared width. Instructions read as many low
//! bits as their type has and never the rest, so that narrow results need no masking.

use half::{bf16, f16};

use super::rounding::to_odd;

/// One register of a warp: 64 bits for each of 32 lanes.
pub(crate) type Lanes = [u64; 32];

/// An instruction without side effects of one source.
pub(crate) type Fn1 = fn(&mut Lanes, &Lanes);
/// An instruction without side effects of two sources.
pub(crate) type Fn2 = fn(&mut Lanes, &Lanes, &Lanes);
/// An instruction without side effects of three sources.
pub(crate) type Fn3 = fn(&mut Lanes, [&Lanes; 3]);
/// An instruction without side effects of four sources.
pub(crate) type Fn4 = fn(&mut Lanes, [&Lanes; 4]);
/// A comparison: a bit a lane.
pub(crate) type Compare = fn(&Lanes, &Lanes) -> u32;

/// A type that registers hold.
pub(crate) trait Lane: Copy {
    /// Reads the low bits of a register.
    fn get(bits: u64) -> Self;
    /// The bits a register holds; signed integers are extended.
    fn put(self) -> u64;
}

macro_rules! integer_lane {
    ($($t:ty),*) => {$(
        impl Lane for $t {
            #[inline(always)]
            fn get(bits: u64) -> Self {
                bits as $t
            }
            #[inline(always)]
            fn put(self) -> u64 {
                self as i64 as u64
            }
        }
    )*};
}
integer_lane!(u8, i8, u16, i16, u32, i32, u64, i64);

macro_rules! float_lane {
    ($($t:ty, $bits:ty);*) => {$(
        impl Lane for $t {
            #[inline(always)]
            fn get(bits: u64) -> Self {
                <$t>::from_bits(bits as $bits)
            }
            #[inline(always)]
            fn put(self) -> u64 {
                u64::from(self.to_bits())
            }
        }
    )*};
}
float_lane!(f32, u32; f64, u64; f16, u16; bf16, u16);

/// Two halves in a 32-bit register, low bits first.
impl<T: Half> Lane for [T; 2] {
    #[inline(always)]
    fn get(bits: u64) -> Self {
        [T::from_half(bits as u16), T::from_half((bits >> 16) as u16)]
    }
    #[inline(always)]
    fn put(self) -> u64 {
        u64::from(self[0].to_half()) | u64::from(self[1].to_half()) << 16
    }
}

/// A 16-bit float, computed with in f32 or f64.
pub(crate) trait Half: Copy {
    fn from_half(bits: u16) -> Self;
    fn to_half(self) -> u16;
    fn wide(self) -> f64;
    /// Rounds to nearest even, once.
    fn narrow(value: f64) -> Self;
}

macro_rules! half {
    ($($t:ty),*) => {$(
        impl Half for $t {
            #[inline(always)]
            fn from_half(bits: u16) -> Self {
                <$t>::from_bits(bits)
            }
            #[inline(always)]
            fn to_half(self) -> u16 {
                self.to_bits()
            }
            // Out of line: many instructions convert halves, and few kernels have many of them.
            #[inline(never)]
            fn wide(self) -> f64 {
                self.to_f64()
            }
            #[inline(never)]
            fn narrow(value: f64) -> Self {
                if value.is_nan() {
                    <$t>::from_bits(0x7fff)
                } else {
                    // `from_f64` may go by way of f32 and round twice; to odd, that is harmless.
                    <$t>::from_f32(to_odd(value))
                }
            }
        }
    )*};
}
half!(f16, bf16);

macro_rules! fn1 {
    (|$a:ident: $ta:ty| $e:expr) => {{
        fn lift(out: &mut Lanes, a: &Lanes) {
            for (out, a) in out.iter_mut().zip(a) {
                let $a = <$ta as Lane>::get(*a);
                *out = Lane::put($e);
            }
        }
        lift as Fn1
    }};
}

macro_rules! fn2 {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty| $e:expr) => {{
        fn lift(out: &mut Lanes, a: &Lanes, b: &Lanes) {
            for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                let ($a, $b) = (<$ta as Lane>::get(*a), <$tb as Lane>::get(*b));
                *out = Lane::put($e);
            }
        }
        lift as Fn2
    }};
}

macro_rules! fn3 {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty| $e:expr) => {{
        fn lift(out: &mut Lanes, [a, b, c]: [&Lanes; 3]) {
            for (lane, out) in out.iter_mut().enumerate() {
                let $a = <$ta as Lane>::get(a[lane]);
                let $b = <$tb as Lane>::get(b[lane]);
                let $c = <$tc as Lane>::get(c[lane]);
                *out = Lane::put($e);
            }
        }
        lift as Fn3
    }};
}

macro_rules! fn4 {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty, $d:ident: $td:ty| $e:expr) => {{
        fn lift(out: &mut Lanes, [a, b, c, d]: [&Lanes; 4]) {
            for (lane, out) in out.iter_mut().enumerate() {
                let $a = <$ta as Lane>::get(a[lane]);
                let $b = <$tb as Lane>::get(b[lane]);
                let $c = <$tc as Lane>::get(c[lane]);
                let $d = <$td as Lane>::get(d[lane]);
                *out = Lane::put($e);
            }
        }
        lift as Fn4
    }};
}

macro_rules! compare {
    (|$a:ident: $t:ty, $b:ident| $e:expr) => {{
        fn lift(a: &Lanes, b: &Lanes) -> u32 {
            let mut mask = 0;
            for lane in 0..32 {
                let $a = <$t as Lane>::get(a[lane]);
                let $b = <$t as Lane>::get(b[lane]);
                mask |= u32::from($e) << lane;
            }
            mask
        }
        lift as Compare
    }};
}

/// Evaluates an expression with a type name bound to the integer type of a [`Ty`](super::ty::Ty);
/// none has 8 bits but those of conversions.
macro_rules! by_int {
    ($ty:expr, $t:ident, $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => {
                type $t = u16;
                Some($e)
            }
            Ty::S16 => {
                type $t = i16;
                Some($e)
            }
            Ty::U32 | Ty::B32 => {
                type $t = u32;
                Some($e)
            }
            Ty::S32 => {
                type $t = i32;
                Some($e)
            }
            Ty::U64 | Ty::B64 => {
                type $t = u64;
                Some($e)
            }
            Ty::S64 => {
                type $t = i64;
                Some($e)
            }
            _ => None,
        }
    };
}

pub(crate) use {by_int, compare, fn1, fn2, fn3, fn4};
