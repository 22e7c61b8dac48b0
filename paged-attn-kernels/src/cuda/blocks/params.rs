//! What the kernels over blocks are given: the structs of `cuda/blocks.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use crate::cuda::elementwise::RotaryView;
use crate::cuda::params::{KvView, RowsView};

/// `WriteKvParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct WriteKvParams {
    pub(super) k: RowsView,
    pub(super) v: RowsView,
    pub(super) q: RowsView,
    pub(super) kv: KvView,
    pub(super) slots: u64,
    pub(super) rotary: RotaryView,
    pub(super) num_tokens: u32,
    pub(super) num_heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) num_slots: u32,
    pub(super) hadamard_len: u32,
    pub(super) hadamard_norm: f32,
    pub(super) dtype: u32,
    pub(super) kv_type: u32,
    pub(super) lanes: u32,
}

/// `SlabView`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SlabView {
    pub(super) data: u64,
    pub(super) layer_stride: i64,
}

/// `CopyBlocksParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct CopyBlocksParams {
    pub(super) from: SlabView,
    pub(super) to: SlabView,
    pub(super) pairs: u64,
    pub(super) num_pairs: u32,
    pub(super) num_layers: u32,
    pub(super) block_bytes: u32,
    pub(super) segment_bytes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::code;

    /// The sizes that nvcc gave the C++ structs, which PTX states.
    #[test]
    fn structs_are_as_large_as_the_kernels_parameters() {
        for (stem, bytes) in [
            ("write_kv", size_of::<WriteKvParams>()),
            ("copy_blocks", size_of::<CopyBlocksParams>()),
            ("swap_blocks", size_of::<CopyBlocksParams>()),
        ] {
            let declared = format!(".param .align 8 .b8 {stem}_param_0[{bytes}]");
            let code = code::find(stem, &[]).unwrap();
            assert!(code.ptx.contains(&declared), "{declared}");
        }
    }
}
