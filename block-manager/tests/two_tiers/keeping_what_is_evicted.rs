//! Published blocks that the device evicts are kept on the host and found there.

use super::*;

#[test]
fn an_evicted_prefix_is_found_on_the_host_and_costs_a_swap_in_but_no_recompute() {
    let mut m = manager(4, 8);
    let prompt = tokens(0..13);
    let (a, _) = prefill(&mut m, &prompt, NS);
    m.release(a);
    overwrite(&mut m, 4);
    assert_eq!(m.stats().num_demoted, 3);
    assert_eq!(m.stats().device.num_evictions, 3);

    let hit = m.probe(&prompt, NS);
    assert_eq!((hit.num_tokens, hit.num_blocks), (12, 3));
    assert_eq!((hit.num_host_blocks, hit.num_available_blocks), (3, 3));
    let (b, num_cached) = m.open(&prompt, NS);
    assert_eq!((num_cached, m.num_tokens(b)), (12, 12));
    let ops = m.seal(StepId(0));
    assert_eq!(ops.swap_ins.len(), 3);
    let filled: Vec<BlockId> = ops.swap_ins.iter().map(|swap| swap.dst).collect();
    assert!(m.blocks(b).iter().all(|block| filled.contains(block)));
    assert_eq!(m.stats().num_promoted, 3);
    m.complete(StepId(0));
    m.check().unwrap();
}

#[test]
fn what_is_evicted_is_copied_out_before_the_step_writes_its_block() {
    let mut m = manager(1, 1);
    let (a, _) = prefill(&mut m, &tokens(0..4), NS);
    let block = m.blocks(a)[0];
    m.release(a);
    let (b, _) = m.open(&[], NS);
    m.reserve(b, 1).unwrap();
    assert_eq!(m.blocks(b), [block]);
    let ops = m.seal(StepId(0));
    assert_eq!(ops.swap_outs.len(), 1);
    assert_eq!(ops.swap_outs[0].src, block);
    assert_eq!(m.stats().host.num_pinned, 1);
    m.complete(StepId(0));
    assert_eq!(m.stats().host.num_cached, 1);
}

#[test]
fn a_host_full_of_held_blocks_keeps_nothing_that_is_evicted() {
    let mut m = manager(4, 1);
    let (a, _) = prefill(&mut m, &tokens(100..103), NS);
    m.swap_out(&[a]).unwrap();
    step(&mut m);
    let (b, _) = prefill(&mut m, &tokens(0..13), NS);
    m.release(b);
    overwrite(&mut m, 4);
    assert_eq!(m.stats().num_demoted, 0);
    assert_eq!(m.lookup(&tokens(0..13), NS), 0);
    assert_eq!(m.tier(a), Tier::Host);
}

#[test]
fn nothing_that_is_evicted_is_kept_while_told_not_to() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..13), NS);
    m.release(a);
    m.keep_evicted(false);
    overwrite(&mut m, 4);
    assert_eq!(
        (m.stats().num_demoted, m.stats().device.num_evictions),
        (0, 3)
    );
    m.keep_evicted(true);
    let (b, _) = prefill(&mut m, &tokens(0..13), NS);
    m.release(b);
    overwrite(&mut m, 4);
    assert_eq!(m.stats().num_demoted, 3);
}

#[test]
fn a_twin_on_the_host_is_not_copied_again() {
    let mut m = manager(4, 8);
    let prompt = tokens(0..13);
    let (a, _) = prefill(&mut m, &prompt, NS);
    m.release(a);
    overwrite(&mut m, 4);
    let (b, _) = prefill(&mut m, &prompt, NS);
    m.release(b);
    overwrite(&mut m, 4);
    assert_eq!(m.stats().num_demoted, 3, "as after the first eviction");
    assert_eq!(m.lookup(&prompt, NS), 12);

    let (c, _) = prefill(&mut m, &prompt, NS);
    m.swap_out(&[c]).unwrap();
    assert_eq!(m.stats().num_swapped_out, 1, "only the tail has no twin");
    assert_eq!(step(&mut m).swap_outs.len(), 1);
}

#[test]
fn opening_brings_in_as_much_as_the_device_has_room_for() {
    let mut m = manager(4, 8);
    let prompt = tokens(0..13);
    let (a, _) = prefill(&mut m, &prompt, NS);
    m.release(a);
    overwrite(&mut m, 4);
    let (_b, _) = prefill(&mut m, &tokens(100..107), NS);
    assert_eq!(m.num_available_blocks(), 2);
    assert_eq!(m.lookup(&prompt, NS), 8);
    let (c, hit) = m.open(&prompt, NS);
    assert_eq!(
        (hit, m.blocks(c).len(), m.num_available_blocks()),
        (8, 2, 0)
    );
    m.check().unwrap();
}

#[test]
fn children_are_found_though_their_parent_is_in_the_other_tier() {
    let mut m = manager(3, 4);
    let prompt = tokens(0..9);
    // The child's block goes first, so this leaves the parent on the device.
    let (a, _) = prefill(&mut m, &prompt, NS);
    m.release(a);
    overwrite(&mut m, 2);
    let hit = m.probe(&prompt, NS);
    assert_eq!((hit.num_blocks, hit.num_host_blocks), (2, 1));

    // A table that let its head go holds the child.
    let (b, _) = prefill(&mut m, &prompt, NS);
    m.reset_prefix_cache();
    m.release_before(b, 4);
    overwrite(&mut m, 1);
    let hit = m.probe(&prompt, NS);
    assert_eq!((hit.num_blocks, hit.num_host_blocks), (2, 1));
    m.truncate(b, 8);
    let (c, num_cached) = m.open(&prompt, NS);
    assert_eq!(num_cached, 8);
    assert_eq!(m.blocks(c)[1..], *m.blocks(b));
}

#[test]
fn namespaces_are_apart_on_the_host_too() {
    let mut m = manager(4, 8);
    let prompt = tokens(0..13);
    let (a, _) = prefill(&mut m, &prompt, Namespace(1));
    m.release(a);
    overwrite(&mut m, 4);
    assert_eq!(m.lookup(&prompt, Namespace(1)), 12);
    assert_eq!(m.lookup(&prompt, Namespace(2)), 0);
    let (b, hit) = prefill(&mut m, &prompt, Namespace(2));
    assert_eq!(hit, 0);
    m.swap_out(&[b]).unwrap();
    assert_eq!(
        m.stats().num_swapped_out,
        4,
        "none is a twin of the other's"
    );
}

#[test]
fn resetting_frees_what_both_tiers_cache() {
    let mut m = manager(4, 8);
    let (a, _) = prefill(&mut m, &tokens(0..13), NS);
    m.release(a);
    overwrite(&mut m, 3);
    let stats = m.stats();
    assert_eq!((stats.device.num_cached, stats.host.num_cached), (1, 2));
    assert_eq!(m.reset_prefix_cache(), 3);
    m.check().unwrap();
    let stats = m.stats();
    assert_eq!((stats.device.num_free, stats.host.num_free), (4, 8));
    assert_eq!(m.lookup(&tokens(0..13), NS), 0);
}
