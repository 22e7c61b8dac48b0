//! Random histories of adds, steps, aborts and failures over pools too small for them.

mod shadow;

use pageloom_scheduler::{AdmissionError, Config, EndReason, Namespace, NewSequence, SeqId};
use proptest::prelude::*;
use shadow::Shadow;

#[derive(Debug, Clone)]
enum Op {
    Add {
        family: u32,
        prompt_len: usize,
        max_tokens: usize,
        score: bool,
        follow: bool,
        namespace: u64,
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
    let add = (0..2u32, 1..30usize, 0..20usize, any::<[bool; 2]>(), 0..8u64).prop_map(
        |(family, prompt_len, max_tokens, [score, follow], namespace)| Op::Add {
            family,
            prompt_len,
            max_tokens,
            score,
            follow,
            namespace: namespace / 7,
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
        num_blocks in 2..24usize,
        max_num_seqs in 1..9usize,
        extra_budget in 0..24usize,
        long_prefill_token_threshold in 0..8usize,
        watermark in prop_oneof![Just(0.0), Just(0.01), Just(0.5)],
        prefix_caching in prop::bool::weighted(0.8),
    ) -> (Config, pageloom_block_manager::Config) {
        let config = Config {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + extra_budget,
            max_model_len: 40,
            max_num_queued_requests: 12,
            max_num_queued_tokens: 200,
            long_prefill_token_threshold,
            watermark,
        };
        let blocks = pageloom_block_manager::Config {
            block_size,
            num_blocks,
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
    let (len, max_tokens) = (new.prompt.len(), new.max_tokens);
    let config = shadow.scheduler.config().clone();
    let blocks = shadow.scheduler.block_manager().config().clone();
    let slots = blocks.num_blocks * blocks.block_size;
    let too_long = len + max_tokens > config.max_model_len;
    let never = len + max_tokens - usize::from(max_tokens > 0) > slots;
    let full = before.num_queued == config.max_num_queued_requests
        || before.num_queued_tokens + len > config.max_num_queued_tokens;
    match shadow.add(new) {
        Ok(_) => assert!(!too_long && !never && !full),
        Err(AdmissionError::TooLong { .. }) => assert!(too_long),
        Err(AdmissionError::NeverFits { .. }) => assert!(never),
        Err(AdmissionError::QueueFull { .. }) => assert!(full),
        Err(other) => panic!("{other}"),
    }
}

fn run(config: Config, blocks: pageloom_block_manager::Config, ops: Vec<Op>) -> Shadow {
    let mut shadow = Shadow::new(config, blocks);
    for op in ops {
        match op {
            Op::Add {
                family,
                prompt_len,
                max_tokens,
                score,
                follow,
                namespace,
            } => {
                let follows = follow.then(|| nth(&shadow, prompt_len)).flatten();
                let new = NewSequence {
                    prompt: prompt(family, prompt_len),
                    max_tokens,
                    namespace: Namespace(namespace),
                    score_prompt: score,
                    follows,
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_history_keeps_the_invariants_and_ends(
        (config, blocks) in configs(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        run(config, blocks, ops);
    }

    #[test]
    fn a_sequence_gets_the_same_tokens_whatever_happens_around_it(
        (config, blocks) in configs(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        for (mirror, reason) in run(config, blocks, ops).finished {
            let roomy = pageloom_block_manager::Config { num_blocks: 64, ..Default::default() };
            let mut alone = Shadow::new(Config::default(), roomy);
            alone.add(NewSequence {
                prompt: mirror.tokens[..mirror.num_prompt].to_vec(),
                max_tokens: mirror.max_len - mirror.num_prompt,
                namespace: mirror.namespace,
                ..Default::default()
            }).unwrap();
            alone.drain(1000);
            let expected = &alone.finished[0].0.tokens;
            prop_assert_eq!(&mirror.tokens, &expected[..mirror.tokens.len()]);
            prop_assert!(reason == EndReason::Failed || mirror.tokens.len() == expected.len());
        }
    }
}
