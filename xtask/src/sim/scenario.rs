//! What one seed stands for: an engine's configuration, an executor's manners, and what clients do.

use std::time::Duration;

use pageloom_engine::{EngineConfig, NgramConfig, PreemptionMode, SchedulingPolicy, SimFault};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{
    arrivals::{self, Arrival},
    guesses::{Guesses, guesses},
};

/// All that happens in one simulation. Running it twice gives the same.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) config: EngineConfig,
    pub(crate) executor: ExecutorSpec,
    /// Drafts in place of those of the configuration.
    pub(crate) guesses: Option<Guesses>,
    /// In order of arrival; see [`Arrival::gap`].
    pub(crate) arrivals: Vec<Arrival>,
    /// Accepted requests, by number, that are sent once more when all others have ended: they
    /// read what those left in the cache.
    pub(crate) revisits: Vec<usize>,
    /// Steps from one draining of the events to the next: above 1, the consumer is slow.
    pub(crate) drain_every: usize,
    /// Time at which every request is aborted at once.
    pub(crate) abort_all_at: Option<Duration>,
}

/// The simulator's part.
#[derive(Debug, Clone)]
pub(crate) struct ExecutorSpec {
    pub(crate) vocab_size: usize,
    /// What a token takes, and a block that is moved: on which side of the other they are
    /// decides what [`PreemptionMode::Auto`] does.
    pub(crate) token_time: Duration,
    pub(crate) swap_time: Duration,
    pub(crate) faults: Vec<(u64, SimFault)>,
    pub(crate) poison_token: Option<u32>,
}

/// The scenario of a seed as a tree that can be shrunk.
pub(crate) fn tree(seed: u64) -> impl ValueTree<Value = Scenario> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    scenarios()
        .new_tree(&mut runner)
        .expect("nothing is filtered")
}

prop_compose! {
    fn scenarios()(
        config in configs(),
        executor in executors(),
        guesses in prop::option::weighted(0.4, guesses()),
        arrivals in arrivals::arrivals(),
        revisits in prop::collection::vec(0..16usize, 0..5),
        drain_every in prop_oneof![3 => Just(1), 1 => 2..20usize],
        abort_all_at in prop::option::weighted(0.05, millis(0..2_000)),
        prefixes in prop_oneof![4 => Just(Vec::new()), 1 => arrivals::shared_prefixes()],
    ) -> Scenario {
        let config = with_shared_prefixes(config, prefixes);
        let arrivals = arrivals.into_iter().map(|arrival| arrival.fit(&config)).collect();
        Scenario { config, executor, guesses, arrivals, revisits, drain_every, abort_all_at }
    }
}

/// The configuration with prefixes to be held for good, if they are acceptable beside the rest.
fn with_shared_prefixes(config: EngineConfig, shared_prefixes: Vec<Vec<u32>>) -> EngineConfig {
    let with = EngineConfig {
        shared_prefixes,
        ..config.clone()
    };
    let num_tokens: usize = with.shared_prefixes.iter().map(Vec::len).sum();
    let fits_queue = with.shared_prefixes.len() <= with.max_num_queued_requests
        && num_tokens <= with.max_num_queued_tokens;
    if fits_queue && with.validate().is_ok() {
        with
    } else {
        config
    }
}

pub(crate) fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> + Clone {
    range.prop_map(Duration::from_millis)
}

fn policies() -> impl Strategy<Value = SchedulingPolicy> {
    let ageing = prop_oneof![
        1 => Just(Duration::ZERO),
        4 => millis(1..300),
        2 => Just(Duration::from_secs(1_000)),
    ];
    prop_oneof![
        Just(SchedulingPolicy::Fcfs),
        ageing.prop_map(|ageing| SchedulingPolicy::Priority { ageing }),
    ]
}

prop_compose! {
    fn ngrams()(
        num_speculative_tokens in 1..9usize,
        prompt_lookup_min in 1..3usize,
        more in 0..3usize,
    ) -> NgramConfig {
        let prompt_lookup_max = prompt_lookup_min + more;
        NgramConfig { num_speculative_tokens, prompt_lookup_min, prompt_lookup_max }
    }
}

