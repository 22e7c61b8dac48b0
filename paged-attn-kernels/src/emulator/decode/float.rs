//! Instructions on f32 and f64.
//!
//! What PTX rounds correctly is rounded correctly; `.approx` functions are f64's, rounded once.

use super::super::lanes::{Fn1, Fn2, Fn3, Lane, Lanes, fn1, fn2, fn3};
use super::super::rounding::{Rounding, add_rounded, fma_rounded};
use super::super::ty::Ty;
use super::Mods;
use super::pure::Map;

/// Subnormal numbers become zeros of their sign.
#[inline(always)]
pub(in super::super) fn flush(a: f32) -> f32 {
    if a.is_subnormal() {
        0f32.copysign(a)
    } else {
        a
    }
}

/// Into `[0, 1]`; NaN becomes 0.
#[inline(always)]
pub(super) fn saturate(a: f32) -> f32 {
    if a > 0.0 { a.min(1.0) } else { 0.0 }
}

/// An f32 function with subnormals flushed where `.ftz` says so.
macro_rules! with_ftz {
    ($ftz:expr, |$a:ident| $e:expr) => {
        if $ftz {
            fn1!(|x: f32| {
                let $a = flush(x);
                flush($e)
            })
        } else {
            fn1!(|$a: f32| $e)
        }
    };
    ($ftz:expr, |$a:ident, $b:ident| $e:expr) => {
        if $ftz {
            fn2!(|x: f32, y: f32| {
                let ($a, $b) = (flush(x), flush(y));
                flush($e)
            })
        } else {
            fn2!(|$a: f32, $b: f32| $e)
        }
    };
}

/// The function of an instruction on f32 or f64.
pub(super) fn map(name: &str, mods: &mut Mods<'_>, ty: Ty) -> Option<Map> {
    let rounding = mods.take_any(&[
        ("rn", Rounding::Nearest),
        ("rz", Rounding::Zero),
        ("rm", Rounding::Down),
        ("rp", Rounding::Up),
    ]);
    let how = Options {
        rounding: rounding.unwrap_or(Rounding::Nearest),
        approximate: mods.take("approx") || mods.take("full"),
        ftz: mods.take("ftz"),
        saturates: mods.take("sat"),
        nan: mods.take("NaN"),
    };
    if ty == Ty::F64 {
        return double(name, how);
    }
    let arithmetic = matches!(name, "add" | "sub" | "mul" | "fma" | "mad");
    if how.saturates && !arithmetic {
        return None;
    }
    match how.rounding {
        Rounding::Nearest if how.saturates => saturated(name, how.ftz),
        Rounding::Nearest => single(name, how).or_else(|| function(name, how)),
        _ if how.saturates || how.ftz => None,
        _ => directed(name, how.rounding),
    }
}

#[derive(Clone, Copy)]
struct Options {
    rounding: Rounding,
    approximate: bool,
    ftz: bool,
    saturates: bool,
    nan: bool,
}

fn single(name: &str, how: Options) -> Option<Map> {
    let ftz = how.ftz;
    Some(match name {
        "add" => with_ftz!(ftz, |a, b| a + b).into(),
        "sub" => with_ftz!(ftz, |a, b| a - b).into(),
        "mul" => with_ftz!(ftz, |a, b| a * b).into(),
        "div" => with_ftz!(ftz, |a, b| a / b).into(),
        "fma" | "mad" if ftz => {
            fn3!(|a: f32, b: f32, c: f32| flush(flush(a).mul_add(flush(b), flush(c)))).into()
        }
        "fma" | "mad" => fn3!(|a: f32, b: f32, c: f32| a.mul_add(b, c)).into(),
        "neg" => with_ftz!(ftz, |a| -a).into(),
        "abs" => with_ftz!(ftz, |a| a.abs()).into(),
        "copysign" => fn2!(|a: f32, b: f32| b.copysign(a)).into(),
        "min" if how.nan => with_ftz!(ftz, |a, b| nan_or(a, b, min(a, b))).into(),
        "max" if how.nan => with_ftz!(ftz, |a, b| nan_or(a, b, max(a, b))).into(),
        "min" => with_ftz!(ftz, |a, b| min(a, b)).into(),
        "max" => with_ftz!(ftz, |a, b| max(a, b)).into(),
        _ => return None,
    })
}

fn function(name: &str, how: Options) -> Option<Map> {
    let ftz = how.ftz;
    let map: Map = match name {
        "sqrt" => with_ftz!(ftz, |a| a.sqrt()).into(),
        "rcp" => with_ftz!(ftz, |a| 1.0 / a).into(),
        "rsqrt" => with_ftz!(ftz, |a| (1.0 / f64::from(a).sqrt()) as f32).into(),
        "ex2" => with_ftz!(ftz, |a| f64::from(a).exp2() as f32).into(),
        "lg2" => with_ftz!(ftz, |a| f64::from(a).log2() as f32).into(),
        "sin" => with_ftz!(ftz, |a| f64::from(a).sin() as f32).into(),
        "cos" => with_ftz!(ftz, |a| f64::from(a).cos() as f32).into(),
        "tanh" => with_ftz!(ftz, |a| f64::from(a).tanh() as f32).into(),
        _ => return None,
    };
    Some(map).filter(|_| how.approximate || matches!(name, "sqrt" | "rcp"))
}

