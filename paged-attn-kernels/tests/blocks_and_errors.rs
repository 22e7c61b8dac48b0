//! Writing and copying blocks, and calls that are refused.

mod common;

use common::Random;
use half::bf16;
use pageloom_paged_attn_kernels::cpu::{
    AttendArgs, AttendPlan, ThreadPool, attend, copy_blocks, write_kv,
};
use pageloom_paged_attn_kernels::{
    AttendBatch, CacheLayout, KernelError, KvCache, KvDtype, Rows, RowsMut,
};

const LAYOUT: CacheLayout = CacheLayout {
    num_layers: 3,
    num_blocks: 10,
    block_size: 5,
    num_kv_heads: 2,
    head_dim: 24,
    dtype: KvDtype::F32,
};

/// Everything a cache holds, token by token.
fn dump(cache: &KvCache) -> Vec<Vec<f32>> {
    let layout = *cache.layout();
    let mut rows = Vec::new();
    for layer in 0..layout.num_layers {
        for slot in 0..layout.num_slots() as u32 {
            for head in 0..layout.num_kv_heads {
                let mut row = vec![0.0; 2 * layout.head_dim];
                let (k, v) = row.split_at_mut(layout.head_dim);
                cache.read_key(layer, slot, head, k).unwrap();
                cache.read_value(layer, slot, head, v).unwrap();
                rows.push(row);
            }
        }
    }
    rows
}

/// What reading a value gives after it was written: the formats' definitions, written again.
fn as_stored(row: &[f32], dtype: KvDtype) -> Vec<f32> {
    match dtype {
        KvDtype::Bf16 => row.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        KvDtype::Int8 => {
            let largest = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let (scale, inverse) = (largest / 127.0, 127.0 / largest);
            let read = |x: &f32| (x * inverse).round_ties_even() * scale;
            row.iter().map(read).collect()
        }
        _ => row.to_vec(),
    }
}

/// What reading a key gives; of a rotated one only that it is near enough to what was written.
fn key_as_stored(
    cache: &KvCache,
    (layer, slot, head): (usize, u32, usize),
    row: &[f32],
) -> Vec<f32> {
    let dtype = cache.layout().dtype;
    if dtype != KvDtype::Int8 {
        return as_stored(row, dtype);
    }
    let mut found = vec![0.0; row.len()];
    cache.read_key(layer, slot, head, &mut found).unwrap();
    // A rotation keeps lengths: all roundings together, each of at most half a scale, and the
    // scale is at most the key's length over 127.
    let length = |row: &mut dyn Iterator<Item = f32>| row.map(|x| x * x).sum::<f32>().sqrt();
    let difference = length(&mut row.iter().zip(&found).map(|(x, y)| x - y));
    let bound = length(&mut row.iter().copied()) / 254.0 * (row.len() as f32).sqrt();
    assert!(difference <= bound, "{difference} of {bound}");
    found
}

/// A cache with every slot of every layer written, in random order, and what was written.
fn filled(layout: CacheLayout, pool: &ThreadPool) -> (KvCache, Vec<Vec<f32>>) {
    let mut cache = KvCache::new(layout).unwrap();
    let mut random = Random::new(1);
    let width = layout.num_kv_heads * layout.head_dim;
    let mut expected = Vec::new();
    for layer in 0..layout.num_layers {
        let mut slots: Vec<u32> = (0..layout.num_slots() as u32).collect();
        random.shuffle(&mut slots);
        let kv = random.floats(slots.len() * 2 * width);
        let (k, v) = (
            Rows::new(&kv, 2 * width),
            Rows::new(&kv[width..], 2 * width),
        );
        write_kv(pool, &mut cache, layer, &slots, k, v).unwrap();
        for slot in 0..slots.len() as u32 {
            let token = slots.iter().position(|&s| s == slot).unwrap();
            let row = &kv[token * 2 * width..][..2 * width];
            for head in 0..layout.num_kv_heads {
                let columns = head * layout.head_dim..(head + 1) * layout.head_dim;
                let mut both = key_as_stored(&cache, (layer, slot, head), &row[columns.clone()]);
                both.extend(as_stored(&row[width..][columns], layout.dtype));
                expected.push(both);
            }
        }
    }
    (cache, expected)
}

