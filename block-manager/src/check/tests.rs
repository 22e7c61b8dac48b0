//! Each violation is found: every test breaks one thing by hand.

use alloc::vec::Vec;

use super::Violation;
use crate::{BlockId, BlockManager, Config, Namespace, StepId, TableId, Tier, TokenId};

const NS: Namespace = Namespace(0);

/// Sixteen blocks of two tokens in either tier. On the device: two cached blocks, the first of
/// them asked for again, and a table of four blocks, a half and a reserved slot. On the host: a
/// table with the same tokens.
fn manager() -> (BlockManager, TableId, TableId) {
    let config = Config {
        block_size: 2,
        num_blocks: 16,
        num_host_blocks: 16,
        ..Config::default()
    };
    let mut m = BlockManager::new(config).unwrap();
    let other = [50, 51, 52, 53];
    for _ in 0..2 {
        let (t, hit) = m.open(&other, NS);
        m.reserve(t, 4 - hit).unwrap();
        m.commit(t, &other[hit..]);
        m.release(t);
    }
    let prompt: Vec<TokenId> = (0..9).collect();
    let (a, _) = m.open(&[], NS);
    m.reserve(a, 10).unwrap();
    m.commit(a, &prompt);
    let b = m.fork(a);
    m.swap_out(&[b]).unwrap();
    m.reserve(a, 1).unwrap();
    let _ = m.seal(StepId(0));
    m.complete(StepId(0));
    m.check().unwrap();
    assert_eq!(m.stats().device.num_cached, 2);
    assert_eq!(m.store.device.pool.num_protected, 1);
    (m, a, b)
}

fn last_block(m: &BlockManager, t: TableId) -> BlockId {
    *m.tables.get(t).blocks.last().unwrap()
}

#[track_caller]
fn expect(m: &BlockManager, violation: Violation) {
    let found = m.check().expect_err("something was broken");
    assert_eq!(found, violation);
    assert!(alloc::format!("{found}").starts_with("block manager invariant broken: "));
}

#[test]
fn references_that_no_table_has() {
    let (mut m, a, b) = manager();
    for (tier, t) in [(Tier::Device, a), (Tier::Host, b)] {
        let id = last_block(&m, t);
        m.store.memory_mut(tier).pool.get_mut(id).refs += 1;
        expect(
            &m,
            Violation::References {
                tier,
                block: id.index(),
                counted: 2,
                held: 1,
            },
        );
        m.store.memory_mut(tier).pool.get_mut(id).refs -= 1;
    }
}

#[test]
fn pins_that_no_transfer_has() {
    let (mut m, a, b) = manager();
    let c = m.fork(b);
    m.swap_in(&[c], 0).unwrap();
    let _ = m.seal(StepId(1));
    m.check().unwrap();
    for (tier, t, held) in [(Tier::Device, a, 0), (Tier::Host, b, 1)] {
        let id = last_block(&m, t);
        m.store.memory_mut(tier).pool.get_mut(id).pins += 1;
        expect(
            &m,
            Violation::Pins {
                tier,
                block: id.index(),
                counted: held + 1,
                held,
            },
        );
        m.store.memory_mut(tier).pool.get_mut(id).pins -= 1;
    }
}

#[test]
fn a_broken_list() {
    for tier in [Tier::Device, Tier::Host] {
        let (mut m, ..) = manager();
        let pool = &mut m.store.memory_mut(tier).pool;
        let first = pool.front().unwrap();
        pool.get_mut(first).prev = first.0;
        expect(&m, Violation::ListBroken { tier });
    }
}

#[test]
fn a_block_off_the_list_that_nobody_holds() {
    let (mut m, ..) = manager();
    let pool = &mut m.store.host.pool;
    let first = pool.front().unwrap();
    pool.acquire(first);
    pool.get_mut(first).refs = 0;
    expect(
        &m,
        Violation::ListMembership {
            tier: Tier::Host,
            block: first.index(),
            listed: false,
        },
    );
}

#[test]
fn a_block_on_the_list_that_a_table_holds() {
    let (mut m, a, _) = manager();
    let first = m.store.device.pool.front().unwrap();
    m.store.device.pool.get_mut(first).refs = 1;
    m.tables.get_mut(a).blocks.push(first);
    expect(
        &m,
        Violation::ListMembership {
            tier: Tier::Device,
            block: first.index(),
            listed: true,
        },
    );
}

#[test]
fn blocks_that_are_evicted_out_of_order() {
    let (mut m, ..) = manager();
    // The protected one is last; without protection the other may stay before it, but not
    // when it has lost its identity and with it the reason to be kept.
    let tier = Tier::Device;
    let last = m.store.device.pool.last_cached().unwrap();
    m.store.device.pool.get_mut(last).forget_identity();
    let block = last.index();
    expect(&m, Violation::ListOrder { tier, block });

    let (mut m, ..) = manager();
    let last = m.store.device.pool.last_cached().unwrap();
    let before = BlockId(m.store.device.pool.get(last).prev);
    m.store.device.pool.get_mut(before).reused = true;
    m.store.device.pool.get_mut(last).reused = false;
    expect(&m, Violation::ListOrder { tier, block });
}

