//! The life of blocks through the public API: sharing, caching, eviction, pinning, wrong use.

use pageloom_block_manager::{
    BlockId, BlockManager, Config, Namespace, OutOfBlocks, StepId, TableId, Tier, TokenId,
};

const NS: Namespace = Namespace(0);

fn manager(block_size: usize, num_blocks: usize) -> BlockManager {
    BlockManager::new(Config {
        block_size,
        num_blocks,
        ..Config::default()
    })
    .unwrap()
}

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.collect()
}

/// Opens a table for `tokens`, computes what is not cached, and commits it.
fn prefill(m: &mut BlockManager, tokens: &[TokenId], ns: Namespace) -> (TableId, usize) {
    let (t, hit) = m.open(tokens, ns);
    append(m, t, &tokens[hit..]);
    (t, hit)
}

/// One step that computes `tokens` at the end of the table.
fn append(m: &mut BlockManager, t: TableId, tokens: &[TokenId]) {
    m.reserve(t, tokens.len()).unwrap();
    let step = StepId(u64::MAX);
    let _ = m.seal(step);
    m.complete(step);
    m.commit(t, tokens);
    m.check().unwrap();
}

fn ids(blocks: &[BlockId]) -> Vec<usize> {
    blocks.iter().map(|b| b.index()).collect()
}

#[test]
fn a_prompt_seen_before_shares_its_full_blocks() {
    let mut m = manager(4, 8);
    let prompt = tokens(0..10);
    let (a, hit) = prefill(&mut m, &prompt, NS);
    assert_eq!(hit, 0);
    assert_eq!(m.lookup(&prompt, NS), 8);
    let (b, hit) = prefill(&mut m, &prompt, NS);
    assert_eq!(hit, 8);
    assert_eq!(m.blocks(a)[..2], m.blocks(b)[..2]);
    assert_ne!(m.blocks(a)[2], m.blocks(b)[2]);
    assert_eq!(m.stats().device.num_referenced, 4);
    assert_eq!(m.stats().num_hit_tokens, 8);
    assert_eq!(m.stats().num_queried_tokens, 20);
}

#[test]
fn a_hit_always_leaves_a_token_to_compute() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..8), NS);
    assert_eq!(m.lookup(&tokens(0..8), NS), 4);
    assert_eq!(m.lookup(&tokens(0..9), NS), 8);
    assert_eq!(m.lookup(&tokens(0..4), NS), 0);
    assert_eq!(m.lookup(&[], NS), 0);
    m.release(a);
    assert_eq!(m.open(&tokens(0..9), NS).1, 8);
}

#[test]
fn namespaces_never_share() {
    let mut m = manager(4, 8);
    let (_, _) = prefill(&mut m, &tokens(0..9), Namespace(1));
    assert_eq!(m.lookup(&tokens(0..9), Namespace(1)), 8);
    assert_eq!(m.lookup(&tokens(0..9), Namespace(2)), 0);
}

#[test]
fn released_blocks_stay_findable_and_heads_outlive_tails() {
    let mut m = manager(4, 4);
    let prompt = tokens(0..13);
    let (a, _) = prefill(&mut m, &prompt, NS);
    m.release(a);
    let stats = m.stats();
    assert_eq!((stats.device.num_free, stats.device.num_cached), (1, 3));
    for left in [8, 4, 0] {
        // Each new block takes the deepest one still cached; the first takes the free one too.
        let (b, _) = m.open(&[], NS);
        let slots = 4 * (4 - left / 4);
        m.reserve(b, slots).unwrap();
        assert_eq!(m.lookup(&prompt, NS), left);
        m.release(b);
        m.check().unwrap();
    }
    assert_eq!(m.stats().device.num_evictions, 3);
}

#[test]
fn a_child_is_not_found_under_a_parent_that_took_its_parents_block() {
    // The tail is pinned while its table goes, so it outlives its parent: the order that would
    // let it be found under whatever the parent's block holds next.
    let mut m = manager(2, 3);
    let (a, _) = prefill(&mut m, &[1, 2, 3, 4], NS);
    let parent = m.blocks(a)[0];
    m.truncate(a, 3);
    m.reserve(a, 1).unwrap();
    let _ = m.seal(StepId(1));
    m.release(a);
    // The free block, the copy, is pinned too: this evicts the parent.
    let (b, _) = prefill(&mut m, &[9, 9], NS);
    assert_eq!(m.blocks(b), [parent]);
    m.complete(StepId(1));
    m.check().unwrap();
    assert_eq!(m.stats().device.num_cached, 1, "the child is still there");
    assert_eq!(
        m.lookup(&[9, 9, 3, 4, 5], NS),
        2,
        "and not behind other tokens"
    );
    assert_eq!(m.lookup(&[1, 2, 3, 4, 5], NS), 0, "nor without its parent");
}

