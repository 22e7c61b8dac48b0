//! Loads, stores, atomics, asynchronous copies and address conversions.

use super::super::error::ParseError;
use super::super::inst::{Access, Address, Atom, AtomOp, Copy16, Op};
use super::super::lanes::{Fn1, Fn2, Lane, Lanes, fn1, fn2};
use super::super::ty::{Space, Ty};
use super::{Arg, Builder, Mods};

/// Hints about caches, and scopes: all threads of this machine see all of memory at once.
const HINTS: &[&str] = &[
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "weak",
    "L1::no_allocate",
    "L1::evict_last",
    "L1::evict_first",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L2::evict_last",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "cta",
    "gpu",
    "sys",
    "cluster",
];

impl<'t> Builder<'t> {
    pub(super) fn memory(
        &mut self,
        name: &str,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        match name {
            "ld" | "ldu" | "st" => self.access(name == "st", mods, args)?,
            "atom" | "red" => self.atom(name == "atom", mods, args)?,
            "cp" => self.copy_async(mods, args)?,
            "cvta" => self.convert_address(mods, args)?,
            "prefetch" | "prefetchu" => {
                mods.space();
                mods.ignore(&["L1", "L2", "L2::evict_last", "L2::evict_normal"]);
                self.push(mods, Op::Nop);
            }
            _ => return Err(mods.unsupported()),
        }
        mods.finish()
    }

    fn access(
        &mut self,
        store: bool,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        let strong = [
            ("volatile", ()),
            ("relaxed", ()),
            ("acquire", ()),
            ("release", ()),
        ];
        let strong = mods.take_any(&strong).is_some();
        let space = mods.space().unwrap_or(Space::Generic);
        mods.ignore(HINTS);
        let len = mods.take_any(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let ty = mods.ty()?;
        let [first, second] = args else {
            return Err(mods.operands());
        };
        let (address, regs) = if store {
            (first, second)
        } else {
            (second, first)
        };
        let address = self.address(mods, address, space)?;
        let regs = self.vector(mods, regs, store.then_some(ty))?;
        if regs.len != len || ty.bytes() == 0 {
            return Err(mods.operands());
        }
        let access = Access {
            address,
            ty,
            regs,
            strong,
        };
        self.push(
            mods,
            if store {
                Op::Store(access)
            } else {
                Op::Load(access)
            },
        );
        Ok(())
    }

    fn atom(
        &mut self,
        returns: bool,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        mods.ignore(&["relaxed", "acquire", "release", "acq_rel", "noftz"]);
        mods.ignore(HINTS);
        let space = mods.space().unwrap_or(Space::Generic);
        let op = mods.take_any(&[
            ("add", AtomOp::Add),
            ("min", AtomOp::Min),
            ("max", AtomOp::Max),
            ("and", AtomOp::And),
            ("or", AtomOp::Or),
            ("xor", AtomOp::Xor),
            ("exch", AtomOp::Exch),
            ("cas", AtomOp::Cas),
            ("inc", AtomOp::Inc),
            ("dec", AtomOp::Dec),
        ]);
        let op = op.ok_or_else(|| mods.unsupported())?;
        let ty = mods.ty()?;
        let float_ok = !ty.is_float() || (op == AtomOp::Add && ty.bytes() >= 2);
        if !float_ok || ty.bytes() < 2 || (ty.bytes() == 2 && op != AtomOp::Cas && !ty.is_float()) {
            return Err(mods.unsupported());
        }
        let args = if returns {
            args
        } else {
            &[&[Arg::Word("_", false)], args].concat()
        };
        let (dst, address, value, swap) = match args {
            [dst, address, value] if op != AtomOp::Cas => (dst, address, value, value),
            [dst, address, value, swap] if op == AtomOp::Cas => (dst, address, value, swap),
            _ => return Err(mods.operands()),
        };
        let dst = if returns {
            Some(self.dst(mods, dst)?)
        } else {
            None
        };
        let address = self.address(mods, address, space)?;
        let value = self.src(mods, value, ty)?;
        let swap = self.src(mods, swap, ty)?;
        self.push(
            mods,
            Op::Atom(Atom {
                address,
                op,
                ty,
                dst,
                value,
                swap,
            }),
        );
        Ok(())
    }

    fn copy_async(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        if !mods.take("async") {
            return Err(mods.unsupported());
        }
        if mods.take("commit_group") {
            self.push(mods, Op::CommitGroup);
            return Ok(());
        }
        if mods.take("wait_all") {
            self.push(mods, Op::WaitGroup(None));
            return Ok(());
        }
        let number = |arg: &Arg<'_>| match arg {
            Arg::Word(word, false) => super::super::cursor::integer(word),
            _ => None,
        };
        if mods.take("wait_group") {
            let groups = args
                .first()
                .and_then(number)
                .ok_or_else(|| mods.operands())?;
            self.push(mods, Op::WaitGroup(Some(groups as usize)));
            return Ok(());
        }
        let through_l2 = mods.take("cg");
        if !through_l2 && !mods.take("ca") {
            return Err(mods.unsupported());
        }
        if mods.space() != Some(Space::Shared) || mods.space() != Some(Space::Global) {
            return Err(mods.unsupported());
        }
        mods.ignore(&["L2::64B", "L2::128B", "L2::256B"]);
        let [to, from, bytes, rest @ ..] = args else {
            return Err(mods.operands());
        };
        let to = self.address(mods, to, Space::Shared)?;
        let from = self.address(mods, from, Space::Global)?;
        let bytes = number(bytes)
            .map(|b| b as usize)
            .filter(|b| match through_l2 {
                true => *b == 16,
                false => matches!(b, 4 | 8 | 16),
            });
        let bytes = bytes.ok_or_else(|| mods.operands())?;
        let (mut source_bytes, mut ignore) = (None, None);
        match rest {
            [] => {}
            [Arg::Word(word, false)] if self.is_pred(word) => {
                ignore = Some(self.cond(mods, &rest[0])?)
            }
            [Arg::Not(_)] => ignore = Some(self.cond(mods, &rest[0])?),
            [size] => source_bytes = Some(self.src(mods, size, Ty::U32)?),
            _ => return Err(mods.operands()),
        }
        self.push(
            mods,
            Op::CopyAsync(Copy16 {
                to,
                from,
                bytes,
                source_bytes,
                ignore,
            }),
        );
        Ok(())
    }

