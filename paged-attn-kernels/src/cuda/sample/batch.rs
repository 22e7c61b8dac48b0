//! What is asked of a batch's rows, checked and laid out for the kernels.

use std::fmt::Display;

use super::params::{ListRange, NONE, RawLogprobRow, RawSampleRow};
use crate::cuda::CudaError;

/// Most tokens that [`LogprobRow::num_top`] may ask for.
pub const MAX_TOP: usize = 128;

/// Largest vocabulary: sums of as many weights fit into 64 bits.
pub const MAX_VOCAB_SIZE: usize = (1 << 24) - 1;

/// Tokens of one history: `adjust_logits` counts them in 28 bits.
const MAX_HISTORY: usize = (1 << 28) - 1;

/// How one token is drawn from a row of logits. The default draws from the softmax.
///
/// In the kernels' order: `allowed` and `banned` mask; `bias` is added; penalties change the tokens
/// of `history`; then the most likely token is taken or, at a temperature above 0, one is drawn from
/// what min-p, top-k and top-p leave.
#[derive(Debug, Clone, Copy)]
pub struct SampleRow<'a> {
    /// Row of the logits.
    pub logits_row: usize,
    /// Seed of the generator; with `position` it determines the random number.
    pub seed: u64,
    /// Position of the token to be drawn.
    pub position: u32,
    /// Divides the logits before softmax; 0 takes the most likely token, ties to the lowest id.
    pub temperature: f32,
    /// Keeps the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most likely tokens whose share of the rest reaches it, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this times the most likely one, in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the history; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit for every time it was generated.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of every token that was generated.
    pub presence_penalty: f32,
    /// Tokens before the one to be drawn; read only if a penalty is on.
    pub history: &'a [u32],
    /// How many of them are the prompt's.
    pub num_prompt_tokens: usize,
    /// If not empty, only these tokens may be drawn.
    pub allowed: &'a [u32],
    /// These may not be drawn.
    pub banned: &'a [u32],
    /// Tokens and what is added to their logits; several for one token add up in their order.
    pub bias: &'a [(u32, f32)],
}

impl Default for SampleRow<'_> {
    fn default() -> Self {
        Self {
            logits_row: 0,
            seed: 0,
            position: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            history: &[],
            num_prompt_tokens: 0,
            allowed: &[],
            banned: &[],
            bias: &[],
        }
    }
}

/// The token whose log-probability is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogprobToken {
    /// The one that this element of [`SampleBatch::rows`] draws.
    Drawn(usize),
    /// A known one. Outside of the vocabulary its probability is 0.
    Known(u32),
}

/// A row of logits whose log-probabilities are wanted: of the logits as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogprobRow {
    /// Row of the logits.
    pub logits_row: usize,
    /// The token of interest.
    pub token: LogprobToken,
    /// How many of the most likely tokens are wanted too, at most [`MAX_TOP`].
    pub num_top: usize,
}

/// What to draw from the logits of one step.
#[derive(Debug, Clone, Copy)]
pub struct SampleBatch<'a> {
    /// Logits of a row.
    pub vocab_size: usize,
    /// The draws.
    pub rows: &'a [SampleRow<'a>],
    /// The log-probabilities.
    pub logprobs: &'a [LogprobRow],
}

/// A batch as the kernels read it.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) rows: Vec<RawSampleRow>,
    pub(super) tokens: Vec<u32>,
    pub(super) bias_tokens: Vec<u32>,
    pub(super) bias: Vec<f32>,
    pub(super) logprobs: Vec<RawLogprobRow>,
    pub(super) vocab_size: usize,
    /// Rows of logits that the batch reads: one more than the last of them.
    pub(super) num_logits_rows: usize,
    pub(super) num_adjusted: usize,
    pub(super) max_top: usize,
}

impl Packed {
    /// Checks and lays out `batch`.
    pub(super) fn fill(&mut self, batch: &SampleBatch<'_>) -> Result<(), CudaError> {
        let vocab_size = batch.vocab_size;
        check(
            vocab_size <= MAX_VOCAB_SIZE,
            "vocab_size",
            "under 2^24",
            vocab_size,
        )?;
        self.clear(vocab_size);
        for row in batch.rows {
            check_row(row)?;
            self.add(row)?;
        }
        for row in batch.logprobs {
            self.add_logprobs(row, batch.rows.len())?;
        }
        Ok(())
    }

    fn clear(&mut self, vocab_size: usize) {
        self.rows.clear();
        self.tokens.clear();
        self.bias_tokens.clear();
        self.bias.clear();
        self.logprobs.clear();
        self.vocab_size = vocab_size;
        self.num_logits_rows = 0;
        self.num_adjusted = 0;
        self.max_top = 0;
    }

