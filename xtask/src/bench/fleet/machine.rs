//! A replica's machine: Llama-3-8B on one A100 of 80 GB.
//!
//! The paper's models hold 2,048 tokens of context, and the traces of today's services have prompts of
//! 100,000. This one has 32 layers of 8 heads of 128 keys and values: 131,072 bytes a token of 16 bits.
//! No figure of the paper is about it, so its costs are the 13B's in proportion (see
//! [`cost`](crate::bench::paper::cost)):
//!
//! - `weights`: 16 GB at 2,039 GB/s (the device's data sheet) are 7.9 ms;
//! - `token`: 8 of 13 billion parameters on the same arithmetic, 0.065 ms;
//! - `context`: 131,072 bytes at the bandwidth, of which a kernel gets 70 %;
//! - `fixed` and `seq` are the 13B's;
//! - `swap`: a block's 16.8 MB at 25 GB/s, what a link of 32 GB/s gives to copies.
//!
//! Attention within a prompt is not in it, so long prompts are cheaper here than they are.

use pageloom_block_manager as block_manager;
use pageloom_scheduler as scheduler;

use crate::bench::paper::cost::StepCost;

/// Tokens of a block: a quarter of what the Mooncake trace tells prompts apart by.
pub(crate) const BLOCK_SIZE: usize = 128;
/// 52 GiB for keys and values: 80 GB less the weights, less what activations need.
pub(crate) const NUM_SLOTS: usize = 425_984;
/// 64 GiB of host memory, where what the device evicts is kept.
pub(crate) const NUM_HOST_SLOTS: usize = 524_288;
/// Longest request, tokens.
pub(crate) const CONTEXT_LEN: usize = 131_072;
/// Tokens a step computes at most: what a long prompt holds others up by, 0.14 s.
const MAX_NUM_BATCHED_TOKENS: usize = 2048;
const MAX_NUM_SEQS: usize = 256;

pub(crate) const COST: StepCost = StepCost {
    fixed: 9.5,
    weights: 7.9,
    token: 0.065,
    context: 0.000_092,
    seq: 0.12,
    copy: 0.000_13,
    swap: [0.67; 2],
};

pub(crate) fn blocks() -> block_manager::Config {
    block_manager::Config {
        block_size: BLOCK_SIZE,
        num_blocks: NUM_SLOTS / BLOCK_SIZE,
        num_host_blocks: NUM_HOST_SLOTS / BLOCK_SIZE,
        ..block_manager::Config::default()
    }
}

pub(crate) fn scheduler() -> scheduler::Config {
    scheduler::Config {
        max_num_seqs: MAX_NUM_SEQS,
        max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS,
        max_model_len: CONTEXT_LEN,
        max_num_queued_requests: usize::MAX,
        max_num_queued_tokens: usize::MAX,
        preemption_mode: scheduler::PreemptionMode::Recompute,
        ..scheduler::Config::default()
    }
}
