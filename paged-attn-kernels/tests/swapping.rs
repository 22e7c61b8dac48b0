//! Moving blocks between two caches.

mod common;

use common::Random;
use pageloom_paged_attn_kernels::cpu::{ThreadPool, swap_blocks, write_kv};
use pageloom_paged_attn_kernels::{CacheLayout, KernelError, KvCache, KvDtype, Rows};

const LAYOUT: CacheLayout = CacheLayout {
    num_layers: 3,
    num_blocks: 6,
    block_size: 5,
    num_kv_heads: 2,
    head_dim: 24,
    dtype: KvDtype::F32,
};

/// A cache with every slot written.
fn filled(layout: CacheLayout, seed: u64) -> KvCache {
    let mut cache = KvCache::new(layout).unwrap();
    let mut random = Random::new(seed);
    let width = layout.num_kv_heads * layout.head_dim;
    let slots: Vec<u32> = (0..layout.num_slots() as u32).collect();
    let pool = ThreadPool::new(1);
    for layer in 0..layout.num_layers {
        let (k, v) = (
            random.floats(slots.len() * width),
            random.floats(slots.len() * width),
        );
        let (k, v) = (Rows::new(&k, width), Rows::new(&v, width));
        write_kv(&pool, &mut cache, layer, &slots, k, v).unwrap();
    }
    cache
}

/// All keys and values of a block, over all layers.
fn block(cache: &KvCache, block: u32) -> Vec<f32> {
    let layout = *cache.layout();
    let size = layout.block_size as u32;
    let mut all = Vec::new();
    for layer in 0..layout.num_layers {
        for slot in block * size..(block + 1) * size {
            for head in 0..layout.num_kv_heads {
                let mut row = vec![0.0; 2 * layout.head_dim];
                let (k, v) = row.split_at_mut(layout.head_dim);
                cache.read_key(layer, slot, head, k).unwrap();
                cache.read_value(layer, slot, head, v).unwrap();
                all.extend(row);
            }
        }
    }
    all
}

fn dump(cache: &KvCache) -> Vec<Vec<f32>> {
    (0..cache.layout().num_blocks as u32)
        .map(|id| block(cache, id))
        .collect()
}

#[test]
fn swapped_blocks_read_as_they_did_and_all_others_stay() {
    for num_threads in [1, 3] {
        let pool = ThreadPool::new(num_threads);
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            // Below and above the size from which the work is split over threads.
            for (block_size, head_dim) in [(5, 24), (16, 256)] {
                let small = CacheLayout {
                    block_size,
                    head_dim,
                    dtype,
                    ..LAYOUT
                };
                let large = CacheLayout {
                    num_blocks: 11,
                    ..small
                };
                for (from, to) in [(small, large), (large, small)] {
                    let (from, mut to) = (filled(from, 1), filled(to, 2));
                    let last = |cache: &KvCache| cache.layout().num_blocks as u32 - 1;
                    let pairs = [(0, last(&to)), (3, 0), (last(&from), 2), (3, 1)];
                    let mut expected = dump(&to);
                    for (source, destination) in pairs {
                        expected[destination as usize] = block(&from, source);
                    }
                    let untouched = dump(&from);
                    swap_blocks(&pool, &from, &mut to, &pairs).unwrap();
                    assert!(dump(&to) == expected, "{:?}", to.layout());
                    assert!(dump(&from) == untouched);
                }
            }
        }
    }
}

#[test]
fn of_two_pairs_that_write_a_block_the_later_stays() {
    let pool = ThreadPool::new(2);
    let (from, mut to) = (filled(LAYOUT, 1), filled(LAYOUT, 2));
    swap_blocks(&pool, &from, &mut to, &[(1, 4), (2, 4)]).unwrap();
    assert!(block(&to, 4) == block(&from, 2));
}

#[test]
fn an_empty_list_changes_nothing() {
    let (from, mut to) = (filled(LAYOUT, 1), filled(LAYOUT, 2));
    let expected = dump(&to);
    swap_blocks(&ThreadPool::new(2), &from, &mut to, &[]).unwrap();
    assert!(dump(&to) == expected);
}

#[test]
fn a_block_that_its_own_cache_does_not_have_is_refused_and_nothing_is_copied() {
    let pool = ThreadPool::new(1);
    let large = CacheLayout {
        num_blocks: 8,
        ..LAYOUT
    };
    // Each id is within the other cache in one of the directions.
    for (from, to, wrong, num_blocks) in [
        (LAYOUT, large, (6, 0), 6),
        (LAYOUT, large, (0, 8), 8),
        (large, LAYOUT, (8, 0), 8),
        (large, LAYOUT, (0, 6), 6),
        (large, LAYOUT, (u32::MAX, 0), 8),
    ] {
        let (from, mut to) = (filled(from, 1), filled(to, 2));
        let expected = dump(&to);
        let block = wrong.0.max(wrong.1);
        assert_eq!(
            swap_blocks(&pool, &from, &mut to, &[(1, 1), wrong]),
            Err(KernelError::Block { block, num_blocks })
        );
        assert!(dump(&to) == expected);
    }
}

#[test]
fn caches_of_other_blocks_are_refused_by_the_field_that_differs() {
    let from = filled(LAYOUT, 1);
    type Change = fn(&mut CacheLayout);
    let changes: [(&str, Change); 5] = [
        ("num_layers", |l| l.num_layers = 2),
        ("block_size", |l| l.block_size = 10),
        ("num_kv_heads", |l| l.num_kv_heads = 1),
        ("head_dim", |l| l.head_dim = 48),
        ("dtype", |l| l.dtype = KvDtype::Bf16),
    ];
    for (field, change) in changes {
        let mut layout = LAYOUT;
        change(&mut layout);
        let mut to = filled(layout, 2);
        let expected = dump(&to);
        // Refused even where there is nothing to copy.
        for pairs in [&[(0, 0)][..], &[]] {
            match swap_blocks(&ThreadPool::new(1), &from, &mut to, pairs) {
                Err(KernelError::LayoutMismatch { name, from, to }) => {
                    assert_eq!(name, field);
                    assert_ne!(from, to);
                }
                other => panic!("{field}: {other:?}"),
            }
        }
        assert!(dump(&to) == expected, "{field}");
    }
}
