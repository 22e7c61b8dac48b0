//! Copies and swaps of blocks on a device.

use crate::common::strided::upload;
use crate::common::{Random, on_each};
use pageloom_paged_attn_kernels::cuda::blocks::{
    BlockPairs, KvRows, WriteKvArgs, copy_blocks, swap_blocks, write_kv,
};
use pageloom_paged_attn_kernels::cuda::{CudaError, Device, KvCache, KvSnapshot, Stream};
use pageloom_paged_attn_kernels::reference::ReadKv;
use pageloom_paged_attn_kernels::{CacheLayout, KernelError, KvDtype};

fn layout(dtype: KvDtype, head_dim: usize, block_size: usize) -> CacheLayout {
    CacheLayout {
        num_layers: 2,
        num_blocks: 9,
        block_size,
        num_kv_heads: 2,
        head_dim,
        dtype,
    }
}

/// Writes every slot.
fn fill(stream: &Stream, cache: &mut KvCache, seed: u64) {
    let (layout, device) = (*cache.layout(), stream.device());
    let (num_slots, width) = (layout.num_slots(), layout.num_kv_heads * layout.head_dim);
    let slots: Vec<u32> = (0..num_slots as u32).collect();
    let slots = upload(device, stream, &slots);
    for layer in 0..layout.num_layers {
        let x = Random::new(seed + layer as u64).normals(num_slots * width);
        let rows = upload(device, stream, &x);
        let args = WriteKvArgs {
            layer,
            slots: &slots,
            num_tokens: num_slots,
            rows: KvRows::Apart {
                k: rows.rows(width),
                v: rows.rows(width),
            },
            rotary: None,
        };
        write_kv(stream, cache, &args).unwrap();
    }
}

/// What a block reads as, in all layers.
fn block(snapshot: &KvSnapshot, block: u32) -> Vec<u32> {
    let layout = *snapshot.layout();
    let (mut all, mut row) = (Vec::new(), vec![0.0; layout.head_dim]);
    for layer in 0..layout.num_layers {
        for slot in 0..layout.block_size as u32 {
            for head in 0..layout.num_kv_heads {
                let slot = block * layout.block_size as u32 + slot;
                snapshot.read_key(layer, slot, head, &mut row).unwrap();
                all.extend(row.iter().map(|x| x.to_bits()));
                snapshot.read_value(layer, slot, head, &mut row).unwrap();
                all.extend(row.iter().map(|x| x.to_bits()));
            }
        }
    }
    all
}

fn pairs_of(stream: &Stream, pairs: &[(u32, u32)]) -> BlockPairs {
    let mut on_device = BlockPairs::new(stream.device()).unwrap();
    on_device.set(stream, pairs).unwrap();
    on_device
}

/// Blocks of one segment, of several, and of several and a part.
fn layouts() -> [CacheLayout; 5] {
    [
        layout(KvDtype::Bf16, 64, 8),
        layout(KvDtype::Int8, 80, 16),
        layout(KvDtype::Fp8, 96, 128),
        layout(KvDtype::F32, 80, 16),
        layout(KvDtype::F16, 256, 16),
    ]
}

#[test]
fn all_pairs_are_copied_in_all_layers_and_nothing_else_changes() {
    on_each(|device, stream| {
        for layout in layouts() {
            let mut cache = KvCache::new(device, layout).unwrap();
            fill(stream, &mut cache, 1);
            let before = cache.snapshot(stream).unwrap();
            let copies = [(0, 8), (3, 1), (0, 2), (5, 5), (4, 7)];
            copy_blocks(stream, &mut cache, &pairs_of(stream, &copies)).unwrap();
            let after = cache.snapshot(stream).unwrap();
            for to in 0..9 {
                let from = copies
                    .iter()
                    .find(|pair| pair.1 == to)
                    .map_or(to, |pair| pair.0);
                assert!(block(&after, to) == block(&before, from), "{layout:?} {to}");
            }
            assert!(block(&before, 0) != block(&before, 8));
        }
    });
}

