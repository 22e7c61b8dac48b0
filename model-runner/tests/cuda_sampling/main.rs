//! The GPU's sampler draws the CPU's tokens: on the PTX emulator, and on a GPU where there is one.

mod case;
mod launch;

use half::{bf16, f16};
use pageloom_model_runner::SamplingParams;
use pageloom_model_runner::sampling::Sampler;
use pageloom_paged_attn_kernels::cuda::sample::{
    LogprobRow, LogprobToken, SampleBatch, SampleRow, Sampling,
};

use case::{Case, Random};
use launch::{Launch, assert_same, on_each, results, round};

const VOCAB_SIZES: [usize; 8] = [1, 2, 31, 64, 100, 333, 1000, 2051];

#[test]
fn draws_and_logprobs_are_the_cpus_for_any_parameters() {
    on_each(|_, stream| {
        let mut num_drawn = 0;
        for round in 0..6 {
            for vocab_size in VOCAB_SIZES {
                let mut random = Random::new(1000 * round + vocab_size as u64);
                let cases: Vec<_> = (0..60)
                    .map(|_| Case::random(&mut random, vocab_size))
                    .collect();
                num_drawn += assert_same(stream, &cases, |x| x);
            }
        }
        println!("{num_drawn} equal draws");
        assert!(num_drawn > 2500, "{num_drawn}");
    });
}

#[test]
fn logits_of_16_bits_are_read_as_they_are() {
    on_each(|_, stream| {
        for vocab_size in [33, 500] {
            let mut random = Random::new(vocab_size as u64);
            let mut cases: Vec<_> = (0..100)
                .map(|_| Case::random(&mut random, vocab_size))
                .collect();
            round(&mut cases, bf16::from_f32, bf16::to_f32);
            assert!(assert_same(stream, &cases, bf16::from_f32) > 80);
            round(&mut cases, f16::from_f32, f16::to_f32);
            assert!(assert_same(stream, &cases, f16::from_f32) > 80);
        }
    });
}

/// Many draws from one row each: what a wrong border of the distribution would move.
#[test]
fn many_positions_of_one_row_draw_the_same_tokens() {
    on_each(|_, stream| {
        let mut random = Random::new(5);
        let logits = random.logits(150);
        for (temperature, top_k, top_p, min_p) in [
            (1.0, 0, 1.0, 0.0),
            (0.7, 20, 1.0, 0.0),
            (1.3, 0, 0.9, 0.0),
            (2.0, 100, 0.95, 0.01),
        ] {
            let case = |position| {
                let params = SamplingParams {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    seed: 8,
                    ..Default::default()
                };
                let history = vec![0; position];
                Case {
                    history,
                    ..Case::plain(logits.clone(), params)
                }
            };
            let cases: Vec<_> = (0..400).map(case).collect();
            assert_eq!(assert_same(stream, &cases, |x| x), 400);
        }
    });
}

/// Of two tokens, the likelier one's log-probability is the other's weight but for its sign, nearly:
/// as a float it shows a change of that weight in its last bits.
#[test]
fn weights_are_the_cpus_to_the_last_bit() {
    on_each(|_, stream| {
        let params = SamplingParams {
            logprobs: Some(0),
            ..SamplingParams::greedy()
        };
        let mut random = Random::new(40);
        let case = |i| Case::plain(vec![0.0, i as f32 * -0.02 - random.unit()], params.clone());
        let cases: Vec<_> = (0..1500).map(case).collect();
        assert_eq!(assert_same(stream, &cases, |x| x), 1500);
    });
}

/// A weight within two bits of `min_p` is kept or not, and every other draw shows it.
#[test]
fn weights_at_a_temperature_are_the_cpus_to_the_last_bit() {
    on_each(|_, stream| {
        let mut random = Random::new(41);
        let mut case = |i: u32| {
            let temperature = 0.1 + 1.9 * random.unit();
            let logit = -random.unit() * temperature;
            let weight = (f64::from(logit) / f64::from(temperature)).exp() as f32;
            let params = SamplingParams {
                temperature,
                min_p: f32::from_bits(weight.to_bits() - 2 + i % 5).min(1.0),
                seed: random.next(),
                ..Default::default()
            };
            Case::plain(vec![0.0, logit], params)
        };
        let cases: Vec<_> = (0..1500).map(&mut case).collect();
        assert_eq!(assert_same(stream, &cases, |x| x), 1500);
    });
}

#[test]
fn shares_that_end_between_two_tokens_are_cut_there() {
    on_each(|_, stream| {
        let case = |i: u32| {
            let params = SamplingParams {
                // Of equal tokens, a whole number; and one unit more or less.
                top_p: (i % 8 + 1) as f32 / 8.0 - [0.0, 1e-7, -1e-7][i as usize % 3],
                seed: u64::from(i),
                ..Default::default()
            };
            Case::plain(vec![1.5; 8], params)
        };
        let mut cases: Vec<_> = (0..400).map(case).collect();
        cases.retain(|case| case.params.top_p <= 1.0);
        assert_eq!(assert_same(stream, &cases, |x| x), cases.len());
    });
}

#[test]
fn a_vocabulary_of_a_real_model_gives_the_same_tokens() {
    on_each(|_, stream| {
        let mut random = Random::new(11);
        let logits: Vec<f32> = (0..32_003)
            .map(|_| random.unit().max(1e-9).ln() * -1.5 - 6.0)
            .collect();
        let params = |top_k, top_p| SamplingParams {
            top_k,
            top_p,
            temperature: 0.9,
            seed: 21,
            logprobs: Some(20),
            ..Default::default()
        };
        let cases = [params(0, 1.0), params(0, 0.9), params(50, 1.0)]
            .map(|params| Case::plain(logits.clone(), params));
        assert_eq!(assert_same(stream, &cases, |x| x), 3);
    });
}

