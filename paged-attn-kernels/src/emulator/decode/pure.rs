//! Instructions that only compute: choosing the function that does it.

use std::cmp::Ordering;

use super::super::error::ParseError;
use super::super::inst::{BoolOp, Carry, CarryOp, Cond, Op};
use super::super::lanes::{Compare, Fn1, Fn2, Fn3, Fn4, Lane, Lanes, compare};
use super::super::ty::Ty;
use super::{Arg, Builder, Mods, float, integer, packed};

/// A function of one to four registers.
#[derive(Clone, Copy)]
pub(super) enum Map {
    One(Fn1),
    Two(Fn2),
    Three(Fn3),
    Four(Fn4),
}

macro_rules! map_from {
    ($($f:ty => $variant:ident),*) => {$(
        impl From<$f> for Map {
            fn from(f: $f) -> Self {
                Map::$variant(f)
            }
        }
    )*};
}
map_from!(Fn1 => One, Fn2 => Two, Fn3 => Three, Fn4 => Four);

impl<'t> Builder<'t> {
    /// Decodes an instruction that has no effect but on its destination.
    pub(super) fn pure(
        &mut self,
        name: &str,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        match name {
            "mov" => return self.mov(mods, args),
            "setp" => return self.setp(mods, args),
            "set" => return self.set(mods, args),
            "selp" => return self.selp(mods, args),
            "and" | "or" | "xor" | "not" if mods.has("pred") => {
                return self.logic(name, mods, args);
            }
            "addc" | "subc" | "madc" => return self.carry(name, mods, args),
            "add" | "sub" | "mad" if mods.has("cc") => return self.carry(name, mods, args),
            _ => {}
        }
        let map = if name == "dp4a" || name == "dp2a" {
            integer::dot(name, mods)?
        } else {
            let mut probe = mods.ty()?;
            if name == "testp" {
                return Err(mods.unsupported());
            }
            if name == "slct" {
                probe = mods.ty()?;
            }
            match probe {
                Ty::F32 | Ty::F64 => (float::map(name, mods, probe), probe),
                Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => {
                    (packed::map(name, mods, probe), probe)
                }
                _ => (integer::map(name, mods, probe), probe),
            }
        };
        let (Some(map), ty) = map else {
            return Err(mods.unsupported());
        };
        mods.finish()?;
        self.push_map(mods, map, (args, ty))
    }

