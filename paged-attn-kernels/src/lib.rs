//! Pageloom paged-attn-kernels.
pub mod cpu;
