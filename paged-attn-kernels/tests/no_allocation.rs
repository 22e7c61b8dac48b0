//! A step allocates nothing once its like has been seen.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{LAYER, Paged, Sequence, Shape, tokens};
use pageloom_paged_attn_kernels::cpu::{
    AttendArgs, AttendPlan, ThreadPool, attend, copy_blocks, write_kv,
};
use pageloom_paged_attn_kernels::{KvDtype, Rows, RowsMut};

/// Counts allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as this function's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as this function's.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn check(dtype: KvDtype) {
    let pool = ThreadPool::new(2);
    let shape = Shape {
        block_size: 16,
        num_kv_heads: 2,
        group: 3,
        head_dim: 40,
        dtype,
    };
    let sequence = |(length, num_queries): (usize, usize)| Sequence {
        tokens: tokens(&shape, length, 1),
        num_queries,
    };
    // Whole prefills, decodes, and a context long enough to be split over the threads.
    let sequences: Vec<_> = [(90, 90), (33, 1), (1700, 1)].map(sequence).into();
    let mut paged = Paged::new(shape, &sequences, &pool, 1);
    let width = shape.q_width();
    let mut out = vec![0.0; paged.num_tokens() * width];
    let mut plan = AttendPlan::new();
    let kv = vec![0.5; 8 * shape.kv_width()];
    let mut step = |paged: &mut Paged, out: &mut [f32]| {
        let rows = Rows::new(&kv, shape.kv_width());
        let (pool, cache) = (&pool, &mut paged.cache);
        write_kv(pool, cache, LAYER, &[0, 1, 2, 3, 4, 5, 6, 7], rows, rows).unwrap();
        copy_blocks(pool, cache, &[(0, 1), (2, 3)]).unwrap();
        let layout = *cache.layout();
        plan.plan(&layout, shape.num_heads(), &paged.batch(), 2)
            .unwrap();
        for _layer in 0..3 {
            let args = AttendArgs {
                layer: LAYER,
                q: paged.q(),
                out: RowsMut::new(out, width),
                scale: 1.0,
            };
            attend(pool, &paged.cache, &mut plan, args).unwrap();
        }
    };
    step(&mut paged, &mut out);
    let mut count_ten_steps = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..10 {
            step(&mut paged, &mut out);
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    // The test harness has a thread too, which may allocate once while the machine is busy; what a
    // step allocates, every ten steps would.
    let fewest = (0..3).map(|_| count_ten_steps()).min();
    assert_eq!(fewest, Some(0), "{dtype:?}");
}

// One test: another's allocations would be counted too.
#[test]
fn a_step_allocates_nothing_in_steady_state() {
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
        check(dtype);
    }
}
