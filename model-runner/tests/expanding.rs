//! The most likely continuations of a row, for beam search.

use std::sync::Arc;

use pageloom_model_runner::sampling::Sampler;
use pageloom_model_runner::{RowError, RowOutput, SamplingParams, TokenId, Want};
use proptest::prelude::*;

fn expand(
    logits: &[f32],
    params: &SamplingParams,
    num_candidates: usize,
    history: &[TokenId],
    num_prompt_tokens: u32,
) -> Result<RowOutput, RowError> {
    let want = Want::Expand {
        params: Arc::new(params.clone()),
        num_candidates,
        num_prompt_tokens,
        history: history.to_vec(),
    };
    let position = history.len() as u32 - 1;
    Sampler::new().output(logits, position, &want)
}

/// Natural logarithm of the softmax, in f64.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - total.ln()).collect()
}

fn best_first(scores: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(n);
    order
}

proptest! {
    #[test]
    fn candidates_are_the_likeliest_tokens_best_first(
        logits in prop::collection::vec(-20f32..20.0, 1..400),
        num_candidates in 1..40usize,
        top in prop::option::of(0..5usize),
    ) {
        let params = SamplingParams { logprobs: top, temperature: 0.7, top_k: 1, ..Default::default() };
        let row = expand(&logits, &params, num_candidates, &[0], 1).unwrap();
        let expected = log_softmax(&logits);
        prop_assert_eq!(row.candidates.len(), num_candidates.min(logits.len()));
        prop_assert_eq!(row.token, row.candidates[0].token);
        for (rank, (got, i)) in row.candidates.iter().zip(best_first(&expected, 40)).enumerate() {
            prop_assert!((f64::from(got.score) - expected[i]).abs() < 1e-5);
            prop_assert_eq!(expected[got.token as usize], expected[i], "rank {}", rank);
            prop_assert_eq!(got.logprobs.is_some(), top.is_some());
            if let (Some(logprobs), Some(top)) = (&got.logprobs, top) {
                prop_assert_eq!(logprobs.logprob, got.score);
                prop_assert_eq!(logprobs.rank as usize, rank + 1);
                prop_assert_eq!(logprobs.top.len(), top.min(logits.len()));
            }
        }
    }

    /// As transformers' processors do it to the log-probabilities: all are below 0, so that a
    /// repetition penalty multiplies, and nothing is normalised again.
    #[test]
    fn masks_biases_and_penalties_change_log_probabilities(
        logits in prop::collection::vec(-5f32..5.0, 8..50),
        repetition in 1.01f32..2.0,
        frequency in 0.0f32..2.0,
        bias in -3f32..3.0,
    ) {
        let params = SamplingParams {
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            logit_bias: vec![(3, bias)],
            stop_token_ids: vec![5],
            min_tokens: 4,
            logprobs: Some(1),
            ..Default::default()
        };
        // Tokens 1 and 2 were seen, 2 of them generated, twice.
        let row = expand(&logits, &params, logits.len(), &[1, 1, 2, 2], 2).unwrap();
        let plain = log_softmax(&logits);
        let mut expected = plain.clone();
        expected[5] = f64::NEG_INFINITY;
        expected[3] += f64::from(bias);
        for seen in [1, 2] {
            expected[seen] *= f64::from(repetition);
        }
        expected[2] -= 2.0 * f64::from(frequency);
        prop_assert_eq!(row.candidates.len(), logits.len() - 1, "a masked token is no candidate");
        prop_assert!(row.candidates.is_sorted_by(|a, b| a.score >= b.score));
        for candidate in &row.candidates {
            let token = candidate.token as usize;
            prop_assert!((f64::from(candidate.score) - expected[token]).abs() < 1e-4);
            let logprobs = candidate.logprobs.as_ref().unwrap();
            prop_assert!((f64::from(logprobs.logprob) - plain[token]).abs() < 1e-5);
        }
    }
}

#[test]
fn rows_that_allow_nothing_or_are_no_numbers_are_errors() {
    let nothing = SamplingParams {
        allowed_token_ids: vec![99],
        ..Default::default()
    };
    let result = expand(&[0.0, 1.0], &nothing, 4, &[0], 1);
    assert_eq!(result, Err(RowError::NothingAllowed));
    let result = expand(&[0.0, f32::NAN], &SamplingParams::default(), 4, &[0], 1);
    assert_eq!(result, Err(RowError::NotANumber { token: 1 }));
}
