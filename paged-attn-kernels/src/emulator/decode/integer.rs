//! Integer and bit instructions.

use super::super::error::ParseError;
use super::super::lanes::{Fn1, Fn2, Fn3, Fn4, Lane, Lanes, by_int, fn1, fn2, fn3, fn4};
use super::super::ty::Ty;
use super::Mods;
use super::pure::Map;

/// The function of an integer instruction, its type taken from the modifiers already.
pub(super) fn map(name: &str, mods: &mut Mods<'_>, ty: Ty) -> Option<Map> {
    arithmetic(name, mods, ty)
        .or_else(|| bits(name, mods, ty))
        .or_else(|| fields(name, mods, ty))
}

/// What a number of the same type twice as wide is.
trait Wide: Copy {
    type Wider;
    /// High half of the product.
    fn mul_hi(self, other: Self) -> Self;
    /// The whole product plus a number, wrapping around.
    fn mul_wide(self, other: Self) -> Self::Wider;
}

macro_rules! wide {
    ($($t:ty, $w:ty);*) => {$(
        impl Wide for $t {
            type Wider = $w;
            fn mul_hi(self, other: Self) -> Self {
                ((self as $w).wrapping_mul(other as $w) >> <$t>::BITS) as $t
            }
            fn mul_wide(self, other: Self) -> $w {
                (self as $w).wrapping_mul(other as $w)
            }
        }
    )*};
}
wide!(u8, u16; i8, i16; u16, u32; i16, i32; u32, u64; i32, i64; u64, u128; i64, i128);

fn arithmetic(name: &str, mods: &mut Mods<'_>, ty: Ty) -> Option<Map> {
    let part = mods.take_any(&[("lo", 0), ("hi", 1), ("wide", 2)]);
    let saturates = ty == Ty::S32 && mods.take("sat");
    let map: Map = match (name, part) {
        ("add", None) if saturates => fn2!(|a: i32, b: i32| a.saturating_add(b)).into(),
        ("sub", None) if saturates => fn2!(|a: i32, b: i32| a.saturating_sub(b)).into(),
        ("add", None) => by_int!(ty, T, fn2!(|a: T, b: T| a.wrapping_add(b)))?.into(),
        ("sub", None) => by_int!(ty, T, fn2!(|a: T, b: T| a.wrapping_sub(b)))?.into(),
        ("mul", Some(0)) => by_int!(ty, T, fn2!(|a: T, b: T| a.wrapping_mul(b)))?.into(),
        ("mul", Some(1)) => by_int!(ty, T, fn2!(|a: T, b: T| a.mul_hi(b)))?.into(),
        ("mul", Some(2)) => match ty {
            Ty::U16 => fn2!(|a: u16, b: u16| a.mul_wide(b)).into(),
            Ty::S16 => fn2!(|a: i16, b: i16| a.mul_wide(b)).into(),
            Ty::U32 => fn2!(|a: u32, b: u32| a.mul_wide(b)).into(),
            Ty::S32 => fn2!(|a: i32, b: i32| a.mul_wide(b)).into(),
            _ => return None,
        },
        ("mad", Some(0)) => by_int!(
            ty,
            T,
            fn3!(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))
        )?
        .into(),
        ("mad", Some(1)) => {
            by_int!(ty, T, fn3!(|a: T, b: T, c: T| a.mul_hi(b).wrapping_add(c)))?.into()
        }
        ("mad", Some(2)) => match ty {
            Ty::U16 => fn3!(|a: u16, b: u16, c: u32| a.mul_wide(b).wrapping_add(c)).into(),
            Ty::S16 => fn3!(|a: i16, b: i16, c: i32| a.mul_wide(b).wrapping_add(c)).into(),
            Ty::U32 => fn3!(|a: u32, b: u32, c: u64| a.mul_wide(b).wrapping_add(c)).into(),
            Ty::S32 => fn3!(|a: i32, b: i32, c: i64| a.mul_wide(b).wrapping_add(c)).into(),
            _ => return None,
        },
        ("mul24", Some(0)) => match ty {
            Ty::U32 => fn2!(|a: u32, b: u32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)).into(),
            Ty::S32 => fn2!(|a: i32, b: i32| (a << 8 >> 8).wrapping_mul(b << 8 >> 8)).into(),
            _ => return None,
        },
        // Division by zero gives what the machine likes; all ones here.
        ("div", None) => by_int!(
            ty,
            T,
            fn2!(|a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) })
        )?
        .into(),
        ("rem", None) => by_int!(
            ty,
            T,
            fn2!(|a: T, b: T| if b == 0 { a } else { a.wrapping_rem(b) })
        )?
        .into(),
        ("min", None) => by_int!(ty, T, fn2!(|a: T, b: T| a.min(b)))?.into(),
        ("max", None) => by_int!(ty, T, fn2!(|a: T, b: T| a.max(b)))?.into(),
        ("neg", None) => by_int!(ty, T, fn1!(|a: T| (0 as T).wrapping_sub(a)))?.into(),
        ("abs", None) => match ty {
            Ty::S16 => fn1!(|a: i16| a.wrapping_abs()).into(),
            Ty::S32 => fn1!(|a: i32| a.wrapping_abs()).into(),
            Ty::S64 => fn1!(|a: i64| a.wrapping_abs()).into(),
            _ => return None,
        },
        ("sad", None) => by_int!(
            ty,
            T,
            fn3!(|a: T, b: T, c: T| c.wrapping_add(a.abs_diff(b) as T))
        )?
        .into(),
        _ => return None,
    };
    Some(map)
}

