//! Answers that are ranked: beam searches against a naive one, and the best of many samples.

mod support;

use pageloom_engine::{
    BeamSearch, EarlyStopping, EngineConfig, FinishReason, Request, RequestError, SimConfig,
    SimFault, StopCause,
};
use pageloom_model_runner::{MAX_LOGPROBS, SamplingParams};
use support::{
    Harness, MakeEngine, Outcome, Transcript, alone, alone_in, engine, engine_with, greedy,
    model_engine, prompt, sim, tokenizer,
};

fn beams(width: usize, rules: BeamSearch, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        n: width,
        beams: Some(rules),
        ignore_eos: false,
        ..greedy(prompt, max_tokens)
    }
}

fn rules(length_penalty: f32, early_stopping: EarlyStopping) -> BeamSearch {
    BeamSearch {
        length_penalty,
        early_stopping,
    }
}

/// A sequence with its score.
#[derive(Debug, Clone, PartialEq)]
struct Scored {
    tokens: Vec<u32>,
    score: f64,
}

/// Beam search as a textbook has it: no cache, no forks, every prefix computed from the start.
struct Naive<'a> {
    make: MakeEngine,
    request: &'a Request,
    stop_tokens: Vec<u32>,
}

impl Naive<'_> {
    /// The likeliest next tokens, from a request of one token.
    fn next(&self, output: &[u32]) -> Vec<(u32, f32)> {
        let mut tokens = self.request.prompt.clone();
        tokens.extend_from_slice(output);
        let request = Request {
            sampling: SamplingParams {
                logprobs: Some(MAX_LOGPROBS),
                ..SamplingParams::greedy()
            },
            ..greedy(tokens, 1)
        };
        let transcript = alone_in(self.make, &request);
        let token = &transcript.outcomes[&0].tokens[0];
        token.logprobs.clone().expect("asked for").top
    }

    fn search(&self) -> Vec<Scored> {
        let (width, max_tokens) = (self.request.num_seqs(), self.request.max_tokens.unwrap());
        let rules = self.request.beams.unwrap();
        let penalised =
            |score: f64, len: usize| score / (len as f64).powf(rules.length_penalty.into());
        let mut running = vec![Scored {
            tokens: Vec::new(),
            score: 0.0,
        }];
        let mut finished: Vec<Scored> = Vec::new();
        for len in 1..=max_tokens {
            let mut all = Vec::new();
            for beam in &running {
                for (token, logprob) in self.next(&beam.tokens) {
                    let tokens = [&beam.tokens[..], &[token]].concat();
                    let score = beam.score + f64::from(logprob);
                    all.push(Scored { tokens, score });
                }
            }
            all.sort_by(|a, b| b.score.total_cmp(&a.score));
            let ends = |scored: &Scored| {
                len == max_tokens || self.stop_tokens.contains(&scored.tokens[len - 1])
            };
            let ended = all[..width].iter().filter(|scored| ends(scored));
            finished.extend(ended.map(|scored| Scored {
                score: penalised(scored.score, len),
                ..scored.clone()
            }));
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.truncate(width);
            running = all
                .into_iter()
                .filter(|scored| !ends(scored))
                .take(width)
                .collect();
            if running.is_empty() {
                break;
            }
            if finished.len() == width {
                let at = match rules.early_stopping {
                    EarlyStopping::Immediately => break,
                    EarlyStopping::Never if rules.length_penalty > 0.0 => max_tokens,
                    _ => len,
                };
                if penalised(running[0].score, at) <= finished[width - 1].score {
                    break;
                }
            }
        }
        finished.truncate(self.request.n);
        finished
    }
}

fn check_against_naive(make: MakeEngine, request: &Request) -> Transcript {
    let mut stop_tokens = request.sampling.stop_token_ids.clone();
    stop_tokens.extend(tokenizer().eos_ids());
    let naive = Naive {
        make,
        request,
        stop_tokens,
    };
    let got = alone_in(make, request);
    let expected = naive.search();
    assert_eq!(got.outcomes.len(), request.n);
    for (index, expected) in expected.iter().enumerate() {
        assert_eq!(
            got.ids(index),
            expected.tokens,
            "{request:?}, sequence {index}"
        );
        let score = got.outcomes[&index].score.expect("ranked");
        assert!((score - expected.score).abs() < 1e-4);
    }
    got
}

#[test]
fn beams_are_those_of_a_naive_search() {
    let mut num_stopped = 0;
    for make in [engine as MakeEngine, model_engine] {
        for (width, rules) in [
            (1, rules(1.0, EarlyStopping::Heuristic)),
            (2, rules(1.0, EarlyStopping::Heuristic)),
            (3, rules(0.0, EarlyStopping::Never)),
            (4, rules(2.0, EarlyStopping::Never)),
            (4, rules(-0.5, EarlyStopping::Heuristic)),
            (4, rules(1.0, EarlyStopping::Immediately)),
        ] {
            for family in 0..3 {
                let mut request = beams(width, rules, prompt(family, 9), 12);
                // Often enough that searches end by one.
                request.sampling.stop_token_ids = vec![40 + family, 90, 200];
                let got = check_against_naive(make, &request);
                let stopped =
                    |outcome: &&Outcome| matches!(outcome.finish, Some(FinishReason::Stop(_)));
                num_stopped += got.outcomes.values().filter(stopped).count();
            }
        }
    }
    assert!(num_stopped > 0, "no search ended by a stop token");
}

