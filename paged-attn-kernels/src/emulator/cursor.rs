//! A position in tokens, and what operands and declarations are written with.

use super::error::ParseError;
use super::lex::Token;
use super::ty::Ty;

/// No variable of a kernel is larger; larger sizes are damage.
const MAX_BYTES: usize = 16 << 20;

/// Reads tokens one after the other.
#[derive(Clone)]
pub(crate) struct Cursor<'t> {
    tokens: &'t [Token<'t>],
    at: usize,
}

/// A variable's type and size as declared.
#[derive(Clone, Debug)]
pub(crate) struct Declared<'t> {
    pub(crate) name: &'t str,
    pub(crate) ty: Ty,
    pub(crate) align: usize,
    pub(crate) bytes: usize,
    /// Written with `[]`: as large as the launch says.
    pub(crate) unsized_array: bool,
}

impl<'t> Cursor<'t> {
    pub(crate) fn new(tokens: &'t [Token<'t>]) -> Self {
        Self { tokens, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn peek(&self) -> Option<&'t str> {
        self.tokens.get(self.at).map(|t| t.text)
    }

    /// Line of the next token, or of the last one.
    pub(crate) fn line(&self) -> u32 {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(0, |t| t.line)
    }

    pub(crate) fn accept(&mut self, text: &str) -> bool {
        let found = self.peek() == Some(text);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn next(&mut self, expected: &'static str) -> Result<&'t str, ParseError> {
        let token = self.peek().ok_or_else(|| self.unexpected(expected))?;
        self.at += 1;
        Ok(token)
    }

    pub(crate) fn expect(&mut self, text: &'static str) -> Result<(), ParseError> {
        if self.accept(text) {
            Ok(())
        } else {
            Err(self.unexpected(text))
        }
    }

    pub(crate) fn unexpected(&self, expected: &'static str) -> ParseError {
        let found = self.peek().unwrap_or("the end of the text").to_owned();
        ParseError::Syntax {
            line: self.line(),
            expected,
            found,
        }
    }

    /// Skips the rest of a line: `.loc` and `.file` end without a semicolon.
    pub(crate) fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() && self.line() == line {
            self.at += 1;
        }
    }

    /// Skips to the brace that closes the one just read.
    pub(crate) fn skip_braces(&mut self) -> Result<(), ParseError> {
        let mut depth = 1;
        while depth > 0 {
            match self.next("}")? {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn count(&mut self) -> Result<usize, ParseError> {
        let number = self
            .peek()
            .and_then(integer)
            .and_then(|n| usize::try_from(n).ok());
        let number = number.ok_or_else(|| self.unexpected("a number"))?;
        self.at += 1;
        Ok(number)
    }

    /// `[.align n] .type [.ptr ...] name [dimensions]`, after the state space.
    pub(crate) fn declaration(&mut self) -> Result<Declared<'t>, ParseError> {
        let mut align = 0;
        if self.accept(".align") {
            align = self.count()?;
        }
        let ty = self.peek().and_then(|w| Ty::parse(w.strip_prefix('.')?));
        let ty = ty.ok_or_else(|| self.unexpected("a type"))?;
        self.at += 1;
        // What a pointer points to says nothing about the parameter itself.
        if self.accept(".ptr") {
            if self
                .peek()
                .is_some_and(|w| w.starts_with('.') && w != ".align")
            {
                self.at += 1;
            }
            if self.accept(".align") {
                self.count()?;
            }
        }
        let name = self.next("a name")?;
        let (mut items, mut unsized_array) = (1, false);
        while self.accept("[") {
            if self.accept("]") {
                unsized_array = true;
                continue;
            }
            items = self.count()?.saturating_mul(items);
            self.expect("]")?;
        }
        let bytes = if unsized_array {
            0
        } else {
            items.saturating_mul(ty.bytes())
        };
        if bytes > MAX_BYTES || align > MAX_BYTES || (align != 0 && !align.is_power_of_two()) {
            return Err(self.unexpected("a variable of at most 16 MiB"));
        }
        Ok(Declared {
            name,
            ty,
            align: align.max(ty.bytes()).max(1),
            bytes,
            unsized_array,
        })
    }

    /// The value of an initialised variable, little-endian.
    pub(crate) fn initialiser(&mut self, ty: Ty, out: &mut Vec<u8>) -> Result<(), ParseError> {
        if self.accept("{") {
            while !self.accept("}") {
                self.initialiser(ty, out)?;
                self.accept(",");
            }
            return Ok(());
        }
        let negative = self.accept("-");
        let value = self.peek().and_then(|w| immediate(w, negative, ty));
        let value = value.ok_or_else(|| self.unexpected("a number"))?;
        self.at += 1;
        out.extend_from_slice(&value.to_le_bytes()[..ty.bytes()]);
        Ok(())
    }
}

/// An integer literal: decimal, hexadecimal, octal or binary, with an optional `U`.
pub(crate) fn integer(word: &str) -> Option<u64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    if let Some(digits) = word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).ok();
    }
    if let Some(digits) = word.strip_prefix("0b").or(word.strip_prefix("0B")) {
        return u64::from_str_radix(digits, 2).ok();
    }
    if word.len() > 1 && word.starts_with('0') && word.bytes().all(|b| b.is_ascii_digit()) {
        return u64::from_str_radix(word, 8).ok();
    }
    word.parse().ok()
}

/// A literal as the bits of a type; integers are extended to 64 bits.
pub(crate) fn immediate(word: &str, negative: bool, ty: Ty) -> Option<u64> {
    let float = |prefixes: [&str; 2]| {
        let digits = prefixes.iter().find_map(|p| word.strip_prefix(p))?;
        u64::from_str_radix(digits, 16).ok()
    };
    if let Some(bits) = float(["0f", "0F"]).filter(|_| word.len() == 10) {
        let bits = bits ^ u64::from(negative) << 31;
        return Some(match ty {
            Ty::F64 => f64::from(f32::from_bits(bits as u32)).to_bits(),
            _ => bits,
        });
    }
    if let Some(bits) = float(["0d", "0D"]).filter(|_| word.len() == 18) {
        let bits = bits ^ u64::from(negative) << 63;
        return Some(match ty {
            Ty::F32 => u64::from((f64::from_bits(bits) as f32).to_bits()),
            _ => bits,
        });
    }
    if word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()) {
        let value: f64 = word.parse().ok()?;
        let value = if negative { -value } else { value };
        return match ty {
            Ty::F32 => Some(u64::from((value as f32).to_bits())),
            Ty::F64 => Some(value.to_bits()),
            _ => None,
        };
    }
    let value = integer(word)?;
    Some(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}
