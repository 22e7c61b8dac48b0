//! The outermost level of PTX: variables and functions.

use std::collections::HashMap;
use std::ops::Range;

use super::cursor::{Cursor, Declared};
use super::error::ParseError;
use super::lex::Token;
use super::ty::{MODULE_GLOBALS, Space};

/// A variable of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModuleVariable {
    /// Address in its space.
    At(Space, u64),
    /// Shared memory that an entry reserves if it names the variable: bytes and alignment.
    Shared(usize, usize),
    /// Shared memory after all static variables, as large as the launch says; its alignment.
    DynamicShared(usize),
}

/// A function or entry, its body not yet decoded.
#[derive(Clone, Debug)]
pub(crate) struct Function<'t> {
    pub(crate) name: &'t str,
    pub(crate) is_entry: bool,
    pub(crate) params: Vec<Declared<'t>>,
    pub(crate) returns: Vec<Declared<'t>>,
    pub(crate) max_threads: Option<u32>,
    /// Tokens between the braces.
    pub(crate) body: Range<usize>,
    pub(crate) line: u32,
}

/// The declarations of a module.
#[derive(Default)]
pub(crate) struct Items<'t> {
    pub(crate) variables: HashMap<&'t str, ModuleVariable>,
    pub(crate) functions: Vec<Function<'t>>,
    pub(crate) constants: Vec<u8>,
    pub(crate) globals: Vec<u8>,
}

/// Reads all declarations.
pub(crate) fn items<'t>(tokens: &'t [Token<'t>]) -> Result<Items<'t>, ParseError> {
    let mut cursor = Cursor::new(tokens);
    let mut items = Items::default();
    while let Some(word) = cursor.peek() {
        match word {
            ".version" => {
                cursor.next("")?;
                cursor.next("a version")?;
            }
            ".target" => {
                cursor.next("")?;
                cursor.next("a target")?;
                while cursor.accept(",") {
                    cursor.next("a target")?;
                }
            }
            ".address_size" => {
                cursor.next("")?;
                let line = cursor.line();
                let bits = cursor.count()?;
                if bits != 64 {
                    let text = format!(".address_size {bits}");
                    return Err(ParseError::Unsupported { line, text });
                }
            }
            ".file" | ".loc" => cursor.skip_line(),
            ".section" => {
                while cursor.next("{")? != "{" {}
                cursor.skip_braces()?;
            }
            ".pragma" => while cursor.next(";")? != ";" {},
            ".visible" | ".weak" | ".common" | ";" => {
                cursor.next("")?;
            }
            ".entry" | ".func" => function(&mut cursor, &mut items)?,
            _ => variable(&mut cursor, &mut items)?,
        }
    }
    Ok(items)
}

fn variable<'t>(cursor: &mut Cursor<'t>, items: &mut Items<'t>) -> Result<(), ParseError> {
    let external = cursor.accept(".extern");
    if external && matches!(cursor.peek(), Some(".func")) {
        return function(cursor, items);
    }
    let line = cursor.line();
    let word = cursor.next("a declaration")?;
    let space = word.strip_prefix('.').and_then(Space::parse);
    let declared = match space {
        Some(Space::Const | Space::Global | Space::Shared) => cursor.declaration()?,
        _ => {
            return Err(ParseError::Unsupported {
                line,
                text: word.to_owned(),
            });
        }
    };
    let place = match space {
        Some(Space::Shared) if declared.unsized_array => {
            ModuleVariable::DynamicShared(declared.align)
        }
        Some(Space::Shared) => ModuleVariable::Shared(declared.bytes, declared.align),
        _ if external => {
            let text = format!(".extern {word} {}", declared.name);
            return Err(ParseError::Unsupported { line, text });
        }
        Some(Space::Const) => {
            let at = image(cursor, &declared, &mut items.constants)?;
            ModuleVariable::At(Space::Const, at)
        }
        _ => {
            let at = image(cursor, &declared, &mut items.globals)?;
            ModuleVariable::At(Space::Global, MODULE_GLOBALS + at)
        }
    };
    items.variables.insert(declared.name, place);
    cursor.expect(";")
}

/// Appends a variable with its initial value, zeros by default; its offset.
fn image(
    cursor: &mut Cursor<'_>,
    declared: &Declared<'_>,
    image: &mut Vec<u8>,
) -> Result<u64, ParseError> {
    let mut value = Vec::new();
    if cursor.accept("=") {
        cursor.initialiser(declared.ty, &mut value)?;
    }
    value.resize(declared.bytes.max(value.len()), 0);
    image.resize(image.len().next_multiple_of(declared.align), 0);
    let at = image.len() as u64;
    image.append(&mut value);
    Ok(at)
}

fn params<'t>(cursor: &mut Cursor<'t>) -> Result<Vec<Declared<'t>>, ParseError> {
    let mut out = Vec::new();
    if !cursor.accept("(") {
        return Ok(out);
    }
    while !cursor.accept(")") {
        cursor.expect(".param")?;
        out.push(cursor.declaration()?);
        cursor.accept(",");
    }
    Ok(out)
}

fn function<'t>(cursor: &mut Cursor<'t>, items: &mut Items<'t>) -> Result<(), ParseError> {
    let is_entry = cursor.next("a function")? == ".entry";
    let returns = if is_entry {
        Vec::new()
    } else {
        params(cursor)?
    };
    let line = cursor.line();
    let name = cursor.next("a name")?;
    let params = params(cursor)?;
    let mut max_threads = None;
    loop {
        let line = cursor.line();
        match cursor.next("{")? {
            "{" => break,
            // A declaration; the body comes later.
            ";" => return Ok(()),
            ".maxntid" | ".reqntid" => {
                let mut threads = cursor.count()?;
                while cursor.accept(",") {
                    threads = threads.saturating_mul(cursor.count()?);
                }
                max_threads = u32::try_from(threads).ok();
            }
            ".minnctapersm" | ".maxnreg" => {
                cursor.count()?;
            }
            ".noreturn" => {}
            ".pragma" => while cursor.next(";")? != ";" {},
            other => {
                return Err(ParseError::Unsupported {
                    line,
                    text: other.to_owned(),
                });
            }
        }
    }
    let start = cursor.at();
    cursor.skip_braces()?;
    let body = start..cursor.at() - 1;
    items.functions.push(Function {
        name,
        is_entry,
        params,
        returns,
        max_threads,
        body,
        line,
    });
    Ok(())
}
