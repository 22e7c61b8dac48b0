//! Blocks that fall out of a sliding window.

use super::*;

#[test]
fn positions_and_slots_stay_while_blocks_before_the_window_go() {
    let mut m = manager(8, 0);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.reserve(a, 1).unwrap();
    let (slots, tail) = (
        [4, 7, 10].map(|at| m.slot(a, at)),
        m.blocks(a)[1..].to_vec(),
    );
    assert_eq!(m.release_before(a, 7), 1);
    m.check().unwrap();
    assert_eq!(m.release_before(a, 7), 0, "it went before");
    assert_eq!(m.release_before(a, 2), 0, "and so did this");
    assert_eq!((m.num_tokens(a), m.num_passed_blocks(a)), (10, 1));
    assert_eq!(m.blocks(a), tail);
    assert_eq!([4, 7, 10].map(|at| m.slot(a, at)), slots);
    let device = m.stats().device;
    assert_eq!((device.num_referenced, device.num_cached), (2, 1));
    assert_eq!(m.lookup(&tokens(0..10), NS), 8, "still findable");
}

#[test]
fn a_window_runs_for_ever_in_a_few_blocks() {
    let mut m = manager(4, 0);
    let (a, _) = m.open(&[], NS);
    for position in 0..1000 {
        m.release_before(a, (position as usize).saturating_sub(6));
        append(&mut m, a, &[position]);
        assert!(m.blocks(a).len() <= 3, "{:?}", m.blocks(a));
    }
    assert_eq!(m.num_tokens(a), 1000);
}

#[test]
fn a_block_full_after_all_before_it_went_is_found_behind_them() {
    let mut m = manager(4, 0);
    let (a, _) = prefill(&mut m, &tokens(0..8), NS);
    assert_eq!(m.release_before(a, 8), 2);
    assert!(m.blocks(a).is_empty());
    append(&mut m, a, &tokens(8..12));
    assert_eq!(m.lookup(&tokens(0..13), NS), 12);
    assert_eq!(m.lookup(&tokens(8..13), NS), 0, "not without them");
    // One block is free; the other taken is the second of the prompt, whose head goes last.
    overwrite(&mut m, 2);
    assert_eq!(m.lookup(&tokens(0..13), NS), 4);
    // Computed again, the second has another name; the third follows the one that is gone.
    let (b, hit) = prefill(&mut m, &tokens(0..9), NS);
    assert_eq!(hit, 4);
    assert_eq!(m.lookup(&tokens(0..13), NS), 8);
    m.release(b);
}

#[test]
fn a_window_survives_a_swap() {
    let mut m = manager(8, 8);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.release_before(a, 5);
    m.swap_out(&[a]).unwrap();
    assert_eq!(step(&mut m).swap_outs.len(), 2, "what went does not move");
    let b = m.fork(a);
    assert_eq!((m.num_passed_blocks(a), m.num_passed_blocks(b)), (1, 1));
    m.swap_in(&[a, b], 0).unwrap();
    step(&mut m);
    append(&mut m, b, &tokens(10..12));
    assert_eq!(m.lookup(&tokens(0..13), NS), 12);
}

#[test]
fn a_cut_at_the_border_of_what_went_is_allowed() {
    let mut m = manager(8, 0);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.release_before(a, 5);
    m.truncate(a, 4);
    assert!(m.blocks(a).is_empty());
    append(&mut m, a, &tokens(4..9));
    assert_eq!(m.lookup(&tokens(0..9), NS), 8);
}
