//! Speculation changes no token: over the simulator, whose tokens depend on all they read, and over
//! a model on the CPU, bit for bit, log-probabilities included.

mod support;

use pageloom_engine::{
    Engine, EngineConfig, EngineError, EngineStats, FinishReason, NgramConfig, PreemptionMode,
    Proposer, Request, SimConfig, SimFault,
};
use pageloom_model_runner::SamplingParams;
use support::{
    Harness, MakeEngine, Transcript, VOCAB_SIZE, alone, alone_in, engine, engine_with, greedy,
    model_engine, prompt, real_engine, sim,
    subjects::{alone_each, check_all_in, crowded, sixteen_others, subjects},
};

/// Knows what some sequences come to, and says it; one time in three with a token wrong.
#[derive(Clone)]
struct Oracle {
    known: Vec<Vec<u32>>,
}

impl Oracle {
    fn of(requests: &[Request], transcripts: &[Transcript]) -> Self {
        let whole = |(request, transcript): (&Request, &Transcript)| {
            let outcomes = transcript.outcomes.keys();
            let whole = outcomes.map(|&i| [&request.prompt[..], &transcript.ids(i)].concat());
            whole.collect::<Vec<_>>()
        };
        let known = requests.iter().zip(transcripts).flat_map(whole).collect();
        Oracle { known }
    }
}

impl Proposer for Oracle {
    fn propose(&mut self, tokens: &[u32], drafts: &mut Vec<u32>) {
        let num = tokens.len();
        let whole = self.known.iter().find(|whole| whole.starts_with(tokens));
        match whole {
            Some(whole) => drafts.extend(whole[num..].iter().take(1 + num % 7)),
            None => drafts.extend((0..num as u32 % 4).map(|i| 3 + i)),
        }
        if num.is_multiple_of(3) && !drafts.is_empty() {
            let at = num / 3 % drafts.len();
            drafts[at] = (drafts[at] + 1) % VOCAB_SIZE as u32;
        }
    }
}

const NGRAM: NgramConfig = NgramConfig {
    num_speculative_tokens: 6,
    prompt_lookup_min: 1,
    prompt_lookup_max: 3,
};

/// The subjects among others, with drafts of an oracle and with n-grams.
fn check(
    make: MakeEngine,
    (expected, others): (&[Transcript], &[Request]),
    config: &EngineConfig,
    min_preemptions: u64,
) -> [EngineStats; 2] {
    let oracle = Oracle::of(&subjects(), expected);
    let with_oracle = |config| {
        let mut engine = make(config);
        engine.set_proposer(Box::new(oracle.clone()));
        engine
    };
    let with_ngrams = |config| {
        make(EngineConfig {
            speculative: Some(NGRAM),
            ..config
        })
    };
    [
        check_all_in(with_oracle, expected, config, others, min_preemptions),
        check_all_in(with_ngrams, expected, config, others, min_preemptions),
    ]
}

fn check_everywhere(make: MakeEngine) {
    let expected = alone_each(make);
    let others = sixteen_others();
    let check = |config: &EngineConfig, min| check(make, (&expected, &others), config, min);
    let [oracle, ngrams] = check(&EngineConfig::default(), 0);
    assert!(oracle.num_accepted_tokens > 100, "{oracle:?}");
    for stats in [oracle, ngrams] {
        assert!(stats.num_draft_tokens > stats.num_accepted_tokens);
    }
    // Hardly anything is left of the budget beside the decodes.
    check(
        &EngineConfig {
            max_num_seqs: 32,
            max_num_batched_tokens: 33,
            ..EngineConfig::default()
        },
        0,
    );
    for block_size in [1, 3, 16] {
        for mode in [PreemptionMode::Swap, PreemptionMode::Recompute] {
            let [oracle, _] = check(&crowded(block_size, mode), 5);
            assert!(oracle.num_accepted_tokens > 0, "{oracle:?}");
        }
    }
    check(
        &EngineConfig {
            enable_prefix_caching: false,
            ..crowded(3, PreemptionMode::Swap)
        },
        5,
    );
}