#[test]
fn two_sequences_that_compute_a_block_in_one_step_end_with_one() {
    let mut m = manager(4, 8);
    let prompt = tokens(0..9);
    let (a, _) = m.open(&prompt, NS);
    let (b, hit) = m.open(&prompt, NS);
    assert_eq!(hit, 0);
    m.reserve(a, 9).unwrap();
    m.reserve(b, 9).unwrap();
    assert_eq!(m.stats().device.num_referenced, 6);
    m.commit(a, &prompt);
    m.commit(b, &prompt);
    m.check().unwrap();
    assert_eq!(m.blocks(a)[..2], m.blocks(b)[..2]);
    assert_eq!(m.stats().device.num_referenced, 4);
    // The chain goes on from the shared block, so what b computes next is findable.
    append(&mut m, b, &tokens(20..23));
    let longer: Vec<_> = (0..9).chain(20..24).collect();
    assert_eq!(m.lookup(&longer, NS), 12);
}

#[test]
fn probe_tells_what_opening_takes_from_the_available_blocks() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..5), NS);
    let (b, _) = prefill(&mut m, &tokens(0..13), NS);
    m.release(b);
    let hit = m.probe(&tokens(0..13), NS);
    assert_eq!((hit.num_tokens, hit.num_blocks), (12, 3));
    assert_eq!(
        hit.num_available_blocks, 2,
        "one is held by the other table"
    );
    let before = m.num_available_blocks();
    m.open(&tokens(0..13), NS);
    assert_eq!(before - m.num_available_blocks(), 2);
    m.release(a);
}

#[test]
fn reserve_is_all_or_nothing_and_idempotent() {
    let mut m = manager(4, 4);
    let (a, _) = m.open(&[], NS);
    let error = OutOfBlocks {
        tier: Tier::Device,
        needed: 5,
        available: 4,
    };
    assert_eq!(m.blocks_needed(a, 17), 5);
    assert_eq!(m.reserve(a, 17), Err(error));
    assert_eq!((m.blocks(a).len(), m.num_reserved(a)), (0, 0));
    m.reserve(a, 16).unwrap();
    m.reserve(a, 16).unwrap();
    m.reserve(a, 3).unwrap();
    assert_eq!((m.blocks(a).len(), m.num_reserved(a)), (4, 16));
    assert!(m.reserve(a, usize::MAX).is_err());
    m.check().unwrap();
}

#[test]
fn fork_then_append_copies_only_the_tail() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    let b = m.fork(a);
    assert_eq!(m.stats().device.num_referenced, 3);
    assert_eq!((m.blocks_needed(b, 1), m.blocks_needed(b, 3)), (1, 2));
    m.reserve(b, 1).unwrap();
    assert_eq!(m.blocks_needed(a, 1), 0, "the last holder writes in place");
    let ops = m.seal(StepId(0));
    assert_eq!(ops.copies.len(), 1);
    assert_eq!(ops.copies[0].src, m.blocks(a)[2]);
    assert_eq!(ops.copies[0].dst, m.blocks(b)[2]);
    m.complete(StepId(0));
    m.commit(b, &[77]);
    m.check().unwrap();
    assert_eq!(m.stats().device.num_referenced, 4);
}

#[test]
fn a_fork_at_a_block_border_copies_nothing_and_keeps_the_parents_reservation() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..8), NS);
    m.reserve(a, 2).unwrap();
    let b = m.fork(a);
    assert_eq!((m.num_reserved(a), m.num_reserved(b)), (2, 0));
    assert_eq!((m.blocks(a).len(), m.blocks(b).len()), (3, 2));
    m.reserve(b, 1).unwrap();
    assert!(m.seal(StepId(0)).is_empty());
    m.check().unwrap();
}

#[test]
fn a_fork_inside_a_block_takes_the_parents_reservation_back() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..5), NS);
    m.reserve(a, 6).unwrap();
    m.fork(a);
    assert_eq!(m.num_reserved(a), 0);
    assert_eq!(
        m.blocks_needed(a, 6),
        1,
        "its empty blocks are still its own"
    );
    m.check().unwrap();
}

#[test]
fn a_copy_of_a_block_still_to_be_copied_reads_the_origin() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..6), NS);
    let b = m.fork(a);
    m.reserve(b, 1).unwrap();
    let c = m.fork(b);
    m.reserve(c, 1).unwrap();
    let origin = m.blocks(a)[1];
    let ops = m.seal(StepId(0));
    assert_eq!(ops.copies.len(), 2);
    assert!(ops.copies.iter().all(|copy| copy.src == origin), "{ops:?}");
    m.complete(StepId(0));
    m.check().unwrap();
}

#[test]
fn endpoints_of_a_copy_are_not_reused_until_complete() {
    let mut m = manager(2, 3);
    let (a, _) = prefill(&mut m, &[1], NS);
    let b = m.fork(a);
    m.reserve(b, 1).unwrap();
    let ops = m.seal(StepId(5));
    m.release(a);
    m.release(b);
    let stats = m.stats();
    assert_eq!((stats.device.num_pinned, stats.device.num_free), (2, 1));
    let (c, _) = m.open(&[], NS);
    assert!(m.reserve(c, 3).is_err());
    m.reserve(c, 2).unwrap();
    assert!(
        m.blocks(c)
            .iter()
            .all(|&block| { block != ops.copies[0].src && block != ops.copies[0].dst })
    );
    m.complete(StepId(5));
    m.reserve(c, 6).unwrap();
    m.check().unwrap();
}

