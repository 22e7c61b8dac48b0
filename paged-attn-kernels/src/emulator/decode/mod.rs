//! From tokens to decoded instructions: names, functions and their frames.

mod args;
mod control;
mod convert;
mod float;
mod integer;
mod memory;
mod names;
mod operand;
mod packed;
mod pure;
mod warp;

use std::collections::HashMap;

use super::cursor::Cursor;
use super::error::ParseError;
use super::inst::{Cond, Inst, Op, Pred, Reg};
use super::lex::Token;
use super::parse::{Function, Items};
use super::program::{Entry, Images, Special};
use super::ty::Space;

pub(crate) use args::{Arg, Mods};

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Name {
    Reg(Reg),
    Pred(Pred),
    Address(Space, u64),
}

/// Registers `%r<87>`: all names that start with a prefix and go on with a number below a count.
#[derive(Clone, Copy)]
struct Family {
    first: u32,
    len: u32,
    is_pred: bool,
}

#[derive(Default)]
struct Scope<'t> {
    names: HashMap<&'t str, Name>,
    families: HashMap<&'t str, Family>,
}

/// A function that the entry calls: its frame is static, since nothing is recursive.
struct Linked {
    start: Option<usize>,
    /// Keeps where to go on after it.
    back: Reg,
    /// Offset and bytes in local memory.
    params: Vec<(usize, usize)>,
    returns: Vec<(usize, usize)>,
}

/// Decodes one entry and the functions it calls.
pub(crate) struct Builder<'t> {
    tokens: &'t [Token<'t>],
    items: &'t Items<'t>,
    scopes: Vec<Scope<'t>>,
    code: Vec<Inst>,
    tables: Vec<Vec<usize>>,
    num_regs: u32,
    num_preds: u32,
    constants: HashMap<u64, Reg>,
    specials: Vec<(Reg, Special)>,
    always: Option<Pred>,
    shared: HashMap<&'t str, u64>,
    shared_bytes: usize,
    /// The register with the address of dynamic shared memory.
    dynamic: Option<(Reg, usize)>,
    local_bytes: usize,
    functions: HashMap<&'t str, Linked>,
    waiting: Vec<&'t Function<'t>>,
    calls: Vec<(usize, &'t str)>,
    /// Of the function being decoded.
    labels: HashMap<&'t str, usize>,
    jumps: Vec<(usize, &'t str, u32)>,
    table_labels: HashMap<&'t str, (usize, Option<Vec<&'t str>>)>,
    back: Option<Reg>,
}

