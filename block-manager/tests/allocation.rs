//! Steps in steady state allocate no memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pageloom_block_manager::{BlockManager, BlockOps, Config, Namespace, StepId, TokenId};

struct Counting;

thread_local! {
    /// Of this thread only: the test runner's own thread allocates when it likes.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call is handed to `System` unchanged, whose guarantees are those of the trait.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`, and `ptr` came from `System`.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A request from opening to release: prefill, fork, decode both with a copied tail.
fn request(m: &mut BlockManager, ops: &mut BlockOps, prompt: &[TokenId], step: &mut u64) {
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
    }
    m.release(b);
    m.release(a);
}

#[test]
fn a_warm_manager_allocates_nothing() {
    // Small enough that requests evict each other: the index inserts and removes all the time.
    let mut m = BlockManager::new(Config {
        num_blocks: 64,
        ..Config::default()
    })
    .expect("a valid configuration");
    let prompts: Vec<Vec<TokenId>> = (0..50).map(|i| (i..i + 300).collect()).collect();
    let (mut ops, mut step) = (BlockOps::default(), 0);
    for prompt in &prompts[..5] {
        request(&mut m, &mut ops, prompt, &mut step);
    }
    let before = ALLOCATIONS.get();
    for prompt in prompts.iter().cycle().take(1000) {
        request(&mut m, &mut ops, prompt, &mut step);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    let stats = m.stats();
    assert!(
        stats.device.num_evictions > 10_000 && stats.num_copies > 900,
        "{stats:?}"
    );
}