fn bits(name: &str, mods: &mut Mods<'_>, ty: Ty) -> Option<Map> {
    let direction = mods.take_any(&[("l", 0), ("r", 1)]);
    let wraps = mods.take_any(&[("wrap", true), ("clamp", false)]);
    let from_top = mods.take("shiftamt");
    let map: Map = match name {
        "and" => fn2!(|a: u64, b: u64| a & b).into(),
        "or" => fn2!(|a: u64, b: u64| a | b).into(),
        "xor" => fn2!(|a: u64, b: u64| a ^ b).into(),
        "not" => fn1!(|a: u64| !a).into(),
        "cnot" => by_int!(ty, T, fn1!(|a: T| u64::from(a == 0)))?.into(),
        "lop3" => fn4!(|a: u32, b: u32, c: u32, table: u8| lop3(a, b, c, table)).into(),
        // Amounts beyond the width shift everything out.
        "shl" => by_int!(ty, T, fn2!(|a: T, n: u32| a.checked_shl(n).unwrap_or(0)))?.into(),
        "shr" => by_int!(
            ty,
            T,
            fn2!(|a: T, n: u32| if n < T::BITS {
                a >> n
            } else {
                a >> (T::BITS / 2) >> (T::BITS / 2)
            })
        )?
        .into(),
        "shf" => match (direction?, wraps?) {
            (0, true) => fn3!(|a: u32, b: u32, n: u32| funnel(a, b, 32 - (n & 31))).into(),
            (0, false) => fn3!(|a: u32, b: u32, n: u32| funnel(a, b, 32 - n.min(32))).into(),
            (_, true) => fn3!(|a: u32, b: u32, n: u32| funnel(a, b, n & 31)).into(),
            (_, false) => fn3!(|a: u32, b: u32, n: u32| funnel(a, b, n.min(32))).into(),
        },
        "popc" => by_int!(ty, T, fn1!(|a: T| a.count_ones()))?.into(),
        "clz" => by_int!(ty, T, fn1!(|a: T| a.leading_zeros()))?.into(),
        "brev" => by_int!(ty, T, fn1!(|a: T| a.reverse_bits()))?.into(),
        "bfind" => match (ty, from_top) {
            (Ty::U32, false) => fn1!(|a: u32| highest(u64::from(a))).into(),
            (Ty::U32, true) => fn1!(|a: u32| shift_to_top(u64::from(a), 31)).into(),
            (Ty::U64, false) => fn1!(|a: u64| highest(a)).into(),
            (Ty::U64, true) => fn1!(|a: u64| shift_to_top(a, 63)).into(),
            // The highest bit that differs from the sign.
            (Ty::S32, false) => fn1!(|a: i32| highest(u64::from((a ^ (a >> 31)) as u32))).into(),
            (Ty::S32, true) => {
                fn1!(|a: i32| shift_to_top(u64::from((a ^ (a >> 31)) as u32), 31)).into()
            }
            (Ty::S64, false) => fn1!(|a: i64| highest((a ^ (a >> 63)) as u64)).into(),
            _ => return None,
        },
        _ => return None,
    };
    Some(map)
}

fn fields(name: &str, mods: &mut Mods<'_>, ty: Ty) -> Option<Map> {
    let map: Map = match (name, ty) {
        ("bfe", Ty::U32) => {
            fn3!(|a: u32, at: u8, n: u8| extract(u64::from(a), at, n) as u32).into()
        }
        ("bfe", Ty::U64) => fn3!(|a: u64, at: u8, n: u8| extract(a, at, n)).into(),
        ("bfe", Ty::S32) => {
            fn3!(|a: i32, at: u8, n: u8| extract_signed(i64::from(a), (at, n), 31) as i32).into()
        }
        ("bfe", Ty::S64) => fn3!(|a: i64, at: u8, n: u8| extract_signed(a, (at, n), 63)).into(),
        ("bfi", Ty::B32) => fn4!(|a: u32, b: u32, at: u8, n: u8| {
            insert(u64::from(a), u64::from(b), (at, n)) as u32
        })
        .into(),
        ("bfi", Ty::B64) => fn4!(|a: u64, b: u64, at: u8, n: u8| insert(a, b, (at, n))).into(),
        ("prmt", Ty::B32) => {
            let mode = mods.take_any(&[
                ("f4e", 1),
                ("b4e", 2),
                ("rc8", 3),
                ("ecl", 4),
                ("ecr", 5),
                ("rc16", 6),
            ]);
            if mode.is_some() {
                return None;
            }
            fn3!(|a: u32, b: u32, selector: u32| permute(a, b, selector)).into()
        }
        _ => return None,
    };
    Some(map)
}

