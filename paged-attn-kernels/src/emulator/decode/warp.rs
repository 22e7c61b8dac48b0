//! Instructions in which the threads of a warp or block take part together.

use super::super::error::ParseError;
use super::super::inst::{
    Barrier, BarrierKind, BoolOp, Collective, Mma, Op, Pred, ReduxOp, Reg, ShflMode, VoteMode,
};
use super::super::ty::{Space, Ty};
use super::{Arg, Builder, Mods, memory};

impl<'t> Builder<'t> {
    pub(super) fn warp(
        &mut self,
        name: &str,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        match name {
            "bar" if mods.take("warp") => {
                mods.take("sync");
                let [mask] = args else {
                    return Err(mods.operands());
                };
                self.collective(mods, Collective::Sync, Some(mask))?;
            }
            "bar" | "barrier" => self.barrier(name == "bar", mods, args)?,
            "activemask" => {
                let (Ty::B32, [dst]) = (mods.ty()?, args) else {
                    return Err(mods.operands());
                };
                let dst = self.dst(mods, dst)?;
                self.push(mods, Op::ActiveMask(dst));
            }
            "mma" => self.mma(mods, args)?,
            "ldmatrix" => self.ldmatrix(mods, args)?,
            _ => {
                if !mods.take("sync") {
                    return Err(mods.unsupported());
                }
                match name {
                    "shfl" => self.shfl(mods, args)?,
                    "vote" => self.vote(mods, args)?,
                    "match" => self.matching(mods, args)?,
                    _ => self.redux(mods, args)?,
                }
            }
        }
        mods.finish()
    }

    fn collective(
        &mut self,
        mods: &Mods<'t>,
        collective: Collective,
        mask: Option<&Arg<'t>>,
    ) -> Result<(), ParseError> {
        let mask = mask.map(|mask| self.src(mods, mask, Ty::B32)).transpose()?;
        self.push(mods, Op::Collective(collective, mask));
        Ok(())
    }

    /// `d|p` or `d`.
    fn pair(&mut self, mods: &Mods<'t>, arg: &Arg<'t>) -> Result<(Reg, Option<Pred>), ParseError> {
        match *arg {
            Arg::Pair(dst, pred) => {
                let pred = self.pred_named(pred, mods.line)?;
                Ok((self.dst_named(mods, dst)?, Some(pred)))
            }
            _ => Ok((self.dst(mods, arg)?, None)),
        }
    }

    fn shfl(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let mode = mods.take_any(&[
            ("up", ShflMode::Up),
            ("down", ShflMode::Down),
            ("bfly", ShflMode::Bfly),
            ("idx", ShflMode::Idx),
        ]);
        let mode = mode.ok_or_else(|| mods.unsupported())?;
        let ty = mods.ty()?;
        let [dst, src, lane, clamp, mask] = args else {
            return Err(mods.operands());
        };
        let (dst, valid) = self.pair(mods, dst)?;
        let src = self.src(mods, src, ty)?;
        let lane = self.src(mods, lane, Ty::U32)?;
        let clamp = self.src(mods, clamp, Ty::U32)?;
        if ty.bytes() != 4 {
            return Err(mods.unsupported());
        }
        self.collective(
            mods,
            Collective::Shfl {
                mode,
                dst,
                valid,
                src,
                lane,
                clamp,
            },
            Some(mask),
        )
    }

    fn vote(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let mode = mods.take_any(&[
            ("all", VoteMode::All),
            ("any", VoteMode::Any),
            ("uni", VoteMode::Uni),
            ("ballot", VoteMode::Ballot),
        ]);
        let mode = mode.ok_or_else(|| mods.unsupported())?;
        mods.ty()?;
        let [to, src, mask] = args else {
            return Err(mods.operands());
        };
        let (dst, pred) = match mode {
            VoteMode::Ballot => (self.dst(mods, to)?, 0),
            _ => (0, self.pred_dst(mods, to)?),
        };
        let src = self.cond(mods, src)?;
        self.collective(
            mods,
            Collective::Vote {
                mode,
                src,
                dst,
                pred,
            },
            Some(mask),
        )
    }

    fn matching(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let all = mods.take_any(&[("all", true), ("any", false)]);
        let all = all.ok_or_else(|| mods.unsupported())?;
        let ty = mods.ty()?;
        let [to, src, mask] = args else {
            return Err(mods.operands());
        };
        let (dst, same) = self.pair(mods, to)?;
        let src = self.src(mods, src, ty)?;
        self.collective(
            mods,
            Collective::Match {
                ty,
                all,
                dst,
                same,
                src,
            },
            Some(mask),
        )
    }

