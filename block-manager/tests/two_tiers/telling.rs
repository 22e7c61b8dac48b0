//! The events a router follows.

use super::*;

#[test]
fn contents_keep_their_name_in_both_tiers_and_when_computed_again() {
    let mut m = manager(2, 4);
    let (a, _) = prefill(&mut m, &tokens(0..8), NS);
    let told = events(&mut m);
    let [
        Event::Stored(Tier::Device, first, Parent::Root(NS), head),
        Event::Stored(Tier::Device, second, Parent::Content(parent), tail),
    ] = &told[..]
    else {
        panic!("{told:?}");
    };
    assert_eq!((head, tail), (&tokens(0..4), &tokens(4..8)));
    assert_eq!(parent, first);
    assert_ne!(first, second);
    let (first, second) = (*first, *second);

    m.release(a);
    overwrite(&mut m, 2);
    let stored = |tier| {
        [
            Event::Stored(tier, first, Parent::Root(NS), tokens(0..4)),
            Event::Stored(tier, second, Parent::Content(first), tokens(4..8)),
        ]
    };
    let removed = |tier, content| Event::Removed(tier, content);
    let [head, tail] = stored(Tier::Host);
    let lost = [first, second].map(|content| removed(Tier::Device, content));
    let [lost_head, lost_tail] = lost;
    assert_eq!(events(&mut m), [tail, lost_tail, head, lost_head]);

    // Computed again without looking it up: the same contents, so the same name.
    let (b, _) = m.open(&[], NS);
    append(&mut m, b, &tokens(0..4));
    append(&mut m, b, &tokens(4..8));
    assert_eq!(events(&mut m), stored(Tier::Device));
}

#[test]
fn a_promoted_block_is_told_once_in_each_tier() {
    let mut m = manager(1, 4);
    let (a, _) = prefill(&mut m, &tokens(0..4), NS);
    m.release(a);
    overwrite(&mut m, 1);
    let told = events(&mut m);
    let Event::Stored(_, content, _, _) = told[0] else {
        panic!("{told:?}");
    };
    m.open(&tokens(0..5), NS);
    let again = Event::Stored(Tier::Device, content, Parent::Root(NS), tokens(0..4));
    assert_eq!(events(&mut m), [again]);
}

#[test]
fn a_reset_tells_that_all_is_cleared_only_if_nothing_stays() {
    let mut m = manager(4, 4);
    let (a, _) = prefill(&mut m, &tokens(0..4), NS);
    let (b, _) = prefill(&mut m, &tokens(100..104), NS);
    m.release(b);
    let told = events(&mut m);
    let Event::Stored(_, content, _, _) = told[1] else {
        panic!("{told:?}");
    };
    m.reset_prefix_cache();
    let removed = Event::Removed(Tier::Device, content);
    assert_eq!(events(&mut m), [removed]);
    m.release(a);
    m.reset_prefix_cache();
    assert_eq!(events(&mut m), [Event::Cleared]);
    m.reset_prefix_cache();
    assert_eq!(events(&mut m), [], "there was nothing left to clear");
}
