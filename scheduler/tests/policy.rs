//! Who is served when, claim by claim.

use std::time::Duration;

use pageloom_scheduler::{
    AdmissionError, BlockManager, Config, EndReason, NewSequence, PreemptionMode, Scheduler,
    SchedulingPolicy, SeqEvent, SeqId, SeqResult,
};

const NOW: Duration = Duration::ZERO;

/// A pool of `num_blocks` blocks of 4 tokens, without a watermark.
fn scheduler(num_blocks: usize, config: Config) -> Scheduler {
    let blocks = BlockManager::new(pageloom_block_manager::Config {
        block_size: 4,
        num_blocks,
        ..Default::default()
    });
    let config = Config {
        watermark: 0.0,
        ..config
    };
    Scheduler::new(config, blocks.unwrap()).unwrap()
}

fn seq(prompt: std::ops::Range<u32>, max_tokens: usize) -> NewSequence {
    NewSequence {
        prompt: prompt.collect(),
        max_tokens,
        ..Default::default()
    }
}

/// Runs a step in which everybody draws token 7; returns what was planned and what happened.
fn step(scheduler: &mut Scheduler) -> (Vec<(SeqId, usize)>, Vec<SeqEvent>) {
    let plan = scheduler.schedule().expect("work waits");
    let planned = plan
        .seqs
        .iter()
        .map(|p| (p.id, p.positions.len()))
        .collect();
    let results: Vec<_> = plan
        .seqs
        .iter()
        .map(|p| match p.sample {
            true => SeqResult::Token(7),
            false => SeqResult::Computed,
        })
        .collect();
    let step = plan.step;
    let mut events = Vec::new();
    scheduler.update(step, &results, &mut events);
    (planned, events)
}