    fn redux(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let op = mods.take_any(&[
            ("add", ReduxOp::Add),
            ("min", ReduxOp::Min),
            ("max", ReduxOp::Max),
            ("and", ReduxOp::And),
            ("or", ReduxOp::Or),
            ("xor", ReduxOp::Xor),
        ]);
        let op = op.ok_or_else(|| mods.unsupported())?;
        let ty = mods.ty()?;
        if !matches!(ty, Ty::U32 | Ty::S32 | Ty::B32) {
            return Err(mods.unsupported());
        }
        let [dst, src, mask] = args else {
            return Err(mods.operands());
        };
        let (dst, src) = (self.dst(mods, dst)?, self.src(mods, src, ty)?);
        self.collective(mods, Collective::Redux { op, ty, dst, src }, Some(mask))
    }

    fn barrier(
        &mut self,
        always_aligned: bool,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        mods.take("cta");
        let aligned = mods.take("aligned") || always_aligned;
        let (kind, args) = if mods.take("sync") {
            (BarrierKind::Sync, args)
        } else if mods.take("arrive") {
            (BarrierKind::Arrive, args)
        } else if mods.take("red") {
            let [to, rest @ .., cond] = args else {
                return Err(mods.operands());
            };
            let cond = self.cond(mods, cond)?;
            let op = mods.take_any(&[("and", BoolOp::And), ("or", BoolOp::Or)]);
            let kind = match op {
                Some(op) => BarrierKind::Reduce(op, cond, self.pred_dst(mods, to)?),
                None if mods.take("popc") => BarrierKind::Count(cond, self.dst(mods, to)?),
                None => return Err(mods.unsupported()),
            };
            mods.ty()?;
            (kind, rest)
        } else {
            return Err(mods.unsupported());
        };
        let (id, count) = match args {
            [id] if kind != BarrierKind::Arrive => (self.src(mods, id, Ty::U32)?, None),
            [id, count] => (
                self.src(mods, id, Ty::U32)?,
                Some(self.src(mods, count, Ty::U32)?),
            ),
            _ => return Err(mods.operands()),
        };
        self.push(
            mods,
            Op::Barrier(Barrier {
                kind,
                id,
                count,
                aligned,
            }),
        );
        Ok(())
    }

    fn mma(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let fixed = ["sync", "aligned", "row", "col"];
        if !fixed.iter().all(|part| mods.take(part)) {
            return Err(mods.unsupported());
        }
        let depth = mods.take_any(&[("m16n8k16", 16), ("m16n8k8", 8)]);
        let depth = depth.ok_or_else(|| mods.unsupported())?;
        let types = [mods.ty()?, mods.ty()?, mods.ty()?, mods.ty()?];
        let ty = types[1];
        let known = matches!(ty, Ty::F16 | Ty::Bf16) && types == [Ty::F32, ty, ty, Ty::F32];
        if !known {
            return Err(mods.unsupported());
        }
        let [d, a, b, c] = args else {
            return Err(mods.operands());
        };
        let d = self.vector(mods, d, None)?;
        let a = self.vector(mods, a, Some(Ty::B32))?;
        let b = self.vector(mods, b, Some(Ty::B32))?;
        let c = self.vector(mods, c, Some(Ty::F32))?;
        if [d.len, a.len, b.len, c.len] != [4, depth / 4, depth / 8, 4] {
            return Err(mods.operands());
        }
        self.collective(
            mods,
            Collective::Mma(Mma {
                ty,
                depth,
                d,
                a,
                b,
                c,
            }),
            None,
        )
    }

    fn ldmatrix(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let fixed = ["sync", "aligned", "m8n8"];
        if !fixed.iter().all(|part| mods.take(part)) {
            return Err(mods.unsupported());
        }
        let trans = mods.take("trans");
        let len = mods.take_any(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let space = mods.space().unwrap_or(Space::Generic);
        if mods.ty()? != Ty::B16 {
            return Err(mods.unsupported());
        }
        let [dst, address] = args else {
            return Err(mods.operands());
        };
        let dst = self.vector(mods, dst, None)?;
        let address = self.address(mods, address, space)?;
        if Some(dst.len) != len || memory::shared(address).is_none() {
            return Err(mods.operands());
        }
        self.collective(
            mods,
            Collective::LdMatrix {
                address,
                trans,
                dst,
            },
            None,
        )
    }
}