#[test]
fn blocks_survive_a_trip_to_the_host_and_back() {
    on_each(|device, stream| {
        for layout in layouts() {
            let host_layout = CacheLayout {
                num_blocks: 5,
                ..layout
            };
            let mut cache = KvCache::new(device, layout).unwrap();
            let mut host = KvCache::new_pinned(device, host_layout).unwrap();
            fill(stream, &mut cache, 1);
            fill(stream, &mut host, 7);
            let (on_device, on_host) = (
                cache.snapshot(stream).unwrap(),
                host.snapshot(stream).unwrap(),
            );
            // A stream of its own, after the writes and before the next.
            let swaps = device.new_stream().unwrap();
            swaps.wait_for(&stream.record().unwrap()).unwrap();
            let mut pairs = pairs_of(&swaps, &[(8, 0), (2, 4)]);
            swap_blocks(&swaps, &cache, &mut host, &pairs).unwrap();
            let out = host.snapshot(&swaps).unwrap();
            pairs.set(&swaps, &[(4, 3), (0, 8), (1, 2)]).unwrap();
            assert_eq!(pairs.len(), 3);
            swap_blocks(&swaps, &host, &mut cache, &pairs).unwrap();
            stream.wait_for(&swaps.record().unwrap()).unwrap();
            let back = cache.snapshot(stream).unwrap();
            for (to, from) in [(0, 8), (4, 2)] {
                assert!(
                    block(&out, to) == block(&on_device, from),
                    "{layout:?} {to}"
                );
            }
            for to in 1..4 {
                assert!(block(&out, to) == block(&on_host, to), "{layout:?} {to}");
            }
            for to in 0..9 {
                let expected = match to {
                    3 => block(&on_device, 2),
                    2 => block(&on_host, 1),
                    _ => block(&on_device, to),
                };
                assert!(block(&back, to) == expected, "{layout:?} {to}");
            }
        }
    });
}

#[test]
fn no_pairs_are_no_work() {
    on_each(|device, stream| {
        let mut cache = KvCache::new(device, layout(KvDtype::Bf16, 64, 8)).unwrap();
        let pairs = BlockPairs::new(device).unwrap();
        assert!(pairs.is_empty());
        copy_blocks(stream, &mut cache, &pairs).unwrap();
    });
}

#[test]
fn pairs_that_clash_or_reach_past_a_cache_are_refused() {
    on_each(|device, stream| {
        let layout = layout(KvDtype::Bf16, 64, 8);
        let mut cache = KvCache::new(device, layout).unwrap();
        let argument = |error| matches!(error, Err(CudaError::Argument { name: "pairs", .. }));
        let mut pairs = pairs_of(stream, &[(1, 2)]);
        assert!(argument(pairs.set(stream, &[(1, 2), (3, 2)])));
        assert_eq!(pairs.len(), 1, "it holds what it held");
        pairs.set(stream, &[(1, 2), (2, 3)]).unwrap();
        assert!(argument(copy_blocks(stream, &mut cache, &pairs)));
        for (pair, block) in [((9, 0), 9), ((0, 9), 9), ((u32::MAX, 0), u32::MAX)] {
            pairs.set(stream, &[(1, 2), pair]).unwrap();
            let error = KernelError::Block {
                block,
                num_blocks: 9,
            };
            let found = copy_blocks(stream, &mut cache, &pairs);
            assert_eq!(found, Err(CudaError::Kernel(error)));
        }
        let short = CacheLayout {
            num_blocks: 3,
            ..layout
        };
        let mut host = KvCache::new_pinned(device, short).unwrap();
        pairs.set(stream, &[(8, 3)]).unwrap();
        assert!(swap_blocks(stream, &cache, &mut host, &pairs).is_err());
        assert!(swap_blocks(stream, &host, &mut cache, &pairs).is_err());
        let other = CacheLayout {
            num_layers: 1,
            ..layout
        };
        let mut other = KvCache::new(device, other).unwrap();
        pairs.set(stream, &[]).unwrap();
        assert!(matches!(
            swap_blocks(stream, &cache, &mut other, &pairs),
            Err(CudaError::Kernel(KernelError::LayoutMismatch { .. }))
        ));
        let elsewhere = Device::emulated();
        let mut elsewhere = KvCache::new(&elsewhere, layout).unwrap();
        assert!(swap_blocks(stream, &cache, &mut elsewhere, &pairs).is_err());
        assert!(copy_blocks(stream, &mut elsewhere, &pairs).is_err());
    });
}