#[test]
fn tokens_are_those_without_it_over_the_simulator() {
    check_everywhere(engine);
}

#[test]
fn tokens_are_those_without_it_over_a_model() {
    check_everywhere(model_engine);
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf"]
fn tokens_are_those_without_it_over_the_real_model() {
    let expected = alone_each(real_engine);
    let others = &sixteen_others()[..4];
    let check = |config: &EngineConfig, min| check(real_engine, (&expected, others), config, min);
    let [oracle, ngrams] = check(&EngineConfig::default(), 0);
    assert!(oracle.num_accepted_tokens > 100, "{oracle:?}");
    assert!(ngrams.num_accepted_tokens > 0, "{ngrams:?}");
    check(&crowded(16, PreemptionMode::Swap), 5);
}

fn with_oracle(mut engine: Engine, request: &Request, expected: &Transcript) -> Engine {
    let (request, expected) = (request.clone(), expected.clone());
    engine.set_proposer(Box::new(Oracle::of(&[request], &[expected])));
    engine
}

#[test]
fn right_drafts_save_steps_and_wrong_ones_cost_none() {
    let request = greedy(prompt(1, 20), 60);
    let expected = alone(&request);
    let mut harness = Harness::new(with_oracle(
        engine(EngineConfig::default()),
        &request,
        &expected,
    ));
    let id = harness.add(&request);
    harness.run();
    assert_eq!(harness.transcripts[&id], expected);
    let stats = harness.engine.stats();
    // A step brings one token, and each draft accepted another.
    assert_eq!(stats.num_steps + stats.num_accepted_tokens, 60);
    assert!(stats.num_steps < 30, "{} steps", stats.num_steps);
    assert!(stats.num_accepted_tokens < stats.num_draft_tokens);
    assert_eq!(stats.num_generation_tokens, 60);
}

#[test]
fn no_drafts_are_planned_past_the_length() {
    for max_tokens in 1..9 {
        let request = greedy(prompt(1, 20), max_tokens);
        let whole = alone(&greedy(prompt(1, 20), 30));
        let mut harness = Harness::new(with_oracle(
            engine(EngineConfig::default()),
            &request,
            &whole,
        ));
        let id = harness.add(&request);
        harness.run();
        assert_eq!(harness.transcripts[&id], alone(&request));
        let stats = harness.engine.stats();
        let computed = 20 + max_tokens as u64 - 1;
        let rejected = stats.num_draft_tokens - stats.num_accepted_tokens;
        assert_eq!(stats.num_computed_tokens, computed + rejected);
    }
}

#[test]
fn stops_inside_of_accepted_drafts_end_the_text_there() {
    let whole = alone(&greedy(prompt(1, 20), 40));
    let ids = whole.ids(0);
    for at in [1, 2, 5, 11] {
        let stops_at_token = Request {
            sampling: SamplingParams {
                stop_token_ids: vec![ids[at]],
                min_tokens: at / 2,
                ..SamplingParams::greedy()
            },
            ..greedy(prompt(1, 20), 40)
        };
        let text = &whole.outcomes[&0].text;
        let cut = text.char_indices().nth(at + 1).map_or(text.len(), |c| c.0);
        let start = text[..cut].char_indices().nth_back(1).map_or(0, |c| c.0);
        let stops_at_text = Request {
            stop: vec![text[start..cut].to_owned()],
            ..greedy(prompt(1, 20), 40)
        };
        for request in [stops_at_token, stops_at_text] {
            let expected = alone(&request);
            let finish = &expected.outcomes[&0].finish;
            assert!(matches!(finish, Some(FinishReason::Stop(_))), "{finish:?}");
            let engine = engine(EngineConfig::default());
            let mut harness = Harness::new(with_oracle(engine, &request, &whole));
            let id = harness.add(&request);
            harness.run();
            assert_eq!(harness.transcripts[&id], expected);
        }
    }
}

#[test]
fn a_row_that_fails_behind_a_draft_fails_when_its_turn_comes() {
    let whole = alone(&greedy(prompt(1, 20), 40));
    let poison = whole.ids(0)[13];
    let config = EngineConfig::default();
    let sim = |poison_token| SimConfig {
        poison_token,
        ..sim(&config)
    };
    let request = greedy(prompt(1, 20), 40);
    let run = |engine| {
        let mut harness = Harness::new(engine);
        let id = harness.add(&request);
        harness.run();
        harness.transcripts.remove(&id).expect("kept")
    };
    let poisoned = || engine_with(config.clone(), sim(Some(poison)));
    let expected = run(poisoned());
    let finish = &expected.outcomes[&0].finish;
    assert!(matches!(finish, Some(FinishReason::Error(_))), "{finish:?}");
    assert_eq!(run(with_oracle(poisoned(), &request, &whole)), expected);
    // One that fails once only, behind a draft, is computed again.
    let once = SimConfig {
        faults: vec![(1, SimFault::Row(1))],
        ..sim(None)
    };
    let engine = engine_with(config.clone(), once);
    assert_eq!(run(with_oracle(engine, &request, &whole)), whole);
}

#[test]
fn what_was_rejected_is_never_found_in_the_cache() {
    let request = greedy(prompt(1, 20), 60);
    let expected = alone(&request);
    let config = EngineConfig {
        block_size: 2,
        ..EngineConfig::default()
    };
    // Always the right token, then wrong ones.
    struct Wrong(Vec<u32>, u32);
    impl Proposer for Wrong {
        fn propose(&mut self, tokens: &[u32], drafts: &mut Vec<u32>) {
            drafts.push(self.0[tokens.len()]);
            drafts.extend([self.1; 9]);
        }
    }
    let mut engine = engine(config);
    let whole = [&request.prompt[..], &expected.ids(0)].concat();
    let wrong = (3..).find(|token| !whole.contains(token));
    let wrong = wrong.expect("80 tokens are not all there are");
    engine.set_proposer(Box::new(Wrong(whole.clone(), wrong)));
    let mut harness = Harness::new(engine);
    harness.add(&request);
    harness.run();
    assert!(harness.engine.stats().num_accepted_tokens >= 20);
    for num_right in 20..70 {
        let follow_up = greedy([&whole[..num_right], &[wrong; 10]].concat(), 1);
        let id = harness.add(&follow_up);
        harness.run();
        let found = harness.transcripts[&id].num_cached_tokens;
        assert!(
            found <= num_right,
            "{found} tokens of {num_right} were found"
        );
    }
}

#[test]
fn bounds_that_cannot_be_are_refused() {
    for (config, wrong) in [
        (
            NgramConfig {
                num_speculative_tokens: 0,
                ..NGRAM
            },
            "num_speculative_tokens",
        ),
        (
            NgramConfig {
                num_speculative_tokens: 33,
                ..NGRAM
            },
            "num_speculative_tokens",
        ),
        (
            NgramConfig {
                prompt_lookup_max: 33,
                ..NGRAM
            },
            "prompt_lookup_max",
        ),
        (
            NgramConfig {
                prompt_lookup_min: 4,
                ..NGRAM
            },
            "prompt_lookup_min",
        ),
    ] {
        let error = config.validate().expect_err("out of bounds");
        let EngineError::Speculation { field, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(field, wrong);
    }
    NgramConfig::default()
        .validate()
        .expect("the default is valid");
}

#[test]
fn without_it_nothing_is_proposed() {
    assert_eq!(EngineConfig::default().speculative, None);
    let request = greedy(vec![5; 40], 20);
    let mut harness = Harness::new(model_engine(EngineConfig::default()));
    harness.add(&request);
    harness.run();
    assert_eq!(harness.engine.stats().num_drafts, 0);
    assert_eq!(harness.engine.stats().num_steps, 20);
    // The same tokens in fewer steps.
    let transcript = alone_in(model_engine, &request);
    let mut harness = Harness::new(model_engine(EngineConfig {
        speculative: Some(NGRAM),
        ..EngineConfig::default()
    }));
    let id = harness.add(&request);
    harness.run();
    assert_eq!(harness.transcripts[&id], transcript);
    let stats = harness.engine.stats();
    assert_eq!(stats.num_steps + stats.num_accepted_tokens, 20);
}
