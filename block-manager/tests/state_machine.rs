//! Random histories against a naive model and a shadow memory; see `harness`.

mod harness;

use harness::{Fault, Op, Setup, run};
use pageloom_block_manager::Config;
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, TestRunner};

fn op() -> impl Strategy<Value = Op> {
    let byte = any::<u8>;
    prop_oneof![
        4 => (byte(), byte(), byte()).prop_map(|(family, len, ns)| Op::Open { family, len, ns }),
        1 => (byte(), byte(), byte()).prop_map(|(family, len, ns)| Op::OpenEmpty { family, len, ns }),
        12 => (byte(), byte(), byte())
            .prop_map(|(seq, num_tokens, token)| Op::Plan { seq, num_tokens, token }),
        6 => Just(Op::Seal),
        6 => Just(Op::Run),
        5 => Just(Op::Complete),
        4 => byte().prop_map(|seq| Op::Fork { seq }),
        2 => (byte(), byte()).prop_map(|(seq, keep)| Op::Truncate { seq, keep }),
        3 => byte().prop_map(|seq| Op::Release { seq }),
        1 => Just(Op::Reset),
    ]
}

fn setup(fault: Fault) -> impl Strategy<Value = Setup> {
    let config = (1usize..6, 1usize..25, any::<bool>(), any::<u64>());
    (config, any::<bool>(), 1u64..).prop_map(move |(config, commit_early, shuffle_seed)| {
        let (block_size, num_blocks, prefix_caching, hash_seed) = config;
        Setup {
            config: Config {
                block_size,
                num_blocks,
                prefix_caching,
                hash_seed,
            },
            commit_early,
            shuffle_seed,
            fault,
        }
    })
}

/// Histories to try; more with `PROPTEST_CASES` set.
fn cases() -> RunnerConfig {
    RunnerConfig {
        max_shrink_iters: 20_000,
        ..RunnerConfig::default()
    }
}

#[test]
fn every_history_matches_the_model_and_every_read_finds_its_token() {
    let histories = (setup(Fault::None), prop::collection::vec(op(), 1..150));
    let mut runner = TestRunner::new(cases());
    let result = runner.run(&histories, |(setup, ops)| {
        run(setup, &ops).map_err(TestCaseError::fail)
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// Breaks one rule on purpose; a harness that does not notice proves nothing.
fn must_fail(fault: Fault) {
    let histories = (setup(fault), prop::collection::vec(op(), 1..150));
    let config = RunnerConfig {
        failure_persistence: None,
        cases: 2_000,
        max_shrink_iters: 0,
        ..RunnerConfig::default()
    };
    // A fixed seed: whether a control is noticed must not depend on luck.
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&histories, |(setup, ops)| {
        run(setup, &ops).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => panic!("{fault:?} went unnoticed"),
        Err(failure) => assert!(
            failure.to_string().contains("does not hold its token"),
            "{fault:?} was noticed by something else: {failure}"
        ),
    }
}

#[test]
fn control_copies_skipped() {
    must_fail(Fault::CopiesSkipped);
}

#[test]
fn control_copies_done_late() {
    must_fail(Fault::CopiesLate);
}

#[test]
fn control_endpoints_unpinned() {
    must_fail(Fault::EndpointsUnpinned);
}

#[test]
fn control_shared_tail_written_in_place() {
    must_fail(Fault::WrittenInPlace);
}

#[test]
fn control_namespace_ignored() {
    must_fail(Fault::NamespaceIgnored);
}
