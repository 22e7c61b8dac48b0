//! How requests end, one way or another, and what that does to others: nothing.

mod support;

use pageloom_engine::{EngineConfig, FinishReason, Request, RequestError, SimConfig, SimFault};
use pageloom_model_runner::SamplingParams;
use support::{Harness, alone, engine, engine_with, greedy, prompt, sim};

fn small() -> EngineConfig {
    EngineConfig {
        num_blocks: 12,
        max_num_batched_tokens: 24,
        max_num_seqs: 8,
        ..EngineConfig::default()
    }
}

#[test]
fn an_abort_at_any_step_leaves_nothing_behind_and_no_trace_on_others() {
    let neighbour = greedy(prompt(4, 20), 60);
    let expected = alone(&neighbour);
    let victim = Request {
        n: 3,
        prompt_logprobs: Some(1),
        ..greedy(prompt(4, 50), 20)
    };
    for steps_before in 0..70 {
        let mut harness = Harness::new(engine(small()));
        let neighbour_id = harness.add(&neighbour);
        let id = harness.add(&victim);
        for _ in 0..steps_before {
            harness.step();
        }
        let alive = !harness.transcripts[&id].is_finished(3);
        assert_eq!(harness.abort(id), alive);
        assert!(!harness.abort(id));
        let finishes: Vec<_> = harness.transcripts[&id].outcomes.values().collect();
        assert_eq!(finishes.len(), 3);
        for outcome in finishes {
            let finish = outcome.finish.as_ref().expect("every sequence ends");
            assert!(matches!(finish, FinishReason::Abort | FinishReason::Length));
        }
        harness.run();
        let outcomes = &harness.transcripts[&neighbour_id].outcomes;
        assert_eq!(*outcomes, expected.outcomes, "after {steps_before} steps");
    }
}

#[test]
fn an_abort_between_submit_and_wait_is_safe() {
    let mut harness = Harness::new(engine(small()));
    let neighbour = harness.add(&greedy(prompt(1, 5), 10));
    let id = harness.add(&greedy(prompt(2, 5), 10));
    for _ in 0..3 {
        harness.step();
    }
    let now = std::time::Duration::ZERO;
    assert!(harness.engine.begin_step(now).unwrap());
    assert!(harness.abort(id));
    let late = harness.add(&greedy(prompt(3, 5), 10));
    harness.engine.end_step(|| now);
    harness.collect();
    harness.run();
    let expected = [(neighbour, prompt(1, 5)), (late, prompt(3, 5))];
    for (id, prompt) in expected {
        assert_eq!(
            harness.transcripts[&id].ids(0),
            alone(&greedy(prompt, 10)).ids(0)
        );
    }
    assert_eq!(harness.transcripts[&id].ids(0).len(), 3);
}

/// Runs two requests, the second from step 3 on, with faults; returns how they finished.
fn with_faults(faults: Vec<(u64, SimFault)>) -> (Harness, [FinishReason; 3]) {
    let config = EngineConfig::default();
    let sim = SimConfig {
        faults,
        ..sim(&config)
    };
    let mut harness = Harness::new(engine_with(config, sim));
    let first = harness.add(&greedy(prompt(1, 40), 20));
    for _ in 0..6 {
        harness.step();
    }
    let second = harness.add(&greedy(prompt(1, 45), 20));
    harness.run();
    let third = harness.add(&greedy(prompt(1, 50), 20));
    harness.run();
    let finish = |id| {
        let transcript = &harness.transcripts[&id];
        transcript.outcomes[&0].finish.clone().expect("finished")
    };
    let finishes = [finish(first), finish(second), finish(third)];
    for (id, len) in [(first, 40), (second, 45), (third, 50)] {
        // Whatever was drawn before the failure is right, and so is what others drew after it
        // from blocks that were cached before and after.
        let expected = alone(&greedy(prompt(1, len), 20)).ids(0);
        let got = harness.transcripts[&id].ids(0);
        assert_eq!(got, expected[..got.len()]);
    }
    (harness, finishes)
}

