//! Groups that move between the tiers.

use super::*;

#[test]
fn a_group_shares_after_a_swap_what_it_shared_before() {
    let mut m = manager(8, 8);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    let b = m.fork(a);
    let c = m.fork(a);
    append(&mut m, b, &[77]);
    let group = [a, b, c];
    let before = group.map(|t| references(&m, t));
    assert_eq!(before, [vec![3, 3, 2], vec![3, 3, 1], vec![3, 3, 2]]);

    m.swap_out(&group).unwrap();
    let ops = step(&mut m);
    assert_eq!(ops.swap_outs.len(), 4, "nine entries, four blocks");
    assert_eq!(m.stats().host.num_referenced, 4);
    assert_eq!(m.stats().device.num_referenced, 0);
    assert!(group.iter().all(|&t| m.tier(t) == Tier::Host));

    overwrite(&mut m, 8);
    m.swap_in(&group, 0).unwrap();
    assert_eq!(step(&mut m).swap_ins.len(), 4);
    assert_eq!(group.map(|t| references(&m, t)), before);
    assert_eq!(m.blocks(a), m.blocks(c));
    assert_eq!(m.blocks(a)[..2], m.blocks(b)[..2]);
    assert_eq!((m.num_tokens(a), m.num_tokens(b)), (10, 11));
}

#[test]
fn blocks_shared_with_outsiders_stay_on_the_device_for_them() {
    let mut m = manager(8, 8);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    let b = m.fork(a);
    let blocks = m.blocks(b).to_vec();
    m.swap_out(&[a]).unwrap();
    step(&mut m);
    assert_eq!((m.tier(a), m.tier(b)), (Tier::Host, Tier::Device));
    assert_eq!(m.blocks(b), blocks);
    assert_eq!(references(&m, b), [1, 1, 1]);
    append(&mut m, b, &[10]);
    assert_eq!(m.blocks(b), blocks, "the last holder writes in place");
}

#[test]
fn a_full_host_refuses_and_nothing_changes() {
    let mut m = manager(8, 2);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.reserve(a, 6).unwrap();
    let (stats, blocks) = (m.stats(), m.blocks(a).to_vec());
    let error = OutOfBlocks {
        tier: Tier::Host,
        needed: 3,
        available: 2,
    };
    assert_eq!(m.swap_out(&[a]), Err(error));
    assert_eq!((m.stats(), m.num_reserved(a)), (stats, 6));
    assert_eq!((m.tier(a), m.blocks(a)), (Tier::Device, &blocks[..]));
    assert!(step(&mut m).is_empty());
}

#[test]
fn out_and_in_within_one_step_copies_back_only_what_is_not_published() {
    let mut m = manager(8, 8);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    let before = m.blocks(a).to_vec();
    m.swap_out(&[a]).unwrap();
    m.swap_in(&[a], 0).unwrap();
    assert_eq!(
        m.blocks(a)[..2],
        before[..2],
        "they are still on the device"
    );
    let ops = step(&mut m);
    assert_eq!((ops.swap_outs.len(), ops.swap_ins.len()), (3, 1));
    let tail = ops.swap_ins[0];
    assert_eq!(tail.dst, m.blocks(a)[2]);
    let filled = ops.swap_outs.iter().find(|out| out.dst == tail.src);
    assert_eq!(filled.map(|out| out.src), Some(before[2]));
}

#[test]
fn in_and_out_within_one_step_needs_no_block_of_the_host() {
    let mut m = manager(8, 3);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.swap_out(&[a]).unwrap();
    step(&mut m);
    overwrite(&mut m, 8);
    m.swap_in(&[a], 0).unwrap();
    let stats = m.stats();
    assert_eq!((stats.host.num_free, stats.host.num_cached), (0, 0));
    m.swap_out(&[a]).unwrap();
    assert_eq!(m.stats().num_swapped_out, 3, "none of them anew");
    let ops = step(&mut m);
    assert_eq!((ops.swap_outs.len(), ops.swap_ins.len()), (0, 3));
    assert_eq!(m.stats().host.num_referenced, 3);
}

#[test]
fn a_tail_still_to_be_copied_is_swapped_out_from_its_origin() {
    let mut m = manager(8, 8);
    let (a, _) = prefill(&mut m, &tokens(0..6), NS);
    let b = m.fork(a);
    m.reserve(b, 1).unwrap();
    let origin = m.blocks(a)[1];
    m.swap_out(&[b]).unwrap();
    let ops = step(&mut m);
    assert_eq!(ops.copies.len(), 1, "it was ordered before");
    assert!(ops.swap_outs.iter().any(|out| out.src == origin));
    assert!(ops.swap_outs.iter().all(|out| out.src != ops.copies[0].dst));
}

#[test]
fn a_fork_of_what_is_swapped_out_is_swapped_out_too_and_shares() {
    let mut m = manager(8, 8);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.swap_out(&[a]).unwrap();
    step(&mut m);
    let b = m.fork(a);
    assert_eq!(m.tier(b), Tier::Host);
    assert_eq!(m.stats().host.num_referenced, 3);
    m.truncate(b, 4);
    m.release(a);
    m.check().unwrap();
    let host = m.stats().host;
    assert_eq!((host.num_referenced, host.num_cached), (1, 1));
    m.swap_in(&[b], 0).unwrap();
    step(&mut m);
    assert_eq!((m.num_tokens(b), m.blocks(b).len()), (4, 1));
}

#[test]
fn swapping_out_evicts_what_the_host_only_caches() {
    let mut m = manager(3, 3);
    let (a, _) = prefill(&mut m, &tokens(0..12), NS);
    m.release(a);
    overwrite(&mut m, 3);
    assert_eq!(m.stats().host.num_cached, 3);
    let (b, _) = prefill(&mut m, &tokens(100..110), NS);
    m.swap_out(&[b]).unwrap();
    step(&mut m);
    let host = m.stats().host;
    assert_eq!((host.num_referenced, host.num_evictions), (3, 3));
    assert_eq!(m.lookup(&tokens(0..13), NS), 0);
}

#[test]
fn without_prefix_caching_a_swap_still_keeps_what_is_shared() {
    let mut m = BlockManager::new(Config {
        block_size: 4,
        num_blocks: 8,
        num_host_blocks: 8,
        prefix_caching: false,
        ..Config::default()
    })
    .unwrap();
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    let b = m.fork(a);
    m.swap_out(&[a, b]).unwrap();
    assert_eq!(step(&mut m).swap_outs.len(), 3);
    m.swap_in(&[a, b], 0).unwrap();
    assert_eq!(step(&mut m).swap_ins.len(), 3);
    assert_eq!(m.blocks(a), m.blocks(b));
}

#[test]
fn what_is_swapped_out_makes_room_in_the_same_step() {
    let mut m = manager(3, 6);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.swap_out(&[a]).unwrap();
    step(&mut m);
    m.reset_prefix_cache();
    let (b, _) = prefill(&mut m, &tokens(100..110), NS);
    let before = m.blocks(b).to_vec();
    m.swap_out(&[b]).unwrap();
    m.swap_in(&[a], 0).unwrap();
    let ops = step(&mut m);
    assert_eq!((ops.swap_outs.len(), ops.swap_ins.len()), (3, 3));
    assert!(m.blocks(a).iter().all(|block| before.contains(block)));
    assert_eq!(m.stats().device.num_referenced, 3);
}
