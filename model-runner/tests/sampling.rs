//! The sampler through its public interface: distributions, independence, errors.

use std::collections::HashMap;
use std::sync::Arc;

use pageloom_model_runner::sampling::{DrawContext, Sampler, uniform};
use pageloom_model_runner::{RowError, SamplingParams, TokenId, Want};
use proptest::prelude::*;

fn at(position: u32) -> DrawContext<'static> {
    DrawContext {
        position,
        num_prompt_tokens: 0,
        history: &[],
    }
}

fn draw(sampler: &mut Sampler, logits: &[f32], params: &SamplingParams, position: u32) -> TokenId {
    sampler.sample(logits, params, &at(position)).unwrap().token
}

/// A row whose values look like a model's: many unlikely tokens, a few likely ones.
fn model_like_row(vocab_size: usize, seed: u64) -> Vec<f32> {
    (0..vocab_size as u32)
        .map(|i| (uniform(seed, i).ln() * -2.0 - 6.0) as f32)
        .collect()
}

/// Chi-square of `num_draws` draws at as many positions against the softmax of `allowed` tokens.
///
/// Returns the statistic and the degrees of freedom; a draw outside `allowed` panics.
fn chi_square(
    logits: &[f32],
    params: &SamplingParams,
    allowed: &[TokenId],
    num_draws: u32,
) -> (f64, usize) {
    let weight = |t: TokenId| (f64::from(logits[t as usize]) / f64::from(params.temperature)).exp();
    let total: f64 = allowed.iter().map(|&t| weight(t)).sum();
    let mut sampler = Sampler::new();
    let mut counts: HashMap<TokenId, u32> = allowed.iter().map(|&t| (t, 0)).collect();
    for position in 0..num_draws {
        let token = draw(&mut sampler, logits, params, position);
        *counts
            .get_mut(&token)
            .unwrap_or_else(|| panic!("token {token} was filtered out")) += 1;
    }
    let statistic = allowed
        .iter()
        .map(|&t| {
            let expected = weight(t) / total * f64::from(num_draws);
            assert!(expected > 20.0, "too few draws for token {t}");
            (f64::from(counts[&t]) - expected).powi(2) / expected
        })
        .sum();
    (statistic, allowed.len() - 1)
}

/// Wilson and Hilferty's approximation of the value exceeded by chance once in 10,000.
fn critical(degrees: usize) -> f64 {
    let d = degrees as f64;
    let z = 3.719;
    d * (1.0 - 2.0 / (9.0 * d) + z * (2.0 / (9.0 * d)).sqrt()).powi(3)
}

fn assert_distributed(logits: &[f32], params: &SamplingParams, allowed: &[TokenId]) {
    let (statistic, degrees) = chi_square(logits, params, allowed, 60_000);
    assert!(
        statistic < critical(degrees),
        "{statistic} at {degrees} degrees of freedom"
    );
}

const ROW: [f32; 8] = [0.3, 1.7, -0.4, 2.0, 0.0, 1.1, -1.0, 0.9];

#[test]
fn draws_follow_the_softmax_at_the_temperature() {
    let all: Vec<TokenId> = (0..8).collect();
    for (seed, temperature) in [(1, 1.0), (2, 0.7), (3, 2.0), (u64::MAX, 1.3)] {
        let params = SamplingParams {
            seed,
            temperature,
            ..Default::default()
        };
        assert_distributed(&ROW, &params, &all);
    }
}

#[test]
fn filtered_draws_follow_the_softmax_of_what_is_kept() {
    let with = |top_k, top_p, min_p| SamplingParams {
        seed: 9,
        top_k,
        top_p,
        min_p,
        ..Default::default()
    };
    assert_distributed(&ROW, &with(3, 1.0, 0.0), &[1, 3, 5]);
    // Shares, largest first: token 3 0.326, token 1 0.242, token 5 0.133, token 7 0.109.
    assert_distributed(&ROW, &with(0, 0.69, 0.0), &[1, 3, 5]);
    assert_distributed(&ROW, &with(0, 1.0, 0.4), &[1, 3, 5]);
    assert_distributed(&ROW, &with(4, 0.99, 0.4), &[1, 3, 5]);
}

#[test]
fn masked_tokens_are_never_drawn() {
    let params = SamplingParams {
        allowed_token_ids: vec![0, 2, 3, 7],
        stop_token_ids: vec![3],
        min_tokens: usize::MAX,
        ..Default::default()
    };
    assert_distributed(&ROW, &params, &[0, 2, 7]);
}

