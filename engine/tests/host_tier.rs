//! What moves between device and host reads as it did, whatever fails.

mod support;

use pageloom_engine::{
    Engine, EngineConfig, FinishReason, ModelExecutor, Request, RequestId, SimConfig, SimFault,
};
use pageloom_model_runner::{CpuRunner, SamplingParams};
use support::{
    Harness, MakeEngine, alone, alone_in, engine, engine_with, greedy, model_engine, prompt, sim,
    tokenizer,
};

/// Twelve blocks on the device, twice as many on the host.
fn small() -> EngineConfig {
    EngineConfig {
        num_blocks: 12,
        num_host_blocks: 24,
        max_num_seqs: 8,
        ..EngineConfig::default()
    }
}

/// Takes ten blocks of the twelve, so that what others cached there has to make way.
fn large(family: u32) -> Request {
    greedy(prompt(family, 150), 5)
}

fn with_logprobs(request: Request) -> Request {
    let sampling = SamplingParams {
        logprobs: Some(3),
        ..request.sampling
    };
    Request {
        sampling,
        ..request
    }
}

#[test]
fn a_prefix_that_was_evicted_to_the_host_is_found_there_bit_for_bit() {
    for make in [engine as MakeEngine, model_engine] {
        let mut harness = Harness::new(make(small()));
        let first = with_logprobs(greedy(prompt(1, 70), 10));
        let expected = alone_in(make, &first);
        for round in 0..3 {
            let id = harness.add(&first);
            harness.run();
            let transcript = &harness.transcripts[&id];
            assert_eq!(transcript.outcomes, expected.outcomes, "round {round}");
            let expected_hit = if round == 0 { 0 } else { 64 };
            assert_eq!(transcript.num_cached_tokens, expected_hit, "round {round}");
            harness.add(&large(2 + round));
            harness.run();
        }
    }
}

#[test]
fn without_a_host_tier_what_was_evicted_is_computed_again() {
    let mut harness = Harness::new(engine(EngineConfig {
        num_host_blocks: 0,
        ..small()
    }));
    let request = greedy(prompt(1, 70), 10);
    harness.add(&request);
    harness.run();
    harness.add(&large(2));
    harness.run();
    let id = harness.add(&request);
    harness.run();
    let transcript = &harness.transcripts[&id];
    assert!(transcript.num_cached_tokens < 64);
    assert_eq!(transcript.outcomes, alone(&request).outcomes);
}

/// Caches a prompt, has it evicted to the host by one request and found there by another, with
/// neighbours all along, and asks for all prompts again. Returns the requests and their ids.
fn history(harness: &mut Harness) -> Vec<(RequestId, Request)> {
    let mut added = Vec::new();
    let mut add = |harness: &mut Harness, request: Request| {
        added.push((harness.add(&request), request));
    };
    for family in [1, 2, 3] {
        add(harness, greedy(prompt(family, 70), 3));
        harness.run();
    }
    add(harness, large(4));
    for _ in 0..2 {
        harness.step();
    }
    add(harness, greedy(prompt(5, 20), 6));
    add(harness, greedy(prompt(1, 75), 6));
    harness.run();
    for family in [4, 3, 2, 1] {
        add(harness, greedy(prompt(family, 80), 3));
        harness.run();
    }
    added
}

/// What came out is the beginning of what comes out alone, and all of it without an error.
/// Returns how many ended with one.
fn check(harness: &Harness, added: &[(RequestId, Request)], what: &str) -> usize {
    let mut num_errors = 0;
    for (id, request) in added {
        let expected = alone(request).ids(0);
        let transcript = &harness.transcripts[id];
        let got = transcript.ids(0);
        match &transcript.outcomes[&0].finish {
            Some(FinishReason::Error(message)) => {
                assert!(message.contains("injected"), "{what}: {message}");
                num_errors += 1;
                assert_eq!(got, expected[..got.len()], "{what}: {:?}", request.prompt);
            }
            _ => assert_eq!(got, expected, "{what}: {:?}", request.prompt),
        }
    }
    num_errors
}

fn harness_with(faults: Vec<(u64, SimFault)>) -> Harness {
    let sim = SimConfig {
        faults,
        ..sim(&small())
    };
    Harness::new(engine_with(small(), sim))
}

#[test]
fn a_step_that_fails_loses_no_block_that_it_was_to_move() {
    let mut whole = harness_with(Vec::new());
    let added = history(&mut whole);
    assert_eq!(check(&whole, &added, "no fault"), 0);
    let num_cached: usize = whole
        .transcripts
        .values()
        .map(|t| t.num_cached_tokens)
        .sum();
    assert!(num_cached > 4 * 64, "found {num_cached} tokens");
    for step in 0..60 {
        for fault in [SimFault::Submit, SimFault::Wait, SimFault::Panic] {
            let mut harness = harness_with(vec![(step, fault)]);
            let added = history(&mut harness);
            let num_errors = check(&harness, &added, &format!("{fault:?} at {step}"));
            let num_failed = harness.engine.stats().num_failed_steps;
            assert_eq!(num_failed > 0, num_errors > 0);
            assert!(harness.engine.is_executor_healthy());
        }
    }
}

#[test]
fn if_the_moves_of_a_failed_step_fail_too_every_request_ends_and_no_block_is_lost() {
    let mut num_twice = 0;
    for step in 0..60 {
        // The second strikes when the transfers alone are submitted, the third when a later
        // request lets the engine try again, or while they are done.
        for last in [SimFault::Submit, SimFault::Wait, SimFault::Panic] {
            let faults = vec![
                (step, SimFault::Submit),
                (step, SimFault::Submit),
                (step, last),
            ];
            let mut harness = harness_with(faults);
            let added = history(&mut harness);
            let num_errors = check(&harness, &added, &format!("{last:?} at {step}"));
            let num_failed = harness.engine.stats().num_failed_steps;
            assert!(num_errors as u64 >= num_failed.min(1));
            num_twice += usize::from(num_failed > 1);
        }
    }
    assert!(num_twice > 0, "no failed step was to move anything");
}

#[test]
fn an_executor_with_fewer_host_blocks_than_the_engine_thinks_is_an_error_and_no_panic() {
    let runner = |num_host_blocks| -> CpuRunner {
        let config = EngineConfig {
            num_host_blocks,
            ..small()
        };
        support::runner(&config)
    };
    for num_host_blocks in [0, 1] {
        let executor = Box::new(ModelExecutor::new(runner(num_host_blocks)));
        let mut harness = Harness::new(Engine::new(small(), executor, tokenizer()).unwrap());
        for family in 1..6 {
            harness.add(&large(family));
            harness.run();
        }
        let finishes: Vec<_> = (harness.transcripts.values())
            .map(|t| t.outcomes[&0].finish.clone().expect("ended"))
            .collect();
        assert_eq!(finishes[0], FinishReason::Length);
        let FinishReason::Error(message) = &finishes[4] else {
            panic!("{finishes:?}");
        };
        assert!(message.contains("host blocks"), "{message}");
    }
}
