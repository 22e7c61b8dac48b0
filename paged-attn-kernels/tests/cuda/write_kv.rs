//! Keys and values that a device wrote, against what the formats say.

use crate::common::strided::{Strided, place, same_bits, upload};
use crate::common::written::{bits, check, expected, f32s, read};
use crate::common::{Random, TestData, on_each};
use half::{bf16, f16};
use pageloom_paged_attn_kernels::cpu::{self, Heads, RopeAngles, ThreadPool};
use pageloom_paged_attn_kernels::cuda::blocks::{
    KvRows, NO_SLOT, WriteKvArgs, check_slots, write_kv,
};
use pageloom_paged_attn_kernels::cuda::elementwise::{Pairing, Rotary, RotaryTable};
use pageloom_paged_attn_kernels::cuda::{CudaError, KvCache, Stream};
use pageloom_paged_attn_kernels::{CacheLayout, KernelError, KvDtype, Rows};

const KV_DTYPES: [KvDtype; 5] = [
    KvDtype::F32,
    KvDtype::Bf16,
    KvDtype::F16,
    KvDtype::Int8,
    KvDtype::Fp8,
];

fn layout(dtype: KvDtype, head_dim: usize, block_size: usize) -> CacheLayout {
    CacheLayout {
        num_layers: 2,
        num_blocks: 48 / block_size.min(16),
        block_size,
        num_kv_heads: 3,
        head_dim,
        dtype,
    }
}

/// Normal numbers, with rows that formats with scales treat in their own way.
fn numbers<T: TestData>(random: &mut Random, num_tokens: usize, head_dim: usize) -> Vec<T> {
    let mut x = random.normals(num_tokens * 3 * head_dim);
    let token = 3 * head_dim;
    x[token + 5] = f32::INFINITY;
    x[token + head_dim + 7] = f32::NAN;
    x[token + 2 * head_dim..2 * token].fill(0.0);
    x[2 * token..2 * token + head_dim]
        .iter_mut()
        .for_each(|x| *x *= 1e-37);
    x[2 * token + head_dim..2 * token + 2 * head_dim]
        .iter_mut()
        .for_each(|x| *x *= 1e-30);
    x[3 * token..3 * token + head_dim]
        .iter_mut()
        .for_each(|x| *x *= 60000.0);
    x.into_iter().map(T::from_f32).collect()
}

fn apart<T: TestData>(stream: &Stream, layout: CacheLayout, [lead, gap]: [usize; 2]) {
    let device = stream.device();
    let mut random = Random::new(layout.head_dim as u64);
    let mut slots = random.permutation(layout.num_slots());
    slots.truncate(13);
    slots[6] = NO_SLOT;
    check_slots(&layout, &slots).unwrap();
    let place = place(13, 3 * layout.head_dim, lead, gap);
    let keys = numbers::<T>(&mut random, 13, layout.head_dim);
    let values = numbers::<T>(&mut random, 13, layout.head_dim);
    let (k, v) = (
        Strided::new(stream, place, keys),
        Strided::new(stream, place, values),
    );
    let mut cache = KvCache::new(device, layout).unwrap();
    cache.fill(stream, 0x5a).unwrap();
    let before = cache.snapshot(stream).unwrap();
    let args = WriteKvArgs {
        layer: 1,
        slots: &upload(device, stream, &slots),
        num_tokens: 13,
        rows: KvRows::Apart {
            k: k.rows(),
            v: v.rows(),
        },
        rotary: None,
    };
    write_kv(stream, &mut cache, &args).unwrap();
    let expected = expected(layout, &slots, &f32s(&k.values), &f32s(&v.values));
    check(&before, &cache.snapshot(stream).unwrap(), &expected);
    assert!(same_bits(&k.download(stream), &k.values));
}

#[test]
fn every_format_is_stored_to_the_bit_and_nothing_else_is_touched() {
    on_each(|_, stream| {
        for dtype in KV_DTYPES {
            for (head_dim, block_size) in [(64, 16), (80, 8), (96, 32), (128, 128), (256, 64)] {
                let layout = layout(dtype, head_dim, block_size);
                apart::<f32>(stream, layout, [0, 0]);
            }
            apart::<bf16>(stream, layout(dtype, 128, 16), [0, 8]);
            apart::<f16>(stream, layout(dtype, 80, 16), [8, 0]);
            // No vectors.
            apart::<f32>(stream, layout(dtype, 96, 16), [1, 0]);
            apart::<bf16>(stream, layout(dtype, 64, 16), [0, 1]);
            apart::<f16>(stream, layout(dtype, 80, 16), [4, 4]);
        }
    });
}

