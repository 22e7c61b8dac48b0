//! What the manager allocates: nothing in steady state, and little for each block.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pageloom_block_manager::{BlockManager, BlockOps, Config, Namespace, Stats, StepId, TokenId};

struct Counting;

thread_local! {
    /// Of this thread only: the test runner's own thread allocates when it likes.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// Bytes asked for and not given back; other threads may give back what this one asked for.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(asked: usize, given_back: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + usize::from(asked > 0));
    BYTES.set(BYTES.get().wrapping_add(asked).wrapping_sub(given_back));
}

// SAFETY: every call is handed to `System` unchanged, whose guarantees are those of the trait.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the caller keeps the contract of `realloc`, and `ptr` came from `System`.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A request from opening to release: prefill, fork, decode both with a copied tail, and with
/// `swaps` a stay on the host in between.
fn request(
    m: &mut BlockManager,
    ops: &mut BlockOps,
    prompt: &[TokenId],
    step: &mut u64,
    swaps: bool,
) {
    let mut seal = |m: &mut BlockManager| {
        *step += 1;
        m.seal_into(StepId(*step), ops);
        m.complete(StepId(*step));
    };
    let (a, hit) = m.open(prompt, Namespace(0));
    m.reserve(a, prompt.len() - hit).expect("room");
    seal(m);
    m.commit(a, &prompt[hit..]);
    let b = m.fork(a);
    for token in 0..100 {
        for (t, token) in [(a, token), (b, 1000 + token)] {
            m.reserve(t, 1).expect("room");
            seal(m);
            m.commit(t, &[token]);
        }
        if swaps && token == 50 {
            m.swap_out(&[a, b]).expect("room on the host");
            seal(m);
            m.swap_in(&[a, b], 0).expect("room");
            seal(m);
        }
    }
    m.release(b);
    m.release(a);
    m.drain_events(|_| {});
}

/// Serves 1,000 requests after a few to warm up, and returns what that allocated.
fn allocations_of_a_warm_manager(config: Config, swaps: bool) -> (usize, Stats) {
    let mut m = BlockManager::new(config).expect("a valid configuration");
    let prompts: Vec<Vec<TokenId>> = (0..50).map(|i| (i..i + 300).collect()).collect();
    let (mut ops, mut step) = (BlockOps::default(), 0);
    for prompt in &prompts[..10] {
        request(&mut m, &mut ops, prompt, &mut step, swaps);
    }
    let before = ALLOCATIONS.get();
    for prompt in prompts.iter().cycle().take(1000) {
        request(&mut m, &mut ops, prompt, &mut step, swaps);
    }
    (ALLOCATIONS.get() - before, m.stats())
}

#[test]
fn a_warm_manager_allocates_nothing() {
    // Small enough that requests evict each other: the index inserts and removes all the time.
    let config = Config {
        num_blocks: 64,
        ..Config::default()
    };
    let (num_allocations, stats) = allocations_of_a_warm_manager(config, false);
    assert_eq!(num_allocations, 0);
    assert!(
        stats.device.num_evictions > 10_000 && stats.num_copies > 900,
        "{stats:?}"
    );
}

#[test]
fn with_two_tiers_and_events_it_allocates_nothing_either() {
    let config = Config {
        num_blocks: 64,
        num_host_blocks: 200,
        events: true,
        ..Config::default()
    };
    let (num_allocations, stats) = allocations_of_a_warm_manager(config, true);
    assert_eq!(num_allocations, 0);
    assert!(
        stats.host.num_evictions > 10_000 && stats.num_swapped_out > 10_000,
        "{stats:?}"
    );
}

#[test]
fn a_block_costs_at_most_64_bytes_besides_its_tokens() {
    // The index's table doubles in size as it grows: 57,345 blocks are its worst case.
    for num_blocks in [1_000, 57_344, 57_345, 100_000] {
        let before = BYTES.get();
        let config = Config {
            num_blocks,
            ..Config::default()
        };
        let token_bytes = num_blocks * config.block_size * size_of::<TokenId>();
        let m = BlockManager::new(config).expect("a valid configuration");
        let bytes = BYTES.get() - before - token_bytes;
        assert!(bytes <= 64 * num_blocks, "{bytes} for {num_blocks} blocks");
        drop(m);
        assert_eq!(BYTES.get(), before);
    }
}

#[test]
fn what_released_tables_leave_behind_is_bounded() {
    let mut m = BlockManager::new(Config {
        num_blocks: 4000,
        block_size: 1,
        prefix_caching: false,
        ..Config::default()
    })
    .expect("a valid configuration");
    let (parent, _) = m.open(&[], Namespace(0));
    m.reserve(parent, 1000).expect("room");
    m.commit(parent, &[7; 1000]);
    // Room for the tables themselves, which stays.
    let short: Vec<_> = (0..8).map(|_| m.open(&[], Namespace(0)).0).collect();
    short.into_iter().for_each(|t| m.release(t));

    let before = BYTES.get();
    let mut forks: Vec<_> = (0..8).map(|_| m.fork(parent)).collect();
    forks.drain(..4).for_each(|t| m.release(t));
    let again = m.fork(parent);
    m.release(again);
    forks.into_iter().for_each(|t| m.release(t));
    let kept = BYTES.get() - before;
    // Lists for as many blocks as there are, at 4 bytes a block, and the list of those lists.
    assert!((12_000..17_000).contains(&kept), "{kept} bytes are kept");
}

#[test]
fn ten_million_blocks_work() {
    let num_blocks = 10_000_000;
    let mut m = BlockManager::new(Config {
        num_blocks,
        block_size: 1,
        ..Config::default()
    })
    .expect("a valid configuration");
    let (t, _) = m.open(&[], Namespace(0));
    m.reserve(t, num_blocks).expect("as many as there are");
    assert_eq!(m.blocks(t)[num_blocks - 1].index(), num_blocks - 1);
    assert!(m.reserve(t, num_blocks + 1).is_err());
    let prompt: Vec<TokenId> = (0..100_000).collect();
    m.commit(t, &prompt);
    m.release(t);
    assert_eq!(m.lookup(&prompt, Namespace(0)), prompt.len() - 1);
    assert_eq!(m.num_available_blocks(), num_blocks);
}
