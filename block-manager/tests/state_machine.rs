//! Random histories against a naive model and a shadow memory; see `harness`.

mod harness;

use harness::{Fault, Op, Setup, run};
use pageloom_block_manager::{Config, Eviction};
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, TestRunner};

fn op() -> impl Strategy<Value = Op> {
    let byte = any::<u8>;
    prop_oneof![
        6 => (byte(), byte(), byte()).prop_map(|(family, len, ns)| Op::Open { family, len, ns }),
        1 => (byte(), byte(), byte()).prop_map(|(family, len, ns)| Op::OpenEmpty { family, len, ns }),
        8 => (byte(), byte(), byte(), byte(), byte())
            .prop_map(|(family, len, ns, keep, extra)| Op::Admit { family, len, ns, keep, extra }),
        24 => (byte(), byte(), byte())
            .prop_map(|(seq, num_tokens, token)| Op::Plan { seq, num_tokens, token }),
        12 => Just(Op::Seal),
        12 => Just(Op::Run),
        10 => Just(Op::Complete),
        8 => byte().prop_map(|seq| Op::Fork { seq }),
        4 => (byte(), byte()).prop_map(|(seq, keep)| Op::Truncate { seq, keep }),
        2 => (byte(), byte()).prop_map(|(seq, position)| Op::ReleaseBefore { seq, position }),
        14 => byte().prop_map(|seq| Op::Release { seq }),
        3 => (byte(), byte()).prop_map(|(seq, others)| Op::SwapOut { seq, others }),
        9 => (byte(), byte(), byte())
            .prop_map(|(seq, others, keep)| Op::SwapIn { seq, others, keep }),
        1 => Just(Op::Reset),
    ]
}

fn setup(fault: Fault) -> impl Strategy<Value = Setup> {
    let sizes = (1usize..6, 1usize..33, 0usize..25);
    let policy = prop_oneof![Just(Eviction::Lru), Just(Eviction::SegmentedLru)];
    let config = (
        sizes,
        prop::bool::weighted(0.8),
        any::<u64>(),
        policy,
        any::<bool>(),
    );
    (config, any::<bool>(), 1u64..).prop_map(move |(config, commit_early, shuffle_seed)| {
        let (
            (block_size, num_blocks, num_host_blocks),
            prefix_caching,
            hash_seed,
            eviction,
            events,
        ) = config;
        Setup {
            config: Config {
                block_size,
                num_blocks,
                num_host_blocks: match fault {
                    // Only copies are ordered then.
                    Fault::CopiesUnpinned => 0,
                    _ => num_host_blocks,
                },
                // Without it a tail is copied only because it is shared.
                prefix_caching: prefix_caching && fault != Fault::SharedTailWritten,
                hash_seed,
                eviction,
                events,
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
    let histories = (setup(Fault::None), prop::collection::vec(op(), 1..300));
    let mut runner = TestRunner::new(cases());
    let result = runner.run(&histories, |(setup, ops)| {
        run(setup, &ops).map_err(TestCaseError::fail)
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// What the shadow memory says.
const MEMORY: &str = "does not hold its token";

/// Breaks one rule on purpose; a harness in which the check named does not notice proves nothing.
fn must_fail(fault: Fault, noticed_by: &str) {
    let histories = (setup(fault), prop::collection::vec(op(), 1..300));
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
            failure.to_string().contains(noticed_by),
            "{fault:?} was noticed by something else: {failure}"
        ),
    }
}

#[test]
fn control_copies_skipped() {
    must_fail(Fault::CopiesSkipped, MEMORY);
}

#[test]
fn control_copies_done_late() {
    must_fail(Fault::CopiesLate, MEMORY);
}

#[test]
fn control_copies_done_before_swaps() {
    must_fail(Fault::CopiesFirst, MEMORY);
}

#[test]
fn control_endpoints_of_copies_unpinned() {
    must_fail(Fault::CopiesUnpinned, MEMORY);
}

#[test]
fn control_swaps_skipped() {
    must_fail(Fault::SwapsSkipped, MEMORY);
}

#[test]
fn control_swap_ins_done_before_swap_outs() {
    must_fail(Fault::SwapInsFirst, MEMORY);
}

#[test]
fn control_endpoints_of_swaps_unpinned() {
    must_fail(Fault::SwapsUnpinned, MEMORY);
}

#[test]
fn control_sharing_lost_in_a_swap() {
    must_fail(Fault::SwappedApart, "sharing was lost in a swap");
}

#[test]
fn control_shared_tail_written_in_place() {
    must_fail(Fault::SharedTailWritten, MEMORY);
}

#[test]
fn control_published_tail_written_in_place() {
    must_fail(Fault::PublishedTailWritten, MEMORY);
}

#[test]
fn control_namespace_ignored() {
    must_fail(Fault::NamespaceIgnored, MEMORY);
}
