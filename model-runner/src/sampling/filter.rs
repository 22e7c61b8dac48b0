//! Which tokens may be drawn: min-p, top-k, top-p.

use super::softmax::{CHUNK, Sum, sum_where, units, weigh, weight};
use super::top::{Ranked, top_n};
use crate::SamplingParams;

/// Buffers that a draw reuses; nothing in them outlives it.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Weight of each token of the vocabulary.
    pub(super) weights: Vec<f32>,
    /// Sums of `weights` by chunk, in units.
    pub(super) chunk_sums: Vec<u64>,
    /// What the filters kept.
    pub(super) kept: Vec<Ranked>,
}

/// Whether any filter is on for a vocabulary of `vocab_size`.
pub(super) fn filters(params: &SamplingParams, vocab_size: usize) -> bool {
    top_k(params, vocab_size).is_some() || params.top_p < 1.0 || params.min_p > 0.0
}

fn top_k(params: &SamplingParams, vocab_size: usize) -> Option<usize> {
    let k = params.top_k as usize;
    (k > 0 && k < vocab_size).then_some(k)
}

/// Leaves in `buffers.kept` the tokens that pass every filter, in ascending order of id.
///
/// Order and meaning are vLLM's. With `p` the softmax at the temperature:
/// 1. min-p drops what has less than `min_p` times the largest probability,
/// 2. top-k keeps the `top_k` most likely of the rest,
/// 3. top-p keeps, of those, the shortest run of most likely tokens whose
///    share of their common probability reaches `top_p`; never fewer than one.
///
/// Ties fall to the lower id. `max` is the largest logit, `temperature > 0`.
pub(super) fn keep(logits: &[f32], max: f32, params: &SamplingParams, buffers: &mut Buffers) {
    let weight = |c: &Ranked| weight((c.logit - max) / params.temperature);
    if let Some(k) = top_k(params, logits.len()) {
        // What min-p keeps is a head of the same order, so it may come second: k weights, not a vocabulary of them.
        top_n(logits, k, &mut buffers.kept);
        buffers.kept.retain(|c| weight(c) >= params.min_p);
        if params.top_p < 1.0 {
            let total = buffers.kept.iter().map(|c| in_units(weight(c))).sum();
            cut_nucleus(&mut buffers.kept, weight, params.top_p, total);
        }
    } else {
        let Buffers {
            weights,
            chunk_sums,
            kept,
        } = buffers;
        weigh(logits, max, params.temperature, weights, chunk_sums);
        let total: Sum = if params.min_p > 0.0 {
            let likely = |block| Sum::from(sum_where(block, |w| w >= params.min_p));
            weights.chunks(CHUNK).map(likely).sum()
        } else {
            chunk_sums.iter().map(|&s| Sum::from(s)).sum()
        };
        // All tokens under this weight together are less than half of what top-p leaves out: the
        // nucleus lies above it, and only what lies above needs sorting.
        let outside = (1.0 - f64::from(params.top_p)) * total as f64 / units(1.0) as f64;
        let floor = (0.5 * outside / logits.len() as f64) as f32;
        kept.clear();
        let tokens = (0..).zip(logits).zip(weights.iter());
        kept.extend(
            tokens
                .filter(|&((_, &x), &w)| w >= params.min_p && w >= floor && x > f32::NEG_INFINITY)
                .map(|((token, &logit), _)| Ranked { logit, token }),
        );
        if params.top_p < 1.0 {
            cut_nucleus(kept, weight, params.top_p, total);
        }
    }
    buffers.kept.sort_unstable_by_key(|c| c.token);
}

/// Leaves the best candidates up to and with the one that brings their share of `total` to `top_p`.
///
/// That share is counted in whole units, rounded up.
fn cut_nucleus(kept: &mut Vec<Ranked>, weight: impl Fn(&Ranked) -> f32, top_p: f32, total: Sum) {
    let wanted = (f64::from(top_p) * total as f64).ceil() as Sum;
    // Most nuclei are small: sort ever larger heads until one holds enough.
    let mut head = 64;
    while head < kept.len() {
        kept.select_nth_unstable_by(head, Ranked::best_first);
        let reached: Sum = kept[..head].iter().map(|c| in_units(weight(c))).sum();
        if reached >= wanted {
            kept.truncate(head);
        }
        head *= 4;
    }
    kept.sort_unstable_by(Ranked::best_first);
    let mut reached = 0;
    let inside = kept.iter().take_while(|c| {
        let still_short = reached < wanted;
        reached += in_units(weight(c));
        still_short
    });
    let len = inside.count();
    kept.truncate(len);
}

