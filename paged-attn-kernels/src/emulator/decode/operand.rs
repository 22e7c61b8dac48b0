//! Operands of an instruction: registers, addresses, predicates and literals.

use super::super::cursor::{Cursor, immediate, integer};
use super::super::error::ParseError;
use super::super::inst::{Address, Cond, Inst, Op, Pred, Reg, Vector};
use super::super::program::Special;
use super::super::ty::{Space, Ty};
use super::args::args;
use super::{Arg, Builder, Mods, Name};

impl<'t> Builder<'t> {
    /// Decodes one instruction, its opcode read already.
    pub(super) fn instruction(
        &mut self,
        cursor: &mut Cursor<'t>,
        opcode: &'t str,
        (line, guard): (u32, Option<Cond>),
    ) -> Result<(), ParseError> {
        let args = args(cursor)?;
        let (name, mut mods) = Mods::new(opcode, line);
        let at = self.code.len();
        self.decode(name, &mut mods, &args)?;
        for inst in &mut self.code[at..] {
            inst.guard = guard;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, mods: &Mods<'_>, op: Op) {
        self.code.push(Inst {
            guard: None,
            op,
            line: mods.line,
        });
    }

    fn decode(
        &mut self,
        name: &'t str,
        mods: &mut Mods<'t>,
        args: &[Arg<'t>],
    ) -> Result<(), ParseError> {
        match name {
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "cvta" | "prefetch" | "prefetchu"
            | "isspacep" | "discard" | "applypriority" => self.memory(name, mods, args),
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "membar"
            | "fence" => self.control(name, mods, args),
            "shfl" | "vote" | "match" | "redux" | "bar" | "barrier" | "mma" | "ldmatrix"
            | "activemask" => self.warp(name, mods, args),
            "cvt" => self.convert(mods, args),
            _ => self.pure(name, mods, args),
        }
    }

    /// A source register: a register, or one that holds the literal or address.
    pub(super) fn src(
        &mut self,
        mods: &Mods<'_>,
        arg: &Arg<'t>,
        ty: Ty,
    ) -> Result<Reg, ParseError> {
        let (word, negative, offset) = match *arg {
            Arg::Word(word, negative) => (word, negative, 0),
            Arg::Offset(word, offset) => (word, false, offset),
            _ => return Err(mods.operands()),
        };
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let value = immediate(word, negative, ty).ok_or_else(|| mods.operands())?;
            return Ok(self.constant(value.wrapping_add(offset as u64)));
        }
        match self.lookup(word, mods.line)? {
            Name::Reg(reg) if offset == 0 && !negative => Ok(reg),
            Name::Address(space, at) if !negative => {
                // Names of local variables stand for addresses in their space.
                let at = if space == Space::Global {
                    at
                } else {
                    at & 0xffff_ffff
                };
                Ok(self.constant(at.wrapping_add_signed(offset)))
            }
            _ => Err(mods.operands()),
        }
    }

    pub(super) fn constant(&mut self, value: u64) -> Reg {
        if let Some(reg) = self.constants.get(&value) {
            return *reg;
        }
        let reg = self.fresh_reg();
        self.constants.insert(value, reg);
        reg
    }

    pub(super) fn dst(&mut self, mods: &Mods<'_>, arg: &Arg<'t>) -> Result<Reg, ParseError> {
        match *arg {
            Arg::Word(word, false) => self.dst_named(mods, word),
            _ => Err(mods.operands()),
        }
    }

    pub(super) fn dst_named(&mut self, mods: &Mods<'_>, word: &str) -> Result<Reg, ParseError> {
        if word == "_" {
            return Ok(self.fresh_reg());
        }
        match self.lookup(word, mods.line)? {
            Name::Reg(reg) if Special::parse(word).is_none() => Ok(reg),
            _ => Err(mods.operands()),
        }
    }

    pub(super) fn pred_named(&mut self, word: &str, line: u32) -> Result<Pred, ParseError> {
        if word == "_" {
            self.num_preds += 1;
            return Ok(self.num_preds - 1);
        }
        match self.lookup(word, line)? {
            Name::Pred(pred) => Ok(pred),
            _ => Err(ParseError::Operands {
                line,
                text: word.to_owned(),
            }),
        }
    }

    pub(super) fn pred_dst(&mut self, mods: &Mods<'_>, arg: &Arg<'t>) -> Result<Pred, ParseError> {
        match *arg {
            Arg::Word(word, false) => self.pred_named(word, mods.line),
            _ => Err(mods.operands()),
        }
    }

    /// A predicate as a source: named, negated, or a literal.
    pub(super) fn cond(&mut self, mods: &Mods<'_>, arg: &Arg<'t>) -> Result<Cond, ParseError> {
        match *arg {
            Arg::Word(word, _) if integer(word).is_some() => {
                let pred = self.always.unwrap_or_else(|| {
                    self.num_preds += 1;
                    self.num_preds - 1
                });
                self.always = Some(pred);
                Ok(Cond {
                    pred,
                    negated: integer(word) == Some(0),
                })
            }
            Arg::Word(word, false) => Ok(Cond {
                pred: self.pred_named(word, mods.line)?,
                negated: false,
            }),
            Arg::Not(word) => Ok(Cond {
                pred: self.pred_named(word, mods.line)?,
                negated: true,
            }),
            _ => Err(mods.operands()),
        }
    }

    pub(super) fn address(
        &mut self,
        mods: &Mods<'_>,
        arg: &Arg<'t>,
        space: Space,
    ) -> Result<Address, ParseError> {
        let Arg::Address(word, offset) = *arg else {
            return Err(mods.operands());
        };
        if let Some(value) = integer(word) {
            return Ok(Address {
                space,
                base: self.constant(value),
                offset,
            });
        }
        Ok(match self.lookup(word, mods.line)? {
            Name::Reg(base) => Address {
                space,
                base,
                offset,
            },
            // Parameters of a function are memory of the thread.
            Name::Address(found, at) if found == space || space == Space::Param => Address {
                space: found,
                base: self.constant(at),
                offset,
            },
            _ => return Err(mods.operands()),
        })
    }

    /// `{a, b, c, d}` or a single register.
    pub(super) fn vector(
        &mut self,
        mods: &Mods<'_>,
        arg: &Arg<'t>,
        source: Option<Ty>,
    ) -> Result<Vector, ParseError> {
        let single = std::slice::from_ref(arg);
        let parts = if let Arg::Vector(parts) = arg {
            parts.as_slice()
        } else {
            single
        };
        if parts.is_empty() || parts.len() > 4 {
            return Err(mods.operands());
        }
        let mut regs = [0; 4];
        for (reg, part) in regs.iter_mut().zip(parts) {
            *reg = match source {
                Some(ty) => self.src(mods, part, ty)?,
                None => self.dst(mods, part)?,
            };
        }
        Ok(Vector {
            regs,
            len: parts.len(),
        })
    }
}
