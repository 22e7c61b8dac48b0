//! What pages must read as after a write.

use half::{bf16, f16};
use pageloom_paged_attn_kernels::cpu::{self, ThreadPool};
use pageloom_paged_attn_kernels::cuda::blocks::NO_SLOT;
use pageloom_paged_attn_kernels::cuda::{KvSnapshot, fp8};
use pageloom_paged_attn_kernels::reference::ReadKv;
use pageloom_paged_attn_kernels::{CacheLayout, KvDtype, Rows};

use super::TestData;

/// Slot, head, key and value.
pub(crate) type Token = (u32, usize, Vec<f32>, Vec<f32>);

/// What a page reads as after `keys` and `values`, `[num_tokens, num_kv_heads, head_dim]`, were stored.
///
/// A list of `(slot, head, key, value)`.
pub(crate) fn expected(
    layout: CacheLayout,
    slots: &[u32],
    keys: &[f32],
    values: &[f32],
) -> Vec<Token> {
    let head_dim = layout.head_dim;
    let width = layout.num_kv_heads * head_dim;
    let rounded = |row: &[f32]| -> Vec<f32> {
        let mut codes = vec![0; row.len()];
        match layout.dtype {
            KvDtype::Fp8 => {
                let scale = fp8::encode_row(row, &mut codes);
                codes.into_iter().map(|x| scale * fp8::decode(x)).collect()
            }
            KvDtype::Bf16 => row.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
            KvDtype::F16 => row.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
            _ => row.to_vec(),
        }
    };
    // The integers of the CPU back end.
    let mut cache = None;
    if layout.dtype == KvDtype::Int8 {
        let mut int8 = pageloom_paged_attn_kernels::KvCache::new(layout).unwrap();
        for (token, &slot) in slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| **slot != NO_SLOT)
        {
            let (k, v) = (&keys[token * width..], &values[token * width..]);
            let (k, v) = (Rows::new(k, width), Rows::new(v, width));
            cpu::write_kv(&ThreadPool::new(1), &mut int8, 1, &[slot], k, v).unwrap();
        }
        cache = Some(int8);
    }
    let mut all = Vec::new();
    for (token, &slot) in slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| **slot != NO_SLOT)
    {
        for head in 0..layout.num_kv_heads {
            let at = token * width + head * head_dim;
            let mut key = rounded(&keys[at..at + head_dim]);
            let mut value = rounded(&values[at..at + head_dim]);
            if let Some(cache) = &cache {
                cache.read_key(1, slot, head, &mut key).unwrap();
                cache.read_value(1, slot, head, &mut value).unwrap();
            }
            all.push((slot, head, key, value));
        }
    }
    all
}

/// Bits, with all NaN alike: which NaN a product has is the machine's choice.
pub(crate) fn bits(row: &[f32]) -> Vec<u32> {
    let one = |x: &f32| if x.is_nan() { f32::NAN } else { *x };
    row.iter().map(|x| one(x).to_bits()).collect()
}

/// Everything a cache reads as.
pub(crate) fn read(snapshot: &KvSnapshot, layer: usize, slot: u32, head: usize) -> [Vec<u32>; 2] {
    let mut row = vec![0.0; snapshot.layout().head_dim];
    snapshot.read_key(layer, slot, head, &mut row).unwrap();
    let key = bits(&row);
    snapshot.read_value(layer, slot, head, &mut row).unwrap();
    [key, bits(&row)]
}

/// Checks written slots of layer 1 against `expected`, and all others against `before`.
pub(crate) fn check(before: &KvSnapshot, after: &KvSnapshot, expected: &[Token]) {
    let layout = *after.layout();
    for layer in 0..layout.num_layers {
        for slot in 0..layout.num_slots() as u32 {
            for head in 0..layout.num_kv_heads {
                let written = |e: &&Token| (e.0, e.1) == (slot, head);
                let want = match expected.iter().find(written).filter(|_| layer == 1) {
                    Some((_, _, key, value)) => [bits(key), bits(value)],
                    None => read(before, layer, slot, head),
                };
                let found = read(after, layer, slot, head);
                assert!(found == want, "{layout:?} {layer} {slot} {head}");
            }
        }
    }
}

pub(crate) fn f32s<T: TestData>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}
