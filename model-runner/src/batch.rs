//! One step's work and its outcome, as plain flat arrays.

use std::sync::Arc;
use std::time::Duration;

use crate::error::RunError;
use crate::{SamplingParams, TokenId};

/// Everything a step computes: token ranges of several sequences, side by side.
///
/// Sequence `i` brings the tokens `row_offsets[i]..row_offsets[i + 1]`; they
/// are its last ones: after the step its cache holds `context_lens[i]` tokens.
///
/// ```text
///             seq 0 (prefill chunk)   seq 1 (decode)  seq 2 (decode)
/// tokens      t0 t1 t2 t3 t4          t               t
/// row_offsets 0                       5               6               7
/// ```
///
/// # Transfers
///
/// Whole blocks are moved before the step writes anything: first all `swap_outs`, then all
/// `swap_ins`, then all `copies`. Those of one list may be done in any order and at once, so
/// no block may be written by two of them, nor read by one and written by another. A block that
/// is swapped out may be filled by a swap in of the same batch, and one that is swapped in may be
/// copied.
///
/// They move what belongs to anybody, not only to the batch's own sequences; a batch without
/// sequences may have transfers.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    /// Number of the step; echoed in [`StepOutput::step`].
    pub step: u64,
    /// Blocks to copy to the host tier: (device block, host block). See
    /// [transfers](#transfers).
    pub swap_outs: Vec<(u32, u32)>,
    /// Blocks to copy back: (host block, device block).
    pub swap_ins: Vec<(u32, u32)>,
    /// Blocks to copy on the device: (source, destination). Copy-on-write.
    pub copies: Vec<(u32, u32)>,
    /// Token ids, `[num_tokens]`.
    pub tokens: Vec<TokenId>,
    /// Position of each token in its sequence, `[num_tokens]`.
    pub positions: Vec<u32>,
    /// Cache slot each token's K and V go to, `block * block_size + offset`, `[num_tokens]`.
    pub slots: Vec<u32>,
    /// First row of each sequence, `[num_seqs + 1]`.
    pub row_offsets: Vec<u32>,
    /// Tokens in the cache once the step is done, `[num_seqs]`.
    pub context_lens: Vec<u32>,
    /// Block tables of all sequences, one after the other.
    pub block_tables: Vec<u32>,
    /// Where each sequence's table starts, `[num_seqs + 1]`.
    pub table_offsets: Vec<u32>,
    /// Rows whose logits are wanted and what for, in ascending row order.
    pub outputs: Vec<OutputRow>,
}

impl Batch {
    /// Empties every field and keeps its memory.
    pub fn clear(&mut self) {
        self.step = 0;
        self.swap_outs.clear();
        self.swap_ins.clear();
        self.copies.clear();
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.row_offsets.clear();
        self.context_lens.clear();
        self.block_tables.clear();
        self.table_offsets.clear();
        self.outputs.clear();
    }

    /// Whether the batch moves any block.
    pub fn has_transfers(&self) -> bool {
        !(self.swap_outs.is_empty() && self.swap_ins.is_empty() && self.copies.is_empty())
    }