prop_compose! {
    /// Pools of some tens to two hundred tokens, where requests of some tens of tokens meet.
    fn configs()(
        block_size in prop_oneof![6 => 1..6usize, 2 => 6..9usize, 1 => Just(16usize)],
        slots in prop_oneof![1 => 20..60usize, 6 => 60..140usize, 1 => 140..400usize],
        host_share in prop_oneof![2 => Just(0.0), 2 => 0.05..1.0f64, 2 => Just(2.0)],
        context in prop_oneof![1 => 16..40usize, 6 => 40..120usize],
        max_num_seqs in prop_oneof![1 => 1..6usize, 4 => 6..17usize],
        extra_budget in prop_oneof![1 => Just(0), 3 => 1..40usize, 2 => Just(256)],
        long_prefill_token_threshold in prop_oneof![2 => Just(0), 1 => 1..9usize],
        queue in (
            prop_oneof![1 => 1..6usize, 6 => Just(64)],
            prop_oneof![1 => 20..200usize, 6 => Just(1 << 16)],
        ),
        max_n in 1..7usize,
        enable_prefix_caching in prop::bool::weighted(0.8),
        scheduling_policy in policies(),
        preemption_mode in prop_oneof![
            Just(PreemptionMode::Auto),
            Just(PreemptionMode::Swap),
            Just(PreemptionMode::Recompute),
        ],
        watermark in prop_oneof![4 => Just(0.0), 4 => Just(0.01), 1 => Just(0.1), 1 => Just(0.5)],
        hash_seed in any::<u64>(),
        speculative in prop::option::weighted(0.2, ngrams()),
    ) -> EngineConfig {
        let num_blocks = slots.div_ceil(block_size).max(3);
        EngineConfig {
            block_size,
            num_blocks,
            num_host_blocks: (num_blocks as f64 * host_share).ceil() as usize,
            max_model_len: context,
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra_budget,
            long_prefill_token_threshold,
            max_num_queued_requests: queue.0,
            max_num_queued_tokens: queue.1,
            max_n,
            enable_prefix_caching,
            scheduling_policy,
            preemption_mode,
            watermark,
            speculative,
            hash_seed,
            ..EngineConfig::default()
        }
    }
}

fn faults() -> impl Strategy<Value = Vec<(u64, SimFault)>> {
    let of_steps = prop_oneof![
        1 => Just(SimFault::Submit),
        // Few steps have transfers: a number drawn at random misses them.
        3 => Just(SimFault::SubmitTransfers),
        1 => Just(SimFault::Wait),
        1 => Just(SimFault::Panic),
    ];
    // A second one at the same step strikes when what the first left undone is done again.
    let of_steps = (0..80u64, of_steps, prop::bool::weighted(0.2));
    let of_steps = of_steps.prop_map(|(at, fault, twice)| {
        let num_strikes = if twice { 2 } else { 1 };
        vec![(at, fault); num_strikes]
    });
    // Steps have few rows, and fewer of them are the first of their sequences.
    let of_rows = (0..60u64, 0..6usize).prop_map(|(at, row)| (at, SimFault::Row(row)));
    prop_oneof![
        3 => Just(Vec::new()),
        2 => prop::collection::vec(of_steps, 1..4).prop_map(|faults| faults.concat()),
        1 => prop::collection::vec(of_rows, 1..16),
    ]
}

prop_compose! {
    fn executors()(
        // The test tokenizer's first 96 tokens are letters, digits and punctuation; from there to
        // 288 are the bytes that only parts of characters have.
        vocab_size in prop_oneof![3 => Just(96usize), 1 => Just(288usize)],
        token_micros in prop_oneof![Just(20u64), Just(1_000u64)],
        swap_micros in prop_oneof![Just(10u64), Just(3_000u64)],
        faults in faults(),
        poison_token in prop::option::weighted(0.1, 3..96u32),
    ) -> ExecutorSpec {
        ExecutorSpec {
            vocab_size,
            token_time: Duration::from_micros(token_micros),
            swap_time: Duration::from_micros(swap_micros),
            faults,
            poison_token,
        }
    }
}
