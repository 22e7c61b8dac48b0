//! Drafts get what is left, and give it back.

use std::time::Duration;

use pageloom_scheduler::{
    BlockManager, Config, NewSequence, Scheduler, SeqEvent, SeqId, SeqResult, TokenId,
};

/// A pool of blocks of 4 tokens.
fn scheduler(num_blocks: usize, max_num_batched_tokens: usize) -> Scheduler {
    let blocks = BlockManager::new(pageloom_block_manager::Config {
        block_size: 4,
        num_blocks,
        ..Default::default()
    });
    let config = Config {
        max_num_seqs: 2,
        max_num_batched_tokens,
        watermark: 0.0,
        ..Config::default()
    };
    Scheduler::new(config, blocks.unwrap()).unwrap()
}

fn add(s: &mut Scheduler, prompt: std::ops::Range<u32>, max_tokens: usize) -> SeqId {
    let new = NewSequence {
        prompt: prompt.collect(),
        max_tokens,
        ..Default::default()
    };
    s.add(new, Duration::ZERO).unwrap()
}

/// Proposes the drafts for everybody and plans; returns how many each planned sequence got.
fn plan(s: &mut Scheduler, drafts: &[TokenId]) -> Vec<(SeqId, usize)> {
    s.propose(|_, _, list| list.extend(drafts));
    let plan = s.schedule().expect("work waits");
    plan.seqs.iter().map(|p| (p.id, p.num_drafts)).collect()
}

/// Reports that everybody draws its first `num_accepted` drafts, and then token 9.
fn report(s: &mut Scheduler, num_accepted: usize) -> Vec<SeqEvent> {
    let plan = s.plan().unwrap();
    let result = |p: &pageloom_scheduler::PlannedSeq| match p.sample {
        true => SeqResult::Tokens {
            num_accepted: num_accepted.min(p.num_drafts),
            token: 9,
        },
        false => SeqResult::Computed,
    };
    let results: Vec<_> = plan.seqs.iter().map(result).collect();
    let step = plan.step;
    let mut events = Vec::new();
    s.update(step, &results, &mut events);
    s.block_manager().check().unwrap();
    events
}

fn num_blocks(s: &Scheduler, id: SeqId) -> usize {
    s.blocks(id).unwrap().len()
}

#[test]
fn accepted_drafts_are_tokens_and_rejected_ones_leave_nothing() {
    let mut s = scheduler(64, 64);
    let id = add(&mut s, 0..5, 40);
    assert_eq!(
        plan(&mut s, &[1; 6]),
        [(id, 0)],
        "the first token is drawn alone"
    );
    report(&mut s, 0);
    // Position 5, and those of drafts up to 11: a third block.
    assert_eq!(plan(&mut s, &[1, 2, 3, 4, 5, 6]), [(id, 6)]);
    let planned = &s.plan().unwrap().seqs[0];
    assert_eq!((planned.positions.clone(), planned.sample), (5..12, true));
    assert_eq!(s.drafts(planned), [1, 2, 3, 4, 5, 6]);
    assert_eq!(num_blocks(&s, id), 3);
    let tokens = [1, 2, 9].map(|token| SeqEvent::Token { id, token });
    assert_eq!(report(&mut s, 2), tokens);
    assert_eq!(s.tokens(id).unwrap()[5..], [9, 1, 2, 9]);
    assert_eq!(num_blocks(&s, id), 3, "of 9 tokens");
    assert_eq!(plan(&mut s, &[1; 6]), [(id, 6)]);
    assert_eq!(s.plan().unwrap().seqs[0].positions, 8..15);
    assert_eq!(num_blocks(&s, id), 4);
    report(&mut s, 0);
    assert_eq!(num_blocks(&s, id), 3, "of 10 tokens");
    assert_eq!(plan(&mut s, &[]), [(id, 0)]);
    assert_eq!(s.plan().unwrap().seqs[0].positions, 9..10);
    report(&mut s, 0);
    let stats = s.stats();
    assert_eq!((stats.num_drafts, stats.num_draft_tokens), (2, 12));
    assert_eq!(stats.num_accepted_tokens, 2);
}