fn saturated(name: &str, ftz: bool) -> Option<Map> {
    Some(match name {
        "add" => with_ftz!(ftz, |a, b| saturate(a + b)).into(),
        "sub" => with_ftz!(ftz, |a, b| saturate(a - b)).into(),
        "mul" => with_ftz!(ftz, |a, b| saturate(a * b)).into(),
        "fma" if ftz => {
            fn3!(|a: f32, b: f32, c: f32| saturate(flush(a).mul_add(flush(b), flush(c)))).into()
        }
        "fma" => fn3!(|a: f32, b: f32, c: f32| saturate(a.mul_add(b, c))).into(),
        _ => return None,
    })
}

/// Rounding towards zero or an infinity.
fn directed(name: &str, rounding: Rounding) -> Option<Map> {
    use Rounding::{Down, Nearest, Up, Zero};
    Some(match (name, rounding) {
        ("add", Zero) => fn2!(|a: f32, b: f32| add_rounded(a, b, Zero)).into(),
        ("add", Down) => fn2!(|a: f32, b: f32| add_rounded(a, b, Down)).into(),
        ("add", Up) => fn2!(|a: f32, b: f32| add_rounded(a, b, Up)).into(),
        ("sub", Zero) => fn2!(|a: f32, b: f32| add_rounded(a, -b, Zero)).into(),
        ("sub", Down) => fn2!(|a: f32, b: f32| add_rounded(a, -b, Down)).into(),
        ("sub", Up) => fn2!(|a: f32, b: f32| add_rounded(a, -b, Up)).into(),
        ("mul", Zero) => fn2!(|a: f32, b: f32| fma_rounded(a, b, None, Zero)).into(),
        ("mul", Down) => fn2!(|a: f32, b: f32| fma_rounded(a, b, None, Down)).into(),
        ("mul", Up) => fn2!(|a: f32, b: f32| fma_rounded(a, b, None, Up)).into(),
        ("fma", Zero) => fn3!(|a: f32, b: f32, c: f32| fma_rounded(a, b, Some(c), Zero)).into(),
        ("fma", Down) => fn3!(|a: f32, b: f32, c: f32| fma_rounded(a, b, Some(c), Down)).into(),
        ("fma", Up) => fn3!(|a: f32, b: f32, c: f32| fma_rounded(a, b, Some(c), Up)).into(),
        (_, Nearest) | (_, _) => return None,
    })
}

fn double(name: &str, how: Options) -> Option<Map> {
    if how.rounding != Rounding::Nearest || how.saturates || how.nan {
        return None;
    }
    let map: Map = match name {
        "add" => fn2!(|a: f64, b: f64| a + b).into(),
        "sub" => fn2!(|a: f64, b: f64| a - b).into(),
        "mul" => fn2!(|a: f64, b: f64| a * b).into(),
        "div" => fn2!(|a: f64, b: f64| a / b).into(),
        "fma" | "mad" => fn3!(|a: f64, b: f64, c: f64| a.mul_add(b, c)).into(),
        "neg" => fn1!(|a: f64| -a).into(),
        "abs" => fn1!(|a: f64| a.abs()).into(),
        "copysign" => fn2!(|a: f64, b: f64| b.copysign(a)).into(),
        "min" => fn2!(|a: f64, b: f64| if a < b || b.is_nan() { a } else { b }).into(),
        "max" => fn2!(|a: f64, b: f64| if a > b || b.is_nan() { a } else { b }).into(),
        "sqrt" => fn1!(|a: f64| a.sqrt()).into(),
        // Only the upper half of the bits is defined, the rest are zeros.
        "rcp" if how.approximate => fn1!(|a: f64| upper_half(1.0 / a)).into(),
        "rsqrt" if how.approximate => fn1!(|a: f64| upper_half(1.0 / a.sqrt())).into(),
        "rcp" => fn1!(|a: f64| 1.0 / a).into(),
        _ => return None,
    };
    Some(map)
}

fn upper_half(a: f64) -> f64 {
    f64::from_bits(a.to_bits() & !0xffff_ffff)
}

/// The canonical NaN of f32 arithmetic.
const NAN: f32 = f32::from_bits(0x7fff_ffff);

fn nan_or(a: f32, b: f32, value: f32) -> f32 {
    if a.is_nan() || b.is_nan() { NAN } else { value }
}

/// The smaller number, -0 before +0; a NaN only if both are.
#[inline(always)]
pub(in super::super) fn min(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => NAN,
        (true, false) => b,
        (false, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() | b.to_bits()),
        _ if a < b => a,
        _ => b,
    }
}

/// The larger number, +0 after -0; a NaN only if both are.
#[inline(always)]
pub(in super::super) fn max(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => NAN,
        (true, false) => b,
        (false, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() & b.to_bits()),
        _ if a > b => a,
        _ => b,
    }
}
