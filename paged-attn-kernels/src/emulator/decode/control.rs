//! Branches, calls, and what orders memory.

use super::super::error::ParseError;
use super::super::inst::{Op, Reg};
use super::super::ty::Ty;
use super::{Arg, Builder, Mods};

impl<'t> Builder<'t> {
    pub(super) fn control(
        &mut self,
        name: &str,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        match (name, args) {
            ("bra", [Arg::Word(label, false)]) => {
                mods.take("uni");
                self.jumps.push((self.code.len(), label, mods.line));
                self.push(mods, Op::Branch(usize::MAX));
            }
            ("brx", [index, Arg::Word(table, false)]) if mods.take("idx") => {
                mods.take("uni");
                let index = self.src(mods, index, Ty::U32)?;
                let table = self.table(table);
                self.push(mods, Op::BranchTable(table, index));
            }
            ("call", args) => {
                mods.take("uni");
                let (returns, callee, params) = match args {
                    [Arg::Word(callee, false)] => (&[][..], callee, &[][..]),
                    [Arg::Word(callee, false), Arg::List(params)] => (&[][..], callee, &params[..]),
                    [Arg::List(returns), Arg::Word(callee, false)] => {
                        (&returns[..], callee, &[][..])
                    }
                    [
                        Arg::List(returns),
                        Arg::Word(callee, false),
                        Arg::List(params),
                    ] => (&returns[..], callee, &params[..]),
                    _ => return Err(mods.operands()),
                };
                self.call(mods, callee, (params, returns))?;
            }
            ("ret", []) => {
                mods.take("uni");
                let op = self.back.map_or(Op::Exit, Op::Return);
                self.push(mods, op);
            }
            ("exit", []) => self.push(mods, Op::Exit),
            ("trap" | "brkpt", []) => self.push(mods, Op::Trap),
            ("nanosleep", [_]) => {
                mods.ty()?;
                self.push(mods, Op::Nop);
            }
            ("membar" | "fence", []) => {
                // Accesses happen in program order, so every fence is as strong as the strongest.
                mods.ignore(&["gl", "cta", "sys", "gpu", "sc", "acq_rel"]);
                self.push(mods, Op::Nop);
            }
            _ => return Err(mods.operands()),
        }
        mods.finish()
    }

    fn call(
        &mut self,
        mods: &Mods<'t>,
        callee: &str,
        (params, returns): (&[&'t str], &[&'t str]),
    ) -> Result<(), ParseError> {
        let callee = self.link(callee, mods.line)?;
        let actual = |builder: &mut Self, names: &[&'t str]| {
            let mut places = Vec::new();
            for name in names {
                match builder.lookup(name, mods.line)? {
                    super::Name::Address(super::Space::Local, at) => places.push(at as usize),
                    _ => return Err(mods.operands()),
                }
            }
            Ok(places)
        };
        let (params, returns) = (actual(self, params)?, actual(self, returns)?);
        let linked = &self.functions[callee];
        let back: Reg = linked.back;
        if params.len() != linked.params.len() || returns.len() != linked.returns.len() {
            return Err(mods.operands());
        }
        let copy = |to, from, bytes| Op::CopyLocal { to, from, bytes };
        let pairs = params.iter().zip(&linked.params);
        let before: Vec<Op> = pairs
            .map(|(from, (to, bytes))| copy(*to, *from, *bytes))
            .collect();
        let pairs = returns.iter().zip(&linked.returns);
        let after: Vec<Op> = pairs
            .map(|(to, (from, bytes))| copy(*to, *from, *bytes))
            .collect();
        for op in before {
            self.push(mods, op);
        }
        self.calls.push((self.code.len(), callee));
        self.push(mods, Op::Call(usize::MAX, back));
        for op in after {
            self.push(mods, op);
        }
        Ok(())
    }
}
