//! Random requests, arrivals, aborts and faults over pools too small for them.

mod support;

use std::time::Duration;

use pageloom_engine::{
    EngineConfig, FinishReason, PreemptionMode, Request, RequestError, SchedulingPolicy, SimConfig,
    SimFault,
};
use pageloom_model_runner::SamplingParams;
use proptest::prelude::*;
use support::{Harness, Transcript, alone, engine_with, prompt, sim};

fn requests() -> impl Strategy<Value = Request> {
    let numbers = (0..3u32, 1..40usize, 1..4usize, 0..30usize);
    let sampling = (any::<[bool; 4]>(), 0..3u64, 0..4usize);
    let rest = (
        prop::option::of(0..3usize),
        prop::option::of(0..2u8),
        0..4u8,
    );
    (numbers, sampling, rest).prop_map(|(numbers, sampling, (prompt_logprobs, salt, stop))| {
        let (family, len, n, max_tokens) = numbers;
        let ([greedy, logprobs, penalty, ignore_eos], seed, min_tokens) = sampling;
        Request {
            n,
            max_tokens: Some(max_tokens),
            sampling: SamplingParams {
                temperature: if greedy { 0.0 } else { 1.0 },
                seed,
                min_tokens: min_tokens.min(max_tokens),
                presence_penalty: if penalty { 1.0 } else { 0.0 },
                logprobs: logprobs.then_some(2),
                ..SamplingParams::default()
            },
            stop: (0..stop)
                .map(|i| "aeu"[i as usize..][..1].to_owned())
                .collect(),
            ignore_eos,
            prompt_logprobs,
            cache_salt: salt.map(|salt| salt.to_string()),
            ..Request::new(prompt(family, len))
        }
    })
}

#[derive(Debug, Clone)]
enum Op {
    Add(Box<Request>),
    Steps(usize),
    Abort(usize),
    AbortInFlight(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => requests().prop_map(|request| Op::Add(Box::new(request))),
        4 => (1..6usize).prop_map(Op::Steps),
        1 => (0..8usize).prop_map(Op::Abort),
        1 => (0..8usize).prop_map(Op::AbortInFlight),
    ]
}

fn faults() -> impl Strategy<Value = Vec<(u64, SimFault)>> {
    let fault = prop_oneof![
        Just(SimFault::Submit),
        Just(SimFault::Wait),
        (0..4usize).prop_map(SimFault::Row),
    ];
    prop::collection::vec((0..60u64, fault), 0..3)
}

prop_compose! {
    fn configs()(
        block_size in 1..6usize,
        slots in 70..200usize,
        host_slots in prop_oneof![Just(0), 1..300usize],
        max_num_seqs in 1..9usize,
        preemption_mode in prop_oneof![
            Just(PreemptionMode::Auto),
            Just(PreemptionMode::Swap),
            Just(PreemptionMode::Recompute),
        ],
        by_priority in any::<bool>(),
        extra_budget in 0..40usize,
        long_prefill_token_threshold in 0..9usize,
        enable_prefix_caching in prop::bool::weighted(0.8),
    ) -> EngineConfig {
        EngineConfig {
            block_size,
            num_blocks: slots.div_ceil(block_size),
            num_host_blocks: host_slots / block_size,
            max_num_seqs,
            preemption_mode,
            scheduling_policy: match by_priority {
                true => SchedulingPolicy::Priority { ageing: Duration::from_millis(100) },
                false => SchedulingPolicy::Fcfs,
            },
            max_num_batched_tokens: max_num_seqs + extra_budget,
            long_prefill_token_threshold,
            max_num_queued_requests: 12,
            enable_prefix_caching,
            ..EngineConfig::default()
        }
    }
}

fn nth_alive(harness: &Harness, n: usize) -> Option<pageloom_engine::RequestId> {
    let mut alive = harness.transcripts.iter().filter(|(_, transcript)| {
        transcript.outcomes.values().any(|o| o.finish.is_none()) || transcript.outcomes.is_empty()
    });
    alive.nth(n).map(|(id, _)| *id)
}

fn abort_in_flight(harness: &mut Harness, n: usize) {
    let now = Duration::ZERO;
    if harness.engine.begin_step(now).expect("never stalls") {
        if let Some(id) = nth_alive(harness, n) {
            harness.abort(id);
        }
        harness.engine.end_step(|| now);
        harness.collect();
    }
}

/// What came out is the beginning of what comes out alone, and all of it unless something
/// happened to the request.
fn check(request: &Request, got: &Transcript) {
    let expected = alone(&Request {
        priority: 0,
        ..request.clone()
    });
    if let Some(logprobs) = &got.prompt_logprobs {
        assert_eq!(Some(logprobs), expected.prompt_logprobs.as_ref());
    }
    assert_eq!(got.outcomes.len(), request.n);
    for (index, outcome) in &got.outcomes {
        let whole = &expected.outcomes[index];
        match outcome.finish.as_ref().expect("finished") {
            FinishReason::Abort | FinishReason::Error(_) => {
                let num_tokens = outcome.tokens.len();
                assert_eq!(outcome.tokens, whole.tokens[..num_tokens]);
            }
            _ => assert_eq!(outcome, whole),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_request_gets_what_it_would_get_alone(
        config in configs(),
        faults in faults(),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let by_priority = config.scheduling_policy != SchedulingPolicy::Fcfs;
        let most_seqs = config.max_num_seqs;
        let sim = SimConfig { faults, ..sim(&config) };
        let mut harness = Harness::new(engine_with(config, sim));
        let mut added = Vec::new();
        for op in ops {
            match op {
                Op::Add(mut request) => {
                    request.n = request.n.min(most_seqs);
                    request.priority = if by_priority { request.prompt.len() as i32 % 3 } else { 0 };
                    match harness.engine.add((*request).clone(), Duration::ZERO) {
                        Ok(id) => {
                            harness.transcripts.insert(id, Transcript::default());
                            added.push((id, request));
                        }
                        Err(RequestError::QueueFull { .. }) => {}
                        Err(RequestError::NeverFits { .. }) if request.n > 1 => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                Op::Steps(n) => for _ in 0..n {
                    harness.step();
                },
                Op::Abort(n) => if let Some(id) = nth_alive(&harness, n) {
                    harness.abort(id);
                },
                Op::AbortInFlight(n) => abort_in_flight(&mut harness, n),
            }
        }
        harness.run();
        for (id, request) in added {
            check(&request, &harness.transcripts[&id]);
        }
    }
}
