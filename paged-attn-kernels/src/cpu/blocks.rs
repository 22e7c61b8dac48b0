//! Writing, copying and swapping blocks.

use half::bf16;

use super::ThreadPool;
use super::disjoint::DisjointSlice;
use crate::element::Element;
use crate::layout::{KEY_TILE, MAX_HEAD_DIM};
use crate::{KernelError, KvCache, KvDtype, Rows};

/// Elements from which on a call is worth waking other threads for.
const MIN_PARALLEL_ELEMENTS: usize = 16 * 1024;

/// Bytes from which on copying is.
const MIN_PARALLEL_BYTES: usize = 64 * 1024;

/// Stores keys and values of new tokens in their slots: the fused reshape and block write.
///
/// `k` and `v` have a row of `[num_kv_heads, head_dim]` for each slot. Slot `s` is offset
/// `s % block_size` of block `s / block_size`; bf16 and int8 caches round to nearest even (see
/// [`KvDtype`]). If a slot occurs twice the later row stays.
///
/// # Errors
/// [`KernelError::Layer`], [`KernelError::Slot`] or [`KernelError::Rows`]; nothing has been
/// written then.
///
/// Source: Kwon et al. 2023, section 5.1.
pub fn write_kv(
    pool: &ThreadPool,
    cache: &mut KvCache,
    layer: usize,
    slots: &[u32],
    k: Rows<'_>,
    v: Rows<'_>,
) -> Result<(), KernelError> {
    let layout = cache.layout();
    layout.check_layer(layer)?;
    let num_slots = layout.num_slots();
    if let Some(token) = slots.iter().position(|&slot| slot as usize >= num_slots) {
        return Err(KernelError::Slot {
            token,
            slot: slots[token],
            num_slots,
        });
    }
    let width = layout.num_kv_heads * layout.head_dim;
    k.check("k", slots.len(), width)?;
    v.check("v", slots.len(), width)?;
    match layout.dtype {
        KvDtype::F32 => write::<f32>(pool, cache, layer, slots, (k, v)),
        KvDtype::Bf16 => write::<bf16>(pool, cache, layer, slots, (k, v)),
        KvDtype::Int8 => write::<i8>(pool, cache, layer, slots, (k, v)),
        dtype @ (KvDtype::F16 | KvDtype::Fp8) => return Err(KernelError::KvDtype { dtype }),
    }
    Ok(())
}

fn write<E: Element>(
    pool: &ThreadPool,
    cache: &mut KvCache,
    layer: usize,
    slots: &[u32],
    (k, v): (Rows<'_>, Rows<'_>),
) {
    let layout = *cache.layout();
    let (block_size, head_dim) = (layout.block_size, layout.head_dim);
    let (panel_len, head_len) = (layout.panel_len(), layout.head_len());
    let row_len = layout.num_kv_heads * head_dim;
    let elements = DisjointSlice::new(cache.elements_mut::<E>());
    let write_head = |head: usize| {
        let mut rotated = [0.0; MAX_HEAD_DIM];
        for (token, &slot) in slots.iter().enumerate() {
            let (block, offset) = (slot as usize / block_size, slot as usize % block_size);
            let start = layer * layout.layer_len() + block * layout.block_len() + head * head_len;
            // SAFETY: a head's panels belong to this task; tasks are heads.
            let panels = unsafe { elements.part(start..start + head_len) };
            let (k_panel, v_panel) = panels.split_at_mut(layout.scaled_panel_len());
            let columns = head * head_dim..(head + 1) * head_dim;

            let mut key = &k.row(token, row_len)[columns.clone()];
            if E::SCALED {
                rotated[..head_dim].copy_from_slice(key);
                E::rotate(&mut rotated[..head_dim]);
                key = &rotated[..head_dim];
            }
            let (keys, scales) = k_panel.split_at_mut(panel_len);
            let inverse = write_scale(scales, offset, key);
            let (start, width) = layout.key_tile(offset);
            for (row, &x) in keys[start..].chunks_exact_mut(width).zip(key) {
                row[offset % KEY_TILE] = E::encode(x, inverse);
            }

            let value = &v.row(token, row_len)[columns];
            let (values, scales) = v_panel.split_at_mut(panel_len);
            let inverse = write_scale(scales, offset, value);
            for (to, &x) in values[offset * head_dim..].iter_mut().zip(value) {
                *to = E::encode(x, inverse);
            }
        }
    };
    if slots.len() * row_len < MIN_PARALLEL_ELEMENTS {
        (0..layout.num_kv_heads).for_each(write_head);
    } else {
        pool.for_each(layout.num_kv_heads, write_head);
    }
}

