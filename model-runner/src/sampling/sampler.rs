//! From one row of logits to one token.

use super::adjust::{Occurrences, adjust, changes_logits};
use super::filter::{Buffers, filters, keep};
use super::logprobs::{logprob, rank, token_logprobs, top_logprobs};
use super::rng::{UNIFORM_BITS, uniform_bits};
use super::softmax::{CHUNK, Sum, log_sum_exp, max_logit, units, weigh, weight};
use super::top::{Ranked, first_with, top_n};
use crate::{Candidate, RowError, RowOutput, SamplingParams, TokenId, TokenLogprobs, Want};

/// Where in its sequence a draw happens.
#[derive(Debug, Clone, Copy)]
pub struct DrawContext<'a> {
    /// Position of the token to be drawn: how many tokens come before it.
    pub position: u32,
    /// Number of tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// The `position` tokens before it, prompt first; read only if [`SamplingParams::needs_history`].
    pub history: &'a [TokenId],
}

impl<'a> DrawContext<'a> {
    /// Of the token that follows the one at `row_position`.
    fn after(row_position: u32, num_prompt_tokens: u32, history: &'a [TokenId]) -> Self {
        DrawContext {
            position: row_position + 1,
            num_prompt_tokens,
            history,
        }
    }

    /// Tokens generated before this one.
    pub fn num_generated(&self) -> usize {
        self.position.saturating_sub(self.num_prompt_tokens) as usize
    }
}

/// Draws tokens; holds nothing but buffers, which grow to the vocabulary once.
///
/// A result depends on the logits, the parameters, the history and the
/// position, and on nothing else: not on earlier calls, not on neighbours.
///
/// ```text
/// logits -> masks, bias, penalties -> temperature 0? -> argmax
///                                  -> temperature -> min-p, top-k, top-p -> draw
/// ```
///
/// The draw: `u` is the [`uniform`](super::uniform) number of (seed, position),
/// the weights are `e^((x - max) / temperature)` of the kept tokens, each
/// rounded to a multiple of 2^-40, and the token is the first, by ascending id,
/// at which their running sum exceeds `u` times their total, rounded down to
/// such a multiple. The sums are exact: any device can repeat that.
#[derive(Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    occurrences: Occurrences,
    buffers: Buffers,
}

