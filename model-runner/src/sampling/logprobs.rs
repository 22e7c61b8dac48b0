//! Log-probabilities under the model's own distribution.

use super::softmax::log_sum_exp;
use super::top::{Ranked, top_n};
use crate::{RowError, TokenId, TokenLogprobs};

/// Log-probability and rank of `token` and the `top` most likely tokens.
///
/// Natural logarithm of the softmax of `logits` as the model gave them, before
/// temperature, penalties, bias and filters. A token outside the vocabulary
/// has probability 0. `scratch` is cleared and reused.
///
/// # Errors
/// [`RowError::NotANumber`], [`RowError::NothingAllowed`]: as for drawing.
pub(super) fn token_logprobs(
    logits: &[f32],
    token: TokenId,
    top: usize,
    scratch: &mut Vec<Ranked>,
) -> Result<TokenLogprobs, RowError> {
    let log_total = log_sum_exp(logits)?;
    let own = logits
        .get(token as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    Ok(TokenLogprobs {
        logprob: logprob(own, log_total),
        rank: rank(logits, token, own),
        top: top_logprobs(logits, log_total, top, scratch),
    })
}

/// Logarithm of the probability of a logit in a row whose exponentials sum to `e^log_total`.
pub(super) fn logprob(logit: f32, log_total: f64) -> f32 {
    (f64::from(logit) - log_total) as f32
}

/// Place of `token`, whose logit is `own`, among all, from 1. A tie goes to the lower id, here as
/// in every choice.
pub(super) fn rank(logits: &[f32], token: TokenId, own: f32) -> u32 {
    let (before, after) = logits.split_at((token as usize).min(logits.len()));
    let num_better =
        before.iter().filter(|&&x| x >= own).count() + after.iter().filter(|&&x| x > own).count();
    num_better as u32 + 1
}

/// The `top` most likely tokens, best first.
pub(super) fn top_logprobs(
    logits: &[f32],
    log_total: f64,
    top: usize,
    scratch: &mut Vec<Ranked>,
) -> Vec<(TokenId, f32)> {
    top_n(logits, top, scratch);
    scratch.sort_unstable_by(Ranked::best_first);
    let entry = |c: &Ranked| (c.token, logprob(c.logit, log_total));
    scratch.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn logprobs_are_the_logarithm_of_softmax(
            row in prop::collection::vec(-30f32..30.0, 1..300),
            pick in any::<prop::sample::Index>(),
            top in 0usize..21,
        ) {
            let token = pick.index(row.len());
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let want: Vec<f64> = row.iter().map(|&x| f64::from(x) - total.ln()).collect();
            let got = token_logprobs(&row, token as TokenId, top, &mut Vec::new()).unwrap();
            prop_assert!((f64::from(got.logprob) - want[token]).abs() < 1e-5);
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            prop_assert_eq!(got.rank as usize, order.iter().position(|&i| i == token).unwrap() + 1);
            prop_assert_eq!(got.top.len(), top.min(row.len()));
            for (&(id, logprob), &i) in got.top.iter().zip(&order) {
                prop_assert_eq!(id as usize, i);
                prop_assert!((f64::from(logprob) - want[i]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn equal_logits_rank_by_id() {
        let row = [1.0, 2.0, 2.0, 2.0];
        let rank = |t| token_logprobs(&row, t, 0, &mut Vec::new()).unwrap().rank;
        assert_eq!([rank(0), rank(1), rank(2), rank(3)], [4, 1, 2, 3]);
    }

    #[test]
    fn a_token_outside_the_vocabulary_has_probability_zero() {
        let got = token_logprobs(&[0.0, 1.0], 7, 1, &mut Vec::new()).unwrap();
        assert_eq!((got.logprob, got.rank), (f32::NEG_INFINITY, 3));
    }
}
