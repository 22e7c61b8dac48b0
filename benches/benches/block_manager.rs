//! What the block manager costs a scheduler.
//!
//! ```text
//! cargo bench -p pageloom-benches --bench block_manager
//! ```
//!
//! All on a pool of 100,000 blocks of 16 tokens with prefix caching. Times are for one call,
//! except where a throughput line counts blocks or appends.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageloom_block_manager::{BlockManager, BlockOps, Config, Namespace, StepId, TableId, TokenId};

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 100_000;
const LONG: usize = 32 * 1024;
const NS: Namespace = Namespace(0);

fn manager() -> BlockManager {
    BlockManager::new(Config {
        block_size: BLOCK_SIZE,
        num_blocks: NUM_BLOCKS,
        hash_seed: 1,
        ..Config::default()
    })
    .expect("a valid configuration")
}

/// Tokens without repetition, different for each `start`.
fn prompt(start: usize, len: usize) -> Vec<TokenId> {
    (start..start + len).map(|i| i as TokenId).collect()
}

fn prefill(m: &mut BlockManager, tokens: &[TokenId]) -> TableId {
    let (t, hit) = m.open(tokens, NS);
    let rest = &tokens[hit..];
    m.reserve(t, rest.len()).expect("the pool is large enough");
    m.commit(t, rest);
    t
}

/// `reserve` and `release` of empty slots: the blocks never hold anything.
fn allocate_and_free(c: &mut Criterion) {
    let mut group = c.benchmark_group("allocate_and_free");
    for num_blocks in [1, 64, 4096] {
        let mut m = manager();
        group.throughput(Throughput::Elements(num_blocks as u64));
        group.bench_function(BenchmarkId::from_parameter(num_blocks), |b| {
            b.iter(|| {
                let (t, _) = m.open(&[], NS);
                m.reserve(t, num_blocks * BLOCK_SIZE).expect("room");
                m.release(black_box(t));
            });
        });
    }
    group.finish();
}

/// The same for blocks that are filled, published, and evict others: a pool that has been full
/// once, the state a server is in.
fn evict_and_publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("evict_and_publish");
    let num_blocks = 64;
    let mut m = manager();
    let mut start = 0;
    let mut fill = |m: &mut BlockManager| {
        let tokens = prompt(start, num_blocks * BLOCK_SIZE);
        start += tokens.len();
        let t = prefill(m, &tokens);
        m.release(t);
    };
    while m.stats().device.num_free > 0 {
        fill(&mut m);
    }
    group.throughput(Throughput::Elements(num_blocks as u64));
    group.bench_function(BenchmarkId::from_parameter(num_blocks), |b| {
        b.iter(|| fill(&mut m));
    });
    group.finish();
}

fn fork(c: &mut Criterion) {
    let mut m = manager();
    let t = prefill(&mut m, &prompt(0, LONG));
    let m = std::cell::RefCell::new(m);
    // Forks of one round stay open until it ends: releasing them is not what is measured.
    c.bench_function("fork/32k_tokens", |b| {
        b.iter_batched(
            || {
                let child = m.borrow_mut().fork(t);
                m.borrow_mut().release(child);
            },
            |()| Forked(&m, m.borrow_mut().fork(t)),
            BatchSize::PerIteration,
        );
    });
}

/// Released when dropped, which criterion does outside the timed part.
struct Forked<'a>(&'a std::cell::RefCell<BlockManager>, TableId);

impl Drop for Forked<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().release(self.1);
    }
}

fn fork_and_release(c: &mut Criterion) {
    let mut m = manager();
    let t = prefill(&mut m, &prompt(0, LONG));
    c.bench_function("fork_and_release/32k_tokens", |b| {
        b.iter(|| {
            let child = m.fork(t);
            m.release(child);
        });
    });
}

fn lookup(c: &mut Criterion) {
    let mut m = manager();
    let tokens = prompt(0, LONG + 1);
    let t = prefill(&mut m, &tokens);
    m.release(t);
    assert_eq!(m.lookup(&tokens, NS), LONG);
    c.bench_function("lookup/cached_32k_tokens", |b| {
        b.iter(|| m.lookup(black_box(&tokens), NS));
    });
    c.bench_function("lookup/nothing_cached", |b| {
        b.iter(|| m.lookup(black_box(&tokens[1..]), NS));
    });
    c.bench_function("open_and_release/cached_32k_tokens", |b| {
        b.iter(|| {
            let (t, _) = m.open(black_box(&tokens), NS);
            m.release(t);
        });
    });
}

/// A decode step of one sequence: reserve a slot, commit a token.
fn append(c: &mut Criterion) {
    let mut m = manager();
    let t = prefill(&mut m, &prompt(0, 1000 * BLOCK_SIZE + 1));
    let filled = m.num_tokens(t);
    m.reserve(t, 1).expect("room");
    let mut group = c.benchmark_group("append");
    // From the second slot of a block to its last but one, then back: a fourteenth of a truncate
    // is part of the figure.
    group.throughput(Throughput::Elements(14));
    group.bench_function("14_that_stay_in_their_block", |b| {
        b.iter(|| {
            for _ in 0..14 {
                m.reserve(t, 1).expect("room");
                m.commit(t, black_box(&[7]));
            }
            m.truncate(t, filled);
        });
    });
    group.finish();
    let mut ops = BlockOps::default();
    let mut step = 0;
    c.bench_function("seal_and_complete/no_copies", |b| {
        b.iter(|| {
            step += 1;
            m.seal_into(StepId(step), &mut ops);
            m.complete(StepId(step));
        });
    });
}

criterion_group!(
    benches,
    allocate_and_free,
    evict_and_publish,
    fork,
    fork_and_release,
    lookup,
    append
);
criterion_main!(benches);
