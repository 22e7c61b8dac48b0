//! What the attention kernels are given: the structs of `cuda/types.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use crate::cuda::params::{KvView, RowsView};

/// [`AttendItem::partial`] of an item whose result goes to `out`.
pub(super) const NO_PARTIAL: u32 = u32::MAX;

/// `AttendItem`: what one CTA computes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AttendItem {
    pub(super) first_row: u32,
    pub(super) first_position: u32,
    pub(super) first_packed: u32,
    pub(super) num_packed: u32,
    pub(super) kv_head: u32,
    pub(super) table_offset: u32,
    pub(super) kv_begin: u32,
    pub(super) kv_end: u32,
    pub(super) partial: u32,
}

/// `CombineItem`: partial results of the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct CombineItem {
    pub(super) first_row: u32,
    pub(super) first_packed: u32,
    pub(super) num_packed: u32,
    pub(super) kv_head: u32,
    pub(super) partial: u32,
    pub(super) num_splits: u32,
}

/// `AttendParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct AttendParams {
    pub(super) q: RowsView,
    pub(super) out: RowsView,
    pub(super) kv: KvView,
    pub(super) block_tables: u64,
    pub(super) items: u64,
    pub(super) num_items: u64,
    pub(super) partial_out: u64,
    pub(super) partial_lse: u64,
    pub(super) group: u32,
    pub(super) dtype: u32,
    pub(super) kv_type: u32,
    pub(super) window: u32,
    pub(super) scale_log2: f32,
    pub(super) soft_cap: f32,
}

/// `CombineParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct CombineParams {
    pub(super) out: RowsView,
    pub(super) items: u64,
    pub(super) num_items: u64,
    pub(super) partial_out: u64,
    pub(super) partial_lse: u64,
    pub(super) group: u32,
    pub(super) head_dim: u32,
    pub(super) dtype: u32,
    /// C++ rounds the size up to a multiple of 8.
    pub(super) padding: u32,
}