#[test]
fn a_failed_step_ends_the_sequences_in_it_and_the_engine_goes_on() {
    for fault in [SimFault::Submit, SimFault::Wait, SimFault::Panic] {
        let (harness, finishes) = with_faults(vec![(3, fault)]);
        let FinishReason::Error(message) = &finishes[0] else {
            panic!("{fault:?}: {finishes:?}");
        };
        assert!(message.contains("injected at step 3"), "{message}");
        assert_eq!(finishes[1..], [FinishReason::Length, FinishReason::Length]);
        let stats = harness.engine.stats();
        assert_eq!((stats.num_failed_steps, stats.finished.error), (1, 1));
        assert!(harness.engine.is_executor_healthy());
    }
}

#[test]
fn a_failed_row_ends_its_own_sequence_only() {
    // Step 8 computes a token of each of the two; rows are in order of arrival.
    let (_, finishes) = with_faults(vec![(8, SimFault::Row(1))]);
    assert_eq!(finishes[0], FinishReason::Length);
    assert!(matches!(&finishes[1], FinishReason::Error(message) if message.contains("number")));
    assert_eq!(finishes[2], FinishReason::Length);
}

#[test]
fn an_executor_that_only_fails_is_not_healthy_until_it_works() {
    let config = EngineConfig::default();
    let sim = SimConfig {
        faults: (0..3).map(|step| (step, SimFault::Wait)).collect(),
        ..sim(&config)
    };
    let mut harness = Harness::new(engine_with(config, sim));
    for _ in 0..3 {
        assert!(harness.engine.is_executor_healthy());
        harness.add(&greedy(prompt(1, 5), 5));
        harness.run();
    }
    assert!(!harness.engine.is_executor_healthy());
    harness.add(&greedy(prompt(1, 5), 5));
    harness.run();
    assert!(harness.engine.is_executor_healthy());
}

#[test]
fn a_prompt_that_cannot_be_computed_fails_all_sequences_of_its_request() {
    let config = EngineConfig::default();
    let sim = SimConfig {
        poison_token: Some(5),
        ..sim(&config)
    };
    let mut harness = Harness::new(engine_with(config, sim));
    let clean: Vec<u32> = prompt(1, 20).into_iter().filter(|&t| t != 5).collect();
    let clean = Request {
        sampling: SamplingParams {
            allowed_token_ids: vec![10, 11, 12],
            ..SamplingParams::greedy()
        },
        ..greedy(clean, 10)
    };
    let mut poisoned = clean.prompt.clone();
    poisoned.push(5);
    let good = harness.add(&clean);
    let bad = harness.add(&Request {
        n: 3,
        prompt: poisoned,
        ..clean.clone()
    });
    harness.run();
    assert_eq!(harness.transcripts[&bad].outcomes.len(), 3);
    for outcome in harness.transcripts[&bad].outcomes.values() {
        assert!(matches!(outcome.finish, Some(FinishReason::Error(_))));
        assert_eq!(outcome.tokens, []);
    }
    assert_eq!(harness.transcripts[&good].outcomes, alone(&clean).outcomes);
}

#[test]
fn a_full_queue_refuses_all_sequences_of_a_request_or_none() {
    let config = EngineConfig {
        max_num_queued_requests: 4,
        max_num_queued_tokens: 100,
        ..EngineConfig::default()
    };
    let mut harness = Harness::new(engine(config));
    let now = std::time::Duration::ZERO;
    harness.add(&Request {
        n: 2,
        ..greedy(prompt(1, 10), 5)
    });
    let three = Request {
        n: 3,
        ..greedy(prompt(1, 10), 5)
    };
    let refused = harness.engine.add(three.clone(), now).unwrap_err();
    let full = RequestError::QueueFull {
        num_queued: 2,
        num_queued_tokens: 20,
    };
    assert_eq!(refused, full);
    // One sequence waits, and two are to come of it.
    assert_eq!(harness.engine.stats().num_waiting, 1);
    let long = greedy(prompt(1, 81), 5);
    assert_eq!(harness.engine.add(long, now).unwrap_err(), full);
    harness.step();
    // It has its seats, and counts in the queue no more.
    harness.add(&three);
    harness.run();
}

