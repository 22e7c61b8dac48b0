//! Random histories of adds, steps, aborts and failures over pools too small for them.

mod shadow;

use std::collections::BTreeMap;
use std::time::Duration;

use pageloom_scheduler::{
    AdmissionError, Config, Namespace, NewSequence, PreemptionMode, SchedulingPolicy, SeqId,
};
use proptest::prelude::*;
use shadow::Shadow;

#[derive(Debug, Clone)]
enum Op {
    Add {
        family: u32,
        prompt_len: usize,
        max_tokens: usize,
        score: bool,
        num_seqs: usize,
        lockstep: bool,
        namespace: u64,
        priority: i32,
    },
    Step,
    /// A step in which one sequence fails and one is aborted.
    Mishap {
        fail: usize,
        abort: usize,
    },
    Abort(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let sizes = (0..2u32, 1..30usize, 0..20usize);
    let num_seqs = prop_oneof![3 => Just(1), 1 => 2..6usize];
    let add = (sizes, any::<[bool; 2]>(), num_seqs, 0..8u64, -1..2i32).prop_map(
        |((family, prompt_len, max_tokens), [score, lockstep], num_seqs, namespace, priority)| {
            Op::Add {
                family,
                prompt_len,
                max_tokens,
                score,
                num_seqs,
                lockstep: lockstep && num_seqs > 1,
                namespace: namespace / 7,
                priority,
            }
        },
    );
    prop_oneof![
        4 => add,
        8 => Just(Op::Step),
        1 => (0..4usize, 0..4usize).prop_map(|(fail, abort)| Op::Mishap { fail, abort }),
        1 => (0..16usize).prop_map(Op::Abort),
    ]
}

prop_compose! {
    fn configs()(
        block_size in 1..6usize,
        num_blocks in 2..32usize,
        num_host_blocks in prop_oneof![Just(0), 1..40usize],
        max_num_seqs in 1..9usize,
        extra_budget in 0..24usize,
        long_prefill_token_threshold in 0..8usize,
        watermark in prop_oneof![Just(0.0), Just(0.01), Just(0.5)],
        prefix_caching in prop::bool::weighted(0.8),
        policy in prop_oneof![
            Just(SchedulingPolicy::Fcfs),
            (0..4u64).prop_map(|ms| SchedulingPolicy::Priority { ageing: Duration::from_millis(ms) }),
        ],
        preemption_mode in prop_oneof![
            Just(PreemptionMode::Auto),
            Just(PreemptionMode::Swap),
            Just(PreemptionMode::Recompute),
        ],
    ) -> (Config, pageloom_block_manager::Config) {
        let config = Config {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra_budget,
            max_model_len: 40,
            max_num_queued_requests: 12,
            max_num_queued_tokens: 200,
            long_prefill_token_threshold,
            watermark,
            policy,
            preemption_mode,
            ..Config::default()
        };
        let blocks = pageloom_block_manager::Config {
            block_size,
            num_blocks,
            num_host_blocks,
            prefix_caching,
            hash_seed: 7,
            ..Default::default()
        };
        (config, blocks)
    }
}

/// Prompts of a family are prefixes of each other, but for the last token of every third.
fn prompt(family: u32, len: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..len as u32).map(|i| family * 100 + i % 7).collect();
    if len.is_multiple_of(3) {
        tokens[len - 1] = 999;
    }
    tokens
}

fn nth(shadow: &Shadow, n: usize) -> Option<SeqId> {
    let mut ids: Vec<_> = shadow.mirrors.keys().copied().collect();
    ids.sort();
    ids.get(n % ids.len().max(1)).copied()
}