impl Sampler {
    /// A sampler; its buffers are allocated as they are first needed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does what a batch row asks for.
    ///
    /// `logits`: `[vocab_size]`, of the row whose own token stands at `row_position`.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn output(
        &mut self,
        logits: &[f32],
        row_position: u32,
        want: &Want,
    ) -> Result<RowOutput, RowError> {
        match want {
            Want::Sample {
                params,
                num_prompt_tokens,
                history,
            } => {
                let ctx = DrawContext::after(row_position, *num_prompt_tokens, history);
                self.sample(logits, params, &ctx)
            }
            Want::Expand {
                params,
                num_candidates,
                num_prompt_tokens,
                history,
            } => {
                let ctx = DrawContext::after(row_position, *num_prompt_tokens, history);
                self.expand(logits, params, *num_candidates, &ctx)
            }
            Want::Score { token, top } => Ok(RowOutput {
                token: *token,
                logprobs: Some(self.score(logits, *token, *top)?),
                candidates: Vec::new(),
            }),
        }
    }

    /// Draws the next token and, if asked for, computes log-probabilities.
    ///
    /// `logits`: `[vocab_size]`, as the model gave them. `params` are taken as
    /// [`SamplingParams::validate`] accepts them.
    ///
    /// # Errors
    /// [`RowError::NotANumber`] if a logit is NaN or positive infinity;
    /// [`RowError::NothingAllowed`] if the masks leave no token.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        ctx: &DrawContext<'_>,
    ) -> Result<RowOutput, RowError> {
        let mut max = max_logit(logits)?;
        let token = if changes_logits(params, ctx) {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            adjust(
                &mut self.adjusted,
                params,
                ctx,
                &mut self.occurrences,
                logits,
            );
            max = max_logit(&self.adjusted)?;
            choose(&self.adjusted, max, params, ctx.position, &mut self.buffers)
        } else {
            choose(logits, max, params, ctx.position, &mut self.buffers)
        };
        let logprobs = match params.logprobs {
            Some(top) => Some(self.score(logits, token, top)?),
            None => None,
        };
        Ok(RowOutput {
            token,
            logprobs,
            candidates: Vec::new(),
        })
    }

    /// The `num_candidates` most likely next tokens, best first, fewer if masks leave fewer.
    ///
    /// Arguments and errors as for [`Sampler::sample`]. As in Hugging Face transformers, masks,
    /// biases and penalties change log-probabilities, which are not normalised again.
    pub fn expand(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        num_candidates: usize,
        ctx: &DrawContext<'_>,
    ) -> Result<RowOutput, RowError> {
        let log_total = log_sum_exp(logits)?;
        let changes = changes_logits(params, ctx);
        if changes {
            let scores: Vec<f32> = logits.iter().map(|&x| logprob(x, log_total)).collect();
            self.adjusted.clone_from(&scores);
            adjust(
                &mut self.adjusted,
                params,
                ctx,
                &mut self.occurrences,
                &scores,
            );
            max_logit(&self.adjusted)?;
        }
        let kept = &mut self.buffers.kept;
        let top = params
            .logprobs
            .map(|top| top_logprobs(logits, log_total, top, kept));
        let row = if changes { &self.adjusted } else { logits };
        top_n(row, num_candidates, kept);
        kept.sort_unstable_by(Ranked::best_first);
        let candidate = |c: &Ranked| {
            let own = logits[c.token as usize];
            Candidate {
                token: c.token,
                score: if changes {
                    c.logit
                } else {
                    logprob(own, log_total)
                },
                logprobs: top.as_ref().map(|top| TokenLogprobs {
                    logprob: logprob(own, log_total),
                    rank: rank(logits, c.token, own),
                    top: top.clone(),
                }),
            }
        };
        let candidates: Vec<_> = kept.iter().map(candidate).collect();
        let best = candidates.first().ok_or(RowError::NothingAllowed)?;
        Ok(RowOutput {
            token: best.token,
            logprobs: None,
            candidates,
        })
    }

    /// Log-probability and rank of a known `token`, and the `top` most likely ones.
    ///
    /// A token outside the vocabulary has log-probability negative infinity.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn score(
        &mut self,
        logits: &[f32],
        token: TokenId,
        top: usize,
    ) -> Result<TokenLogprobs, RowError> {
        token_logprobs(logits, token, top, &mut self.buffers.kept)
    }
}

/// Argmax or draw; `max` is the largest of `logits`.
fn choose(
    logits: &[f32],
    max: f32,
    params: &SamplingParams,
    position: u32,
    buffers: &mut Buffers,
) -> TokenId {
    let temperature = params.temperature;
    if temperature == 0.0 {
        return first_with(logits, max);
    }
    let u = uniform_bits(params.seed, position);
    if filters(params, logits.len()) {
        keep(logits, max, params, buffers);
        draw_kept(&buffers.kept, max, temperature, u)
    } else {
        let Buffers {
            weights,
            chunk_sums,
            ..
        } = buffers;
        weigh(logits, max, temperature, weights, chunk_sums);
        draw(weights, chunk_sums, u)
    }
}

/// Inverse of the cumulative distribution over the whole vocabulary.
fn draw(weights: &[f32], chunk_sums: &[u64], u: u64) -> TokenId {
    let target = target(chunk_sums.iter().map(|&s| Sum::from(s)).sum(), u);
    let mut before: Sum = 0;
    for (chunk, (block, &sum)) in weights.chunks(CHUNK).zip(chunk_sums).enumerate() {
        if before + Sum::from(sum) > target {
            let passes = |&w: &f32| {
                before += Sum::from(units(f64::from(w)));
                before > target
            };
            let within = block.iter().position(passes).unwrap_or_default();
            return (chunk * CHUNK + within) as TokenId;
        }
        before += Sum::from(sum);
    }
    // The target is under the total: only a row without weights comes here, and none has none.
    0
}

/// The same over the kept tokens, which are in ascending order of id.
fn draw_kept(kept: &[Ranked], max: f32, temperature: f32, u: u64) -> TokenId {
    let weight = |c: &Ranked| Sum::from(units(f64::from(weight((c.logit - max) / temperature))));
    let target = target(kept.iter().map(weight).sum(), u);
    let mut reached = 0;
    let drawn = kept.iter().find(|c| {
        reached += weight(c);
        reached > target
    });
    drawn.map_or(0, |c| c.token)
}

/// `u` times `total`, rounded down: what the running sum of the drawn token exceeds.
fn target(total: Sum, u: u64) -> Sum {
    (total * Sum::from(u)) >> UNIFORM_BITS
}
