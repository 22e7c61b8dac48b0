//! Text in, text out: tokenizers, incremental detokenisation, stop strings, chat templates.
//!
//! ```text
//! messages ──ChatTemplate──> text ──Tokenizer──> prompt ids
//!                                                    |  model
//! text out <──StopStrings── text <──Detokenizer── output ids
//! ```

mod chat;
mod detokenizer;
mod error;
mod gguf_tokenizer;
mod stop;
mod template;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatMessage, ChatTemplate, RenderOptions};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use stop::{StopCheck, StopStrings};
pub use tokenizer::Tokenizer;
