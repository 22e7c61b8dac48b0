//! What the elementwise kernels are given: the structs of `cuda/elementwise.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use crate::cuda::params::RowsView;

/// `NormParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct NormParams {
    pub(super) x: RowsView,
    pub(super) residual: RowsView,
    pub(super) out: RowsView,
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) num_tokens: u32,
    pub(super) num_heads: u32,
    pub(super) width: u32,
    pub(super) eps: f32,
    pub(super) dtype: u32,
    pub(super) weight_dtype: u32,
    pub(super) group: u32,
    pub(super) reserved: u32,
}

/// `RotaryView`. Zero: none.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cuda) struct RotaryView {
    pub(in crate::cuda) positions: u64,
    pub(in crate::cuda) cos: u64,
    pub(in crate::cuda) sin: u64,
    pub(in crate::cuda) max_position: u32,
    pub(in crate::cuda) rotary_dim: u32,
    pub(in crate::cuda) interleaved: u32,
    pub(in crate::cuda) reserved: u32,
}

/// `RopeParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RopeParams {
    pub(super) q: RowsView,
    pub(super) k: RowsView,
    pub(super) rotary: RotaryView,
    pub(super) num_tokens: u32,
    pub(super) num_q_heads: u32,
    pub(super) num_k_heads: u32,
    pub(super) head_dim: u32,
    pub(super) dtype: u32,
    pub(super) reserved: u32,
}

/// `ActivationParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ActivationParams {
    pub(super) x: RowsView,
    pub(super) up: RowsView,
    pub(super) out: RowsView,
    pub(super) num_rows: u32,
    pub(super) width: u32,
    pub(super) dtype: u32,
    pub(super) activation: u32,
}

/// `EmbedParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct EmbedParams {
    pub(super) table: RowsView,
    pub(super) out: RowsView,
    pub(super) ids: u64,
    pub(super) num_rows: u32,
    pub(super) width: u32,
    pub(super) num_ids: u32,
    pub(super) scale: f32,
    pub(super) dtype: u32,
    pub(super) table_dtype: u32,
}

/// `AddBiasParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AddBiasParams {
    pub(super) x: RowsView,
    pub(super) residual: RowsView,
    pub(super) out: RowsView,
    pub(super) bias: u64,
    pub(super) num_rows: u32,
    pub(super) width: u32,
    pub(super) dtype: u32,
    pub(super) bias_dtype: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::code;

    /// The sizes that nvcc gave the C++ structs, which PTX states.
    #[test]
    fn structs_are_as_large_as_the_kernels_parameters() {
        for (stem, bytes) in [
            ("rms_norm", size_of::<NormParams>()),
            ("layer_norm", size_of::<NormParams>()),
            ("rope", size_of::<RopeParams>()),
            ("silu_mul", size_of::<ActivationParams>()),
            ("gelu", size_of::<ActivationParams>()),
            ("relu", size_of::<ActivationParams>()),
            ("embed", size_of::<EmbedParams>()),
            ("add_bias", size_of::<AddBiasParams>()),
        ] {
            let declared = format!(".param .align 8 .b8 {stem}_param_0[{bytes}]");
            let code = code::find(stem, &[]).unwrap();
            assert!(code.ptx.contains(&declared), "{declared}");
        }
    }
}