/// `dp4a` and `dp2a`: sums of products of bytes.
pub(super) fn dot(name: &str, mods: &mut Mods<'_>) -> Result<(Option<Map>, Ty), ParseError> {
    let (a, b) = (mods.ty()?, mods.ty()?);
    let map: Option<Map> = match (name, a, b) {
        ("dp4a", Ty::S32, Ty::S32) => {
            Some(fn3!(|a: u32, b: u32, c: i32| dp4a::<i8, i8>(a, b, c)).into())
        }
        ("dp4a", Ty::U32, Ty::U32) => {
            Some(fn3!(|a: u32, b: u32, c: i32| dp4a::<u8, u8>(a, b, c)).into())
        }
        ("dp4a", Ty::S32, Ty::U32) => {
            Some(fn3!(|a: u32, b: u32, c: i32| dp4a::<i8, u8>(a, b, c)).into())
        }
        ("dp4a", Ty::U32, Ty::S32) => {
            Some(fn3!(|a: u32, b: u32, c: i32| dp4a::<u8, i8>(a, b, c)).into())
        }
        _ => None,
    };
    Ok((map, a))
}

fn dp4a<A: Lane + Into<i32>, B: Lane + Into<i32>>(a: u32, b: u32, c: i32) -> i32 {
    let product = |i: u32| {
        let a: i32 = A::get(u64::from(a >> (8 * i))).into();
        let b: i32 = B::get(u64::from(b >> (8 * i))).into();
        a * b
    };
    (0..4).fold(c, |sum, i| sum.wrapping_add(product(i)))
}

fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    let mut out = 0;
    for case in 0..8u32 {
        if table >> case & 1 == 1 {
            let pick = |x: u32, bit: u32| if case & bit == 0 { !x } else { x };
            out |= pick(a, 4) & pick(b, 2) & pick(c, 1);
        }
    }
    out
}

/// Bits `n..n + 32` of `b` above `a`.
fn funnel(a: u32, b: u32, n: u32) -> u32 {
    ((u64::from(b) << 32 | u64::from(a)) >> n) as u32
}

fn highest(a: u64) -> u32 {
    if a == 0 {
        u32::MAX
    } else {
        63 - a.leading_zeros()
    }
}

fn shift_to_top(a: u64, top: u32) -> u32 {
    if a == 0 { u32::MAX } else { top - highest(a) }
}

fn low_bits(n: u8) -> u64 {
    1u64.checked_shl(u32::from(n))
        .map_or(u64::MAX, |bit| bit - 1)
}

fn extract(a: u64, at: u8, n: u8) -> u64 {
    a.checked_shr(u32::from(at)).unwrap_or(0) & low_bits(n)
}

/// The field's sign is its highest bit that lies inside the number.
fn extract_signed(a: i64, (at, n): (u8, u8), top: u32) -> i64 {
    if n == 0 {
        return 0;
    }
    let sign_at = (u32::from(at) + u32::from(n) - 1).min(top);
    let sign = a >> sign_at & 1;
    let bits = extract(a as u64 & low_bits(top as u8 + 1), at, n);
    let have = (top + 1).saturating_sub(u32::from(at)).min(u32::from(n));
    if sign == 1 {
        (bits | !low_bits(have as u8)) as i64
    } else {
        bits as i64
    }
}

fn insert(a: u64, b: u64, (at, n): (u8, u8)) -> u64 {
    let mask = low_bits(n).checked_shl(u32::from(at)).unwrap_or(0);
    b & !mask | a.checked_shl(u32::from(at)).unwrap_or(0) & mask
}

/// Four bytes chosen from eight; bit 3 of a selector repeats the byte's sign.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let mut out = [0; 4];
    for (i, out) in out.iter_mut().enumerate() {
        let select = selector >> (4 * i);
        let byte = bytes[(select & 7) as usize];
        *out = if select & 8 == 0 {
            byte
        } else {
            ((byte as i8) >> 7) as u8
        };
    }
    u32::from_le_bytes(out)
}
