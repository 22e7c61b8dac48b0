//! Beginnings that are kept in the cache whatever else comes.

mod support;

use std::time::Duration;

use pageloom_engine::{
    Engine, EngineConfig, EngineError, Request, RequestError, SimConfig, SimExecutor, SimFault,
};
use support::{Harness, VOCAB_SIZE, alone, engine, engine_with, greedy, prompt, sim, tokenizer};

/// Two that begin alike: 40 tokens, and 16 of those with 30 of their own.
fn shared_prefixes() -> Vec<Vec<u32>> {
    let long = prompt(1, 40);
    let branch = [&long[..16], &prompt(2, 30)[..]].concat();
    vec![long, branch]
}

fn config(num_blocks: usize) -> EngineConfig {
    EngineConfig {
        num_blocks,
        shared_prefixes: shared_prefixes(),
        ..EngineConfig::default()
    }
}

fn begins_with(prefix: &[u32], rest: &[u32]) -> Request {
    greedy([prefix, rest].concat(), 10)
}

#[test]
fn they_are_found_after_the_cache_was_overrun() {
    let mut harness = Harness::new(engine(config(16)));
    harness.run();
    // Two whole blocks of 40 tokens, and one more of 46 that share the first.
    assert_eq!(harness.engine.stats().num_resident_blocks, 3);
    assert!(harness.transcripts.is_empty(), "nobody hears of them");
    for round in 0..3 {
        for family in 10..20 {
            harness.add(&greedy(prompt(family, 100), 20));
            harness.run();
        }
        for (prefix, num_cached) in shared_prefixes().iter().zip([32, 32]) {
            let request = begins_with(prefix, &prompt(3 + round, 7));
            let id = harness.add(&request);
            harness.run();
            let got = &harness.transcripts[&id];
            assert_eq!(got.num_cached_tokens, num_cached, "round {round}");
            assert_eq!(got.outcomes, alone(&request).outcomes);
        }
    }
    let salted = Request {
        cache_salt: Some("salt".to_owned()),
        ..begins_with(&shared_prefixes()[0], &[9])
    };
    let id = harness.add(&salted);
    harness.run();
    assert_eq!(harness.transcripts[&id].num_cached_tokens, 0);
}

#[test]
fn requests_may_come_while_they_are_computed() {
    let requests: Vec<_> = (0..8)
        .map(|i| begins_with(&shared_prefixes()[i % 2], &prompt(i as u32, 9 + 5 * i)))
        .collect();
    for num_steps in 0..4 {
        let tight = EngineConfig {
            max_num_batched_tokens: 16,
            max_num_seqs: 16,
            ..config(14)
        };
        let mut harness = Harness::new(engine(tight));
        for _ in 0..num_steps {
            harness.step();
        }
        let ids: Vec<_> = requests
            .iter()
            .map(|request| harness.add(request))
            .collect();
        harness.run();
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(harness.transcripts[id].outcomes, alone(request).outcomes);
        }
        assert_eq!(harness.engine.stats().num_resident_blocks, 3);
    }
}

#[test]
fn a_request_that_needs_their_blocks_is_refused_at_once() {
    // 13 blocks are left: 208 slots, the last token needs none.
    let mut harness = Harness::new(engine(config(16)));
    harness.add(&greedy(prompt(5, 200), 9));
    harness.run();
    let refused = harness
        .engine
        .add(greedy(prompt(5, 200), 10), Duration::ZERO);
    let expected = RequestError::NeverFits {
        needed_blocks: 14,
        num_blocks: 13,
    };
    assert_eq!(refused, Err(expected));
    let open = Request {
        max_tokens: None,
        ..greedy(prompt(6, 200), 0)
    };
    let id = harness.add(&open);
    harness.run();
    assert_eq!(harness.transcripts[&id].ids(0).len(), 9);
}

#[test]
fn one_whose_step_fails_is_not_kept_and_nothing_else_changes() {
    let config = config(64);
    let sim = SimConfig {
        faults: vec![(0, SimFault::Wait)],
        ..sim(&config)
    };
    let mut harness = Harness::new(engine_with(config, sim));
    harness.run();
    assert_eq!(harness.engine.stats().num_resident_blocks, 0);
    let request = begins_with(&shared_prefixes()[0], &[7; 5]);
    let id = harness.add(&request);
    harness.run();
    assert_eq!(harness.transcripts[&id].outcomes, alone(&request).outcomes);
}

#[test]
fn what_cannot_be_kept_is_refused_before_anything_is_computed() {
    let make = |config: EngineConfig| {
        let executor = Box::new(SimExecutor::new(sim(&config)));
        Engine::new(config, executor, tokenizer()).err()
    };
    assert!(matches!(
        make(config(5)),
        Some(EngineError::SharedPrefixesDoNotFit {
            needed_blocks: 6,
            num_blocks: 5
        })
    ));
    assert!(make(config(6)).is_none());
    let without = EngineConfig {
        enable_prefix_caching: false,
        ..config(64)
    };
    assert!(matches!(
        make(without),
        Some(EngineError::SharedPrefixWithoutCache)
    ));
    let short = EngineConfig {
        max_model_len: 45,
        ..config(64)
    };
    assert!(matches!(
        make(short),
        Some(EngineError::SharedPrefixLength {
            index: 1,
            num_tokens: 46,
            max_model_len: 45
        })
    ));
    let unknown = EngineConfig {
        shared_prefixes: vec![vec![VOCAB_SIZE as u32]],
        ..config(64)
    };
    assert!(matches!(
        make(unknown),
        Some(EngineError::SharedPrefix { index: 0, .. })
    ));
}