fn in_units(weight: f32) -> Sum {
    Sum::from(units(f64::from(weight)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, by sorting everything in f64. None when a border is too close to call.
    fn naive(logits: &[f32], params: &SamplingParams) -> Option<Vec<u32>> {
        let weight = |x: f32| (f64::from(x) / f64::from(params.temperature)).exp();
        let mut all: Vec<(f64, f32, u32)> =
            (0..).zip(logits).map(|(i, &x)| (weight(x), x, i)).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.2.cmp(&b.2)));
        let least = f64::from(params.min_p) * all[0].0;
        if all.iter().any(|t| (t.0 - least).abs() < 1e-5 * least) {
            return None;
        }
        all.retain(|t| t.0 >= least);
        if params.top_k > 0 {
            all.truncate(params.top_k as usize);
        }
        let total: f64 = all.iter().map(|t| t.0).sum();
        let wanted = f64::from(params.top_p) * total;
        let mut reached = 0.0;
        let mut kept = Vec::new();
        for (w, _, id) in all {
            // With top_p = 1 the filter is off: nothing is left out for rounding's sake.
            if params.top_p < 1.0 && (reached - wanted).abs() < 1e-5 * total {
                return None;
            }
            if params.top_p < 1.0 && reached >= wanted {
                break;
            }
            reached += w;
            kept.push(id);
        }
        kept.sort_unstable();
        Some(kept)
    }

    fn run(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
        let mut buffers = Buffers::default();
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        keep(logits, max, params, &mut buffers);
        buffers.kept.iter().map(|c| c.token).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn filters_keep_what_their_definitions_keep(
            // Quarters tie often, and ties are what an order gets wrong.
            logits in prop::collection::vec((-40i8..40).prop_map(|q| f32::from(q) / 4.0), 1..200),
            temperature in 0.3f32..2.0,
            top_k in prop_oneof![Just(0u32), 1u32..60],
            top_p in prop_oneof![Just(1.0f32), 0.01f32..0.999],
            min_p in prop_oneof![Just(0.0f32), 0.001f32..0.9],
        ) {
            let params = SamplingParams { temperature, top_k, top_p, min_p, ..Default::default() };
            if let Some(want) = naive(&logits, &params) {
                prop_assert_eq!(run(&logits, &params), want);
            }
        }
    }

    #[test]
    fn each_filter_drops_what_it_should() {
        // Probabilities 8/15, 4/15, 2/15, 1/15 at temperature 1.
        let logits = [8f32, 4.0, 2.0, 1.0].map(f32::ln);
        let with = |top_k, top_p, min_p| {
            run(
                &logits,
                &SamplingParams {
                    top_k,
                    top_p,
                    min_p,
                    ..Default::default()
                },
            )
        };
        assert_eq!(with(0, 1.0, 0.2), [0, 1, 2]);
        assert_eq!(with(2, 1.0, 0.0), [0, 1]);
        assert_eq!(with(0, 0.5, 0.0), [0]);
        assert_eq!(with(0, 0.6, 0.0), [0, 1]);
        assert_eq!(with(0, 1e-9, 0.0), [0]);
        // Of the first two, the first has 8/12: top-p counts what top-k left.
        assert_eq!(with(2, 0.6, 0.0), [0]);
        assert_eq!(with(0, 0.6, 0.4), [0]);
        assert_eq!(with(1, 1.0, 0.0), [0]);
    }

    #[test]
    fn equal_tokens_are_cut_at_the_lower_ids() {
        let logits = [1.0, 3.0, 3.0, 3.0, 3.0];
        let with = |top_k, top_p| {
            run(
                &logits,
                &SamplingParams {
                    top_k,
                    top_p,
                    ..Default::default()
                },
            )
        };
        assert_eq!(with(2, 1.0), [1, 2]);
        assert_eq!(with(0, 0.4), [1, 2]);
    }
}