#[test]
fn every_slot_holds_what_was_written_to_it() {
    for num_threads in [1, 3] {
        let pool = ThreadPool::new(num_threads);
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            for (block_size, num_blocks) in [(5, 10), (1, 7), (16, 60)] {
                let layout = CacheLayout {
                    block_size,
                    num_blocks,
                    dtype,
                    ..LAYOUT
                };
                let (cache, expected) = filled(layout, &pool);
                assert!(dump(&cache) == expected, "{layout:?}");
            }
        }
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let layout = CacheLayout {
        dtype: KvDtype::Bf16,
        ..LAYOUT
    };
    let mut cache = KvCache::new(layout).unwrap();
    // 1 + 2^-8 is half way between 1 and the next bf16, and 1 + 3 2^-8 between two others.
    let halves = [
        1.0 + 0.00390625,
        1.0 + 3.0 * 0.00390625,
        f32::NAN,
        f32::INFINITY,
    ];
    let mut row = [0.0; 48];
    row[..4].copy_from_slice(&halves);
    let rows = Rows::new(&row, 48);
    write_kv(&ThreadPool::new(1), &mut cache, 0, &[7], rows, rows).unwrap();
    let mut key = [0.0; 24];
    cache.read_key(0, 7, 0, &mut key).unwrap();
    assert_eq!(key[..2], [1.0, 1.0 + 4.0 * 0.00390625]);
    assert!(key[2].is_nan());
    assert_eq!(key[3], f32::INFINITY);
}

#[test]
fn int8_scales_each_token_and_head_by_its_own_largest() {
    let layout = CacheLayout {
        dtype: KvDtype::Int8,
        ..LAYOUT
    };
    let mut cache = KvCache::new(layout).unwrap();
    // A large head beside a small one, and a small token after it; a broken one; zeros.
    let mut rows = vec![0.0f32; 4 * 48];
    rows[..24].fill(1000.0);
    rows[24..48].fill(-1e-3);
    rows[48..96].fill(1e-6);
    rows[96..120].fill(1.0);
    rows[100] = f32::INFINITY;
    let pool = ThreadPool::new(1);
    let kv = Rows::new(&rows, 48);
    write_kv(&pool, &mut cache, 1, &[7, 8, 9, 3], kv, kv).unwrap();
    let read = |slot, head| {
        let (mut key, mut value) = ([7.0; 24], [7.0; 24]);
        cache.read_key(1, slot, head, &mut key).unwrap();
        cache.read_value(1, slot, head, &mut value).unwrap();
        [key, value].concat()
    };
    let near = |row: Vec<f32>, x: f32| row.iter().all(|y| (x - y).abs() <= x.abs() * 1e-6);
    assert!(near(read(7, 0), 1000.0) && near(read(7, 1), -1e-3));
    assert!(near(read(8, 0), 1e-6) && near(read(8, 1), 1e-6));
    assert!(read(9, 0).iter().all(|x| x.is_nan()));
    assert_eq!(read(9, 1), [0.0; 48]);
    assert_eq!(read(3, 0), [0.0; 48]);
}

#[test]
fn copies_move_whole_blocks_of_all_layers_in_order() {
    for num_threads in [1, 2] {
        let pool = ThreadPool::new(num_threads);
        for (head_dim, dtype) in [
            (24, KvDtype::F32),
            (256, KvDtype::Bf16),
            (24, KvDtype::Int8),
            (256, KvDtype::Int8),
        ] {
            let layout = CacheLayout {
                head_dim,
                dtype,
                ..LAYOUT
            };
            let (mut cache, mut expected) = filled(layout, &pool);
            // The last pair reads what the first wrote; a block onto itself changes nothing.
            let pairs = [(0, 9), (3, 4), (7, 7), (9, 1)];
            copy_blocks(&pool, &mut cache, &pairs).unwrap();
            let rows = layout.block_size * layout.num_kv_heads;
            for layer in 0..layout.num_layers {
                for (from, to) in pairs {
                    for row in 0..rows {
                        let at =
                            |block: u32| (layer * layout.num_blocks + block as usize) * rows + row;
                        expected[at(to)] = expected[at(from)].clone();
                    }
                }
            }
            assert!(dump(&cache) == expected);
        }
    }
}

#[test]
fn refused_writes_and_copies_change_nothing() {
    let pool = ThreadPool::new(1);
    let (mut cache, expected) = filled(LAYOUT, &pool);
    let data = [1.0; 48 * 3];
    let rows = Rows::new(&data, 48);
    let mut write = |layer, slots: &[u32], k, v| write_kv(&pool, &mut cache, layer, slots, k, v);
    assert_eq!(
        write(3, &[0], rows, rows),
        Err(KernelError::Layer {
            layer: 3,
            num_layers: 3
        })
    );
    assert_eq!(
        write(0, &[4, 50], rows, rows),
        Err(KernelError::Slot {
            token: 1,
            slot: 50,
            num_slots: 50
        })
    );
    for (k, v, name) in [
        (Rows::new(&data[1..], 48), rows, "k"),
        (rows, Rows::new(&data, usize::MAX), "v"),
        (rows, Rows::new(&[], 48), "v"),
    ] {
        let result = write(0, &[1, 2, 3], k, v);
        assert!(
            matches!(result, Err(KernelError::Rows { name: n, .. }) if n == name),
            "{result:?}"
        );
    }
    let result = copy_blocks(&pool, &mut cache, &[(0, 1), (2, 10)]);
    assert_eq!(
        result,
        Err(KernelError::Block {
            block: 10,
            num_blocks: 10
        })
    );
    assert!(dump(&cache) == expected);
}