#[test]
fn only_a_full_block_of_accepted_tokens_is_published() {
    let mut s = scheduler(64, 64);
    add(&mut s, 0..5, 40);
    plan(&mut s, &[]);
    report(&mut s, 0);
    plan(&mut s, &[1, 2, 3, 4, 5, 6]);
    report(&mut s, 1);
    // In the cache are 0 1 2 3 4 9 1; 2 was rejected, though its slot is the last of a block.
    let found = |tokens: &[TokenId]| {
        let prompt = [&[0, 1, 2, 3], tokens].concat();
        let namespace = pageloom_scheduler::Namespace(0);
        s.block_manager().lookup(&prompt, namespace)
    };
    assert_eq!(found(&[4, 9, 1, 2, 7]), 4);
    assert_eq!(
        found(&[4, 9, 1, 9, 7]),
        4,
        "9 was drawn and is not computed"
    );
}

#[test]
fn drafts_take_what_is_left_of_the_budget() {
    let mut s = scheduler(64, 7);
    let a = add(&mut s, 0..3, 40);
    let b = add(&mut s, 50..53, 40);
    plan(&mut s, &[]);
    report(&mut s, 0);
    assert_eq!(plan(&mut s, &[1; 4]), [(a, 4), (b, 1)]);
    assert_eq!(s.plan().unwrap().num_tokens, 7);
    report(&mut s, 0);
    assert_eq!(plan(&mut s, &[1; 2]), [(a, 2), (b, 2)]);
    report(&mut s, 0);
    // A prompt comes before drafts.
    s.finish(b);
    let c = add(&mut s, 70..76, 4);
    assert_eq!(plan(&mut s, &[1; 4]), [(a, 0), (c, 0)]);
    assert_eq!(s.plan().unwrap().num_tokens, 7);
    report(&mut s, 0);
}

#[test]
fn drafts_take_free_blocks_and_preempt_nobody() {
    // Three blocks: 4 + 4 tokens of two prompts and one more block.
    let mut s = scheduler(3, 64);
    let a = add(&mut s, 0..3, 8);
    let b = add(&mut s, 50..53, 5);
    plan(&mut s, &[]);
    report(&mut s, 0);
    // Each is to compute position 3; the third block has room for 4 drafts of the first.
    assert_eq!(plan(&mut s, &[1; 6]), [(a, 4), (b, 0)]);
    report(&mut s, 0);
    // The first keeps it for its next token, which it is first to have a block for.
    assert_eq!((num_blocks(&s, a), num_blocks(&s, b)), (2, 1));
    // Now the second lacks one, and is taken what it has.
    assert_eq!(plan(&mut s, &[1; 3]), [(a, 3)]);
    let stats = s.stats();
    let num_preemptions = stats.num_preemptions_by_swap + stats.num_preemptions_by_recompute;
    assert_eq!(num_preemptions, 1, "as without drafts");
    report(&mut s, 0);
}

#[test]
fn no_draft_goes_past_the_length() {
    let mut s = scheduler(64, 64);
    let id = add(&mut s, 0..3, 4);
    plan(&mut s, &[]);
    report(&mut s, 0);
    // Three tokens are to come: two drafts, and what is drawn behind them.
    assert_eq!(plan(&mut s, &[1; 6]), [(id, 2)]);
    let events = report(&mut s, 2);
    assert_eq!(events.len(), 4);
    assert!(matches!(events[3], SeqEvent::Ended { .. }), "{events:?}");
}

#[test]
#[should_panic(expected = "3 of 2 drafts")]
fn more_than_was_planned_cannot_be_accepted() {
    let mut s = scheduler(64, 64);
    add(&mut s, 0..3, 9);
    plan(&mut s, &[]);
    report(&mut s, 0);
    plan(&mut s, &[1; 2]);
    let step = s.plan().unwrap().step;
    let result = SeqResult::Tokens {
        num_accepted: 3,
        token: 9,
    };
    s.update(step, &[result], &mut Vec::new());
}

#[test]
fn a_sequence_that_ends_in_the_step_leaves_nothing() {
    let mut s = scheduler(8, 64);
    let id = add(&mut s, 0..3, 20);
    plan(&mut s, &[]);
    report(&mut s, 0);
    plan(&mut s, &[1; 6]);
    assert!(s.finish(id));
    assert_eq!(report(&mut s, 3), []);
    let stats = s.block_manager().stats();
    assert_eq!((stats.num_tables, stats.device.num_referenced), (0, 0));
}
