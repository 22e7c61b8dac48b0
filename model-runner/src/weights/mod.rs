//! Models on disk: GGUF files and folders of safetensors, memory-mapped and checked.
//!
//! ```text
//! file.gguf ──> Gguf ─────────┐
//!                             ├──> Checkpoint ──> ModelConfig
//! folder/  ──> config.json ───┤                   Tensor::read_row -> f32
//!              *.safetensors ─┘
//! ```
//!
//! Whatever a file says, opening it gives a model or an error that names the file, the key or
//! tensor and the reason: no panic, and no allocation beyond an index of the names in the file.
//! Both formats look the same from outside: tensors go by Hugging Face's names, and query and key
//! rows come in the order of its "rotate half" RoPE.

mod checkpoint;
mod config;
mod dequant;
mod dtype;
mod error;
mod folder;
mod gguf;
mod gguf_model;
mod gguf_tensor;
mod gguf_value;
mod hf_config;
mod json;
mod mapped;
mod tensor;

pub use checkpoint::Checkpoint;
pub use config::{Architecture, ModelConfig, RopeScaling};
pub use dtype::WeightType;
pub use error::{KNOWN_ARCHITECTURES, LoadError};
pub use gguf::Gguf;
pub use gguf_value::{GgufArray, GgufValue};
pub use tensor::Tensor;
