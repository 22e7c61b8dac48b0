//! Attention as the formula says it, in f64: what the back ends are tested against.

use crate::cpu::AttendBatch;
use crate::{KernelError, KvCache, Rows};

/// Attends every query row of `batch` by the definition: `softmax(scale q K^T) V`, causal.
///
/// Arguments are those of [`cpu::attend`](crate::cpu::attend); the result is
/// `[num_tokens, num_heads, head_dim]`, dense. Reads the cache one token at a time through the
/// block tables, in whatever format it holds.
///
/// # Errors
/// Those of reading the cache, and [`KernelError::TableTooShort`]. Offsets that do not fit the
/// arrays panic: this is for tests.
pub fn attend(
    cache: &KvCache,
    layer: usize,
    num_heads: usize,
    batch: &AttendBatch<'_>,
    q: Rows<'_>,
    scale: f64,
) -> Result<Vec<f64>, KernelError> {
    let layout = cache.layout();
    let (head_dim, group) = (layout.head_dim, num_heads / layout.num_kv_heads);
    let num_tokens = batch.query_offsets[batch.context_lens.len()] as usize;
    q.check("q", num_tokens, num_heads * head_dim)?;
    let mut out = vec![0.0; num_tokens * num_heads * head_dim];
    for (s, &context_len) in batch.context_lens.iter().enumerate() {
        let rows = batch.query_offsets[s] as usize..batch.query_offsets[s + 1] as usize;
        let table = batch.table_offsets[s] as usize..batch.table_offsets[s + 1] as usize;
        let table = &batch.block_tables[table];
        for kv_head in 0..layout.num_kv_heads {
            let (keys, values) = gather(cache, layer, table, kv_head, context_len as usize)
                .map_err(|error| locate(error, s))?;
            for row in rows.clone() {
                let visible = context_len as usize - (rows.end - 1 - row);
                for head in kv_head * group..(kv_head + 1) * group {
                    let q = &q.row(row, num_heads * head_dim)[head * head_dim..][..head_dim];
                    let at = (row * num_heads + head) * head_dim;
                    let out = &mut out[at..at + head_dim];
                    attend_row(q, &keys[..visible], &values[..visible], scale, out);
                }
            }
        }
    }
    Ok(out)
}

fn attend_row(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>], scale: f64, out: &mut [f64]) {
    let dot = |key: &Vec<f32>| -> f64 {
        let products = q
            .iter()
            .zip(key)
            .map(|(&q, &k)| f64::from(q) * f64::from(k));
        scale * products.sum::<f64>()
    };
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    for (d, out) in out.iter_mut().enumerate() {
        let weighted = weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d]));
        *out = weighted.sum::<f64>() / sum;
    }
}

/// Keys and values of a sequence's first tokens.
type Gathered = (Vec<Vec<f32>>, Vec<Vec<f32>>);

fn gather(
    cache: &KvCache,
    layer: usize,
    table: &[u32],
    kv_head: usize,
    num_tokens: usize,
) -> Result<Gathered, KernelError> {
    let layout = cache.layout();
    let too_short = KernelError::TableTooShort {
        sequence: 0,
        num_blocks: table.len(),
        block_size: layout.block_size,
        context_len: num_tokens,
    };
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for position in 0..num_tokens {
        let block = table
            .get(position / layout.block_size)
            .ok_or(too_short.clone())?;
        let slot = *block as usize * layout.block_size + position % layout.block_size;
        let mut key = vec![0.0; layout.head_dim];
        let mut value = key.clone();
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        cache.read_key(layer, slot, kv_head, &mut key)?;
        cache.read_value(layer, slot, kv_head, &mut value)?;
        keys.push(key);
        values.push(value);
    }
    Ok((keys, values))
}

fn locate(error: KernelError, index: usize) -> KernelError {
    match error {
        KernelError::TableTooShort {
            num_blocks,
            block_size,
            context_len,
            ..
        } => KernelError::TableTooShort {
            sequence: index,
            num_blocks,
            block_size,
            context_len,
        },
        other => other,
    }
}
