//! Instructions on 16-bit floats, one or two in a register.
//!
//! Sums and products of two halves are exact in f64 or round twice without harm; `fma` is f64's.

use half::{bf16, f16};

use super::super::lanes::{Fn1, Fn2, Fn3, Half, Lane, Lanes, fn1, fn2, fn3};
use super::super::ty::Ty;
use super::Mods;
use super::pure::Map;

/// Applies a function of f64 to halves, one or two.
macro_rules! by_half {
    ($ty:expr, |$a:ident| $e:expr) => {
        match $ty {
            Ty::F16 => fn1!(|x: f16| one1(x, |$a: f64| $e)).into(),
            Ty::Bf16 => fn1!(|x: bf16| one1(x, |$a: f64| $e)).into(),
            Ty::F16x2 => fn1!(|x: [f16; 2]| x.map(|x| one1(x, |$a: f64| $e))).into(),
            _ => fn1!(|x: [bf16; 2]| x.map(|x| one1(x, |$a: f64| $e))).into(),
        }
    };
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::F16 => fn2!(|x: f16, y: f16| one2([x, y], |$a: f64, $b: f64| $e)).into(),
            Ty::Bf16 => fn2!(|x: bf16, y: bf16| one2([x, y], |$a: f64, $b: f64| $e)).into(),
            Ty::F16x2 => {
                fn2!(|x: [f16; 2], y: [f16; 2]| two2([x, y], |$a: f64, $b: f64| $e)).into()
            }
            _ => fn2!(|x: [bf16; 2], y: [bf16; 2]| two2([x, y], |$a: f64, $b: f64| $e)).into(),
        }
    };
    ($ty:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        match $ty {
            Ty::F16 => {
                fn3!(|x: f16, y: f16, z: f16| one3([x, y, z], |$a: f64, $b: f64, $c: f64| $e))
                    .into()
            }
            Ty::Bf16 => {
                fn3!(|x: bf16, y: bf16, z: bf16| one3([x, y, z], |$a: f64, $b: f64, $c: f64| $e))
                    .into()
            }
            Ty::F16x2 => fn3!(|x: [f16; 2], y: [f16; 2], z: [f16; 2]| {
                two3([x, y, z], |$a: f64, $b: f64, $c: f64| $e)
            })
            .into(),
            _ => fn3!(|x: [bf16; 2], y: [bf16; 2], z: [bf16; 2]| {
                two3([x, y, z], |$a: f64, $b: f64, $c: f64| $e)
            })
            .into(),
        }
    };
}

fn one1<T: Half>(x: T, f: impl Fn(f64) -> f64) -> T {
    T::narrow(f(x.wide()))
}

fn one2<T: Half>([x, y]: [T; 2], f: impl Fn(f64, f64) -> f64) -> T {
    T::narrow(f(x.wide(), y.wide()))
}

fn two2<T: Half>([x, y]: [[T; 2]; 2], f: impl Fn(f64, f64) -> f64) -> [T; 2] {
    [one2([x[0], y[0]], &f), one2([x[1], y[1]], &f)]
}

fn one3<T: Half>([x, y, z]: [T; 3], f: impl Fn(f64, f64, f64) -> f64) -> T {
    T::narrow(f(x.wide(), y.wide(), z.wide()))
}

fn two3<T: Half>([x, y, z]: [[T; 2]; 3], f: impl Fn(f64, f64, f64) -> f64) -> [T; 2] {
    [one3([x[0], y[0], z[0]], &f), one3([x[1], y[1], z[1]], &f)]
}