    fn add(&mut self, row: &SampleRow<'_>) -> Result<(), CudaError> {
        let penalises = row.repetition_penalty != 1.0
            || row.frequency_penalty != 0.0
            || row.presence_penalty != 0.0;
        let history = if penalises { row.history } else { &[] };
        let lists = [history, row.allowed, row.banned];
        let adjusts = !row.bias.is_empty() || lists.iter().any(|list| !list.is_empty());
        let adjusted_row = match adjusts {
            true => to_u32("rows", self.num_adjusted)?,
            false => NONE,
        };
        self.num_adjusted += usize::from(adjusts);
        let [history, allowed, banned] = lists;
        let row = RawSampleRow {
            seed: row.seed,
            logits_row: self.logits_row(row.logits_row)?,
            position: row.position,
            temperature: row.temperature,
            top_p: row.top_p,
            min_p: row.min_p,
            top_k: row.top_k,
            repetition_penalty: row.repetition_penalty,
            frequency_penalty: row.frequency_penalty,
            presence_penalty: row.presence_penalty,
            num_prompt_tokens: row.num_prompt_tokens.min(row.history.len()) as u32,
            adjusted_row,
            history: self.list(history)?,
            allowed: self.list(allowed)?,
            banned: self.list(banned)?,
            bias: self.bias(row.bias)?,
            padding: 0,
        };
        self.rows.push(row);
        Ok(())
    }

    fn add_logprobs(&mut self, row: &LogprobRow, num_rows: usize) -> Result<(), CudaError> {
        check(
            row.num_top <= MAX_TOP,
            "num_top",
            "at most 128",
            row.num_top,
        )?;
        let (drawn, token) = match row.token {
            LogprobToken::Known(token) => (NONE, token),
            LogprobToken::Drawn(drawn) => {
                check(drawn < num_rows, "drawn", "a row of the batch", drawn)?;
                (to_u32("drawn", drawn)?, 0)
            }
        };
        self.max_top = self.max_top.max(row.num_top);
        let logits_row = self.logits_row(row.logits_row)?;
        self.logprobs.push(RawLogprobRow {
            logits_row,
            drawn,
            token,
            num_top: row.num_top as u32,
        });
        Ok(())
    }

    fn logits_row(&mut self, row: usize) -> Result<u32, CudaError> {
        let index = to_u32("logits_row", row)?;
        self.num_logits_rows = self.num_logits_rows.max(row + 1);
        Ok(index)
    }

    fn list(&mut self, tokens: &[u32]) -> Result<ListRange, CudaError> {
        let begin = to_u32("tokens", self.tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        let end = to_u32("tokens", self.tokens.len())?;
        Ok(ListRange { begin, end })
    }

    fn bias(&mut self, bias: &[(u32, f32)]) -> Result<ListRange, CudaError> {
        let mut sorted = bias.to_vec();
        // Stable: what is added to one token stays in its order.
        sorted.sort_by_key(|&(token, _)| token);
        let begin = to_u32("bias", self.bias.len())?;
        self.bias_tokens.extend(sorted.iter().map(|b| b.0));
        self.bias.extend(sorted.iter().map(|b| b.1));
        let end = to_u32("bias", self.bias.len())?;
        Ok(ListRange { begin, end })
    }
}

fn check_row(row: &SampleRow<'_>) -> Result<(), CudaError> {
    let temperature = row.temperature;
    let usable = temperature.is_finite() && temperature >= 0.0;
    check(usable, "temperature", "at least 0", temperature)?;
    let usable = row.top_p > 0.0 && row.top_p <= 1.0;
    check(usable, "top_p", "above 0 and at most 1", row.top_p)?;
    let usable = (0.0..=1.0).contains(&row.min_p);
    check(usable, "min_p", "between 0 and 1", row.min_p)?;
    let repetition = row.repetition_penalty;
    let usable = repetition.is_finite() && repetition > 0.0;
    check(usable, "repetition_penalty", "a number above 0", repetition)?;
    let (frequency, presence) = (row.frequency_penalty, row.presence_penalty);
    check(
        frequency.abs() < 1e9,
        "frequency_penalty",
        "under 1e9 in size",
        frequency,
    )?;
    check(
        presence.abs() < 1e9,
        "presence_penalty",
        "under 1e9 in size",
        presence,
    )?;
    let wrong = row.bias.iter().find(|(_, bias)| !bias.is_finite());
    if let Some(&(_, bias)) = wrong {
        check(false, "bias", "a number", bias)?;
    }
    let len = row.history.len();
    check(len <= MAX_HISTORY, "history", "under 2^28 tokens", len)
}

fn check(
    ok: bool,
    name: &'static str,
    expected: &'static str,
    found: impl Display,
) -> Result<(), CudaError> {
    match ok {
        true => Ok(()),
        false => Err(CudaError::Argument {
            name,
            expected,
            found: found.to_string(),
        }),
    }
}

fn to_u32(name: &'static str, n: usize) -> Result<u32, CudaError> {
    // The largest is `NONE`.
    check(n < NONE as usize, name, "under 2^32 - 1", n)?;
    Ok(n as u32)
}

#[cfg(test)]
mod tests;
