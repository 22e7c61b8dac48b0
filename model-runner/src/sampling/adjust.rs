//! Everything that changes logits before the draw: masks, bias, penalties.

use super::DrawContext;
use crate::{SamplingParams, TokenId};

/// Occurrences of each token in one request's history; all zero between calls.
#[derive(Debug, Default)]
pub(super) struct Occurrences {
    /// 0: not seen; otherwise one more than the number of times it was generated.
    marks: Vec<u32>,
    seen: Vec<TokenId>,
}

/// Whether the logits a draw uses can differ from the model's.
pub(super) fn changes_logits(params: &SamplingParams, ctx: &DrawContext<'_>) -> bool {
    params.needs_history()
        || !params.logit_bias.is_empty()
        || !params.allowed_token_ids.is_empty()
        || stops_are_banned(params, ctx)
}

fn stops_are_banned(params: &SamplingParams, ctx: &DrawContext<'_>) -> bool {
    !params.stop_token_ids.is_empty() && ctx.num_generated() < params.min_tokens
}

/// Applies, in this order: allowed tokens, banned stop tokens, bias, repetition, frequency and presence penalty.
///
/// The order is vLLM's. A masked token is negative infinity and stays so
/// whatever bias it gets. Ids outside the vocabulary have no effect.
pub(super) fn adjust(
    logits: &mut [f32],
    params: &SamplingParams,
    ctx: &DrawContext<'_>,
    occurrences: &mut Occurrences,
    model_logits: &[f32],
) {
    if !params.allowed_token_ids.is_empty() {
        logits.fill(f32::NEG_INFINITY);
        for &token in &params.allowed_token_ids {
            if let Some(&x) = model_logits.get(token as usize) {
                logits[token as usize] = x;
            }
        }
    }
    if stops_are_banned(params, ctx) {
        for &token in &params.stop_token_ids {
            if let Some(x) = logits.get_mut(token as usize) {
                *x = f32::NEG_INFINITY;
            }
        }
    }
    for &(token, bias) in &params.logit_bias {
        if let Some(x) = logits.get_mut(token as usize) {
            change(x, |x| x + bias);
        }
    }
    if params.needs_history() {
        occurrences.count(ctx, logits.len());
        occurrences.penalise(logits, params);
        occurrences.clear();
    }
}

/// Changes an unmasked logit and keeps it finite: a penalty of 1e-38 is valid and must not make infinities.
fn change(x: &mut f32, by: impl Fn(f32) -> f32) {
    if *x != f32::NEG_INFINITY {
        *x = by(*x).clamp(f32::MIN, f32::MAX);
    }
}

impl Occurrences {
    fn count(&mut self, ctx: &DrawContext<'_>, vocab_size: usize) {
        self.marks.resize(vocab_size, 0);
        for (at, &token) in ctx.history.iter().enumerate() {
            let Some(mark) = self.marks.get_mut(token as usize) else {
                continue;
            };
            if *mark == 0 {
                *mark = 1;
                self.seen.push(token);
            }
            if at >= ctx.num_prompt_tokens as usize {
                *mark += 1;
            }
        }
    }

    fn penalise(&self, logits: &mut [f32], params: &SamplingParams) {
        for &token in &self.seen {
            let num_generated = self.marks[token as usize] - 1;
            let x = &mut logits[token as usize];
            let repetition = params.repetition_penalty;
            change(x, |x| {
                if x > 0.0 {
                    x / repetition
                } else {
                    x * repetition
                }
            });
            if num_generated > 0 {
                let penalty =
                    params.frequency_penalty * num_generated as f32 + params.presence_penalty;
                change(x, |x| x - penalty);
            }
        }
    }

