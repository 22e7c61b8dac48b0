//! `cvt`: between integers and floats of all widths.

use half::{bf16, f16};

use super::super::error::ParseError;
use super::super::lanes::{Fn1, Fn2, Half, Lane, Lanes, by_int, fn1, fn2};
use super::super::rounding::{Rounding, narrow};
use super::super::ty::Ty;
use super::float::{flush, saturate};
use super::pure::Map;
use super::{Arg, Builder, Mods};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    None,
    To(Rounding),
    Integer(Rounding),
}

#[derive(Clone, Copy)]
struct How {
    round: Round,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl<'t> Builder<'t> {
    pub(super) fn convert(
        &mut self,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        use Rounding::{Down, Nearest, Up, Zero};
        let round = mods.take_any(&[
            ("rn", Round::To(Nearest)),
            ("rz", Round::To(Zero)),
            ("rm", Round::To(Down)),
            ("rp", Round::To(Up)),
            ("rni", Round::Integer(Nearest)),
            ("rzi", Round::Integer(Zero)),
            ("rmi", Round::Integer(Down)),
            ("rpi", Round::Integer(Up)),
        ]);
        let how = How {
            round: round.unwrap_or(Round::None),
            ftz: mods.take("ftz"),
            sat: mods.take("sat") || mods.take("satfinite"),
            relu: mods.take("relu"),
        };
        let (to, from) = (mods.ty()?, mods.ty()?);
        mods.finish()?;
        let map = conversion(to, from, how).ok_or_else(|| mods.unsupported())?;
        self.push_map(mods, map, (args, from))
    }
}

fn conversion(to: Ty, from: Ty, how: How) -> Option<Map> {
    match (to, from) {
        (Ty::F16x2 | Ty::Bf16x2 | Ty::E4m3x2, _) | (_, Ty::E4m3x2) => pair(to, from, how),
        _ if to.is_integer() && from.is_integer() => integers(to, from, how),
        _ if to.is_integer() => to_integer(to, from, how),
        _ if from.is_integer() => from_integer(to, from, how),
        _ => floats(to, from, how),
    }
}

/// Truncates or extends; `.sat` clamps to the destination's range.
fn integers(to: Ty, from: Ty, how: How) -> Option<Map> {
    if how.ftz || how.relu || how.round != Round::None {
        return None;
    }
    if how.sat {
        return clamp(to, from).map(Map::from);
    }
    // Registers are extended to 64 bits, and readers take as many as they want: what is done is
    // truncation to, or extension from, the narrower of both types.
    let narrow = if to.bytes() <= from.bytes() { to } else { from };
    let map: Fn1 = match narrow {
        Ty::U8 | Ty::B8 => fn1!(|a: u8| a),
        Ty::S8 => fn1!(|a: i8| a),
        _ => by_int!(narrow, I, fn1!(|a: I| a))?,
    };
    Some(map.into())
}

fn clamp(to: Ty, from: Ty) -> Option<Fn1> {
    Some(match (to, from) {
        (Ty::S8, Ty::S32) => fn1!(|a: i32| a.clamp(-128, 127)),
        (Ty::U8, Ty::S32) => fn1!(|a: i32| a.clamp(0, 255)),
        (Ty::S16, Ty::S32) => fn1!(|a: i32| a.clamp(-32768, 32767)),
        (Ty::U16, Ty::S32) => fn1!(|a: i32| a.clamp(0, 65535)),
        (Ty::U32, Ty::S32) => fn1!(|a: i32| a.max(0)),
        (Ty::S8, Ty::U32) => fn1!(|a: u32| a.min(127)),
        (Ty::U8, Ty::U32) => fn1!(|a: u32| a.min(255)),
        (Ty::U16, Ty::U32) => fn1!(|a: u32| a.min(65535)),
        (Ty::S32, Ty::U32) => fn1!(|a: u32| a.min(i32::MAX as u32)),
        (Ty::S32, Ty::S64) => fn1!(|a: i64| a.clamp(i64::from(i32::MIN), i64::from(i32::MAX))),
        (Ty::U32, Ty::S64) => fn1!(|a: i64| a.clamp(0, i64::from(u32::MAX))),
        _ => return None,
    })
}

/// Clamps, and makes NaN 0, as `as` does. nvcc narrows to 8 bits in a second step.
fn to_integer(to: Ty, from: Ty, how: How) -> Option<Map> {
    let Round::Integer(rounding) = how.round else {
        return None;
    };
    macro_rules! by_rounding {
        ($t:ty, $wide:expr) => {
            match rounding {
                Rounding::Nearest => {
                    by_int!(to, I, fn1!(|a: $t| f64::round_ties_even($wide(a)) as I))?
                }
                Rounding::Zero => by_int!(to, I, fn1!(|a: $t| $wide(a) as I))?,
                Rounding::Down => by_int!(to, I, fn1!(|a: $t| f64::floor($wide(a)) as I))?,
                Rounding::Up => by_int!(to, I, fn1!(|a: $t| f64::ceil($wide(a)) as I))?,
            }
        };
    }
    // Flushing matters only to roundings that do not go to zero anyway.
    let flushes = how.ftz && matches!(rounding, Rounding::Down | Rounding::Up);
    let map = match from {
        Ty::F32 if flushes => return None,
        Ty::F32 => by_rounding!(f32, f64::from),
        Ty::F64 => by_rounding!(f64, f64::from),
        Ty::F16 => by_rounding!(f16, Half::wide),
        Ty::Bf16 => by_rounding!(bf16, Half::wide),
        _ => return None,
    };
    Some(map.into())
}

fn from_integer(to: Ty, from: Ty, how: How) -> Option<Map> {
    if how.round != Round::To(Rounding::Nearest) || how.sat || how.relu {
        return None;
    }
    let map = match to {
        Ty::F32 => by_int!(from, I, fn1!(|a: I| a as f32))?,
        Ty::F64 => by_int!(from, I, fn1!(|a: I| a as f64))?,
        // Integers of 32 bits are exact in f64; wider ones overflow a half anyway.
        Ty::F16 => by_int!(from, I, fn1!(|a: I| f16::narrow(a as f64)))?,
        Ty::Bf16 if from.bytes() <= 4 => by_int!(from, I, fn1!(|a: I| bf16::narrow(a as f64)))?,
        _ => return None,
    };
    Some(map.into())
}

fn floats(to: Ty, from: Ty, how: How) -> Option<Map> {
    let plain = !how.sat && !how.relu;
    let map: Fn1 = match (to, from, how.round) {
        (Ty::F32, Ty::F32, round) => return same_width(round, how),
        (Ty::F64, Ty::F64, Round::Integer(rounding)) if plain => match rounding {
            Rounding::Nearest => fn1!(|a: f64| a.round_ties_even()),
            Rounding::Zero => fn1!(|a: f64| a.trunc()),
            Rounding::Down => fn1!(|a: f64| a.floor()),
            Rounding::Up => fn1!(|a: f64| a.ceil()),
        },
        (Ty::F16, Ty::F16, Round::Integer(rounding)) if plain => match rounding {
            Rounding::Nearest => fn1!(|a: f16| f16::narrow(a.wide().round_ties_even())),
            Rounding::Zero => fn1!(|a: f16| f16::narrow(a.wide().trunc())),
            Rounding::Down => fn1!(|a: f16| f16::narrow(a.wide().floor())),
            Rounding::Up => fn1!(|a: f16| f16::narrow(a.wide().ceil())),
        },
        (Ty::F64, Ty::F32, Round::None) if plain && how.ftz => fn1!(|a: f32| f64::from(flush(a))),
        (Ty::F64, Ty::F32, Round::None) if plain => fn1!(|a: f32| f64::from(a)),
        (Ty::F32, Ty::F64, Round::To(rounding)) if plain && !how.ftz => match rounding {
            Rounding::Nearest => fn1!(|a: f64| a as f32),
            Rounding::Zero => fn1!(|a: f64| narrow(a, 0.0, Rounding::Zero)),
            Rounding::Down => fn1!(|a: f64| narrow(a, 0.0, Rounding::Down)),
            Rounding::Up => fn1!(|a: f64| narrow(a, 0.0, Rounding::Up)),
        },
        (Ty::F32, Ty::F64, Round::To(Rounding::Nearest)) if plain => fn1!(|a: f64| flush(a as f32)),
        (Ty::F32, Ty::F16, Round::None) if plain => fn1!(|a: f16| a.wide() as f32),
        (Ty::F32, Ty::Bf16, Round::None) if plain => fn1!(|a: bf16| a.wide() as f32),
        (Ty::F64, Ty::F16, Round::None) if plain => fn1!(|a: f16| a.wide()),
        (Ty::F64, Ty::Bf16, Round::None) if plain => fn1!(|a: bf16| a.wide()),
        (Ty::F16, Ty::F64, Round::To(Rounding::Nearest)) if plain => fn1!(|a: f64| f16::narrow(a)),
        (Ty::F16, Ty::F32, Round::To(Rounding::Nearest)) if how.sat => {
            fn1!(|a: f32| f16::narrow(f64::from(saturate(a))))
        }
        (Ty::F16, Ty::F32, round) => return half_of::<f16>(round, how),
        (Ty::Bf16, Ty::F32, round) => return half_of::<bf16>(round, how),
        _ => return None,
    };
    Some(map.into())
}

/// f32 to f32: rounding to an integer, flushing or saturating.
fn same_width(round: Round, how: How) -> Option<Map> {
    macro_rules! finish {
        (|$a:ident| $e:expr) => {
            match (how.ftz, how.sat) {
                (false, false) => fn1!(|$a: f32| $e),
                (true, false) => fn1!(|x: f32| {
                    let $a = flush(x);
                    $e
                }),
                (false, true) => fn1!(|$a: f32| saturate($e)),
                (true, true) => fn1!(|x: f32| {
                    let $a = flush(x);
                    saturate($e)
                }),
            }
        };
    }
    if how.relu {
        return None;
    }
    let map: Fn1 = match round {
        Round::Integer(Rounding::Nearest) => finish!(|a| a.round_ties_even()),
        Round::Integer(Rounding::Zero) => finish!(|a| a.trunc()),
        Round::Integer(Rounding::Down) => finish!(|a| a.floor()),
        Round::Integer(Rounding::Up) => finish!(|a| a.ceil()),
        Round::None => finish!(|a| a),
        Round::To(_) => return None,
    };
    Some(map.into())
}

/// f32 to a half, towards zero or to nearest.
trait Narrow: Half {
    const MAX: u16;
    fn toward_zero(a: f32) -> Self {
        let nearest = Self::narrow(f64::from(a));
        let wide = nearest.wide();
        if a.is_infinite() || wide.is_nan() || wide.abs() <= f64::from(a.abs()) {
            return nearest;
        }
        // One step towards zero: magnitudes are ordered like their bits.
        Self::from_half(nearest.to_half() - 1)
    }
    fn rectified(self) -> Self {
        if self.wide() > 0.0 || self.wide().is_nan() {
            self
        } else {
            Self::from_half(0)
        }
    }
    /// Beyond the range: the largest number.
    fn finite(self) -> Self {
        if self.wide().is_infinite() {
            Self::from_half(self.to_half() & 0x8000 | Self::MAX)
        } else {
            self
        }
    }
}

impl Narrow for f16 {
    const MAX: u16 = 0x7bff;
}

impl Narrow for bf16 {
    const MAX: u16 = 0x7f7f;
}

fn half_of<T: Narrow + Lane>(round: Round, how: How) -> Option<Map> {
    fn nearest<T: Narrow>(a: f32) -> T {
        T::narrow(f64::from(a))
    }
    fn lift<T: Narrow + Lane, const ZERO: bool, const RELU: bool>(out: &mut Lanes, a: &Lanes) {
        for (out, a) in out.iter_mut().zip(a) {
            let a = f32::get(*a);
            let half = if ZERO {
                T::toward_zero(a)
            } else {
                nearest::<T>(a)
            };
            *out = if RELU { half.rectified() } else { half }.put();
        }
    }
    let map: Fn1 = match (round, how.relu) {
        (Round::To(Rounding::Nearest), false) => lift::<T, false, false>,
        (Round::To(Rounding::Nearest), true) => lift::<T, false, true>,
        (Round::To(Rounding::Zero), false) => lift::<T, true, false>,
        (Round::To(Rounding::Zero), true) => lift::<T, true, true>,
        _ => return None,
    };
    Some(map.into()).filter(|_| !how.sat && !how.ftz)
}

/// Two f32 into a register of two halves or bytes, the first operand highest; and bytes to halves.
fn pair(to: Ty, from: Ty, how: How) -> Option<Map> {
    macro_rules! halves {
        ($t:ty) => {
            match (how.round, how.relu, how.sat) {
                (Round::To(Rounding::Nearest), false, false) => {
                    fn2!(|a: f32, b: f32| [b, a].map(|x| <$t>::narrow(f64::from(x))))
                }
                (Round::To(Rounding::Nearest), true, false) => {
                    fn2!(|a: f32, b: f32| [b, a].map(|x| <$t>::narrow(f64::from(x)).rectified()))
                }
                (Round::To(Rounding::Nearest), false, true) => {
                    fn2!(|a: f32, b: f32| [b, a].map(|x| <$t>::narrow(f64::from(x)).finite()))
                }
                (Round::To(Rounding::Zero), false, false) => {
                    fn2!(|a: f32, b: f32| [b, a].map(<$t>::toward_zero))
                }
                (Round::To(Rounding::Zero), true, false) => {
                    fn2!(|a: f32, b: f32| [b, a].map(|x| <$t>::toward_zero(x).rectified()))
                }
                _ => return None,
            }
        };
    }
    let nearest = how.round == Round::To(Rounding::Nearest) && !how.relu;
    match (to, from) {
        (Ty::F16x2, Ty::F32) => Some(halves!(f16).into()),
        (Ty::Bf16x2, Ty::F32) => Some(halves!(bf16).into()),
        (Ty::E4m3x2, Ty::F32) if nearest && how.sat => {
            let f: Fn2 = fn2!(|a: f32, b: f32| u16::from_le_bytes([to_e4m3(b), to_e4m3(a)]));
            Some(f.into())
        }
        (Ty::F16x2, Ty::E4m3x2) if nearest && !how.sat => {
            let f: Fn1 = fn1!(|a: u16| a.to_le_bytes().map(|b| f16::narrow(from_e4m3(b))));
            Some(f.into())
        }
        _ => None,
    }
}

fn from_e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-9),
        _ => (mantissa + 8.0) * 2f64.powi(exponent - 10),
    };
    if byte & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// To nearest even; beyond 448 the largest number.
fn to_e4m3(a: f32) -> u8 {
    let sign = if a.is_sign_negative() { 0x80 } else { 0 };
    if a.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(a.abs()).min(448.0);
    // The distance of neighbours: 2^-9 for subnormals, an eighth of the power of two above.
    let exponent = if magnitude < 2f64.powi(-6) {
        -6
    } else {
        magnitude.log2().floor() as i32
    };
    let steps = (magnitude / 2f64.powi(exponent - 3)).round_ties_even() as u32;
    // Eight steps lead from a power of two to the next one, which the addition carries into.
    let bits = if exponent == -6 {
        steps
    } else {
        (exponent as u32).wrapping_add(6) * 8 + steps
    };
    sign | bits as u8
}