impl<'t> Builder<'t> {
    pub(crate) fn new(tokens: &'t [Token<'t>], items: &'t Items<'t>) -> Self {
        Self {
            tokens,
            items,
            scopes: Vec::new(),
            code: Vec::new(),
            tables: Vec::new(),
            num_regs: 0,
            num_preds: 0,
            constants: HashMap::new(),
            specials: Vec::new(),
            always: None,
            shared: HashMap::new(),
            shared_bytes: 0,
            dynamic: None,
            local_bytes: 0,
            functions: HashMap::new(),
            waiting: Vec::new(),
            calls: Vec::new(),
            labels: HashMap::new(),
            jumps: Vec::new(),
            table_labels: HashMap::new(),
            back: None,
        }
    }

    /// Decodes an entry and, behind it, the functions it calls.
    pub(crate) fn entry(
        mut self,
        function: &'t Function<'t>,
        images: Images,
    ) -> Result<Entry, ParseError> {
        self.refuse_recursion(function, &mut Vec::new())?;
        let mut scope = Scope::default();
        let mut param_bytes = 0usize;
        for param in &function.params {
            let at = param_bytes.next_multiple_of(param.align);
            scope
                .names
                .insert(param.name, Name::Address(Space::Param, at as u64));
            param_bytes = at + param.bytes;
        }
        self.body(function, scope)?;
        while let Some(callee) = self.waiting.pop() {
            self.linked(callee)?;
        }
        for (at, name) in std::mem::take(&mut self.calls) {
            let linked = &self.functions[name];
            if let (Op::Call(target, _), Some(start)) = (&mut self.code[at].op, linked.start) {
                *target = start;
            }
        }
        let mut constants: Vec<(Reg, u64)> = self.constants.iter().map(|(v, r)| (*r, *v)).collect();
        if let Some((reg, align)) = self.dynamic {
            self.shared_bytes = self.shared_bytes.next_multiple_of(align);
            constants.push((reg, self.shared_bytes as u64));
        }
        Ok(Entry {
            name: function.name.to_owned(),
            code: self.code,
            tables: self.tables,
            num_regs: self.num_regs as usize,
            num_preds: self.num_preds as usize,
            constants,
            specials: self.specials,
            always: self.always,
            param_bytes,
            shared_bytes: self.shared_bytes,
            local_bytes: self.local_bytes,
            max_threads: function.max_threads,
            images,
        })
    }

    /// Frames are static, so a function must not be on the way to itself.
    fn refuse_recursion(
        &self,
        function: &'t Function<'t>,
        path: &mut Vec<&'t str>,
    ) -> Result<(), ParseError> {
        if path.contains(&function.name) {
            return Err(ParseError::Recursion {
                line: function.line,
                name: function.name.into(),
            });
        }
        path.push(function.name);
        let body = &self.tokens[function.body.clone()];
        for callee in self.items.functions.iter().filter(|f| !f.is_entry) {
            let mut calls = body
                .iter()
                .enumerate()
                .filter(|(_, t)| t.text == callee.name);
            // Operands come before the next semicolon, the call itself after the last one.
            let is_call = calls.any(|(at, _)| {
                let start = body[..at]
                    .iter()
                    .rposition(|t| t.text == ";")
                    .map_or(0, |s| s + 1);
                body[start..at].iter().any(|t| t.text.starts_with("call"))
            });
            if is_call {
                self.refuse_recursion(callee, path)?;
            }
        }
        path.pop();
        Ok(())
    }

    /// Decodes a called function at the end of the code.
    fn linked(&mut self, function: &'t Function<'t>) -> Result<(), ParseError> {
        let start = self.code.len();
        let Some(linked) = self.functions.get_mut(function.name) else {
            return Ok(());
        };
        linked.start = Some(start);
        let mut scope = Scope::default();
        let places = linked.params.iter().chain(&linked.returns);
        for (declared, (at, _)) in function.params.iter().chain(&function.returns).zip(places) {
            scope
                .names
                .insert(declared.name, Name::Address(Space::Local, *at as u64));
        }
        self.back = Some(linked.back);
        self.body(function, scope)
    }

    /// The frame of a function, made at its first call.
    fn link(&mut self, name: &str, line: u32) -> Result<&'t str, ParseError> {
        let items = self.items;
        let function = items
            .functions
            .iter()
            .find(|f| f.name == name && !f.is_entry);
        let function = function.ok_or_else(|| ParseError::Undeclared {
            line,
            name: name.to_owned(),
        })?;
        if !self.functions.contains_key(name) {
            let mut frame = |declared: &[super::cursor::Declared<'_>]| {
                let places = declared
                    .iter()
                    .map(|d| (self.reserve_local(d.bytes, d.align), d.bytes));
                places.collect::<Vec<_>>()
            };
            let (params, returns) = (frame(&function.params), frame(&function.returns));
            let back = self.fresh_reg();
            let linked = Linked {
                start: None,
                back,
                params,
                returns,
            };
            self.functions.insert(function.name, linked);
            self.waiting.push(function);
        }
        Ok(function.name)
    }

    fn body(&mut self, function: &'t Function<'t>, scope: Scope<'t>) -> Result<(), ParseError> {
        self.scopes = vec![scope, Scope::default()];
        let tokens = self.tokens;
        let mut cursor = Cursor::new(&tokens[function.body.clone()]);
        while cursor.peek().is_some() {
            self.statement(&mut cursor)?;
        }
        // Falling off the end returns.
        let op = self.back.map_or(Op::Exit, Op::Return);
        self.code.push(Inst {
            guard: None,
            op,
            line: cursor.line(),
        });
        self.resolve_labels()
    }

    fn resolve_labels(&mut self) -> Result<(), ParseError> {
        let labels = std::mem::take(&mut self.labels);
        let position = |name: &str, line| {
            let found = labels.get(name).copied();
            found.ok_or_else(|| ParseError::Undeclared {
                line,
                name: name.to_owned(),
            })
        };
        for (at, label, line) in std::mem::take(&mut self.jumps) {
            let target = position(label, line)?;
            if let Op::Branch(to) = &mut self.code[at].op {
                *to = target;
            }
        }
        let line = self.code.last().map_or(0, |inst| inst.line);
        for (name, (index, targets)) in std::mem::take(&mut self.table_labels) {
            let missing = || ParseError::Undeclared {
                line,
                name: name.to_owned(),
            };
            for target in targets.ok_or_else(missing)? {
                self.tables[index].push(position(target, line)?);
            }
        }
        Ok(())
    }

    fn statement(&mut self, cursor: &mut Cursor<'t>) -> Result<(), ParseError> {
        let line = cursor.line();
        match cursor.next("a statement")? {
            "{" => self.scopes.push(Scope::default()),
            "}" => {
                self.scopes.pop();
            }
            ";" => {}
            ".loc" | ".file" => cursor.skip_line(),
            ".pragma" => while cursor.next(";")? != ";" {},
            ".reg" => {
                let ty = cursor.next("a type")?;
                self.registers(cursor, ty)?;
            }
            // Inline assembly also writes `.reg.b32`.
            word if word.starts_with(".reg.") => self.registers(cursor, &word[4..])?,
            ".local" => self.variable(cursor, Space::Local)?,
            ".param" => self.variable(cursor, Space::Param)?,
            ".shared" => self.variable(cursor, Space::Shared)?,
            "@" => {
                let negated = cursor.accept("!");
                let pred = self.pred_named(cursor.next("a predicate")?, line)?;
                let opcode = cursor.next("an instruction")?;
                self.instruction(cursor, opcode, (line, Some(Cond { pred, negated })))?;
            }
            label if cursor.peek() == Some(":") => {
                cursor.next(":")?;
                if cursor.accept(".branchtargets") {
                    self.branch_targets(label, cursor)?;
                } else {
                    self.labels.insert(label, self.code.len());
                }
            }
            word if word.starts_with('.') => {
                return Err(ParseError::Unsupported {
                    line,
                    text: word.to_owned(),
                });
            }
            opcode => self.instruction(cursor, opcode, (line, None))?,
        }
        Ok(())
    }
}