#[test]
fn a_wide_search_returns_the_best_it_found() {
    let wide = beams(5, BeamSearch::default(), prompt(1, 20), 10);
    let all = alone(&wide);
    let best = alone(&Request {
        n: 2,
        best_of: Some(5),
        ..wide
    });
    assert_eq!(best.outcomes.len(), 2);
    for index in 0..2 {
        assert_eq!(best.outcomes[&index], all.outcomes[&index]);
    }
    let scores: Vec<_> = all.outcomes.values().map(|o| o.score.unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
}

#[test]
fn a_beam_ends_at_a_stop_string_and_the_text_is_that_of_its_tokens() {
    let request = beams(3, BeamSearch::default(), prompt(2, 10), 20);
    let free = alone_in(model_engine, &request);
    // A character from the middle of the best sequence.
    let text = &free.outcomes[&0].text;
    let stop: String = text
        .chars()
        .skip(text.chars().count() / 2)
        .take(1)
        .collect();
    assert!(!stop.is_empty());
    let got = alone_in(
        model_engine,
        &Request {
            stop: vec![stop.clone()],
            ..request
        },
    );
    let by_string = FinishReason::Stop(Some(StopCause::String(stop.clone())));
    let stopped = |o: &&Outcome| o.finish == Some(by_string.clone());
    assert!(got.outcomes.values().filter(stopped).count() > 0, "{got:?}");
    for outcome in got.outcomes.values() {
        assert!(!outcome.text.contains(&stop));
        let ids: Vec<_> = outcome.tokens.iter().map(|token| token.id).collect();
        let whole = tokenizer().decode(&ids, true).expect("known tokens");
        assert!(whole.starts_with(&outcome.text), "{whole:?} {outcome:?}");
    }
}

#[test]
fn a_search_reports_log_probabilities_of_the_tokens_it_found() {
    let mut request = beams(3, BeamSearch::default(), prompt(1, 12), 8);
    request.sampling.logprobs = Some(2);
    let got = alone_in(model_engine, &request);
    for outcome in got.outcomes.values() {
        let logprobs = outcome
            .tokens
            .iter()
            .map(|t| t.logprobs.as_ref().expect("asked for"));
        let sum: f64 = logprobs.clone().map(|l| f64::from(l.logprob)).sum();
        let mean = sum / outcome.tokens.len() as f64;
        assert!((mean - outcome.score.unwrap()).abs() < 1e-4);
        assert!(logprobs.clone().all(|l| l.top.len() == 2));
    }
}

#[test]
fn min_tokens_and_penalties_hold_in_a_search() {
    let mut request = beams(4, rules(-1.0, EarlyStopping::Immediately), prompt(0, 9), 12);
    request.sampling.stop_token_ids = (3..100).step_by(2).collect();
    let short = alone(&request);
    assert!(short.outcomes.values().any(|o| o.tokens.len() < 6));
    request.sampling.min_tokens = 6;
    let long = alone(&request);
    assert!(
        long.outcomes.values().all(|o| o.tokens.len() > 6),
        "{long:?}"
    );

    let mut plain = beams(2, BeamSearch::default(), prompt(0, 9), 30);
    plain.ignore_eos = true;
    let repeats = |t: &Transcript| {
        let mut ids = t.ids(0);
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        all - ids.len()
    };
    let before = repeats(&alone_in(model_engine, &plain));
    plain.sampling.frequency_penalty = 2.0;
    plain.sampling.presence_penalty = 2.0;
    let after = repeats(&alone_in(model_engine, &plain));
    assert!(
        after < before,
        "{after} repetitions with penalties, {before} without"
    );
}

#[test]
fn a_search_of_no_tokens_computes_the_prompt() {
    let mut request = beams(2, BeamSearch::default(), prompt(1, 9), 0);
    request.prompt_logprobs = Some(1);
    let got = alone(&request);
    assert_eq!(got.prompt_logprobs.as_ref().map(Vec::len), Some(9));
    for outcome in got.outcomes.values() {
        assert_eq!(outcome.finish, Some(FinishReason::Length));
        assert!(outcome.tokens.is_empty());
    }
}

#[test]
fn the_best_of_many_are_those_with_the_highest_mean_log_probability() {
    let sampling = SamplingParams {
        seed: 11,
        ..SamplingParams::default()
    };
    let all = Request {
        n: 5,
        sampling: SamplingParams {
            logprobs: Some(0),
            ..sampling.clone()
        },
        ignore_eos: false,
        ..greedy(prompt(1, 21), 12)
    };
    let ranked = alone(&Request {
        n: 2,
        best_of: Some(5),
        sampling,
        ..all.clone()
    });
    let mut expected: Vec<_> = alone(&all).outcomes.into_values().collect();
    let mean = |outcome: &Outcome| {
        let logprobs = outcome
            .tokens
            .iter()
            .map(|t| f64::from(t.logprobs.as_ref().unwrap().logprob));
        logprobs.sum::<f64>() / outcome.tokens.len() as f64
    };
    expected.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    assert_eq!(ranked.outcomes.len(), 2);
    for (got, expected) in ranked.outcomes.values().zip(&expected) {
        assert_eq!((&got.text, &got.finish), (&expected.text, &expected.finish));
        assert!((got.score.unwrap() - mean(expected)).abs() < 1e-5);
        assert!(
            got.tokens.iter().all(|token| token.logprobs.is_none()),
            "not asked for"
        );
    }
}

#[test]
fn what_is_ranked_comes_at_once_and_an_abort_ends_every_sequence_asked_for() {
    let searched = beams(3, BeamSearch::default(), prompt(1, 20), 10);
    let sampled = Request {
        n: 2,
        best_of: Some(4),
        sampling: SamplingParams::default(),
        ..greedy(prompt(2, 20), 10)
    };
    for request in [searched, sampled] {
        for num_steps in 0..10 {
            let mut harness = Harness::new(engine(EngineConfig::default()));
            let id = harness.add(&request);
            for _ in 0..num_steps {
                harness.step();
                assert!(
                    harness.transcripts[&id].outcomes.is_empty(),
                    "nothing until the end"
                );
            }
            assert!(harness.abort(id));
            assert!(harness.transcripts[&id].is_finished(request.n));
            harness.run();
        }
    }
}

#[test]
fn a_failed_row_or_step_ends_the_whole_search() {
    let request = beams(3, BeamSearch::default(), prompt(1, 20), 10);
    for (step, fault) in [
        (0, SimFault::Row(0)),
        (4, SimFault::Row(1)),
        (4, SimFault::Wait),
        (4, SimFault::Submit),
    ] {
        let config = EngineConfig::default();
        let sim = SimConfig {
            faults: vec![(step, fault)],
            ..sim(&config)
        };
        let mut harness = Harness::new(engine_with(config, sim));
        let failing = harness.add(&request);
        harness.run();
        let transcript = &harness.transcripts[&failing];
        assert!(transcript.is_finished(3));
        for outcome in transcript.outcomes.values() {
            assert!(
                matches!(outcome.finish, Some(FinishReason::Error(_))),
                "{outcome:?}"
            );
        }
        let next = harness.add(&request);
        harness.run();
        assert_eq!(
            harness.transcripts[&next].outcomes,
            alone(&request).outcomes
        );
    }
}

#[test]
fn a_search_without_enough_sequences_says_so() {
    let mut request = beams(3, BeamSearch::default(), prompt(1, 20), 4);
    request.sampling.allowed_token_ids = vec![77];
    let got = alone(&request);
    assert_eq!(got.ids(0), [77; 4]);
    assert_eq!(got.outcomes[&0].finish, Some(FinishReason::Length));
    for index in [1, 2] {
        let Some(FinishReason::Error(message)) = &got.outcomes[&index].finish else {
            panic!("{got:?}");
        };
        assert!(message.contains("found only 1"), "{message}");
    }
}

#[test]
fn what_cannot_be_ranked_is_refused_by_name() {
    let searched = beams(3, BeamSearch::default(), prompt(1, 20), 10);
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = searched.clone();
        change(&mut request);
        request
    };
    let mut harness = Harness::new(engine(EngineConfig::default()));
    for (field, request) in [
        ("best_of", with(&|r| r.best_of = Some(2))),
        ("best_of", with(&|r| r.best_of = Some(17))),
        ("best_of", with(&|r| r.best_of = Some(usize::MAX))),
        ("n", with(&|r| r.n = 17)),
        ("temperature", with(&|r| r.sampling.temperature = 0.7)),
        ("top_p", with(&|r| r.sampling.top_p = 0.9)),
        ("top_k", with(&|r| r.sampling.top_k = 5)),
        ("min_p", with(&|r| r.sampling.min_p = 0.1)),
        (
            "stop_token_ids",
            with(&|r| r.sampling.stop_token_ids = (0..65).collect()),
        ),
        (
            "length_penalty",
            with(&|r| r.beams = Some(rules(f32::NAN, EarlyStopping::Never))),
        ),
        (
            "length_penalty",
            with(&|r| r.beams = Some(rules(11.0, EarlyStopping::Never))),
        ),
    ] {
        let refused = harness.engine.add(request, std::time::Duration::ZERO);
        match refused {
            Err(RequestError::InvalidParam { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert!(!harness.engine.has_work());
}
