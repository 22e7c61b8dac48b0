//! Blocks left for the sequences that run.

use super::*;

#[test]
fn admission_leaves_as_many_blocks_as_it_is_told() {
    let mut m = manager(8, 0);
    let stats = m.stats();
    let error = OutOfBlocks {
        tier: Tier::Device,
        needed: 6,
        available: 5,
    };
    assert_eq!(m.admit(&tokens(0..24), 24, NS, 3), Err(error));
    assert_eq!(m.stats(), stats, "not even a query is counted");
    let (a, hit) = m.admit(&tokens(0..24), 24, NS, 2).unwrap();
    assert_eq!((hit, m.num_reserved(a), m.blocks(a).len()), (0, 24, 6));
    assert_eq!(m.num_available_blocks(), 2);
    let keeps_more = OutOfBlocks {
        tier: Tier::Device,
        needed: 1,
        available: 0,
    };
    assert_eq!(m.admit(&[1], 1, NS, 9), Err(keeps_more));
    m.check().unwrap();
}

#[test]
fn admission_counts_the_cached_blocks_it_takes_and_not_those_others_hold() {
    let mut m = manager(4, 0);
    let prompt = tokens(0..13);
    let (a, _) = prefill(&mut m, &prompt, NS);
    assert_eq!(m.num_available_blocks(), 0);
    m.truncate(a, 12);
    let (b, hit) = m.admit(&prompt, 13, NS, 0).unwrap();
    assert_eq!((hit, m.num_reserved(b)), (12, 1));
    m.release(a);
    m.release(b);
    let error = OutOfBlocks {
        tier: Tier::Device,
        needed: 4,
        available: 3,
    };
    assert_eq!(m.admit(&prompt, 13, NS, 1), Err(error));
    m.check().unwrap();
}

#[test]
fn swapping_in_leaves_as_many_blocks_as_it_is_told() {
    let mut m = manager(4, 4);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.swap_out(&[a]).unwrap();
    step(&mut m);
    let stats = m.stats();
    let error = OutOfBlocks {
        tier: Tier::Device,
        needed: 3,
        available: 2,
    };
    assert_eq!(m.swap_in(&[a], 2), Err(error));
    assert_eq!((m.stats(), m.tier(a)), (stats, Tier::Host));
    m.swap_in(&[a], 1).unwrap();
    assert_eq!(m.num_available_blocks(), 1);
    m.check().unwrap();
}

#[test]
fn what_needs_no_block_still_leaves_as_many_as_it_is_told() {
    let mut m = manager(4, 4);
    let (a, _) = prefill(&mut m, &tokens(0..12), NS);
    let b = m.fork(a);
    m.swap_out(&[b]).unwrap();
    step(&mut m);
    let error = OutOfBlocks {
        tier: Tier::Device,
        needed: 0,
        available: 0,
    };
    // All of its blocks are on the device already, and one is available.
    assert_eq!(m.swap_in(&[b], 2), Err(error));
    m.swap_in(&[b], 1).unwrap();
    assert_eq!(m.num_available_blocks(), 1);
}
