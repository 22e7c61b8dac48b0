//! The most likely tokens, without sorting the vocabulary.

use std::cmp::Ordering;

use crate::TokenId;

const FIND: usize = 256;

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ranked {
    pub(super) logit: f32,
    pub(super) token: TokenId,
}

impl Ranked {
    /// Higher logit first, ties by the lower id. Logits must not be NaN (they are checked on entry).
    pub(super) fn best_first(&self, other: &Ranked) -> Ordering {
        other
            .logit
            .partial_cmp(&self.logit)
            .unwrap_or(Ordering::Equal)
            .then(self.token.cmp(&other.token))
    }
}

/// Leaves the `n` best tokens of `logits` in `out`, in no order; masked ones (negative infinity) never.
///
/// One pass with a rising threshold: `out` fills to twice `n`, is cut back to
/// the best `n`, and from then on only what beats the worst of them enters.
/// Tokens come in ascending order, so one that merely equals it loses the tie.
pub(super) fn top_n(logits: &[f32], n: usize, out: &mut Vec<Ranked>) {
    out.clear();
    if n == 0 {
        return;
    }
    let limit = n.saturating_mul(2).max(64);
    let mut threshold = f32::NEG_INFINITY;
    for (token, &logit) in (0..).zip(logits) {
        if logit > threshold {
            out.push(Ranked { logit, token });
            if out.len() == limit {
                threshold = cut(out, n);
            }
        }
    }
    if out.len() > n {
        cut(out, n);
    }
}

/// Keeps the best `n > 0` of more than `n` candidates and returns the worst logit among them.
fn cut(out: &mut Vec<Ranked>, n: usize) -> f32 {
    let (_, last, _) = out.select_nth_unstable_by(n - 1, Ranked::best_first);
    let worst = last.logit;
    out.truncate(n);
    worst
}

/// Lowest token whose logit is `max`, the largest of `logits`.
pub(super) fn first_with(logits: &[f32], max: f32) -> TokenId {
    // Whole chunks are compared without an early exit, which lets the compiler use vectors.
    let has_max = |chunk: &[f32]| chunk.iter().fold(false, |found, &x| found | (x == max));
    let chunk = logits.chunks(FIND).position(has_max).unwrap_or_default();
    let rest = &logits[chunk * FIND..];
    (chunk * FIND + rest.iter().position(|&x| x == max).unwrap_or_default()) as TokenId
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn top_n_is_the_head_of_the_sorted_row(
            // Few distinct values, so that ties are everywhere.
            row in prop::collection::vec((-6i8..6).prop_map(f32::from), 0..400),
            n in 0usize..90,
        ) {
            let mut all: Vec<Ranked> =
                (0..).zip(&row).map(|(token, &logit)| Ranked { logit, token }).collect();
            all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
            all.truncate(n);
            let mut got = Vec::new();
            top_n(&row, n, &mut got);
            got.sort_by(Ranked::best_first);
            prop_assert_eq!(got, all);
        }
    }

    #[test]
    fn masked_tokens_are_never_among_the_best() {
        let mut got = Vec::new();
        top_n(&[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY], 3, &mut got);
        assert_eq!(
            got,
            [Ranked {
                logit: 1.0,
                token: 1
            }]
        );
    }

    #[test]
    fn zeros_of_both_signs_tie() {
        assert_eq!(first_with(&[-1.0, -0.0, 0.0], 0.0), 1);
        let mut got = Vec::new();
        top_n(&[-1.0, -0.0, 0.0], 1, &mut got);
        assert_eq!(got[0].token, 1);
    }
}