    fn clear(&mut self) {
        for token in self.seen.drain(..) {
            self.marks[token as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, -1.0, 2.0, 0.0, 3.0, -2.0];

    fn adjusted(params: &SamplingParams, history: &[TokenId], num_prompt_tokens: u32) -> Vec<f32> {
        let ctx = DrawContext {
            position: history.len() as u32,
            num_prompt_tokens,
            history,
        };
        let mut logits = LOGITS.to_vec();
        let mut occurrences = Occurrences::default();
        adjust(&mut logits, params, &ctx, &mut occurrences, &LOGITS);
        assert!(occurrences.seen.is_empty() && occurrences.marks.iter().all(|&m| m == 0));
        assert!(changes_logits(params, &ctx) || logits == LOGITS);
        logits
    }

    fn params(set: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut p = SamplingParams::default();
        set(&mut p);
        p
    }

    #[test]
    fn presence_and_frequency_look_at_generated_tokens_only() {
        // Prompt 0 0 2, generated 2 2 4.
        let history = [0, 0, 2, 2, 2, 4];
        let got = adjusted(&params(|p| p.presence_penalty = 0.5), &history, 3);
        assert_eq!(got, [1.0, -1.0, 1.5, 0.0, 2.5, -2.0]);
        let got = adjusted(&params(|p| p.frequency_penalty = 0.5), &history, 3);
        assert_eq!(got, [1.0, -1.0, 1.0, 0.0, 2.5, -2.0]);
        let got = adjusted(&params(|p| p.frequency_penalty = -1.0), &history, 3);
        assert_eq!(got, [1.0, -1.0, 4.0, 0.0, 4.0, -2.0]);
    }

    #[test]
    fn repetition_looks_at_the_prompt_too_and_pushes_both_signs_down() {
        let got = adjusted(&params(|p| p.repetition_penalty = 2.0), &[0, 5, 4], 2);
        assert_eq!(got, [0.5, -1.0, 2.0, 0.0, 1.5, -4.0]);
    }

    #[test]
    fn repetition_comes_before_the_subtractions() {
        let p = params(|p| {
            p.repetition_penalty = 2.0;
            p.presence_penalty = 1.0;
            p.logit_bias = vec![(4, 1.0)];
        });
        assert_eq!(adjusted(&p, &[3, 4], 1)[4], (3.0 + 1.0) / 2.0 - 1.0);
    }

    #[test]
    fn allowed_tokens_mask_the_rest_and_bias_cannot_bring_one_back() {
        let p = params(|p| {
            p.allowed_token_ids = vec![1, 3];
            p.logit_bias = vec![(0, 100.0), (3, 0.25)];
        });
        let none = f32::NEG_INFINITY;
        assert_eq!(adjusted(&p, &[], 0), [none, -1.0, none, 0.25, none, none]);
    }

    #[test]
    fn stop_tokens_are_banned_until_min_tokens_were_generated() {
        let p = params(|p| {
            p.stop_token_ids = vec![4, 0];
            p.min_tokens = 2;
        });
        let none = f32::NEG_INFINITY;
        let banned = [none, -1.0, 2.0, 0.0, none, -2.0];
        assert_eq!(adjusted(&p, &[1, 1, 1], 3), banned);
        assert_eq!(adjusted(&p, &[1, 1, 1, 1], 3), banned);
        assert_eq!(adjusted(&p, &[1, 1, 1, 1, 1], 3), LOGITS);
    }

    #[test]
    fn extreme_penalties_stay_finite() {
        for penalty in [f32::MIN_POSITIVE, 1e-45, f32::MAX] {
            let got = adjusted(&params(|p| p.repetition_penalty = penalty), &[0, 1, 4], 1);
            assert!(got.iter().all(|x| x.is_finite()), "{got:?}");
        }
    }

    #[test]
    fn ids_outside_the_vocabulary_change_nothing() {
        let p = params(|p| {
            p.logit_bias = vec![(99, 5.0)];
            p.stop_token_ids = vec![77];
            p.min_tokens = 9;
            p.presence_penalty = 1.0;
        });
        assert_eq!(adjusted(&p, &[1000, 2000], 1), LOGITS);
    }
}