/// The function of an instruction on halves. Flushing subnormals is not supported.
pub(super) fn map(name: &str, mods: &mut Mods<'_>, ty: Ty) -> Option<Map> {
    mods.take("rn");
    let nan = mods.take("NaN");
    let relu = mods.take("relu");
    let saturates = mods.take("sat");
    let approximate = mods.take("approx");
    if mods.has("ftz") {
        // ex2.approx.ftz.bf16 is the only form of bf16; its flushed results are zeros here too.
        let only_form = name == "ex2" && matches!(ty, Ty::Bf16 | Ty::Bf16x2);
        if !only_form {
            return None;
        }
        mods.take("ftz");
    }
    // Signs are bits: NaN keeps its payload.
    let single = !matches!(ty, Ty::F16x2 | Ty::Bf16x2);
    if nan || approximate || relu || saturates {
        return special(name, ty, [nan, approximate, relu, saturates]);
    }
    Some(match name {
        "add" => by_half!(ty, |a, b| a + b),
        "sub" => by_half!(ty, |a, b| a - b),
        "mul" => by_half!(ty, |a, b| a * b),
        "fma" => by_half!(ty, |a, b, c| fma(a, b, c)),
        "min" => by_half!(ty, |a, b| min(a, b)),
        "max" => by_half!(ty, |a, b| -min(-a, -b)),
        "neg" if single => fn1!(|a: u16| a ^ 0x8000).into(),
        "neg" => fn1!(|a: u32| a ^ 0x8000_8000).into(),
        "abs" if single => fn1!(|a: u16| a & 0x7fff).into(),
        "abs" => fn1!(|a: u32| a & 0x7fff_7fff).into(),
        _ => return None,
    })
}

fn special(name: &str, ty: Ty, flags: [bool; 4]) -> Option<Map> {
    Some(match (name, flags) {
        ("min", [true, false, false, false]) => by_half!(ty, |a, b| nan_or(a, b, min(a, b))),
        ("max", [true, false, false, false]) => by_half!(ty, |a, b| nan_or(a, b, -min(-a, -b))),
        ("ex2", [false, true, false, false]) => by_half!(ty, |a| a.exp2()),
        ("tanh", [false, true, false, false]) => by_half!(ty, |a| a.tanh()),
        ("fma", [false, false, true, false]) => by_half!(ty, |a, b, c| relu(fma(a, b, c))),
        ("fma", [false, false, false, true]) => by_half!(ty, |a, b, c| unit(fma(a, b, c))),
        ("add", [false, false, false, true]) => by_half!(ty, |a, b| unit(a + b)),
        ("sub", [false, false, false, true]) => by_half!(ty, |a, b| unit(a - b)),
        ("mul", [false, false, false, true]) => by_half!(ty, |a, b| unit(a * b)),
        _ => return None,
    })
}

/// The product is exact in f64; the sum, rounded to odd, rounds to a half only once.
fn fma(a: f64, b: f64, c: f64) -> f64 {
    let product = a * b;
    let sum = product + c;
    let part = sum - product;
    let error = (product - (sum - part)) + (c - part);
    if error == 0.0 || !sum.is_finite() || sum.to_bits() & 1 == 1 {
        return sum;
    }
    if (error > 0.0) == (sum > 0.0) {
        f64::from_bits(sum.to_bits() | 1)
    } else {
        f64::from_bits((sum.to_bits() - 1) | 1)
    }
}

fn min(a: f64, b: f64) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => f64::from_bits(a.to_bits() | b.to_bits()),
        _ => a.min(b),
    }
}

fn nan_or(a: f64, b: f64, value: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        value
    }
}

fn relu(a: f64) -> f64 {
    if a > 0.0 || a.is_nan() { a } else { 0.0 }
}

fn unit(a: f64) -> f64 {
    if a > 0.0 { a.min(1.0) } else { 0.0 }
}

/// `set.cmp.f16x2.f16x2` and its like: 1 or 0 in each half.
pub(super) fn set(name: &str, to: Ty, ty: Ty) -> Option<Map> {
    macro_rules! tests {
        ($ty:expr, $($name:literal => |$a:ident, $b:ident| $e:expr),*) => {
            match name {
                $($name => by_half!($ty, |$a, $b| f64::from(u8::from($e))),)*
                _ => return None,
            }
        };
    }
    if to != ty || !matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        return None;
    }
    Some(tests!(ty,
        "eq" => |a, b| a == b,
        "ne" => |a, b| a != b && !a.is_nan() && !b.is_nan(),
        "lt" => |a, b| a < b,
        "le" => |a, b| a <= b,
        "gt" => |a, b| a > b,
        "ge" => |a, b| a >= b,
        "neu" => |a, b| a != b,
        "nan" => |a, b| a.is_nan() || b.is_nan()
    ))
}
