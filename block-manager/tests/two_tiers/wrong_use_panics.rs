//! Wrong use panics with a message that names it.

use super::*;

fn swapped_out() -> (BlockManager, TableId) {
    let mut m = manager(4, 4);
    let (a, _) = prefill(&mut m, &tokens(0..6), NS);
    m.swap_out(&[a]).unwrap();
    step(&mut m);
    (m, a)
}

#[test]
#[should_panic(expected = "is swapped out")]
fn reserving_slots_on_the_host() {
    let (mut m, a) = swapped_out();
    let _ = m.reserve(a, 1);
}

#[test]
#[should_panic(expected = "is swapped out")]
fn committing_on_the_host() {
    let (mut m, a) = swapped_out();
    m.commit(a, &[]);
}

#[test]
#[should_panic(expected = "is swapped out")]
fn a_slot_on_the_host() {
    let (m, a) = swapped_out();
    let _ = m.slot(a, 0);
}

#[test]
#[should_panic(expected = "is swapped out")]
fn device_blocks_of_a_table_on_the_host() {
    let (m, a) = swapped_out();
    let _ = m.blocks(a);
}

#[test]
#[should_panic(expected = "is swapped out")]
fn blocks_needed_on_the_host() {
    let (m, a) = swapped_out();
    let _ = m.blocks_needed(a, 1);
}

#[test]
#[should_panic(expected = "is swapped out")]
fn a_window_on_the_host() {
    let (mut m, a) = swapped_out();
    m.release_before(a, 4);
}

#[test]
#[should_panic(expected = "is swapped out")]
fn swapping_out_twice() {
    let (mut m, a) = swapped_out();
    let _ = m.swap_out(&[a]);
}

#[test]
#[should_panic(expected = "is not swapped out")]
fn swapping_in_what_is_on_the_device() {
    let mut m = manager(4, 4);
    let (a, _) = m.open(&[], NS);
    let _ = m.swap_in(&[a], 0);
}

#[test]
#[should_panic(expected = "is named twice in one group")]
fn a_table_named_twice_on_its_way_out() {
    let mut m = manager(4, 4);
    let (a, _) = prefill(&mut m, &tokens(0..6), NS);
    let _ = m.swap_out(&[a, a]);
}

#[test]
#[should_panic(expected = "is named twice in one group")]
fn a_table_named_twice_on_its_way_in() {
    let (mut m, a) = swapped_out();
    let _ = m.swap_in(&[a, a], 0);
}

#[test]
#[should_panic(expected = "is not open")]
fn swapping_out_what_was_released() {
    let mut m = manager(4, 4);
    let (a, _) = m.open(&[], NS);
    m.release(a);
    let _ = m.swap_out(&[a]);
}

#[test]
#[should_panic(expected = "is not open")]
fn swapping_in_what_was_released() {
    let (mut m, a) = swapped_out();
    m.release(a);
    let _ = m.swap_in(&[a], 0);
}

#[test]
#[should_panic(expected = "whose first 4 were released")]
fn a_cut_before_the_window() {
    let mut m = manager(4, 0);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.release_before(a, 5);
    m.truncate(a, 3);
}

#[test]
#[should_panic(expected = "no slot at position 3")]
fn a_slot_before_the_window() {
    let mut m = manager(4, 0);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.release_before(a, 5);
    let _ = m.slot(a, 3);
}

#[test]
#[should_panic(expected = "before position 11, which has 10 tokens")]
fn a_window_past_the_end() {
    let mut m = manager(4, 0);
    let (a, _) = prefill(&mut m, &tokens(0..10), NS);
    m.release_before(a, 11);
}
