//! Modifiers and operands as written.

use super::super::cursor::{Cursor, integer};
use super::super::error::ParseError;
use super::super::ty::{Space, Ty};

/// An operand as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arg<'t> {
    /// A register, name or literal; the flag: a minus before it.
    Word(&'t str, bool),
    /// `name + offset`.
    Offset(&'t str, i64),
    /// `!p`.
    Not(&'t str),
    /// `{a, b}`.
    Vector(Vec<Arg<'t>>),
    /// `[base + offset]`.
    Address(&'t str, i64),
    /// `d|p`.
    Pair(&'t str, &'t str),
    /// `(a, b)`.
    List(Vec<&'t str>),
}

/// An opcode's modifiers; those not taken are unknown.
pub(crate) struct Mods<'t> {
    pub(crate) opcode: &'t str,
    pub(crate) line: u32,
    parts: Vec<&'t str>,
}

impl<'t> Mods<'t> {
    /// The instruction's name and its modifiers.
    pub(crate) fn new(opcode: &'t str, line: u32) -> (&'t str, Self) {
        let mut parts = opcode.split('.');
        let name = parts.next().unwrap_or(opcode);
        (
            name,
            Self {
                opcode,
                line,
                parts: parts.collect(),
            },
        )
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.parts.contains(&part)
    }

    pub(crate) fn take(&mut self, part: &str) -> bool {
        let found = self.parts.iter().position(|p| *p == part);
        if let Some(at) = found {
            self.parts.remove(at);
        }
        found.is_some()
    }

    /// The first of some modifiers that is there.
    pub(crate) fn take_any<T: Copy>(&mut self, parts: &[(&str, T)]) -> Option<T> {
        parts
            .iter()
            .find(|(part, _)| self.take(part))
            .map(|(_, value)| *value)
    }

    /// Drops modifiers that mean nothing here.
    pub(crate) fn ignore(&mut self, parts: &[&str]) {
        self.parts.retain(|part| !parts.contains(part));
    }

    /// The next type.
    pub(crate) fn ty(&mut self) -> Result<Ty, ParseError> {
        let found = self
            .parts
            .iter()
            .enumerate()
            .find_map(|(i, p)| Some((i, Ty::parse(p)?)));
        let (at, ty) = found.ok_or_else(|| self.unsupported())?;
        self.parts.remove(at);
        Ok(ty)
    }

    pub(crate) fn space(&mut self) -> Option<Space> {
        let found = self
            .parts
            .iter()
            .enumerate()
            .find_map(|(i, p)| Some((i, Space::parse(p)?)));
        let (at, space) = found?;
        self.parts.remove(at);
        Some(space)
    }

    pub(crate) fn unsupported(&self) -> ParseError {
        ParseError::Unsupported {
            line: self.line,
            text: self.opcode.to_owned(),
        }
    }

    pub(crate) fn operands(&self) -> ParseError {
        ParseError::Operands {
            line: self.line,
            text: self.opcode.to_owned(),
        }
    }

    /// Refuses modifiers that nothing took.
    pub(crate) fn finish(&self) -> Result<(), ParseError> {
        if self.parts.is_empty() {
            Ok(())
        } else {
            Err(self.unsupported())
        }
    }
}

/// Reads the operands up to the semicolon.
pub(crate) fn args<'t>(cursor: &mut Cursor<'t>) -> Result<Vec<Arg<'t>>, ParseError> {
    let mut out = Vec::new();
    while !cursor.accept(";") {
        out.push(arg(cursor)?);
        if !cursor.accept(",") && cursor.peek() != Some(";") {
            return Err(cursor.unexpected("; after operands"));
        }
    }
    Ok(out)
}

fn arg<'t>(cursor: &mut Cursor<'t>) -> Result<Arg<'t>, ParseError> {
    if cursor.accept("{") {
        let mut parts = Vec::new();
        while !cursor.accept("}") {
            parts.push(scalar(cursor)?);
            cursor.accept(",");
        }
        return Ok(Arg::Vector(parts));
    }
    if cursor.accept("[") {
        let base = cursor.next("an address")?;
        let offset = offset(cursor)?;
        cursor.expect("]")?;
        return Ok(Arg::Address(base, offset));
    }
    if cursor.accept("(") {
        let mut names = Vec::new();
        while !cursor.accept(")") {
            names.push(cursor.next("a name")?);
            cursor.accept(",");
        }
        return Ok(Arg::List(names));
    }
    if cursor.accept("!") {
        return Ok(Arg::Not(cursor.next("a predicate")?));
    }
    scalar(cursor)
}

fn scalar<'t>(cursor: &mut Cursor<'t>) -> Result<Arg<'t>, ParseError> {
    if cursor.accept("-") {
        return Ok(Arg::Word(cursor.next("a number")?, true));
    }
    let word = cursor.next("an operand")?;
    if word.len() == 1 && !word.as_bytes()[0].is_ascii_alphanumeric() && word != "_" {
        let found = word.to_owned();
        return Err(ParseError::Syntax {
            line: cursor.line(),
            expected: "an operand",
            found,
        });
    }
    if cursor.accept("|") {
        return Ok(Arg::Pair(word, cursor.next("a predicate")?));
    }
    match offset(cursor)? {
        0 => Ok(Arg::Word(word, false)),
        offset => Ok(Arg::Offset(word, offset)),
    }
}

/// `+4`, `+-4`, `-4` or nothing.
fn offset(cursor: &mut Cursor<'_>) -> Result<i64, ParseError> {
    let plus = cursor.accept("+");
    let minus = cursor.accept("-");
    if !plus && !minus {
        return Ok(0);
    }
    let value = cursor
        .peek()
        .and_then(integer)
        .ok_or_else(|| cursor.unexpected("an offset"))?;
    cursor.next("an offset")?;
    Ok(if minus {
        (value as i64).wrapping_neg()
    } else {
        value as i64
    })
}
