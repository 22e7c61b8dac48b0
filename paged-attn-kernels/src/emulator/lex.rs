//! Tokens of PTX.

use super::error::ParseError;

/// A token and the line it stands on, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'t> {
    pub(crate) text: &'t str,
    pub(crate) line: u32,
}

/// Splits text into words, numbers, strings and single punctuation characters.
///
/// A word may contain dots and `::`, so an opcode with its modifiers is one token.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let start = at;
        match rest[0] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b' ' | b'\t' | b'\r' => at += 1,
            b'/' if rest.starts_with(b"//") => {
                at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            }
            b'/' if rest.starts_with(b"/*") => {
                let len = text[at..].find("*/").ok_or(ParseError::Syntax {
                    line,
                    expected: "the end of a comment",
                    found: "the end of the text".into(),
                })?;
                line += rest[..len].iter().filter(|b| **b == b'\n').count() as u32;
                at += len + 2;
            }
            b'"' => {
                let len = rest[1..]
                    .iter()
                    .position(|b| *b == b'"')
                    .ok_or(ParseError::Syntax {
                        line,
                        expected: "the end of a string",
                        found: "the end of the text".into(),
                    })?;
                at += len + 2;
                out.push(Token {
                    text: &text[start..at],
                    line,
                });
            }
            byte if is_word(byte) => {
                at += word_bytes(rest);
                out.push(Token {
                    text: &text[start..at],
                    line,
                });
            }
            byte if byte.is_ascii_punctuation() => {
                at += 1;
                out.push(Token {
                    text: &text[start..at],
                    line,
                });
            }
            byte => {
                return Err(ParseError::Syntax {
                    line,
                    expected: "PTX",
                    found: format!("byte {byte:#x}"),
                });
            }
        }
    }
    Ok(out)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn word_bytes(rest: &[u8]) -> usize {
    let mut len = 0;
    while len < rest.len() {
        if is_word(rest[len]) {
            len += 1;
        } else if rest[len..].starts_with(b"::") {
            len += 2;
        } else {
            break;
        }
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opcode_with_modifiers_is_one_token() {
        let text = "@!%p1 cp.async.cg.shared.global.L2::128B [%r1+-4], 16; // x\n$L1:\n";
        let words: Vec<&str> = tokens(text).unwrap().iter().map(|t| t.text).collect();
        let expected = "@ ! %p1 cp.async.cg.shared.global.L2::128B [ %r1 + - 4 ] , 16 ; $L1 :";
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let tokens = tokens("/* a\nb */ ret;\n\"x\" ret").unwrap();
        let lines: Vec<u32> = tokens.iter().map(|t| t.line).collect();
        assert_eq!(lines, [2, 2, 3, 3]);
    }
}
