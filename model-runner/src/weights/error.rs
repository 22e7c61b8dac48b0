use std::io;
use std::path::PathBuf;

use pageloom_paged_attn_kernels::KernelError;

/// Architectures [`super::Checkpoint`] can read, as `config.json` and GGUF name them.
pub const KNOWN_ARCHITECTURES: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
     Qwen3ForCausalLM (config.json); llama, qwen2, qwen3 (GGUF)";

/// Why a checkpoint cannot be used.
///
/// Every variant that is about a file names it; those about one tensor name the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path is neither a GGUF file nor a folder with a model in it.
    #[error("{}: not a model: {reason}", path.display())]
    NotAModel {
        /// File or folder.
        path: PathBuf,
        /// What was looked for and not found.
        reason: String,
    },
    /// The file is truncated or its header contradicts itself.
    #[error("{}: malformed at byte {offset}: {reason}", path.display())]
    Malformed {
        /// File.
        path: PathBuf,
        /// Where reading stopped.
        offset: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A key of the metadata or of `config.json` is missing or has an unusable value.
    #[error("{}: `{key}`: {reason}", path.display())]
    Config {
        /// File.
        path: PathBuf,
        /// Key in the file's own spelling.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The model is of a family that is not implemented.
    #[error("{}: unknown architecture `{found}`; known are {KNOWN_ARCHITECTURES}", path.display())]
    UnknownArchitecture {
        /// File.
        path: PathBuf,
        /// What the file asks for.
        found: String,
    },
    /// The model needs the tensor and the checkpoint does not have it.
    #[error("{}: tensor `{tensor}` is missing", path.display())]
    TensorMissing {
        /// File or folder.
        path: PathBuf,
        /// Name in the file's own spelling.
        tensor: String,
    },
    /// The tensor's elements are of a type that cannot be read.
    #[error("{}: tensor `{tensor}` has type {found}, which is not supported; supported are {}", path.display(), super::WeightType::names())]
    TensorType {
        /// File.
        path: PathBuf,
        /// Name in the file's own spelling.
        tensor: String,
        /// The type as the file gives it.
        found: String,
    },
    /// The tensor does not have the shape the model's configuration asks for.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// File.
        path: PathBuf,
        /// Name in the file's own spelling.
        tensor: String,
        /// `[rows, cols]` or `[len]`.
        expected: Vec<usize>,
        /// `[rows, cols]` or `[len]`.
        found: Vec<usize>,
    },
    /// The tensor's entry in the header is unusable: its size overflows, its data lies outside
    /// the file, and the like.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Name in the file's own spelling.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The threads that load and compute cannot be pinned as asked.
    #[error("cpu affinity: {0}")]
    Affinity(KernelError),
}