/// Rotates heads of rows with f32 products, each rounded: what the CPU does.
fn rotate(row: &mut [f32], position: u32, frequencies: &[f32], pairing: Pairing) {
    for (i, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        let (sin, cos) = (sin as f32, cos as f32);
        let (low, high) = match pairing {
            Pairing::HalfSplit => (i, i + frequencies.len()),
            Pairing::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (row[low], row[high]);
        (row[low], row[high]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

/// Rows of `| q q | k k k | v v v | 8 more`, misaligned by `lead`.
fn fused<T: TestData>(
    stream: &Stream,
    layout: CacheLayout,
    pairing: Pairing,
    [pairs, lead, num_tokens]: [usize; 3],
) {
    let (device, head_dim) = (stream.device(), layout.head_dim);
    let mut random = Random::new(head_dim as u64 + 1);
    let mut slots = random.permutation(layout.num_slots());
    slots.truncate(num_tokens);
    let width = 8 * head_dim + 8;
    let mut x = Strided::<T>::random(stream, &mut random, place(num_tokens, width, lead, 0));
    let positions: Vec<u32> = (0..num_tokens).map(|_| random.below(90) as u32).collect();
    let frequencies: Vec<f32> = (0..pairs)
        .map(|i| 100f32.powf(-(i as f32) / pairs as f32))
        .collect();
    let table = RotaryTable::new(stream, &frequencies, 90, pairing).unwrap();
    let q = Heads {
        offset: 0,
        num_heads: 2,
        head_dim,
    };
    let mut cache = KvCache::new(device, layout).unwrap();
    cache.fill(stream, 0x5a).unwrap();
    let before = cache.snapshot(stream).unwrap();
    let args = WriteKvArgs {
        layer: 1,
        slots: &upload(device, stream, &slots),
        num_tokens,
        rows: KvRows::Fused {
            x: x.rows_mut(),
            width,
            q,
            k_offset: 2 * head_dim,
            v_offset: 5 * head_dim,
        },
        rotary: Some(Rotary {
            positions: &upload(device, stream, &positions),
            table: &table,
        }),
    };
    write_kv(stream, &mut cache, &args).unwrap();

    let (mut rows, mut keys, mut values) = (x.values.clone(), Vec::new(), Vec::new());
    for (row, &position) in rows.chunks_mut(width).zip(&positions) {
        for (i, head) in row[..5 * head_dim].chunks_mut(head_dim).enumerate() {
            let mut turned = f32s(head);
            rotate(&mut turned, position, &frequencies, pairing);
            if i >= 2 {
                keys.extend(turned);
                continue;
            }
            for (x, y) in head.iter_mut().zip(turned) {
                *x = T::from_f32(y);
            }
        }
        values.extend(f32s(&row[5 * head_dim..8 * head_dim]));
    }
    assert!(
        same_bits(&x.download(stream), &rows),
        "{layout:?} {pairing:?} {pairs}"
    );
    let expected = expected(layout, &slots, &keys, &values);
    check(&before, &cache.snapshot(stream).unwrap(), &expected);
}

#[test]
fn keys_turn_on_the_way_and_queries_in_place_to_the_bit() {
    on_each(|_, stream| {
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            for (i, head_dim) in [64, 80, 96, 128, 256].into_iter().enumerate() {
                let layout = layout(KV_DTYPES[i], head_dim, 16);
                fused::<f32>(stream, layout, pairing, [head_dim / 2, 0, 9]);
            }
            // Partial, off vectors, misaligned; other types of rows.
            fused::<bf16>(stream, layout(KvDtype::Int8, 128, 16), pairing, [64, 0, 9]);
            fused::<f16>(stream, layout(KvDtype::Fp8, 80, 16), pairing, [16, 8, 9]);
            fused::<f32>(stream, layout(KvDtype::Int8, 64, 16), pairing, [10, 0, 9]);
            fused::<f32>(stream, layout(KvDtype::Int8, 64, 16), pairing, [32, 1, 9]);
            fused::<bf16>(stream, layout(KvDtype::Bf16, 96, 16), pairing, [3, 1, 9]);
        }
    });
}

#[test]
fn more_rows_than_run_at_once_take_turns() {
    on_each(|_, stream| {
        // 900 rows of 16 lanes, and 600 of queries; the emulator runs 384 at once.
        let layout = layout(KvDtype::Int8, 96, 128);
        fused::<bf16>(stream, layout, Pairing::HalfSplit, [48, 0, 300]);
    });
}

/// The CPU back end's rope and write, step by step, and the device's fused ones.
#[test]
fn fused_int8_pages_are_those_of_the_cpu_back_end() {
    on_each(|device, stream| {
        let layout = layout(KvDtype::Int8, 128, 16);
        let (slots, positions, width) = ([17u32, 3, 40], [5u32, 88, 0], 3 * 128);
        let mut random = Random::new(7);
        let (mut k, v) = (random.normals(3 * width), random.normals(3 * width));
        let frequencies: Vec<f32> = (0..64).map(|i| 0.8f32.powi(i)).collect();
        let table = RotaryTable::new(stream, &frequencies, 90, Pairing::HalfSplit).unwrap();
        let (on_device_k, on_device_v) = (upload(device, stream, &k), upload(device, stream, &v));
        let mut cache = KvCache::new(device, layout).unwrap();
        cache.fill(stream, 0).unwrap();
        let args = WriteKvArgs {
            layer: 1,
            slots: &upload(device, stream, &slots),
            num_tokens: 3,
            rows: KvRows::Apart {
                k: on_device_k.rows(width),
                v: on_device_v.rows(width),
            },
            rotary: Some(Rotary {
                positions: &upload(device, stream, &positions),
                table: &table,
            }),
        };
        write_kv(stream, &mut cache, &args).unwrap();

        let (pool, mut angles) = (ThreadPool::new(1), RopeAngles::default());
        angles.compute(&positions, &frequencies);
        let heads = Heads {
            offset: 0,
            num_heads: 3,
            head_dim: 128,
        };
        cpu::rope(&pool, &mut k, width, heads, &angles).unwrap();
        let mut host = pageloom_paged_attn_kernels::KvCache::new(layout).unwrap();
        let (k, v) = (Rows::new(&k, width), Rows::new(&v, width));
        cpu::write_kv(&pool, &mut host, 1, &slots, k, v).unwrap();
        let snapshot = cache.snapshot(stream).unwrap();
        let (mut key, mut value) = ([0.0; 128], [0.0; 128]);
        for slot in slots {
            for head in 0..3 {
                host.read_key(1, slot, head, &mut key).unwrap();
                host.read_value(1, slot, head, &mut value).unwrap();
                let found = read(&snapshot, 1, slot, head);
                assert_eq!(found, [bits(&key), bits(&value)], "{slot} {head}");
            }
        }
    });
}

#[test]
fn a_captured_write_reads_its_slots_when_it_runs() {
    on_each(|device, stream| {
        let layout = layout(KvDtype::Bf16, 64, 16);
        let x: Vec<f32> = Random::new(8).normals(2 * 192);
        let rows = upload(device, stream, &x);
        let mut slots = upload(device, stream, &[1u32, 2]);
        let mut cache = KvCache::new(device, layout).unwrap();
        cache.fill(stream, 0).unwrap();
        let before = cache.snapshot(stream).unwrap();
        let args = WriteKvArgs {
            layer: 1,
            slots: &slots,
            num_tokens: 2,
            rows: KvRows::Apart {
                k: rows.rows(192),
                v: rows.rows(192),
            },
            rotary: None,
        };
        let graph = stream
            .capture(|| write_kv(stream, &mut cache, &args))
            .unwrap();
        check(&before, &cache.snapshot(stream).unwrap(), &[]);
        // The second token became padding.
        slots.upload(stream, &[30, NO_SLOT]).unwrap();
        // SAFETY: the cache, the rows and the slots are still there.
        unsafe { stream.launch_graph(&graph) }.unwrap();
        let expected = expected(layout, &[30, NO_SLOT], &x, &x);
        check(&before, &cache.snapshot(stream).unwrap(), &expected);
    });
}

#[test]
fn what_the_cache_does_not_have_is_refused() {
    on_each(|device, stream| {
        let layout = layout(KvDtype::F32, 64, 16);
        let mut cache = KvCache::new(device, layout).unwrap();
        let (slots, rows) = (
            upload(device, stream, &[0u32; 2]),
            upload(device, stream, &[0f32; 384]),
        );
        let halves = upload(device, stream, &[f16::ZERO; 384]);
        let mut write = |layer, num_tokens, k| {
            let args = WriteKvArgs {
                layer,
                slots: &slots,
                num_tokens,
                rows: KvRows::Apart {
                    k,
                    v: rows.rows(192),
                },
                rotary: None,
            };
            write_kv(stream, &mut cache, &args)
        };
        assert_eq!(write(0, 0, rows.rows(192)), Ok(()));
        let error = write(2, 1, rows.rows(192));
        assert!(matches!(
            error,
            Err(CudaError::Kernel(KernelError::Layer { .. }))
        ));
        let error = write(0, 3, rows.rows(64));
        assert!(matches!(
            error,
            Err(CudaError::Kernel(KernelError::Length { name: "slots", .. }))
        ));
        let error = write(0, 2, rows.rows(193));
        assert!(matches!(
            error,
            Err(CudaError::Kernel(KernelError::Rows { name: "k", .. }))
        ));
        let error = write(0, 2, halves.rows(192));
        assert!(matches!(error, Err(CudaError::Dtype { name: "v", .. })));
    });
}
