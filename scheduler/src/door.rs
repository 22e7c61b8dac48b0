//! What is let into the queue.

use crate::{AdmissionError, Scheduler};

impl Scheduler {
    /// Whether a group of this size could be finished.
    ///
    /// # Errors
    /// [`AdmissionError::EmptyPrompt`], [`AdmissionError::TooLong`],
    /// [`AdmissionError::TooManySeqs`] or [`AdmissionError::NeverFits`].
    pub fn check_fits(
        &self,
        num_prompt_tokens: usize,
        max_tokens: usize,
        num_seqs: usize,
    ) -> Result<(), AdmissionError> {
        if num_prompt_tokens == 0 {
            return Err(AdmissionError::EmptyPrompt);
        }
        let max_num_seqs = self.config.max_num_seqs;
        if num_seqs == 0 || num_seqs > max_num_seqs {
            return Err(AdmissionError::TooManySeqs {
                num_seqs,
                max_num_seqs,
            });
        }
        let max_model_len = self.config.max_model_len;
        let longest = num_prompt_tokens
            .checked_add(max_tokens)
            .filter(|&len| len <= max_model_len)
            .ok_or(AdmissionError::TooLong {
                num_prompt_tokens,
                max_tokens,
                max_model_len,
            })?;
        // The last token is drawn but never computed, so it needs no slot.
        let num_slots = longest - usize::from(max_tokens > 0);
        let needed_blocks =
            blocks_at_longest(num_prompt_tokens, num_slots, num_seqs, self.block_size());
        let num_blocks = self.blocks.config().num_blocks - self.config.num_resident_blocks;
        if needed_blocks > num_blocks {
            return Err(AdmissionError::NeverFits {
                needed_blocks,
                num_blocks,
            });
        }
        Ok(())
    }

    /// Whether the queue has room for `num_seqs` more sequences with `num_tokens` prompt tokens
    /// in all.
    ///
    /// # Errors
    /// [`AdmissionError::QueueFull`].
    pub fn check_queue(&self, num_seqs: usize, num_tokens: usize) -> Result<(), AdmissionError> {
        let room = |used: usize, more: usize, cap: usize| {
            used.checked_add(more).is_some_and(|sum| sum <= cap)
        };
        let (stats, config) = (&self.stats, &self.config);
        if room(stats.num_queued, num_seqs, config.max_num_queued_requests)
            && room(
                stats.num_queued_tokens,
                num_tokens,
                config.max_num_queued_tokens,
            )
        {
            return Ok(());
        }
        Err(AdmissionError::QueueFull {
            num_queued: stats.num_queued,
            num_queued_tokens: stats.num_queued_tokens,
            max_num_queued: config.max_num_queued_requests,
            max_num_queued_tokens: config.max_num_queued_tokens,
        })
    }
}

/// Blocks that a group of `num_seqs` sequences of `num_slots` computed tokens each needs, if they
/// have nothing in common but a prompt of `num_prompt_tokens`.
///
/// They share the whole blocks of their prompt. While tails are copied, the ones they are copied
/// from count too, at most one for each.
#[must_use]
pub fn blocks_at_longest(
    num_prompt_tokens: usize,
    num_slots: usize,
    num_seqs: usize,
    block_size: usize,
) -> usize {
    let of_one = num_slots.div_ceil(block_size);
    if num_seqs == 1 {
        return of_one;
    }
    let shared = num_prompt_tokens / block_size;
    num_seqs
        .saturating_mul(of_one - shared + 1)
        .saturating_add(shared)
}