/// Stores the scale of a token's row, if the format has any; returns what to multiply it by.
fn write_scale<E: Element>(scales: &mut [E], offset: usize, row: &[f32]) -> f32 {
    let (scale, inverse) = E::scale_of(row);
    if E::SCALED {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(scales);
        bytes[offset * size_of::<f32>()..][..size_of::<f32>()]
            .copy_from_slice(&scale.to_ne_bytes());
    }
    inverse
}

/// Copies whole blocks, of all layers, as if one pair after another: `(source, destination)`.
///
/// # Errors
/// [`KernelError::Block`]; nothing has been copied then.
///
/// Source: Kwon et al. 2023, section 5.1 (fused block copy).
pub fn copy_blocks(
    pool: &ThreadPool,
    cache: &mut KvCache,
    pairs: &[(u32, u32)],
) -> Result<(), KernelError> {
    check_ids(cache, pairs.iter().flat_map(|&(from, to)| [from, to]))?;
    let layout = *cache.layout();
    let (layer_bytes, block_bytes) = (layout.layer_bytes(), layout.block_bytes());
    let bytes = DisjointSlice::new(cache.bytes_mut());
    let copy_layer = |layer: usize| {
        // SAFETY: a layer belongs to this task; tasks are layers.
        let blocks = unsafe { bytes.part(layer * layer_bytes..(layer + 1) * layer_bytes) };
        for &(from, to) in pairs {
            let from = from as usize * block_bytes;
            blocks.copy_within(from..from + block_bytes, to as usize * block_bytes);
        }
    };
    if pairs.len() * block_bytes * layout.num_layers < MIN_PARALLEL_BYTES {
        (0..layout.num_layers).for_each(copy_layer);
    } else {
        pool.for_each(layout.num_layers, copy_layer);
    }
    Ok(())
}

fn check_ids(cache: &KvCache, mut ids: impl Iterator<Item = u32>) -> Result<(), KernelError> {
    let num_blocks = cache.layout().num_blocks;
    match ids.find(|&block| block as usize >= num_blocks) {
        Some(block) => Err(KernelError::Block { block, num_blocks }),
        None => Ok(()),
    }
}

/// Copies whole blocks, of all layers, from one cache to another: `(block of from, block of to)`.
///
/// This is how blocks move between the tiers: out to a larger cache behind the one that is
/// attended to, and back. The caches may have different numbers of blocks. If two pairs write
/// the same block the later one stays.
///
/// # Errors
/// [`KernelError::LayoutMismatch`] if the blocks of the two are not alike,
/// [`KernelError::Block`] for a block that its cache does not have; nothing has been copied then.
///
/// Source: Kwon et al. 2023, section 4.5 (swapping).
pub fn swap_blocks(
    pool: &ThreadPool,
    from: &KvCache,
    to: &mut KvCache,
    pairs: &[(u32, u32)],
) -> Result<(), KernelError> {
    from.layout().check_swap(to.layout())?;
    check_ids(from, pairs.iter().map(|&(source, _)| source))?;
    check_ids(to, pairs.iter().map(|&(_, destination)| destination))?;
    let (read, written) = (*from.layout(), *to.layout());
    let block_bytes = read.block_bytes();
    let source = from.bytes();
    let bytes = DisjointSlice::new(to.bytes_mut());
    let swap_layer = |layer: usize| {
        let start = layer * written.layer_bytes();
        // SAFETY: a layer belongs to this task; tasks are layers.
        let blocks = unsafe { bytes.part(start..start + written.layer_bytes()) };
        let source = &source[layer * read.layer_bytes()..][..read.layer_bytes()];
        for &(from, to) in pairs {
            let (from, to) = (from as usize * block_bytes, to as usize * block_bytes);
            blocks[to..to + block_bytes].copy_from_slice(&source[from..from + block_bytes]);
        }
    };
    if pairs.len() * block_bytes * read.num_layers < MIN_PARALLEL_BYTES {
        (0..read.num_layers).for_each(swap_layer);
    } else {
        pool.for_each(read.num_layers, swap_layer);
    }
    Ok(())
}
