//! The environment chat templates run in, as transformers sets it up.

use std::error::Error as _;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::TextError;

/// Steps a template may take; long conversations take thousands.
const MAX_STEPS: u64 = 10_000_000;
/// Longest text a template may write: past any context there is.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
const NAME: &str = "chat_template";

/// An environment with one template in it.
pub(super) fn environment(source: String) -> Result<Environment<'static>, TextError> {
    let syntax_error = |error: Error| TextError::TemplateSyntax {
        reason: error.to_string(),
    };
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.map_err(syntax_error)?);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_formatter(format_as_python);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    let source = without_generation_tags(&source);
    environment
        .add_template_owned(NAME, source)
        .map_err(syntax_error)?;
    Ok(environment)
}

/// Renders the environment's template.
pub(super) fn render(
    environment: &Environment<'static>,
    variables: impl Iterator<Item = (String, Value)>,
) -> Result<String, TextError> {
    let mut output = BoundedOutput {
        bytes: Vec::new(),
        full: false,
    };
    let rendered = environment.get_template(NAME).and_then(|template| {
        template
            .render_captured_to(Value::from_pairs(variables), &mut output)
            .map(drop)
    });
    match rendered {
        Ok(()) => String::from_utf8(output.bytes).map_err(|error| TextError::TemplateFailed {
            reason: error.to_string(),
        }),
        Err(_) if output.full => Err(TextError::TemplateTooLong {
            max_bytes: MAX_OUTPUT_BYTES,
        }),
        Err(error) => Err(match raised(&error) {
            Some(raised) => TextError::TemplateRaised {
                message: raised.0.clone(),
            },
            None => TextError::TemplateFailed {
                reason: error.to_string(),
            },
        }),
    }
}

/// Takes a template's output up to a limit.
struct BoundedOutput {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_OUTPUT_BYTES - self.bytes.len() {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<&Raised> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        source = error.source();
    }
    None
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(|error| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: {error}"),
        )
    })
}

/// Python writes `None`, `True` and `False`.
fn format_as_python(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool if value.is_true() => Ok(out.write_str("True")?),
        ValueKind::Bool => Ok(out.write_str("False")?),
        _ => escape_formatter(out, state, value),
    }
}

/// Python's `json.dumps` without escapes for HTML, which the built-in filter has.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let refuse = |what: &str| {
        let reason = format!("tojson: {what} is not supported");
        Err(Error::new(ErrorKind::InvalidOperation, reason))
    };
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return refuse("ensure_ascii=True");
    }
    options.assert_all_used()?;
    let text = match indent {
        Some(width) if width > 16 => return refuse("an indent over 16"),
        Some(width) => {
            let indent = " ".repeat(width);
            json_text(value, PrettyFormatter::with_indent(indent.as_bytes()))
        }
        None => json_text(value, SpacedFormatter),
    };
    text.map(Value::from_safe_string)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

fn json_text(value: &Value, formatter: impl Formatter) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// JSON on one line with Python's separators, `", "` and `": "`.
struct SpacedFormatter;

impl Formatter for SpacedFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// Replaces `{% generation %}` and its end, which mark the assistant's words for training and
/// write nothing, by blocks that every Jinja knows.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let name = inside.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                text.push_str("{%");
                text.push_str(&inside.replace(name, &format!(" {replacement} ")));
                text.push_str("%}");
                rest = &tag[end + 2..];
            }
            None => {
                text.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    text.push_str(rest);
    text
}
