//! What an engine is made from.

use std::time::Duration;

use pageloom_model_runner::TokenId;
use pageloom_scheduler::{PreemptionMode, SchedulingPolicy};

use crate::{EngineError, NgramConfig};

/// Sizes and caps of an [`Engine`](crate::Engine).
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Tokens a block of the KV cache holds.
    pub block_size: usize,
    /// Blocks of the KV cache; the executor's cache must have as many of the same size.
    pub num_blocks: usize,
    /// Blocks of the host tier, which sequences are swapped to and where evicted blocks of the
    /// prefix cache are kept; the executor must have as many. 0, the default, for none.
    pub num_host_blocks: usize,
    /// Most tokens of a sequence, prompt and output together.
    pub max_model_len: usize,
    /// Most sequences computed at once.
    pub max_num_seqs: usize,
    /// Most tokens a step computes; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// Most tokens of one prompt computed in a step; 0 sets no limit but the step's.
    pub long_prefill_token_threshold: usize,
    /// Most sequences that wait to be scheduled for the first time; a request of `n` counts as
    /// `n`.
    pub max_num_queued_requests: usize,
    /// Most prompt tokens of the waiting sequences together.
    pub max_num_queued_tokens: usize,
    /// Most sequences a request may ask for; never more than `max_num_seqs`, since they are
    /// computed together.
    pub max_n: usize,
    /// Keep computed blocks findable for later prompts with the same beginning.
    pub enable_prefix_caching: bool,
    /// Beginnings that many prompts have in common. They are computed first of all, and their whole
    /// blocks never leave the cache (the paper's section 4.4); needs the prefix cache. One whose
    /// step fails is not kept, and computed by the first prompt that begins with it.
    ///
    /// Requests with a salt do not share them.
    pub shared_prefixes: Vec<Vec<TokenId>>,
    /// Who goes first. Only with [`SchedulingPolicy::Priority`] may requests have a priority.
    pub scheduling_policy: SchedulingPolicy,
    /// What is done with the blocks of a preempted request; swaps need a host tier.
    pub preemption_mode: PreemptionMode,
    /// Share of the blocks that admission leaves to running sequences, in `[0, 1)`.
    pub watermark: f64,
    /// While much is computed again after preemptions, admission leaves more free than that.
    pub learn_headroom: bool,
    /// Guesses at the next tokens are computed with the last one; `None`, the default, for none.
    /// No output depends on it.
    pub speculative: Option<NgramConfig>,
    /// Seed of the prefix cache's hash. A server draws it at random; a simulation fixes it.
    pub hash_seed: u64,
    /// How long work may wait without a step being completed before the engine counts as sick.
    pub stall_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let scheduler = pageloom_scheduler::Config::default();
        EngineConfig {
            block_size: 16,
            num_blocks: 1024,
            num_host_blocks: 0,
            max_model_len: scheduler.max_model_len,
            max_num_seqs: scheduler.max_num_seqs,
            max_num_batched_tokens: scheduler.max_num_batched_tokens,
            long_prefill_token_threshold: scheduler.long_prefill_token_threshold,
            max_num_queued_requests: scheduler.max_num_queued_requests,
            max_num_queued_tokens: scheduler.max_num_queued_tokens,
            max_n: 128,
            enable_prefix_caching: true,
            shared_prefixes: Vec::new(),
            scheduling_policy: scheduler.policy,
            preemption_mode: scheduler.preemption_mode,
            watermark: scheduler.watermark,
            learn_headroom: scheduler.learn_headroom,
            speculative: None,
            hash_seed: 0,
            stall_timeout: Duration::from_secs(120),
        }
    }
}

impl EngineConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`EngineError::Blocks`], [`EngineError::Scheduler`], [`EngineError::Speculation`],
    /// [`EngineError::TooManySlots`] or one about the shared prefixes.
    pub fn validate(&self) -> Result<(), EngineError> {
        self.blocks().validate()?;
        self.scheduler().validate()?;
        if let Some(speculative) = &self.speculative {
            speculative.validate()?;
        }
        // Slots are 32 bits wide in a batch, and with them every position and row.
        for num_blocks in [self.num_blocks, self.num_host_blocks] {
            let num_slots = num_blocks.checked_mul(self.block_size);
            if num_slots.is_none_or(|slots| u32::try_from(slots).is_err()) {
                return Err(EngineError::TooManySlots {
                    num_blocks,
                    block_size: self.block_size,
                });
            }
        }
        self.validate_shared_prefixes()
    }

    fn validate_shared_prefixes(&self) -> Result<(), EngineError> {
        if self.shared_prefixes.is_empty() {
            return Ok(());
        }
        if !self.enable_prefix_caching {
            return Err(EngineError::SharedPrefixWithoutCache);
        }
        for (index, prefix) in self.shared_prefixes.iter().enumerate() {
            if prefix.is_empty() || prefix.len() > self.max_model_len {
                return Err(EngineError::SharedPrefixLength {
                    index,
                    num_tokens: prefix.len(),
                    max_model_len: self.max_model_len,
                });
            }
        }
        // The door counts a sequence's blocks as if it shared none, since after a preemption it
        // may not; so does it those of a prompt that is no longer than a shared prefix.
        let longest = self.shared_prefixes.iter().map(Vec::len).max();
        let beside = longest.unwrap_or(0).div_ceil(self.block_size);
        let needed_blocks = self.num_resident_blocks().saturating_add(beside);
        let num_blocks = self.num_blocks;
        if needed_blocks > num_blocks {
            return Err(EngineError::SharedPrefixesDoNotFit {
                needed_blocks,
                num_blocks,
            });
        }
        Ok(())
    }

    /// Whole blocks of the shared prefixes; what they have in common counts once.
    #[must_use]
    pub fn num_resident_blocks(&self) -> usize {
        let mut beginnings: Vec<&[TokenId]> = Vec::new();
        for prefix in &self.shared_prefixes {
            let num_blocks = prefix.len().checked_div(self.block_size).unwrap_or(0);
            beginnings.extend((1..=num_blocks).map(|n| &prefix[..n * self.block_size]));
        }
        beginnings.sort_unstable();
        beginnings.dedup();
        beginnings.len()
    }

    /// The part the block manager needs.
    pub(crate) fn blocks(&self) -> pageloom_block_manager::Config {
        pageloom_block_manager::Config {
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            num_host_blocks: self.num_host_blocks,
            prefix_caching: self.enable_prefix_caching,
            hash_seed: self.hash_seed,
            ..pageloom_block_manager::Config::default()
        }
    }

    /// The part the scheduler needs.
    pub(crate) fn scheduler(&self) -> pageloom_scheduler::Config {
        pageloom_scheduler::Config {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: self.max_model_len,
            max_num_queued_requests: self.max_num_queued_requests,
            max_num_queued_tokens: self.max_num_queued_tokens,
            long_prefill_token_threshold: self.long_prefill_token_threshold,
            num_resident_blocks: self.num_resident_blocks(),
            watermark: self.watermark,
            learn_headroom: self.learn_headroom,
            policy: self.scheduling_policy,
            preemption_mode: self.preemption_mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_of_more_slots_than_a_batch_can_name_is_refused() {
        for (num_blocks, num_host_blocks) in [(1 << 28, 0), (8, 1 << 28)] {
            let config = EngineConfig {
                num_blocks,
                num_host_blocks,
                ..EngineConfig::default()
            };
            let error = config.validate().expect_err("2^32 slots");
            assert!(matches!(error, EngineError::TooManySlots { .. }), "{error}");
        }
        EngineConfig::default()
            .validate()
            .expect("the default is valid");
    }
}