#[test]
fn draws_reach_every_part_of_a_large_vocabulary() {
    // 40 likely tokens spread over a vocabulary that is no multiple of any chunk; the rest weigh nothing.
    let mut logits = vec![-200.0; 49_157];
    let likely: Vec<TokenId> = (0..40).map(|i| i * 1260 + 16).collect();
    for (i, &t) in likely.iter().enumerate() {
        logits[t as usize] = i as f32 * 0.03;
    }
    *logits.last_mut().unwrap() = 1.0;
    let allowed: Vec<TokenId> = likely.into_iter().chain([49_156]).collect();
    let (statistic, degrees) = chi_square(&logits, &SamplingParams::default(), &allowed, 4_000);
    assert!(statistic < critical(degrees), "{statistic} at {degrees}");
}

#[test]
fn a_draw_is_the_inverse_of_the_cumulative_distribution() {
    let logits = model_like_row(5000, 4);
    let params = SamplingParams {
        seed: 77,
        temperature: 0.9,
        ..Default::default()
    };
    let weights: Vec<f64> = logits
        .iter()
        .map(|&x| (f64::from(x) / f64::from(0.9f32)).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let mut sampler = Sampler::new();
    let mut num_checked = 0;
    for position in 0..300 {
        let target = uniform(77, position) * total;
        let mut reached = 0.0;
        let mut want = None;
        for (i, w) in weights.iter().enumerate() {
            // A target within rounding of a border may fall on either side.
            if (reached - target).abs() < 1e-6 * total {
                break;
            }
            reached += w;
            if reached > target + 1e-6 * total {
                want = Some(i as TokenId);
                break;
            }
        }
        if let Some(want) = want {
            assert_eq!(draw(&mut sampler, &logits, &params, position), want);
            num_checked += 1;
        }
    }
    assert!(num_checked > 200, "{num_checked}");
}

#[test]
fn filters_that_keep_everything_change_no_draw() {
    let logits = model_like_row(700, 5);
    let plain = SamplingParams {
        seed: 3,
        ..Default::default()
    };
    let wide = SamplingParams {
        top_k: 699,
        min_p: 1e-12,
        ..plain.clone()
    };
    let mut sampler = Sampler::new();
    let mut num_equal = 0;
    for position in 0..500 {
        let a = draw(&mut sampler, &logits, &plain, position);
        num_equal += u32::from(a == draw(&mut sampler, &logits, &wide, position));
    }
    // top_k = 699 drops the least likely token of 700, which can move a border once in a while.
    assert!(num_equal >= 495, "{num_equal}");
}

#[test]
fn another_seed_and_another_position_are_other_draws() {
    let logits = [0.0; 1000];
    let mut sampler = Sampler::new();
    let mut run = |seed, first: u32| -> Vec<TokenId> {
        let params = SamplingParams {
            seed,
            ..Default::default()
        };
        (first..first + 20)
            .map(|p| draw(&mut sampler, &logits, &params, p))
            .collect()
    };
    let base = run(1, 0);
    assert_eq!(base, run(1, 0));
    assert_eq!(base[1..], run(1, 1)[..19]);
    assert_ne!(base, run(2, 0));
    assert_ne!(base, run(1 | 1 << 40, 0));
    assert_ne!(base, run(1, 100));
}

#[test]
fn greedy_takes_the_lowest_of_the_best() {
    let mut sampler = Sampler::new();
    let params = SamplingParams::greedy();
    assert_eq!(draw(&mut sampler, &[1.0, 5.0, 5.0, 4.0], &params, 0), 1);
    // Filters cannot change the best token.
    let params = SamplingParams {
        top_k: 1,
        top_p: 0.1,
        min_p: 1.0,
        ..params
    };
    assert_eq!(draw(&mut sampler, &[1.0, 5.0, 5.0, 4.0], &params, 0), 1);
    let mut row = model_like_row(49_152, 8);
    row[31_007] = 100.0;
    row[31_008] = 100.0;
    assert_eq!(draw(&mut sampler, &row, &params, 0), 31_007);
}

#[test]
fn top_k_of_one_is_greedy_at_any_temperature() {
    let params = SamplingParams {
        temperature: 2.0,
        top_k: 1,
        ..Default::default()
    };
    let mut sampler = Sampler::new();
    for position in 0..100 {
        assert_eq!(
            draw(&mut sampler, &[1.0, 5.0, 5.0, 4.0], &params, position),
            1
        );
    }
}

#[test]
fn the_smallest_temperatures_are_greedy_without_overflow() {
    let mut sampler = Sampler::new();
    for temperature in [1e-45, 1e-39, 1e-8] {
        let params = SamplingParams {
            temperature,
            ..Default::default()
        };
        for position in 0..50 {
            assert_eq!(
                draw(&mut sampler, &[-3e38, 2e38, 3e38], &params, position),
                2
            );
        }
    }
}

#[test]
fn penalties_bias_and_history_reach_the_draw() {
    let mut sampler = Sampler::new();
    let mut best = |params: SamplingParams, history: &[TokenId]| {
        let ctx = DrawContext {
            position: history.len() as u32,
            num_prompt_tokens: 1,
            history,
        };
        let params = SamplingParams {
            temperature: 0.0,
            ..params
        };
        sampler
            .sample(&[2.0, 1.5, 1.0], &params, &ctx)
            .unwrap()
            .token
    };
    let default = SamplingParams::default;
    assert_eq!(best(default(), &[0, 0]), 0);
    assert_eq!(
        best(
            SamplingParams {
                presence_penalty: 0.6,
                ..default()
            },
            &[0, 0]
        ),
        1
    );
    assert_eq!(
        best(
            SamplingParams {
                presence_penalty: 0.6,
                ..default()
            },
            &[0, 2]
        ),
        0
    );
    assert_eq!(
        best(
            SamplingParams {
                frequency_penalty: 0.4,
                ..default()
            },
            &[0, 0]
        ),
        0
    );
    assert_eq!(
        best(
            SamplingParams {
                frequency_penalty: 0.4,
                ..default()
            },
            &[0, 0, 0]
        ),
        1
    );
    assert_eq!(
        best(
            SamplingParams {
                repetition_penalty: 3.0,
                ..default()
            },
            &[0, 1]
        ),
        2
    );
    assert_eq!(
        best(
            SamplingParams {
                logit_bias: vec![(2, 1.5)],
                ..default()
            },
            &[0]
        ),
        2
    );
    assert_eq!(
        best(
            SamplingParams {
                allowed_token_ids: vec![1, 2],
                ..default()
            },
            &[0]
        ),
        1
    );
    let stops = SamplingParams {
        stop_token_ids: vec![0, 1],
        min_tokens: 1,
        ..default()
    };
    assert_eq!(best(stops.clone(), &[0]), 2);
    assert_eq!(best(stops, &[0, 2]), 0);
}

#[test]
fn logprobs_are_the_models_own_whatever_the_parameters_do() {
    let params = SamplingParams {
        temperature: 0.3,
        top_k: 1,
        logit_bias: vec![(0, 50.0)],
        logprobs: Some(2),
        ..Default::default()
    };
    let logits = [0.0, 2f32.ln(), 5f32.ln()];
    let out = Sampler::new().sample(&logits, &params, &at(3)).unwrap();
    let logprobs = out.logprobs.unwrap();
    assert_eq!((out.token, logprobs.rank), (0, 3));
    assert!((logprobs.logprob - 0.125f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
    assert!((logprobs.top[0].1 - 0.625f32.ln()).abs() < 1e-6);
    assert!((logprobs.top[1].1 - 0.25f32.ln()).abs() < 1e-6);
}

#[test]
fn no_logprobs_unless_asked() {
    let mut sampler = Sampler::new();
    let out = sampler
        .sample(&ROW, &SamplingParams::default(), &at(0))
        .unwrap();
    assert_eq!(out.logprobs, None);
    let params = SamplingParams {
        logprobs: Some(0),
        ..Default::default()
    };
    let out = sampler.sample(&ROW, &params, &at(0)).unwrap();
    assert_eq!(out.logprobs.unwrap().top, []);
}

#[test]
fn a_row_that_is_not_a_number_fails_alone() {
    let mut sampler = Sampler::new();
    let mut bad = ROW;
    bad[5] = f32::NAN;
    for params in [
        SamplingParams::greedy(),
        SamplingParams {
            top_p: 0.5,
            ..Default::default()
        },
    ] {
        let want = draw(&mut Sampler::new(), &ROW, &params, 1);
        let error = sampler.sample(&bad, &params, &at(1)).unwrap_err();
        assert_eq!(error, RowError::NotANumber { token: 5 });
        assert!(sampler.score(&bad, 0, 1).is_err());
        assert_eq!(draw(&mut sampler, &ROW, &params, 1), want);
    }
}

#[test]
fn a_row_with_every_token_masked_is_an_error() {
    let params = SamplingParams {
        allowed_token_ids: vec![2, 4],
        stop_token_ids: vec![2, 4],
        min_tokens: 1,
        ..Default::default()
    };
    let got = Sampler::new().sample(&ROW, &params, &at(0));
    assert_eq!(got, Err(RowError::NothingAllowed));
    assert!(
        Sampler::new()
            .sample(&[], &SamplingParams::default(), &at(0))
            .is_err()
    );
}

#[test]
fn a_batch_row_draws_for_the_position_after_it() {
    let logits = model_like_row(300, 6);
    let params = Arc::new(SamplingParams {
        seed: 5,
        ..Default::default()
    });
    let mut sampler = Sampler::new();
    for position in 0..50 {
        let want = Want::Sample {
            params: params.clone(),
            num_prompt_tokens: 0,
            history: vec![],
        };
        let got = sampler.output(&logits, position, &want).unwrap();
        assert_eq!(
            got.token,
            draw(&mut Sampler::new(), &logits, &params, position + 1)
        );
    }
    let got = sampler
        .output(&logits, 0, &Want::Score { token: 7, top: 3 })
        .unwrap();
    assert_eq!(got.token, 7);
    assert_eq!(
        got.logprobs.unwrap(),
        Sampler::new().score(&logits, 7, 3).unwrap()
    );
}

fn any_params(vocab_size: u32) -> impl Strategy<Value = SamplingParams> {
    let filters = (
        prop_oneof![Just(0f32), 1e-3f32..2.0],
        0..2 * vocab_size,
        prop_oneof![Just(1f32), 1e-6f32..1.0],
        prop_oneof![Just(0f32), 0f32..1.0],
    );
    let penalties = (
        -2f32..2.0,
        -2f32..2.0,
        prop_oneof![Just(1f32), 1e-30f32..1e30],
    );
    let bias = prop::collection::vec((0..vocab_size, -100f32..100.0), 0..4);
    let stops = (prop::collection::vec(0..vocab_size, 0..3), 0usize..30);
    let rest = (any::<u64>(), prop::option::of(0usize..21));
    (filters, penalties, bias, stops, rest).prop_map(|(f, p, logit_bias, s, r)| SamplingParams {
        temperature: f.0,
        top_k: f.1,
        top_p: f.2,
        min_p: f.3,
        presence_penalty: p.0,
        frequency_penalty: p.1,
        repetition_penalty: p.2,
        logit_bias,
        stop_token_ids: s.0,
        min_tokens: s.1,
        seed: r.0,
        logprobs: r.1,
        ..Default::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever a sampler did before, its next answer is that of a new one; and nothing valid panics.
    #[test]
    fn earlier_calls_change_nothing(
        calls in prop::collection::vec(
            (any_params(90), any::<u64>(), prop::collection::vec(0u32..90, 1..40)), 1..6),
    ) {
        let mut used = Sampler::new();
        for (i, (params, seed, history)) in calls.iter().enumerate() {
            params.validate(90).unwrap();
            let logits = model_like_row(60 + 5 * i, *seed);
            let ctx = DrawContext { position: history.len() as u32, num_prompt_tokens: 1, history };
            let got = used.sample(&logits, params, &ctx);
            prop_assert_eq!(&got, &Sampler::new().sample(&logits, params, &ctx));
            let out = got.unwrap();
            prop_assert!((out.token as usize) < logits.len());
            if ctx.num_generated() < params.min_tokens {
                prop_assert!(!params.stop_token_ids.contains(&out.token));
            }
        }
    }

    /// Any row of floats gives a token or an error.
    #[test]
    fn any_logits_give_a_token_or_an_error(
        logits in prop::collection::vec(any::<f32>(), 0..70),
        params in any_params(70),
        position in 0u32..1000,
    ) {
        match Sampler::new().sample(&logits, &params, &at(position)) {
            Ok(out) => prop_assert!(logits[out.token as usize].is_finite()),
            Err(RowError::NotANumber { token }) => {
                let x = logits[token as usize];
                prop_assert!(x.is_nan() || x == f32::INFINITY);
            }
            Err(_) => {}
        }
    }
}
