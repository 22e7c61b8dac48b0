//! The walk-throughs of Kwon et al. 2023 (SOSP), figures 6, 8 and 9.
//!
//! The figures' physical block numbers are those of their drawings; what must agree is which
//! blocks are the same, which are new, what is copied and what is freed. So each test names
//! blocks as its figure does and keeps the numbers in a small dictionary.

use std::collections::BTreeSet;

use pageloom_block_manager::{
    BlockCopy, BlockId, BlockManager, Config, Namespace, StepId, TableId, TokenId,
};

fn manager() -> BlockManager {
    BlockManager::new(Config {
        block_size: 4,
        num_blocks: 16,
        ..Config::default()
    })
    .unwrap()
}

/// One step that computes `tokens` for the table; returns the copies it ordered.
fn step(m: &mut BlockManager, t: TableId, tokens: &[TokenId]) -> Vec<BlockCopy> {
    m.reserve(t, tokens.len()).unwrap();
    let ops = m.seal(StepId(0));
    m.complete(StepId(0));
    m.commit(t, tokens);
    m.check().unwrap();
    ops.copies
}

/// The paper's block table: each physical block with its number of filled positions.
fn block_table(m: &BlockManager, t: TableId) -> Vec<(BlockId, usize)> {
    let filled = |place: usize| (m.num_tokens(t) - 4 * place).min(4);
    let blocks = m.blocks(t).iter().enumerate();
    blocks
        .map(|(place, &block)| (block, filled(place)))
        .collect()
}

fn set(blocks: &[BlockId]) -> BTreeSet<BlockId> {
    blocks.iter().copied().collect()
}

#[test]
fn figure_6_a_seven_token_prompt_grows_by_a_block_only_when_its_last_is_full() {
    let mut m = manager();
    let prompt = [1, 2, 3, 4, 5, 6, 7];
    let (t, _) = m.open(&prompt, Namespace(0));
    assert_eq!(m.stats().device.num_referenced, 0, "blocks come on demand");

    // 1: the prompt takes two blocks, filled 4 and 3.
    step(&mut m, t, &prompt);
    let [b7, b1] = *m.blocks(t) else {
        panic!("two blocks expected");
    };
    assert_ne!(b7, b1);
    assert_eq!(block_table(&m, t), [(b7, 4), (b1, 3)]);

    // 2: the first decode fills the slot left in block 1.
    assert_eq!(m.blocks_needed(t, 1), 0);
    step(&mut m, t, &[8]);
    assert_eq!(block_table(&m, t), [(b7, 4), (b1, 4)]);

    // 3: the second finds it full and takes block 3.
    assert_eq!(m.blocks_needed(t, 1), 1);
    step(&mut m, t, &[9]);
    let b3 = m.blocks(t)[2];
    assert!(b3 != b7 && b3 != b1);
    assert_eq!(block_table(&m, t), [(b7, 4), (b1, 4), (b3, 1)]);
    assert_eq!(m.stats().device.num_referenced, 3);

    // Section 3: a sequence wastes less than one block.
    let slots = 4 * m.stats().device.num_referenced;
    assert!(slots - m.num_tokens(t) < 4);
}

#[test]
fn figure_8_the_first_sample_copies_the_shared_tail_and_the_last_writes_in_place() {
    let mut m = manager();
    let (a1, _) = m.open(&[], Namespace(0));
    step(&mut m, a1, &[1, 2, 3, 4, 5, 6, 7]);
    let a2 = m.fork(a1);
    let [b7, b1] = *m.blocks(a1) else {
        panic!("two blocks expected");
    };
    assert_eq!(m.blocks(a2), [b7, b1], "one copy of the prompt");
    assert_eq!((m.num_references(b7), m.num_references(b1)), (2, 2));

    // A1 writes first: block 1 is copied to block 3, and its count falls to one.
    let copies = step(&mut m, a1, &[100]);
    let b3 = m.blocks(a1)[1];
    assert_eq!(copies, [BlockCopy { src: b1, dst: b3 }]);
    assert_eq!((m.num_references(b1), m.num_references(b3)), (1, 1));

    // A2 is the last that holds block 1 and writes it where it is.
    assert_eq!(step(&mut m, a2, &[200]), []);
    assert_eq!(m.blocks(a1), [b7, b3]);
    assert_eq!(m.blocks(a2), [b7, b1]);
    assert_eq!(m.num_references(b7), 2);
    assert_eq!(m.stats().device.num_referenced, 3);
}