    fn is_pred(&mut self, word: &str) -> bool {
        matches!(self.lookup(word, 0), Ok(super::Name::Pred(_)))
    }

    /// `cvta.space d, a` from an address in a space to a generic one; `cvta.to.space` back.
    fn convert_address(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let to = mods.take("to");
        let space = mods.space().ok_or_else(|| mods.unsupported())?;
        if mods.ty()? != Ty::U64 {
            return Err(mods.unsupported());
        }
        let [dst, src] = args else {
            return Err(mods.operands());
        };
        let dst = self.dst(mods, dst)?;
        let src = self.src(mods, src, Ty::U64)?;
        let window = self.constant(space.window());
        let add: Fn2 = fn2!(|a: u64, b: u64| a.wrapping_add(b));
        let sub: Fn2 = fn2!(|a: u64, b: u64| a.wrapping_sub(b));
        self.push(
            mods,
            Op::Map2(if to { sub } else { add }, dst, [src, window]),
        );
        Ok(())
    }

    /// `mov`: between registers, of a predicate, of an address, or packing and unpacking.
    pub(super) fn mov(&mut self, mods: &mut Mods<'t>, args: &[Arg<'t>]) -> Result<(), ParseError> {
        let ty = mods.ty()?;
        let [dst, src] = args else {
            return Err(mods.operands());
        };
        let op = match (dst, src) {
            _ if ty == Ty::Pred => Op::SetPred {
                dst: self.pred_dst(mods, dst)?,
                src: self.cond(mods, src)?,
            },
            (Arg::Vector(parts), _) => {
                let bits = ty.bytes() * 8 / parts.len().max(1);
                let dst = self.vector(mods, dst, None)?;
                Op::Unpack {
                    dst,
                    src: self.src(mods, src, ty)?,
                    bits: bits as u32,
                }
            }
            (_, Arg::Vector(parts)) => {
                let bits = ty.bytes() * 8 / parts.len().max(1);
                let src = self.vector(mods, src, Some(Ty::U64))?;
                Op::Pack {
                    dst: self.dst(mods, dst)?,
                    src,
                    bits: bits as u32,
                }
            }
            (_, Arg::Word("%clock" | "%clock64", false)) => Op::Clock(self.dst(mods, dst)?),
            _ => {
                let copy: Fn1 = fn1!(|a: u64| a);
                let dst = self.dst(mods, dst)?;
                Op::Map1(copy, dst, self.src(mods, src, ty)?)
            }
        };
        self.push(mods, op);
        mods.finish()
    }
}

/// The address of lane-wise operations on shared memory, checked by its caller.
pub(super) fn shared(address: Address) -> Option<Address> {
    match address.space {
        Space::Shared => Some(address),
        // `ldmatrix` also takes generic addresses.
        Space::Generic => Some(address),
        _ => None,
    }
}