#[test]
fn a_truncated_published_block_is_copied_before_it_is_written() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..8), NS);
    m.truncate(a, 6);
    m.check().unwrap();
    let full = m.blocks(a)[1];
    m.reserve(a, 1).unwrap();
    assert_ne!(m.blocks(a)[1], full);
    let ops = m.seal(StepId(0));
    m.complete(StepId(0));
    assert_eq!(ops.copies.len(), 1);
    assert_eq!(
        m.lookup(&tokens(0..9), NS),
        8,
        "what was published still is"
    );
    // The same tokens again: the table returns to the published block.
    append(&mut m, a, &[6, 7]);
    assert_eq!(m.blocks(a)[1], full);
}

#[test]
fn without_prefix_caching_nothing_is_kept() {
    let mut m = BlockManager::new(Config {
        block_size: 4,
        num_blocks: 4,
        prefix_caching: false,
        ..Config::default()
    })
    .unwrap();
    let (a, _) = prefill(&mut m, &tokens(0..9), NS);
    assert_eq!(m.lookup(&tokens(0..9), NS), 0);
    let b = m.fork(a);
    append(&mut m, b, &[1]);
    assert_eq!(m.stats().device.num_referenced, 4);
    m.release(a);
    m.release(b);
    assert_eq!((m.stats().device.num_free, m.reset_prefix_cache()), (4, 0));
    m.check().unwrap();
}

#[test]
fn resetting_the_cache_frees_what_nobody_holds() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..9), NS);
    let (b, _) = prefill(&mut m, &tokens(100..109), NS);
    m.release(b);
    assert_eq!(m.reset_prefix_cache(), 2);
    m.check().unwrap();
    assert_eq!(m.lookup(&tokens(100..109), NS), 0);
    assert_eq!(m.lookup(&tokens(0..9), NS), 8, "a table still holds these");
    m.release(a);
    assert_eq!(m.stats().device.num_free, 6);
    assert_eq!(m.stats().device.num_evictions, 0);
}

#[test]
fn a_slot_is_the_blocks_place_times_its_size() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..6), NS);
    m.reserve(a, 1).unwrap();
    let blocks = ids(m.blocks(a));
    assert_eq!(m.slot(a, 0), blocks[0] * 4);
    assert_eq!(m.slot(a, 6), blocks[1] * 4 + 2);
}

mod wrong_use_panics {
    use super::*;

    #[test]
    #[should_panic(expected = "is not open")]
    fn double_release() {
        let mut m = manager(4, 4);
        let (a, _) = m.open(&[], NS);
        m.release(a);
        m.release(a);
    }

    #[test]
    #[should_panic(expected = "is not open")]
    fn a_stale_id_whose_place_another_table_has() {
        let mut m = manager(4, 4);
        let (a, _) = m.open(&[], NS);
        m.release(a);
        m.open(&[], NS);
        let _ = m.num_tokens(a);
    }

    #[test]
    #[should_panic(expected = "is not open")]
    fn changing_a_table_through_a_stale_id_whose_place_another_has() {
        let mut m = manager(4, 4);
        let (a, _) = m.open(&[], NS);
        m.release(a);
        m.open(&[], NS);
        m.truncate(a, 0);
    }

    #[test]
    #[should_panic(expected = "commit of 3 tokens")]
    fn commit_past_the_reservation() {
        let mut m = manager(4, 4);
        let (a, _) = m.open(&[], NS);
        m.reserve(a, 2).unwrap();
        m.commit(a, &[1, 2, 3]);
    }

    #[test]
    #[should_panic(expected = "before the copy that fills it was sealed")]
    fn commit_before_the_copy_is_ordered() {
        let mut m = manager(4, 4);
        let (a, _) = prefill(&mut m, &[1], NS);
        m.fork(a);
        m.reserve(a, 1).unwrap();
        m.commit(a, &[2]);
    }

    #[test]
    #[should_panic(expected = "truncate of table")]
    fn truncate_to_more_than_there_is() {
        let mut m = manager(4, 4);
        let (a, _) = m.open(&[], NS);
        m.truncate(a, 1);
    }

    #[test]
    #[should_panic(expected = "not in flight")]
    fn complete_of_an_unknown_step() {
        manager(4, 4).complete(StepId(9));
    }

    #[test]
    #[should_panic(expected = "sealed twice")]
    fn sealing_a_step_twice() {
        let mut m = manager(4, 4);
        let _ = m.seal(StepId(1));
        let _ = m.seal(StepId(1));
    }

    #[test]
    #[should_panic(expected = "no slot at position 2")]
    fn a_slot_past_the_reservation() {
        let mut m = manager(4, 4);
        let (a, _) = m.open(&[], NS);
        m.reserve(a, 2).unwrap();
        let _ = m.slot(a, 2);
    }
}