#[test]
fn counters_that_are_wrong() {
    let tier = Tier::Device;
    let wrong = |kind, counted, found| Violation::Counts {
        tier,
        kind,
        counted,
        found,
    };
    let (mut m, ..) = manager();
    m.store.device.pool.num_cached += 1;
    expect(&m, wrong("cached", 3, 2));
    m.store.device.pool.num_cached -= 1;
    m.store.device.pool.num_free += 1;
    expect(&m, wrong("free", 10, 9));
    m.store.device.pool.num_free -= 1;
    m.store.device.pool.num_pinned += 1;
    expect(&m, wrong("pinned", 1, 0));
    m.store.device.pool.num_pinned -= 1;
    m.store.device.pool.num_references -= 1;
    expect(&m, wrong("references", 4, 5));
    m.store.device.pool.num_references += 1;
    m.store.device.pool.num_protected += 1;
    expect(&m, wrong("protected", 2, 1));
    m.store.device.pool.num_protected -= 1;
    m.store.device.pool.most_protected = 0;
    expect(&m, wrong("protected too many", 1, 0));
}

#[test]
fn a_pinned_block_is_counted_only_while_nobody_holds_it() {
    let (mut m, a, _) = manager();
    // The tail is copied for a fork that lets go of the copy before it was done.
    let c = m.fork(a);
    m.reserve(c, 1).unwrap();
    m.check().unwrap();
    m.release(c);
    m.check().unwrap();
    assert_eq!(m.store.device.pool.num_pinned, 1);
    m.store.device.pool.num_pinned = 0;
    expect(
        &m,
        Violation::Counts {
            tier: Tier::Device,
            kind: "pinned",
            counted: 0,
            found: 1,
        },
    );
}

#[test]
fn a_published_block_that_cannot_be_found() {
    for (tier, t) in [(Tier::Device, 0), (Tier::Host, 1)] {
        let (mut m, a, b) = manager();
        let first = m.tables.get([a, b][t]).blocks[0];
        let memory = m.store.memory_mut(tier);
        let identity = memory.pool.get(first).identity();
        memory
            .index
            .as_mut()
            .unwrap()
            .remove(&mut memory.pool, first);
        memory.pool.get_mut(first).set_identity(identity);
        let block = first.index();
        expect(&m, Violation::Unfindable { tier, block });
    }
}

#[test]
fn a_findable_block_that_is_not_published() {
    let (mut m, a, _) = manager();
    let first = m.tables.get(a).blocks[0];
    m.store.device.pool.get_mut(first).forget_identity();
    expect(
        &m,
        Violation::Counts {
            tier: Tier::Device,
            kind: "published",
            counted: 6,
            found: 5,
        },
    );
}

#[test]
fn a_name_with_two_contents() {
    let (mut m, _, b) = manager();
    let first = m.tables.get(b).blocks[0];
    m.store
        .host
        .index
        .as_mut()
        .unwrap()
        .write(first, 0, &[7, 7]);
    let block = first.index();
    expect(&m, Violation::Twins { block });
}

#[test]
fn contents_with_two_names() {
    let (mut m, _, b) = manager();
    let last_full = m.tables.get(b).blocks[3];
    let entry = m.store.host.pool.get_mut(last_full);
    let mut identity = entry.identity();
    identity.serial = 99;
    entry.set_identity(identity);
    let block = last_full.index();
    expect(&m, Violation::Twins { block });
}

#[test]
fn a_table_with_too_few_blocks() {
    let (mut m, a, _) = manager();
    m.tables.get_mut(a).num_tokens += 2;
    expect(
        &m,
        Violation::TableLength {
            table: a,
            num_blocks: 5,
            num_slots: 12,
        },
    );
}

#[test]
fn a_table_that_counts_its_slots_wrong() {
    let (mut m, a, _) = manager();
    for (num_reserved, num_writable) in [(1, 0), (1, 2)] {
        m.tables.get_mut(a).num_reserved = num_reserved;
        m.tables.get_mut(a).num_writable = num_writable;
        expect(
            &m,
            Violation::TableSlots {
                table: a,
                num_reserved,
                num_writable,
            },
        );
    }
}

#[test]
fn a_full_block_that_does_not_follow_the_one_before() {
    for t in 0..2 {
        let (mut m, a, b) = manager();
        let table = [a, b][t];
        m.tables.get_mut(table).blocks.swap(1, 2);
        let block = m.tables.get(table).blocks[1].index();
        expect(&m, Violation::Chain { table, block });
    }
}

#[test]
fn a_slot_reserved_in_a_shared_block() {
    let (mut m, a, _) = manager();
    let tail = last_block(&m, a);
    let block = tail.index();
    let c = m.fork(a);
    assert_eq!(m.tables.get(a).num_reserved, 0);
    for num_reserved in [0, 1] {
        m.tables.get_mut(a).num_reserved = num_reserved;
        m.tables.get_mut(a).num_writable = 1;
        expect(&m, Violation::Unwritable { table: a, block });
    }
    m.tables.get_mut(a).forget_reserved();
    m.release(c);
    m.check().unwrap();
}

#[test]
fn a_slot_reserved_on_the_host() {
    let (mut m, _, b) = manager();
    m.tables.get_mut(b).num_writable = 1;
    let block = last_block(&m, b).index();
    expect(&m, Violation::Unwritable { table: b, block });
}