fn add(shadow: &mut Shadow, new: NewSequence) {
    let before = shadow.scheduler.stats();
    let (len, max_tokens, num_seqs) = (new.prompt.len(), new.max_tokens, new.num_seqs);
    let config = shadow.scheduler.config().clone();
    let blocks = shadow.scheduler.block_manager().config().clone();
    let too_long = len + max_tokens > config.max_model_len;
    let slots = len + max_tokens - usize::from(max_tokens > 0);
    let mut needed = slots.div_ceil(blocks.block_size);
    if num_seqs > 1 {
        let shared = len / blocks.block_size;
        needed = shared + num_seqs * (needed - shared + 1);
    }
    let never = needed > blocks.num_blocks;
    let full = before.num_queued + num_seqs > config.max_num_queued_requests
        || before.num_queued_tokens + len * num_seqs > config.max_num_queued_tokens;
    match shadow.add(new) {
        Ok(_) => assert!(!too_long && !never && !full),
        Err(AdmissionError::TooManySeqs { .. }) => assert!(num_seqs > config.max_num_seqs),
        Err(AdmissionError::TooLong { .. }) => assert!(too_long),
        Err(AdmissionError::NeverFits { .. }) => assert!(never),
        Err(AdmissionError::QueueFull { .. }) => assert!(full),
        Err(other) => panic!("{other}"),
    }
}

fn run(
    config: Config,
    blocks: pageloom_block_manager::Config,
    num_drafts: usize,
    ops: Vec<Op>,
) -> Shadow {
    let mut shadow = Shadow::new(config, blocks).with_drafts(num_drafts);
    for op in ops {
        match op {
            Op::Add {
                family,
                prompt_len,
                max_tokens,
                score,
                num_seqs,
                lockstep,
                namespace,
                priority,
            } => {
                let new = NewSequence {
                    prompt: prompt(family, prompt_len),
                    max_tokens,
                    namespace: Namespace(namespace),
                    score_prompt: score,
                    num_seqs,
                    lockstep,
                    priority,
                };
                add(&mut shadow, new);
            }
            Op::Step => _ = shadow.step(|_| false, |_| false),
            Op::Mishap { fail, abort } => _ = shadow.step(|i| i == fail, |i| i == abort),
            Op::Abort(n) => {
                if let Some(id) = nth(&shadow, n) {
                    shadow.finish(id);
                }
            }
        }
    }
    // At worst one sequence runs at a time, one token a step, and each preemption costs it all
    // it had; the bound is far above what was ever seen and far below never.
    shadow.drain(20_000);
    shadow
}

fn drafts() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1..8usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_history_keeps_the_invariants_and_ends(
        (config, blocks) in configs(),
        num_drafts in drafts(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        run(config, blocks, num_drafts, ops);
    }

    #[test]
    fn a_sequence_gets_the_same_tokens_whatever_happens_around_it(
        (config, blocks) in configs(),
        num_drafts in drafts(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let shadow = run(config, blocks, num_drafts, ops);
        let mut groups: BTreeMap<SeqId, Vec<_>> = BTreeMap::new();
        for (mirror, _) in &shadow.finished {
            groups.entry(mirror.root).or_default().push(mirror);
        }
        for (root, members) in groups {
            let first = members[0];
            let roomy = pageloom_block_manager::Config { num_blocks: 256, ..Default::default() };
            let mut alone = Shadow::new(Config::default(), roomy);
            alone.add(NewSequence {
                prompt: first.tokens[..first.num_prompt].to_vec(),
                max_tokens: first.max_len - first.num_prompt,
                namespace: first.namespace,
                num_seqs: first.num_seqs,
                lockstep: first.lockstep,
                ..Default::default()
            }).unwrap();
            alone.drain(1000);
            let mut expected: Vec<_> = alone.finished.iter().map(|(m, _)| &m.tokens).collect();
            let mut found: Vec<_> = members.iter().map(|m| &m.tokens).collect();
            if shadow.disturbed.contains(&root) {
                if first.num_seqs == 1 {
                    prop_assert_eq!(&first.tokens[..], &expected[0][..first.tokens.len()]);
                }
                continue;
            }
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
