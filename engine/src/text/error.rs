use std::io;
use std::path::PathBuf;

use pageloom_model_runner::LoadError;

/// Why text and tokens cannot be turned into each other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer's metadata in the model file is unusable.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The model comes without something the tokenizer or template is made of.
    #[error("{}: {what} is missing", path.display())]
    Missing {
        /// File or folder.
        path: PathBuf,
        /// Metadata key or file name.
        what: String,
    },
    /// The model asks for a kind of tokenizer that is not implemented.
    #[error("{}: {what} `{found}` is not supported; supported are {supported}", path.display())]
    Unsupported {
        /// File or folder.
        path: PathBuf,
        /// What it is a kind of.
        what: &'static str,
        /// What the model asks for.
        found: String,
        /// What it could ask for.
        supported: &'static str,
    },
    /// The tokenizer's data contradicts itself.
    #[error("{}: the tokenizer cannot be built: {reason}", path.display())]
    Malformed {
        /// File or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The text cannot be tokenised.
    #[error("the text cannot be tokenised: {reason}")]
    Encode {
        /// The tokenizer's own message.
        reason: String,
    },
    /// A token id the model does not have.
    #[error("token id {id} is not below the vocabulary's size {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Number of ids the model has.
        vocab_size: usize,
    },
    /// The chat template does not parse.
    #[error("the chat template does not parse: {reason}")]
    TemplateSyntax {
        /// What is wrong and where.
        reason: String,
    },
    /// The chat template refused the conversation by calling `raise_exception`.
    #[error("the model's chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// The chat template failed or took too many steps.
    #[error("the chat template failed: {reason}")]
    TemplateFailed {
        /// What happened and where.
        reason: String,
    },
    /// The chat template wrote more than it may.
    #[error("the chat template wrote more than {max_bytes} bytes")]
    TemplateTooLong {
        /// The limit.
        max_bytes: usize,
    },
    /// A template argument would replace a variable the engine sets itself.
    #[error("chat_template_kwargs may not set `{name}`")]
    ReservedKwarg {
        /// Name of the variable.
        name: String,
    },
    /// The last message cannot be continued.
    #[error("continue_final_message: {reason}")]
    ContinueFinalMessage {
        /// Why.
        reason: &'static str,
    },
}
