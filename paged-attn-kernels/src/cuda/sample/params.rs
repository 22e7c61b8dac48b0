//! What the sampling kernels are given and give: the structs of `cuda/sampling.cuh`, field by field.

use bytemuck::{Pod, Zeroable};

use crate::cuda::params::RowsView;

/// `NONE`.
pub(super) const NONE: u32 = u32::MAX;

/// `RowStatus`.
pub(super) mod status {
    pub(in super::super) const OK: u32 = 0;
    pub(in super::super) const NOT_A_NUMBER: u32 = 1;
}

/// `ListRange`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ListRange {
    pub(super) begin: u32,
    pub(super) end: u32,
}

/// `SampleRow`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawSampleRow {
    pub(super) seed: u64,
    pub(super) logits_row: u32,
    pub(super) position: u32,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
    pub(super) top_k: u32,
    pub(super) repetition_penalty: f32,
    pub(super) frequency_penalty: f32,
    pub(super) presence_penalty: f32,
    pub(super) num_prompt_tokens: u32,
    pub(super) adjusted_row: u32,
    pub(super) history: ListRange,
    pub(super) allowed: ListRange,
    pub(super) banned: ListRange,
    pub(super) bias: ListRange,
    pub(super) padding: u32,
}

/// `SampleResult`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawDraw {
    pub(super) token: u32,
    pub(super) status: u32,
}

/// `SampleParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct SampleParams {
    pub(super) logits: RowsView,
    pub(super) adjusted: RowsView,
    pub(super) rows: u64,
    pub(super) tokens: u64,
    pub(super) bias_tokens: u64,
    pub(super) bias: u64,
    pub(super) results: u64,
    pub(super) vocab_size: u32,
    pub(super) dtype: u32,
}

/// `LogprobRow`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawLogprobRow {
    pub(super) logits_row: u32,
    pub(super) drawn: u32,
    pub(super) token: u32,
    pub(super) num_top: u32,
}

/// `LogprobResult`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RawLogprobs {
    pub(super) total: u64,
    pub(super) max: f32,
    pub(super) logit: f32,
    pub(super) token: u32,
    pub(super) rank: u32,
    pub(super) num_top: u32,
    pub(super) status: u32,
}

/// `RankedToken`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RankedToken {
    pub(super) token: u32,
    pub(super) logit: f32,
}

/// `LogprobParams`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LogprobParams {
    pub(super) logits: RowsView,
    pub(super) rows: u64,
    pub(super) drawn: u64,
    pub(super) results: u64,
    pub(super) top: u64,
    pub(super) top_stride: u32,
    pub(super) vocab_size: u32,
    pub(super) dtype: u32,
    pub(super) padding: u32,
}