    /// Emits a function of registers; `ty` is what literals among the operands are.
    pub(super) fn push_map(
        &mut self,
        mods: &Mods<'t>,
        map: Map,
        (args, ty): (&[Arg<'t>], Ty),
    ) -> Result<(), ParseError> {
        let [dst, sources @ ..] = args else {
            return Err(mods.operands());
        };
        let mut src = [0; 4];
        if sources.len() > 4 {
            return Err(mods.operands());
        }
        for (reg, arg) in src.iter_mut().zip(sources) {
            *reg = self.src(mods, arg, ty)?;
        }
        let dst = self.dst(mods, dst)?;
        let [a, b, c, _] = src;
        let op = match (map, sources.len()) {
            (Map::One(f), 1) => Op::Map1(f, dst, a),
            (Map::Two(f), 2) => Op::Map2(f, dst, [a, b]),
            (Map::Three(f), 3) => Op::Map3(f, dst, [a, b, c]),
            (Map::Four(f), 4) => Op::Map4(f, dst, src),
            _ => return Err(mods.operands()),
        };
        self.push(mods, op);
        Ok(())
    }

    /// The comparison and boolean operator of `setp` and `set`, read from the modifiers.
    fn comparison(mods: &mut Mods<'t>) -> Result<(Compare, Option<BoolOp>, Ty), ParseError> {
        let bool_op = mods.take_any(&[
            ("and", BoolOp::And),
            ("or", BoolOp::Or),
            ("xor", BoolOp::Xor),
        ]);
        let ftz = mods.take("ftz");
        let name = COMPARISONS.iter().find(|name| mods.take(name));
        let ty = mods.ty()?;
        let test = name.and_then(|name| comparison(name, ty, ftz));
        Ok((test.ok_or_else(|| mods.unsupported())?, bool_op, ty))
    }

    fn setp(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let (test, bool_op, ty) = Self::comparison(mods)?;
        mods.finish()?;
        let [to, a, b, rest @ ..] = args else {
            return Err(mods.operands());
        };
        let to = match *to {
            Arg::Pair(p, q) => [
                Some(self.pred_named(p, mods.line)?),
                Some(self.pred_named(q, mods.line)?),
            ],
            _ => [Some(self.pred_dst(mods, to)?), None],
        };
        let src = [self.src(mods, a, ty)?, self.src(mods, b, ty)?];
        let combine = self.combine(mods, bool_op, rest)?;
        self.push(
            mods,
            Op::Setp {
                test,
                src,
                combine,
                to,
            },
        );
        Ok(())
    }

    fn combine(
        &mut self,
        mods: &Mods<'t>,
        bool_op: Option<BoolOp>,
        rest: &[Arg<'t>],
    ) -> Result<Option<(BoolOp, Cond)>, ParseError> {
        match (bool_op, rest) {
            (None, []) => Ok(None),
            (Some(op), [cond]) => Ok(Some((op, self.cond(mods, cond)?))),
            _ => Err(mods.operands()),
        }
    }

    fn set(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        if mods.has("f16x2") || mods.has("bf16x2") {
            let name = COMPARISONS.iter().find(|name| mods.take(name));
            let (to, ty) = (mods.ty()?, mods.ty()?);
            let map = name.and_then(|name| packed::set(name, to, ty));
            mods.finish()?;
            return self.push_map(mods, map.ok_or_else(|| mods.unsupported())?, (args, ty));
        }
        let to = mods.ty()?;
        let (test, bool_op, ty) = Self::comparison(mods)?;
        mods.finish()?;
        let ones = match to {
            Ty::F32 => u64::from(1f32.to_bits()),
            Ty::U32 | Ty::S32 => u64::from(u32::MAX),
            Ty::F16 => 0x3c00,
            Ty::Bf16 => 0x3f80,
            _ => return Err(mods.unsupported()),
        };
        let [dst, a, b, rest @ ..] = args else {
            return Err(mods.operands());
        };
        let src = [self.src(mods, a, ty)?, self.src(mods, b, ty)?];
        let combine = self.combine(mods, bool_op, rest)?;
        let dst = self.dst(mods, dst)?;
        self.push(
            mods,
            Op::Set {
                test,
                src,
                combine,
                ones,
                dst,
            },
        );
        Ok(())
    }

    fn selp(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let ty = mods.ty()?;
        mods.finish()?;
        let [dst, a, b, cond] = args else {
            return Err(mods.operands());
        };
        let src = [self.src(mods, a, ty)?, self.src(mods, b, ty)?];
        let cond = self.cond(mods, cond)?;
        let dst = self.dst(mods, dst)?;
        self.push(mods, Op::Select { dst, src, cond });
        Ok(())
    }

    fn logic(
        &mut self,
        name: &str,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        mods.take("pred");
        mods.finish()?;
        let op = match (name, args) {
            ("not", [dst, src]) => {
                let Cond { pred, negated } = self.cond(mods, src)?;
                let src = Cond {
                    pred,
                    negated: !negated,
                };
                Op::SetPred {
                    dst: self.pred_dst(mods, dst)?,
                    src,
                }
            }
            (_, [dst, a, b]) => {
                let op = match name {
                    "and" => BoolOp::And,
                    "or" => BoolOp::Or,
                    _ => BoolOp::Xor,
                };
                let src = [self.cond(mods, a)?, self.cond(mods, b)?];
                Op::Logic {
                    op,
                    dst: self.pred_dst(mods, dst)?,
                    src,
                }
            }
            _ => return Err(mods.operands()),
        };
        self.push(mods, op);
        Ok(())
    }

    /// Additions, subtractions and multiply-adds that read or write the carry flag.
    fn carry(
        &mut self,
        name: &str,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        let reads = name.ends_with('c');
        let writes = mods.take("cc");
        let (lo, hi) = (mods.take("lo"), mods.take("hi"));
        let op = match &name[..3] {
            "add" => CarryOp::Add,
            "sub" => CarryOp::Sub,
            _ if lo => CarryOp::MadLo,
            _ if hi => CarryOp::MadHi,
            _ => return Err(mods.unsupported()),
        };
        let ty = mods.ty()?;
        mods.finish()?;
        if !matches!(ty.bytes(), 4 | 8) || ty.is_float() {
            return Err(mods.unsupported());
        }
        let expected = if matches!(op, CarryOp::MadLo | CarryOp::MadHi) {
            4
        } else {
            3
        };
        if args.len() != expected {
            return Err(mods.operands());
        }
        let mut src = [0; 3];
        for (reg, arg) in src.iter_mut().zip(&args[1..]) {
            *reg = self.src(mods, arg, ty)?;
        }
        let dst = self.dst(mods, &args[0])?;
        self.push(
            mods,
            Op::Carry(Carry {
                op,
                ty,
                dst,
                src,
                reads,
                writes,
            }),
        );
        Ok(())
    }
}

/// Longer names first: a modifier is a whole word, so the order is free.
const COMPARISONS: &[&str] = &[
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
    "geu", "num", "nan",
];

/// Numbers that do not compare, of which one is NaN, pass only the unordered tests.
macro_rules! float_comparison {
    ($name:expr, $t:ty, $wide:expr) => {{
        Some(match $name {
            "eq" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_some_and(Ordering::is_eq))
            }
            "ne" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_some_and(Ordering::is_ne))
            }
            "lt" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_some_and(Ordering::is_lt))
            }
            "le" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_some_and(Ordering::is_le))
            }
            "gt" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_some_and(Ordering::is_gt))
            }
            "ge" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_some_and(Ordering::is_ge))
            }
            "equ" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_none_or(Ordering::is_eq))
            }
            "neu" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_none_or(Ordering::is_ne))
            }
            "ltu" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_none_or(Ordering::is_lt))
            }
            "leu" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_none_or(Ordering::is_le))
            }
            "gtu" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_none_or(Ordering::is_gt))
            }
            "geu" => {
                compare!(|a: $t, b| $wide(a).partial_cmp(&$wide(b)).is_none_or(Ordering::is_ge))
            }
            "num" => compare!(|a: $t, b| !$wide(a).is_nan() && !$wide(b).is_nan()),
            "nan" => compare!(|a: $t, b| $wide(a).is_nan() || $wide(b).is_nan()),
            _ => return None,
        })
    }};
}

fn comparison(name: &str, ty: Ty, ftz: bool) -> Option<Compare> {
    use super::super::lanes::{Half, by_int};
    use half::{bf16, f16};
    match ty {
        Ty::F32 if ftz => return float_comparison!(name, f32, float::flush),
        Ty::F32 => return float_comparison!(name, f32, f64::from),
        Ty::F64 => return float_comparison!(name, f64, f64::from),
        Ty::F16 => return float_comparison!(name, f16, Half::wide),
        Ty::Bf16 => return float_comparison!(name, bf16, Half::wide),
        _ => {}
    }
    let test = match name {
        "eq" => by_int!(ty, T, compare!(|a: T, b| a == b)),
        "ne" => by_int!(ty, T, compare!(|a: T, b| a != b)),
        "lt" | "lo" => by_int!(ty, T, compare!(|a: T, b| a < b)),
        "le" | "ls" => by_int!(ty, T, compare!(|a: T, b| a <= b)),
        "gt" | "hi" => by_int!(ty, T, compare!(|a: T, b| a > b)),
        "ge" | "hs" => by_int!(ty, T, compare!(|a: T, b| a >= b)),
        _ => None,
    };
    test.filter(|_| !ftz)
}
