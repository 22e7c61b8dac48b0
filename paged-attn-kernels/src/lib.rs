//! Pageloom paged-attn-kernels.