fn ended(events: &[SeqEvent]) -> Vec<(SeqId, EndReason)> {
    events
        .iter()
        .filter_map(|event| match *event {
            SeqEvent::Ended { id, reason } => Some((id, reason)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_decodes() {
    let mut s = scheduler(
        64,
        Config {
            max_num_seqs: 4,
            max_num_batched_tokens: 10,
            ..Config::default()
        },
    );
    let short = s.add(seq(0..3, 20), NOW).unwrap();
    let long = s.add(seq(100..125, 2), NOW).unwrap();
    assert_eq!(step(&mut s).0, [(short, 3), (long, 7)]);
    assert_eq!(step(&mut s).0, [(short, 1), (long, 9)]);
    let (planned, events) = step(&mut s);
    assert_eq!(planned, [(short, 1), (long, 9)]);
    assert!(events.contains(&SeqEvent::Token { id: long, token: 7 }));
    assert_eq!(step(&mut s).0, [(short, 1), (long, 1)]);
}

#[test]
fn the_threshold_leaves_room_for_others_beside_a_long_prompt() {
    let mut s = scheduler(
        64,
        Config {
            max_num_seqs: 4,
            max_num_batched_tokens: 10,
            long_prefill_token_threshold: 6,
            ..Config::default()
        },
    );
    let long = s.add(seq(100..130, 2), NOW).unwrap();
    let short = s.add(seq(0..3, 2), NOW).unwrap();
    assert_eq!(step(&mut s).0, [(long, 6), (short, 3)]);
    assert_eq!(step(&mut s).0, [(short, 1), (long, 6)]);
}

#[test]
fn the_last_arrived_is_preempted_and_comes_back_before_newer_ones() {
    let mut s = scheduler(4, Config::default());
    let first = s.add(seq(0..7, 6), NOW).unwrap();
    let second = s.add(seq(20..27, 6), NOW).unwrap();
    step(&mut s);
    let third = s.add(seq(40..41, 1), NOW).unwrap();
    // Both have 8 tokens in their two blocks; the ninth needs a block that is not there.
    assert_eq!(step(&mut s).0, [(first, 1), (second, 1)]);
    assert_eq!(step(&mut s).0, [(first, 1)]);
    assert_eq!(s.stats().num_preemptions_by_recompute, 1);
    assert_eq!(s.blocks(second), None);
    assert_eq!(s.tokens(second).unwrap().len(), 9, "its output is kept");
    // There is a block for the third, but the second is before it.
    assert_eq!(step(&mut s).0, [(first, 1)]);
    let mut order = Vec::new();
    while s.has_work() {
        order.extend(ended(&step(&mut s).1).into_iter().map(|(id, _)| id));
    }
    assert_eq!(order[0], first);
    assert!(order.contains(&second) && order.contains(&third));
    let stats = s.stats();
    assert!(stats.num_recomputed_tokens > 0);
    // Its first block was still cached.
    assert!(stats.num_recomputed_tokens <= 4, "{stats:?}");
}

#[test]
fn nobody_overtakes_a_head_that_does_not_fit() {
    let mut s = scheduler(4, Config::default());
    let running = s.add(seq(0..8, 2), NOW).unwrap();
    assert_eq!(step(&mut s).0, [(running, 8)]);
    let large = s.add(seq(20..34, 2), NOW).unwrap();
    let small = s.add(seq(40..42, 2), NOW).unwrap();
    assert_eq!(step(&mut s).0, [(running, 1)]);
    assert_eq!(step(&mut s).0, [(large, 14)]);
    assert!(s.blocks(small).is_none());
}

#[test]
fn the_watermark_is_left_free_but_never_blocks_a_lone_sequence() {
    let mut s = Scheduler::new(
        Config {
            watermark: 0.5,
            ..Config::default()
        },
        BlockManager::new(pageloom_block_manager::Config {
            block_size: 4,
            num_blocks: 8,
            ..Default::default()
        })
        .unwrap(),
    )
    .unwrap();
    let first = s.add(seq(0..8, 2), NOW).unwrap();
    let second = s.add(seq(20..36, 2), NOW).unwrap();
    assert_eq!(step(&mut s).0, [(first, 8)]);
    assert_eq!(step(&mut s).0, [(first, 1)]);
    assert_eq!(step(&mut s).0, [(second, 16)]);
}

#[test]
fn what_can_never_fit_is_refused_at_the_door() {
    let mut s = scheduler(4, Config::default());
    s.add(seq(0..10, 7), NOW).unwrap();
    assert_eq!(
        s.add(seq(0..10, 8), NOW),
        Err(AdmissionError::NeverFits {
            needed_blocks: 5,
            num_blocks: 4
        })
    );
    assert_eq!(
        s.add(seq(0..10, usize::MAX), NOW),
        Err(AdmissionError::TooLong {
            num_prompt_tokens: 10,
            max_tokens: usize::MAX,
            max_model_len: 8192
        })
    );
    assert_eq!(s.add(seq(0..0, 8), NOW), Err(AdmissionError::EmptyPrompt));
}

#[test]
fn the_queue_is_capped_by_count_and_by_tokens() {
    let mut s = scheduler(
        64,
        Config {
            max_num_queued_requests: 2,
            max_num_queued_tokens: 10,
            ..Config::default()
        },
    );
    s.add(seq(0..4, 4), NOW).unwrap();
    let full = s.add(seq(0..7, 4), NOW).unwrap_err();
    assert!(matches!(
        full,
        AdmissionError::QueueFull {
            num_queued_tokens: 4,
            ..
        }
    ));
    let second = s.add(seq(0..4, 4), NOW).unwrap();
    let full = s.add(seq(0..1, 4), NOW).unwrap_err();
    assert!(matches!(
        full,
        AdmissionError::QueueFull { num_queued: 2, .. }
    ));
    // What leaves, one way or the other, makes room.
    assert!(s.finish(second));
    s.add(seq(0..1, 4), NOW).unwrap();
    step(&mut s);
    s.add(seq(0..7, 4), NOW).unwrap();
}

#[test]
fn a_scored_prompt_ignores_the_cache_until_all_scores_are_out() {
    let mut s = scheduler(
        64,
        Config {
            max_num_seqs: 2,
            max_num_batched_tokens: 8,
            ..Config::default()
        },
    );
    s.add(seq(0..12, 1), NOW).unwrap();
    step(&mut s);
    step(&mut s);
    let scored = NewSequence {
        score_prompt: true,
        ..seq(0..12, 2)
    };
    s.add(scored, NOW).unwrap();
    let plan = s.schedule().unwrap();
    assert_eq!(
        (plan.seqs[0].positions.clone(), plan.seqs[0].scores.clone()),
        (0..8, 0..8)
    );
    let step_id = plan.step;
    s.update(step_id, &[SeqResult::Computed], &mut Vec::new());
    let plan = s.schedule().unwrap();
    // The last position of the prompt has no successor to score: its logits draw a token.
    assert_eq!(
        (plan.seqs[0].positions.clone(), plan.seqs[0].scores.clone()),
        (8..12, 8..11)
    );
    assert!(plan.seqs[0].sample);
}

#[test]
fn max_tokens_zero_computes_the_prompt_and_draws_nothing() {
    let mut s = scheduler(64, Config::default());
    let id = s.add(seq(0..5, 0), NOW).unwrap();
    let (_, events) = step(&mut s);
    assert_eq!(
        events,
        [
            SeqEvent::PromptComputed {
                id,
                num_cached_tokens: 0
            },
            SeqEvent::Ended {
                id,
                reason: EndReason::Length
            },
        ]
    );
    assert!(!s.has_work());
}

#[test]
fn an_end_in_flight_holds_the_blocks_until_the_step_is_reported() {
    let mut s = scheduler(64, Config::default());
    let id = s.add(seq(0..5, 9), NOW).unwrap();
    let step = s.schedule().unwrap().step;
    assert!(s.finish(id));
    assert!(!s.finish(id), "it has ended for everybody else");
    assert_eq!(s.block_manager().stats().device.num_referenced, 2);
    let mut events = Vec::new();
    s.update(step, &[SeqResult::Token(1)], &mut events);
    assert_eq!(events, []);
    assert_eq!(s.block_manager().stats().device.num_referenced, 0);
    assert!(!s.has_work());
}

#[test]
fn a_failure_ends_one_sequence_only() {
    let mut s = scheduler(64, Config::default());
    let bad = s.add(seq(0..5, 9), NOW).unwrap();
    let good = s.add(seq(20..25, 9), NOW).unwrap();
    let step_id = s.schedule().unwrap().step;
    let mut events = Vec::new();
    s.update(
        step_id,
        &[SeqResult::Failed, SeqResult::Token(1)],
        &mut events,
    );
    assert_eq!(ended(&events), [(bad, EndReason::Failed)]);
    assert_eq!(step(&mut s).0, [(good, 1)]);
}

#[test]
fn steps_do_not_allocate_once_everybody_runs() {
    let mut s = scheduler(4096, Config::default());
    for i in 0..64 {
        s.add(seq(i * 100..i * 100 + 20, 230), NOW).unwrap();
    }
    let mut results = Vec::with_capacity(64);
    let mut events = Vec::with_capacity(256);
    let mut run = |s: &mut Scheduler, results: &mut Vec<SeqResult>| {
        s.propose(|_, _, drafts| drafts.extend([4; 5]));
        let plan = s.schedule().unwrap();
        results.clear();
        results.extend(plan.seqs.iter().map(|_| SeqResult::Token(3)));
        let step = plan.step;
        s.update(step, results, &mut events);
    };
    for _ in 0..120 {
        run(&mut s, &mut results);
    }
    // A table's list doubles past 8, 16, 32, 64 ... blocks: here it has room from the 33rd block
    // (token 129) to the 64th (token 256), and nothing else may grow.
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            run(&mut s, &mut results);
        }
    });
    assert_eq!(counted.count_total, 0, "allocations in 100 steps");
    assert!(s.stats().num_draft_tokens > 64 * 100, "nor for drafts");
}

fn group(num_seqs: usize, lockstep: bool, prompt: std::ops::Range<u32>) -> NewSequence {
    NewSequence {
        num_seqs,
        lockstep,
        ..seq(prompt, 20)
    }
}

#[test]
fn forks_share_the_prompt_and_copy_only_its_tail() {
    let mut s = scheduler(64, Config::default());
    let parent = s.add(group(3, false, 0..10), NOW).unwrap();
    step(&mut s);
    let forks = [s.fork(parent, 8).unwrap(), s.fork(parent, 9).unwrap()];
    assert_eq!(s.block_manager().stats().device.num_referenced, 3);
    assert_eq!(s.tokens(forks[1]).unwrap()[10], 9);
    let (planned, _) = step(&mut s);
    assert_eq!(planned, [(parent, 1), (forks[0], 1), (forks[1], 1)]);
    let stats = s.block_manager().stats();
    assert_eq!((stats.device.num_referenced, stats.num_copies), (5, 2));
}

#[test]
fn a_group_keeps_seats_for_the_forks_to_come() {
    let config = Config {
        max_num_seqs: 3,
        ..Config::default()
    };
    let mut s = scheduler(64, config);
    s.add(group(2, false, 0..4), NOW).unwrap();
    let pair = s.add(group(2, false, 10..14), NOW).unwrap();
    let single = s.add(seq(20..24, 2), NOW).unwrap();
    let (planned, _) = step(&mut s);
    assert_eq!(planned.len(), 1, "neither the pair nor what is behind it");
    assert!(s.blocks(pair).is_none() && s.blocks(single).is_none());
}

/// Two groups of two whose pool is too small for both; the second is preempted.
fn crowded(config: Config, num_host_blocks: usize) -> (Scheduler, Vec<SeqId>) {
    let blocks = BlockManager::new(pageloom_block_manager::Config {
        block_size: 4,
        num_blocks: 14,
        num_host_blocks,
        ..Default::default()
    });
    let config = Config {
        watermark: 0.0,
        ..config
    };
    let mut s = Scheduler::new(config, blocks.unwrap()).unwrap();
    let mut ids = Vec::new();
    for start in [0, 100] {
        let group = NewSequence {
            num_seqs: 2,
            ..seq(start..start + 10, 14)
        };
        ids.push(s.add(group, NOW).unwrap());
    }
    step(&mut s);
    for i in 0..2 {
        ids.push(s.fork(ids[i], 50).unwrap());
    }
    while s.stats().num_waiting == 0 {
        step(&mut s);
    }
    (s, ids)
}

#[test]
fn a_swapped_group_comes_back_with_what_it_had() {
    let config = Config {
        preemption_mode: PreemptionMode::Swap,
        ..Config::default()
    };
    let (mut s, ids) = crowded(config, 16);
    let stats = s.stats();
    assert_eq!((stats.num_preemptions_by_swap, stats.num_waiting), (1, 2));
    assert!(s.blocks(ids[1]).is_none() && s.blocks(ids[3]).is_none());
    let before = s.tokens(ids[3]).unwrap().to_vec();
    while s.blocks(ids[3]).is_none() {
        step(&mut s);
    }
    assert!(s.tokens(ids[3]).unwrap().starts_with(&before));
    assert_eq!(
        s.blocks(ids[1]).unwrap()[..2],
        s.blocks(ids[3]).unwrap()[..2]
    );
    while s.has_work() {
        step(&mut s);
    }
    assert_eq!(s.stats().num_recomputed_tokens, 0);
}

#[test]
fn a_recomputed_group_shares_its_prompt_again() {
    let (mut s, ids) = crowded(Config::default(), 0);
    assert_eq!(s.stats().num_preemptions_by_recompute, 1);
    while s.blocks(ids[3]).is_none() {
        step(&mut s);
    }
    assert_eq!(
        s.blocks(ids[1]).unwrap()[..2],
        s.blocks(ids[3]).unwrap()[..2]
    );
    while s.has_work() {
        step(&mut s);
    }
}

#[test]
fn without_room_on_the_host_a_group_is_recomputed() {
    let config = Config {
        preemption_mode: PreemptionMode::Swap,
        ..Config::default()
    };
    let (s, _) = crowded(config, 2);
    let stats = s.stats();
    assert_eq!(stats.num_preemptions_by_swap, 0);
    assert_eq!(stats.num_preemptions_by_recompute, 1);
}

#[test]
fn an_urgent_request_takes_the_place_of_background_work() {
    let config = Config {
        max_num_seqs: 1,
        policy: SchedulingPolicy::Priority {
            ageing: Duration::from_secs(10),
        },
        ..Config::default()
    };
    let mut s = scheduler(64, config);
    let class = |priority, start| NewSequence {
        priority,
        ..seq(start..start + 4, 4)
    };
    let background = s.add(class(1, 0), Duration::from_secs(0)).unwrap();
    assert_eq!(step(&mut s).0, [(background, 4)]);
    let urgent = s.add(class(0, 10), Duration::from_secs(1)).unwrap();
    assert_eq!(step(&mut s).0, [(urgent, 4)]);
    // What arrives after the background request is due does not come before it.
    let late = s.add(class(0, 20), Duration::from_secs(11)).unwrap();
    let mut order = Vec::new();
    while s.has_work() {
        order.extend(ended(&step(&mut s).1).into_iter().map(|(id, _)| id));
    }
    assert_eq!(order, [urgent, background, late]);
}

#[test]
fn what_a_group_could_never_finish_is_refused() {
    let s = scheduler(8, Config::default());
    assert!(s.check_fits(8, 8, 1).is_ok());
    let error = s.check_fits(8, 8, 3).unwrap_err();
    assert!(matches!(error, AdmissionError::NeverFits { .. }), "{error}");
    for num_seqs in [0, 257] {
        let error = s.check_fits(8, 8, num_seqs).unwrap_err();
        assert!(
            matches!(error, AdmissionError::TooManySeqs { .. }),
            "{error}"
        );
    }
}