#[test]
fn what_is_not_accepted_is_refused_by_name() {
    let mut harness = Harness::new(engine(EngineConfig {
        num_blocks: 4,
        max_model_len: 100,
        ..EngineConfig::default()
    }));
    let base = greedy(prompt(1, 10), 5);
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = base.clone();
        change(&mut request);
        request
    };
    let named = [
        ("prompt", with(&|r| r.prompt.clear())),
        ("prompt", with(&|r| r.prompt.push(288))),
        ("n", with(&|r| r.n = 0)),
        ("n", with(&|r| r.n = usize::MAX)),
        ("max_tokens", with(&|r| r.max_tokens = Some(91))),
        ("max_tokens", with(&|r| r.max_tokens = Some(usize::MAX))),
        ("min_tokens", with(&|r| r.sampling.min_tokens = 6)),
        ("min_tokens", with(&|r| r.sampling.min_tokens = usize::MAX)),
        ("temperature", with(&|r| r.sampling.temperature = f32::NAN)),
        ("top_p", with(&|r| r.sampling.top_p = 0.0)),
        (
            "logit_bias",
            with(&|r| r.sampling.logit_bias.push((288, 1.0))),
        ),
        (
            "stop_token_ids",
            with(&|r| r.sampling.stop_token_ids.push(288)),
        ),
        ("logprobs", with(&|r| r.sampling.logprobs = Some(21))),
        ("prompt_logprobs", with(&|r| r.prompt_logprobs = Some(21))),
        ("stop", with(&|r| r.stop.push(String::new()))),
        ("stop", with(&|r| r.stop = vec!["x".to_owned(); 33])),
        (
            "logit_bias",
            with(&|r| r.sampling.logit_bias = vec![(1, 1.0); 20_000]),
        ),
        ("stop", with(&|r| r.stop.push("x".repeat(5000)))),
    ];
    let now = std::time::Duration::ZERO;
    for (field, request) in named {
        match harness.engine.add(request, now) {
            Err(RequestError::InvalidParam {
                field: got,
                message,
            }) => {
                assert_eq!(got, field, "{message}");
            }
            other => panic!("{field}: {other:?}"),
        }
    }
    let long = with(&|r| r.prompt = prompt(1, 101));
    let too_long = RequestError::PromptTooLong {
        num_prompt_tokens: 101,
        max_model_len: 100,
    };
    assert_eq!(harness.engine.add(long, now), Err(too_long));
    let large = with(&|r| r.max_tokens = Some(56));
    let never = RequestError::NeverFits {
        needed_blocks: 5,
        num_blocks: 4,
    };
    assert_eq!(harness.engine.add(large, now), Err(never));
    assert!(!harness.engine.has_work());
    // And the next request works; without max_tokens it may fill the cache.
    let id = harness.add(&with(&|r| r.max_tokens = None));
    harness.run();
    assert_eq!(harness.transcripts[&id].ids(0).len(), 64 + 1 - 10);
}

#[test]
fn latencies_are_observed_on_the_callers_clock() {
    let mut harness = Harness::new(engine(EngineConfig::default()));
    harness.add(&greedy(prompt(1, 20), 5));
    harness.run();
    let stats = harness.engine.stats();
    assert_eq!(stats.num_prompt_tokens, 20);
    assert_eq!(stats.num_generation_tokens, 5);
    assert_eq!(stats.finished.length, 1);
    assert_eq!(stats.time_to_first_token.count(), 1);
    assert_eq!(stats.inter_token_latency.count(), 4);
    assert!((stats.inter_token_latency.sum() - 0.04).abs() < 1e-9);
    assert!((stats.decode_time.sum() - 0.04).abs() < 1e-9);
    assert_eq!(stats.iteration_tokens.sum(), 24.0);
}