    /// Checks that the blocks of all [transfers](#transfers) exist.
    ///
    /// # Errors
    /// [`RunError::Batch`] names the list, [`RunError::NoHostTier`] if there is one and no host
    /// block.
    pub fn check_transfers(
        &self,
        num_blocks: usize,
        num_host_blocks: usize,
    ) -> Result<(), RunError> {
        if num_host_blocks == 0 && !(self.swap_outs.is_empty() && self.swap_ins.is_empty()) {
            return Err(RunError::NoHostTier);
        }
        let (device, host) = (("device", num_blocks), ("host", num_host_blocks));
        for (field, pairs, tiers) in [
            ("swap_outs", &self.swap_outs, [device, host]),
            ("swap_ins", &self.swap_ins, [host, device]),
            ("copies", &self.copies, [device, device]),
        ] {
            for (i, &(source, destination)) in pairs.iter().enumerate() {
                for (block, (tier, len)) in [source, destination].into_iter().zip(tiers) {
                    if block as usize >= len {
                        let reason =
                            format!("entry {i} names block {block} of {len} {tier} blocks");
                        return Err(RunError::Batch { field, reason });
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that the fields agree with each other, but for the transfers: a slot must be the one its position has in
    /// its sequence's block table.
    ///
    /// # Errors
    /// [`RunError::Batch`] names the field.
    pub fn check(&self, block_size: usize) -> Result<(), RunError> {
        let fail = |field, reason: String| Err(RunError::Batch { field, reason });
        let (num_tokens, num_seqs) = (self.tokens.len(), self.context_lens.len());
        for (field, offsets, end) in [
            ("row_offsets", &self.row_offsets, num_tokens),
            (
                "table_offsets",
                &self.table_offsets,
                self.block_tables.len(),
            ),
        ] {
            if offsets.len() != num_seqs + 1
                || offsets[0] != 0
                || !offsets.is_sorted()
                || offsets[num_seqs] as usize != end
            {
                return fail(
                    field,
                    format!("not {} ascending offsets to {end}", num_seqs + 1),
                );
            }
        }
        for (field, len) in [
            ("positions", self.positions.len()),
            ("slots", self.slots.len()),
        ] {
            if len != num_tokens {
                return fail(field, format!("{len} entries for {num_tokens} tokens"));
            }
        }
        for s in 0..num_seqs {
            let rows = self.row_offsets[s] as usize..self.row_offsets[s + 1] as usize;
            let table = self.table_offsets[s] as usize..self.table_offsets[s + 1] as usize;
            let table = &self.block_tables[table];
            let context = self.context_lens[s] as usize;
            if rows.len() > context {
                return fail("context_lens", format!("{context} for {} rows", rows.len()));
            }
            for (row, position) in rows.clone().zip(context - rows.len()..) {
                let block = table.get(position / block_size);
                let slot = block.map(|b| *b as usize * block_size + position % block_size);
                if self.positions[row] as usize != position {
                    let found = self.positions[row];
                    return fail(
                        "positions",
                        format!("row {row} is at {found}, not {position}"),
                    );
                }
                if slot != Some(self.slots[row] as usize) {
                    let found = self.slots[row];
                    return fail("slots", format!("row {row} goes to {found}, not {slot:?}"));
                }
            }
        }
        match self
            .outputs
            .iter()
            .find(|output| output.row as usize >= num_tokens)
        {
            Some(output) => fail("outputs", format!("row {} of {num_tokens}", output.row)),
            None => Ok(()),
        }
    }
}

/// A row whose logits are computed.
#[derive(Debug, Clone)]
pub struct OutputRow {
    /// Row in [`Batch::tokens`].
    pub row: u32,
    /// What to do with the logits.
    pub want: Want,
}

/// What a row's logits are for.
#[derive(Debug, Clone)]
pub enum Want {
    /// Draw the next token.
    Sample {
        /// How.
        params: Arc<SamplingParams>,
        /// Number of tokens of the prompt.
        num_prompt_tokens: u32,
        /// All tokens so far, prompt first; left empty unless [`SamplingParams::needs_history`].
        history: Vec<TokenId>,
    },
    /// The most likely next tokens, of which the caller chooses: beam search.
    Expand {
        /// What masks, biases and penalises tokens; nothing is drawn, so the temperature, the seed
        /// and the filters do not matter. `logprobs`: those of every candidate are wanted.
        params: Arc<SamplingParams>,
        /// How many candidates to return at most.
        num_candidates: usize,
        /// As in [`Want::Sample`].
        num_prompt_tokens: u32,
        /// As in [`Want::Sample`].
        history: Vec<TokenId>,
    },
    /// Log-probability of a token that is already known: prompt log-probabilities.
    Score {
        /// The token that follows this row.
        token: TokenId,
        /// How many of the most likely tokens to return with it.
        top: usize,
    },
}

/// Log-probability of one token and of the most likely ones at its position.
///
/// Natural logarithm of the softmax of the model's own logits: temperature,
/// penalties and filters do not change it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenLogprobs {
    /// Log-probability of the token itself.
    pub logprob: f32,
    /// Rank of the token, 1 being the most likely.
    pub rank: u32,
    /// Most likely tokens with their log-probabilities, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// Outcome of one [`OutputRow`], in the same order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowOutput {
    /// The token drawn, the token scored, or the best candidate.
    pub token: TokenId,
    /// Present when asked for a token that was drawn or scored.
    pub logprobs: Option<TokenLogprobs>,
    /// What [`Want::Expand`] asked for, best first; at least one then.
    pub candidates: Vec<Candidate>,
}

/// A token that could come next.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability, changed by the biases and penalties asked for as if
    /// it were a logit, and not normalised again.
    pub score: f32,
    /// Present when asked for: without those changes.
    pub logprobs: Option<TokenLogprobs>,
}

/// Outcome of a step.
#[derive(Debug, Default, Clone)]
pub struct StepOutput {
    /// Number of the step.
    pub step: u64,
    /// How long the transfers took.
    pub transfer_time: Duration,
    /// One entry per [`Batch::outputs`] row; a row that failed (not-a-number logits) fails alone.
    pub rows: Vec<Result<RowOutput, RowError>>,
}

/// Why one row could not be sampled; the other rows of the step are not affected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// The model produced a logit that is not a number.
    #[error("the model produced a logit that is not a number for token {token}")]
    NotANumber {
        /// First such token.
        token: TokenId,
    },
    /// Filters and bans left no token to draw.
    #[error("no token is left to draw: allowed_token_ids and the banned stop tokens exclude all")]
    NothingAllowed,
}
