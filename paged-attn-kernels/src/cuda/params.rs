//! What kernels are given: the structs of `cuda/types.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use super::{Rows, RowsMut};
use crate::KvDtype;

/// `KvView`: one layer of a cache.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct KvView {
    pub(super) k: u64,
    pub(super) v: u64,
    pub(super) k_scales: u64,
    pub(super) v_scales: u64,
    pub(super) block_stride: i64,
    pub(super) scale_block_stride: i64,
    pub(super) head_stride: u32,
    pub(super) token_stride: u32,
    pub(super) scale_head_stride: u32,
    pub(super) block_shift: u32,
}

/// `RowsView`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RowsView {
    pub(super) data: u64,
    pub(super) stride: i64,
}

impl RowsView {
    pub(super) fn new(rows: &Rows<'_>) -> Self {
        Self {
            data: rows.address(),
            stride: rows.stride() as i64,
        }
    }

    pub(super) fn new_mut(rows: &RowsMut<'_>) -> Self {
        Self::new(&rows.as_rows())
    }
}

/// `KvType`.
pub(super) fn kv_code(dtype: KvDtype) -> u32 {
    match dtype {
        KvDtype::F32 => 0,
        KvDtype::Bf16 => 1,
        KvDtype::F16 => 2,
        KvDtype::Int8 => 3,
        KvDtype::Fp8 => 4,
    }
}