#[test]
fn rows_that_cannot_be_drawn_from_fail_alone_and_as_on_the_cpu() {
    on_each(|_, stream| {
        let good = |seed| SamplingParams {
            seed,
            logprobs: Some(3),
            top_p: 0.9,
            ..Default::default()
        };
        let row: Vec<f32> = (0..200).map(|i| (i % 17) as f32).collect();
        let with = |changes: &[(usize, f32)], params: SamplingParams| {
            let mut row = row.clone();
            changes.iter().for_each(|&(i, x)| row[i] = x);
            Case::plain(row, params)
        };
        let masked = SamplingParams {
            allowed_token_ids: vec![2, 4],
            stop_token_ids: vec![2, 4],
            min_tokens: 1,
            ..good(5)
        };
        let allowed = SamplingParams {
            allowed_token_ids: vec![1, 2],
            ..good(3)
        };
        let cases = [
            with(&[], good(1)),
            with(
                &[(150, f32::NAN), (71, f32::INFINITY), (199, -f32::NAN)],
                good(2),
            ),
            // Not among the allowed, and still an error.
            with(&[(70, f32::NAN)], allowed.clone()),
            with(
                &[(199, f32::INFINITY)],
                SamplingParams {
                    logprobs: None,
                    ..SamplingParams::greedy()
                },
            ),
            Case::plain(vec![f32::NEG_INFINITY; 200], good(4)),
            Case::plain(vec![f32::NEG_INFINITY; 200], allowed),
            with(&[], masked),
            with(&[], good(6)),
        ];
        assert_eq!(assert_same(stream, &cases, |x| x), 2);
    });
}

#[test]
fn a_captured_draw_replays_with_other_parameters() {
    on_each(|device, stream| {
        let mut random = Random::new(77);
        let mut cases = |seed| -> Vec<Case> {
            let params = SamplingParams {
                seed,
                top_p: 0.95,
                logprobs: Some(4),
                presence_penalty: 0.5,
                ..Default::default()
            };
            let mut case = || Case {
                history: vec![1, 2, 3],
                ..Case::plain(random.logits(100), params.clone())
            };
            (0..5).map(|_| case()).collect()
        };
        let (first, second) = (cases(1), cases(2));
        let launch = Launch::new(5, 100);
        let mut logits = launch.upload(stream, &first, |x| x);
        let mut sampling = Sampling::new(device).unwrap();
        launch.prepare(stream, &mut sampling, &first);
        let graph = stream
            .capture(|| sampling.run(stream, logits.rows(100)))
            .unwrap();
        for cases in [&first, &second] {
            launch.prepare(stream, &mut sampling, cases);
            let data = launch
                .upload(stream, cases, |x| x)
                .download(stream)
                .unwrap();
            logits.upload(stream, &data).unwrap();
            // SAFETY: the buffers of `sampling` keep their sizes for equal batches, and both live on.
            unsafe { stream.launch_graph(&graph) }.unwrap();
            let found = results(cases, sampling.output(stream).unwrap());
            let want: Vec<_> = cases.iter().map(Case::on_cpu).collect();
            assert_eq!(found, want);
        }
    });
}

#[test]
fn known_tokens_are_scored_as_on_the_cpu() {
    on_each(|device, stream| {
        let mut random = Random::new(3);
        let cases: Vec<_> = (0..8)
            .map(|_| Case::plain(random.logits(70), SamplingParams::default()))
            .collect();
        let launch = Launch::new(cases.len(), 70);
        let logits = launch.upload(stream, &cases, |x| x);
        let tokens = [0, 69, 70, u32::MAX, 5, 6, 7, 8];
        let rows: Vec<_> = (0..8)
            .map(|i| LogprobRow {
                logits_row: launch.logits_rows[i],
                token: LogprobToken::Known(tokens[i]),
                num_top: i * 10,
            })
            .collect();
        let batch = SampleBatch {
            vocab_size: 70,
            rows: &[],
            logprobs: &rows,
        };
        let mut sampling = Sampling::new(device).unwrap();
        sampling.prepare(stream, &batch).unwrap();
        sampling.run(stream, logits.rows(70)).unwrap();
        let found = sampling.output(stream).unwrap().logprobs;
        for (i, found) in found.into_iter().enumerate() {
            let want = Sampler::new()
                .score(&cases[i].logits, tokens[i], i * 10)
                .unwrap();
            let found = found.unwrap();
            assert_eq!(
                (found.logprob, found.rank, found.top),
                (want.logprob, want.rank, want.top)
            );
        }
    });
}

#[test]
fn logits_that_are_too_few_are_refused() {
    on_each(|device, stream| {
        let mut sampling = Sampling::new(device).unwrap();
        let rows = [SampleRow {
            logits_row: 2,
            ..Default::default()
        }];
        let batch = SampleBatch {
            vocab_size: 10,
            rows: &rows,
            logprobs: &[],
        };
        sampling.prepare(stream, &batch).unwrap();
        let logits = device.alloc::<f32>(29).unwrap();
        assert!(sampling.run(stream, logits.rows(10)).is_err());
        let empty = SampleBatch {
            vocab_size: 10,
            rows: &[],
            logprobs: &[],
        };
        sampling.prepare(stream, &empty).unwrap();
        sampling.run(stream, logits.rows(10)).unwrap();
        assert!(sampling.output(stream).unwrap().tokens.is_empty());
    });
}
