//! What can be wrong with PTX text.

use thiserror::Error;

/// Why PTX text was refused; `line` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The text is not PTX.
    #[error("line {line}: expected {expected}, found {found}")]
    Syntax {
        /// Line of the text.
        line: u32,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// An instruction, modifier or type the emulator does not know.
    #[error("line {line}: the emulator has no {text}")]
    Unsupported {
        /// Line of the text.
        line: u32,
        /// The instruction or directive.
        text: String,
    },
    /// An operand of the wrong kind, or too few or many operands.
    #[error("line {line}: wrong operands of {text}")]
    Operands {
        /// Line of the text.
        line: u32,
        /// The instruction.
        text: String,
    },
    /// A name that nothing declares.
    #[error("line {line}: {name} is not declared")]
    Undeclared {
        /// Line of the text.
        line: u32,
        /// The name.
        name: String,
    },
    /// A function calls itself; frames here are static.
    #[error("line {line}: {name} is recursive")]
    Recursion {
        /// Line of the text.
        line: u32,
        /// The function.
        name: String,
    },
}