fn batch<'a>(
    query_offsets: &'a [u32],
    context_lens: &'a [u32],
    block_tables: &'a [u32],
    table_offsets: &'a [u32],
) -> AttendBatch<'a> {
    AttendBatch {
        query_offsets,
        context_lens,
        block_tables,
        table_offsets,
    }
}

#[test]
fn plans_that_would_read_outside_of_the_cache_are_refused() {
    let mut plan = AttendPlan::new();
    let good = batch(&[0, 1], &[6], &[1, 2], &[0, 2]);
    plan.plan(&LAYOUT, 4, &good, 2).unwrap();
    let offsets = |r: &Result<(), KernelError>| matches!(r, Err(KernelError::Offsets { .. }));
    for wrong in [
        batch(&[0], &[6], &[1, 2], &[0, 2]),
        batch(&[], &[], &[], &[]),
        batch(&[1, 2], &[6], &[1, 2], &[0, 2]),
        batch(&[0, 2, 1], &[6, 6], &[1, 2], &[0, 2, 2]),
        batch(&[0, 1], &[6], &[1, 2], &[0, 3]),
        batch(&[0, 1], &[6], &[1, 2], &[0, u32::MAX]),
    ] {
        let result = plan.plan(&LAYOUT, 4, &wrong, 2);
        assert!(offsets(&result), "{result:?} {wrong:?}");
    }
    assert_eq!(
        plan.plan(&LAYOUT, 4, &batch(&[0, 7], &[6], &[1, 2], &[0, 2]), 2),
        Err(KernelError::ContextTooShort {
            sequence: 0,
            num_queries: 7,
            context_len: 6
        })
    );
    assert_eq!(
        plan.plan(&LAYOUT, 4, &batch(&[0, 1], &[11], &[1, 2], &[0, 2]), 2),
        Err(KernelError::TableTooShort {
            sequence: 0,
            num_blocks: 2,
            block_size: 5,
            context_len: 11
        })
    );
    assert_eq!(
        plan.plan(&LAYOUT, 4, &batch(&[0, 1], &[6], &[1, 10], &[0, 2]), 2),
        Err(KernelError::Block {
            block: 10,
            num_blocks: 10
        })
    );
    for num_heads in [0, 3] {
        assert_eq!(
            plan.plan(&LAYOUT, num_heads, &good, 2),
            Err(KernelError::HeadGroups {
                num_heads,
                num_kv_heads: 2
            })
        );
    }
}

#[test]
fn runs_that_do_not_fit_their_plan_are_refused() {
    let pool = ThreadPool::new(1);
    let cache = KvCache::new(LAYOUT).unwrap();
    let mut plan = AttendPlan::new();
    let good = batch(&[0, 2], &[6], &[1, 2], &[0, 2]);
    let q = [0.0; 2 * 96];
    let mut out = [7.0; 2 * 96];
    let mut run = |plan: &mut AttendPlan, layer, q_len, out_len, stride, scale| {
        let args = AttendArgs {
            layer,
            q: Rows::new(&q[..q_len], 96),
            out: RowsMut::new(&mut out[..out_len], stride),
            scale,
        };
        attend(&pool, &cache, plan, args)
    };
    // Nothing planned; then a plan that failed.
    let result = run(&mut plan, 0, 192, 192, 96, 1.0);
    assert_eq!(result, Err(KernelError::PlanMismatch));
    plan.plan(&LAYOUT, 4, &good, 1).unwrap();
    plan.plan(&LAYOUT, 3, &good, 1).unwrap_err();
    let result = run(&mut plan, 0, 192, 192, 96, 1.0);
    assert_eq!(result, Err(KernelError::PlanMismatch));
    let smaller = CacheLayout {
        num_blocks: 9,
        ..LAYOUT
    };
    plan.plan(&smaller, 4, &good, 1).unwrap();
    let result = run(&mut plan, 0, 192, 192, 96, 1.0);
    assert_eq!(result, Err(KernelError::PlanMismatch));

    plan.plan(&LAYOUT, 4, &good, 1).unwrap();
    assert!(matches!(
        run(&mut plan, 3, 192, 192, 96, 1.0),
        Err(KernelError::Layer { layer: 3, .. })
    ));
    assert!(matches!(
        run(&mut plan, 0, 191, 192, 96, 1.0),
        Err(KernelError::Rows { name: "q", .. })
    ));
    assert!(matches!(
        run(&mut plan, 0, 192, 191, 96, 1.0),
        Err(KernelError::Rows { name: "out", .. })
    ));
    assert!(matches!(
        run(&mut plan, 0, 192, 192, 95, 1.0),
        Err(KernelError::OverlappingRows { name: "out", .. })
    ));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(
            run(&mut plan, 0, 192, 192, 96, scale),
            Err(KernelError::Scale { .. })
        ));
    }
    run(&mut plan, 0, 192, 192, 96, 1.0).unwrap();
    assert_eq!(out, [0.0; 192]);
}