/// Block 0 to candidate 3's block 8, as the figure draws them before its dotted line.
struct Beams {
    candidates: [TableId; 4],
    blocks: [BlockId; 9],
}

/// Four beams: 0 to 2 share blocks 0, 1, 3 and own 5, 6, 7; beam 3 has 0, 2, 4, 8.
fn beams(m: &mut BlockManager) -> Beams {
    let (c3, _) = m.open(&[], Namespace(0));
    step(m, c3, &[1, 1, 1, 1]);
    let c0 = m.fork(c3);
    step(m, c3, &[2, 2, 2, 2]);
    step(m, c3, &[4, 4, 4, 4]);
    step(m, c3, &[8, 8, 8, 8]);
    step(m, c0, &[10, 10, 10, 10]);
    step(m, c0, &[3, 3, 3, 3]);
    let c1 = m.fork(c0);
    let c2 = m.fork(c0);
    step(m, c0, &[5, 5, 5, 5]);
    step(m, c1, &[6, 6, 6, 6]);
    step(m, c2, &[7, 7, 7, 7]);
    let at = |t, place: usize| m.blocks(t)[place];
    let blocks = [
        at(c0, 0),
        at(c0, 1),
        at(c3, 1),
        at(c0, 2),
        at(c3, 2),
        at(c0, 3),
        at(c1, 3),
        at(c2, 3),
        at(c3, 3),
    ];
    Beams {
        candidates: [c0, c1, c2, c3],
        blocks,
    }
}

#[test]
fn figure_9_beam_search_frees_the_losers_blocks_and_shares_the_survivors() {
    // Without prefix caching, so that freed means free and not cached.
    let mut m = BlockManager::new(Config {
        block_size: 4,
        num_blocks: 16,
        prefix_caching: false,
        ..Config::default()
    })
    .unwrap();
    let before = beams(&mut m);
    let [c0, c1, c2, c3] = before.candidates;
    let b = before.blocks;
    assert_eq!(set(&b).len(), 9);
    assert_eq!(m.stats().device.num_referenced, 9);
    assert_eq!((m.num_references(b[0]), m.num_references(b[1])), (4, 3));

    // The best four continue candidates 1 and 2, two each; 0 and 3 end. Survivors fork first.
    let (n1, n3) = (m.fork(c1), m.fork(c2));
    m.release(c0);
    m.release(c3);
    m.check().unwrap();
    for freed in [2, 4, 5, 8] {
        assert_eq!(m.num_references(b[freed]), 0, "block {freed}");
    }
    assert_eq!(m.stats().device.num_referenced, 5);
    assert_eq!(m.stats().device.num_free, 11);

    // Each writes its next token into a block of its own: 9 to 12, and nothing is copied.
    let after = [c1, n1, c2, n3];
    for (token, &t) in (100..).zip(&after) {
        assert_eq!(step(&mut m, t, &[token]), []);
    }
    let new: Vec<BlockId> = after.iter().map(|&t| m.blocks(t)[4]).collect();
    assert_eq!(set(&new).len(), 4);
    assert_eq!(m.stats().device.num_referenced, 9);
    for &t in &after {
        assert_eq!(m.blocks(t)[..3], [b[0], b[1], b[3]], "all share 0, 1, 3");
    }
    for (&t, shared) in after.iter().zip([b[6], b[6], b[7], b[7]]) {
        assert_eq!(m.blocks(t)[3], shared);
        assert_eq!(m.num_references(shared), 2);
    }
}
