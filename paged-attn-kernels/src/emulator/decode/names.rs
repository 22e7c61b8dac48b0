//! Names: registers, variables, branch tables, and what each stands for.

use super::super::cursor::Cursor;
use super::super::error::ParseError;
use super::super::inst::Reg;
use super::super::parse::ModuleVariable;
use super::super::program::Special;
use super::super::ty::{Space, Ty};
use super::{Builder, Family, Name, Scope};

impl<'t> Builder<'t> {
    pub(super) fn branch_targets(
        &mut self,
        label: &'t str,
        cursor: &mut Cursor<'t>,
    ) -> Result<(), ParseError> {
        let mut targets = Vec::new();
        loop {
            targets.push(cursor.next("a label")?);
            if !cursor.accept(",") {
                break;
            }
        }
        cursor.expect(";")?;
        let index = self.table(label);
        self.table_labels.insert(label, (index, Some(targets)));
        Ok(())
    }

    /// Index of a branch table, which may be declared after its use.
    pub(super) fn table(&mut self, label: &'t str) -> usize {
        let tables = &mut self.tables;
        let entry = self.table_labels.entry(label).or_insert_with(|| {
            tables.push(Vec::new());
            (tables.len() - 1, None)
        });
        entry.0
    }

    pub(super) fn variable(
        &mut self,
        cursor: &mut Cursor<'t>,
        space: Space,
    ) -> Result<(), ParseError> {
        let declared = cursor.declaration()?;
        let place = match space {
            Space::Shared => (
                Space::Shared,
                self.reserve_shared(declared.bytes, declared.align),
            ),
            // Arguments of calls are memory of the thread.
            _ => (
                Space::Local,
                self.reserve_local(declared.bytes, declared.align) as u64,
            ),
        };
        let name = Name::Address(place.0, place.1);
        self.scope().names.insert(declared.name, name);
        cursor.expect(";")
    }

    /// Declares registers of a type, written with its dot.
    pub(super) fn registers(
        &mut self,
        cursor: &mut Cursor<'t>,
        ty: &str,
    ) -> Result<(), ParseError> {
        let ty = ty.strip_prefix('.').and_then(Ty::parse);
        let ty = ty.ok_or_else(|| cursor.unexpected("a type before"))?;
        let is_pred = ty == Ty::Pred;
        loop {
            let name = cursor.next("a register")?;
            let family = cursor.accept("<");
            let len = if family { cursor.count()? } else { 1 };
            let len = u32::try_from(len).ok().filter(|len| *len < 1 << 20);
            let len = len.ok_or_else(|| cursor.unexpected("fewer registers"))?;
            let next = if is_pred {
                &mut self.num_preds
            } else {
                &mut self.num_regs
            };
            let first = *next;
            *next += len;
            if family {
                cursor.expect(">")?;
                self.scope().families.insert(
                    name,
                    Family {
                        first,
                        len,
                        is_pred,
                    },
                );
            } else {
                let place = if is_pred {
                    Name::Pred(first)
                } else {
                    Name::Reg(first)
                };
                self.scope().names.insert(name, place);
            }
            if !cursor.accept(",") {
                break;
            }
        }
        cursor.expect(";")
    }

    fn scope(&mut self) -> &mut Scope<'t> {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    pub(super) fn fresh_reg(&mut self) -> Reg {
        self.num_regs += 1;
        self.num_regs - 1
    }

    pub(super) fn reserve_local(&mut self, bytes: usize, align: usize) -> usize {
        let at = self.local_bytes.next_multiple_of(align);
        self.local_bytes = at + bytes;
        at
    }

    fn reserve_shared(&mut self, bytes: usize, align: usize) -> u64 {
        let at = self.shared_bytes.next_multiple_of(align);
        self.shared_bytes = at + bytes;
        at as u64
    }

    /// What a name stands for, in the innermost scope that has it.
    pub(super) fn lookup(&mut self, word: &str, line: u32) -> Result<Name, ParseError> {
        let digits = word.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = word.split_at(word.len() - digits);
        for scope in self.scopes.iter().rev() {
            if let Some(name) = scope.names.get(word) {
                return Ok(*name);
            }
            let Some(family) = scope.families.get(prefix) else {
                continue;
            };
            if let Some(index) = number
                .parse::<u32>()
                .ok()
                .filter(|index| *index < family.len)
            {
                let index = family.first + index;
                return Ok(if family.is_pred {
                    Name::Pred(index)
                } else {
                    Name::Reg(index)
                });
            }
        }
        if let Some(special) = Special::parse(word) {
            let found = self
                .specials
                .iter()
                .find(|(_, s)| *s == special)
                .map(|(reg, _)| *reg);
            let reg = found.unwrap_or_else(|| {
                let reg = self.fresh_reg();
                self.specials.push((reg, special));
                reg
            });
            return Ok(Name::Reg(reg));
        }
        let items = self.items;
        let variable = items.variables.get_key_value(word);
        let (name, variable) = variable.ok_or_else(|| ParseError::Undeclared {
            line,
            name: word.to_owned(),
        })?;
        Ok(match *variable {
            ModuleVariable::At(space, at) => Name::Address(space, at),
            ModuleVariable::Shared(bytes, align) => {
                let at = match self.shared.get(name) {
                    Some(at) => *at,
                    None => self.reserve_shared(bytes, align),
                };
                self.shared.insert(name, at);
                Name::Address(Space::Shared, at)
            }
            ModuleVariable::DynamicShared(align) => {
                let (reg, before) = self.dynamic.unwrap_or_else(|| (self.fresh_reg(), 1));
                self.dynamic = Some((reg, before.max(align)));
                Name::Reg(reg)
            }
        })
    }
}
