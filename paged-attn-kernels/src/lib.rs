//! Pageloom paged-attn-kernels.
pub mod cpu;

mod error;

pub use error::KernelError;
