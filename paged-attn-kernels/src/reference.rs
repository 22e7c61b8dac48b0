//! Attention as the formula says it, in f64: what the back ends are tested against.

use crate::{AttendBatch, CacheLayout, KernelError, KvCache, Rows};

/// A cache that can be read token by token.
pub trait ReadKv {
    /// Its shape.
    fn layout(&self) -> &CacheLayout;

    /// Copies the key of one token out: `key[0..head_dim]`, as the kernels understand it.
    ///
    /// # Errors
    /// [`KernelError`] for a layer, slot or head that it does not have.
    fn read_key(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        key: &mut [f32],
    ) -> Result<(), KernelError>;

    /// Copies the value of one token out: `value[0..head_dim]`.
    ///
    /// # Errors
    /// As [`read_key`](Self::read_key).
    fn read_value(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        value: &mut [f32],
    ) -> Result<(), KernelError>;
}

impl ReadKv for KvCache {
    fn layout(&self) -> &CacheLayout {
        self.layout()
    }

    fn read_key(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        key: &mut [f32],
    ) -> Result<(), KernelError> {
        self.read_key(layer, slot, head, key)
    }

    fn read_value(
        &self,
        layer: usize,
        slot: u32,
        head: usize,
        value: &mut [f32],
    ) -> Result<(), KernelError> {
        self.read_value(layer, slot, head, value)
    }
}

/// What is asked of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Layer of the cache.
    pub layer: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Queries: a row of `[num_heads, head_dim]` for each token.
    pub q: Rows<'a>,
    /// What scores are multiplied by.
    pub scale: f64,
    /// Keys that a row sees, its own included; 0: all before it.
    pub window: usize,
    /// `cap * tanh(score / cap)` of each score; 0: the score.
    pub soft_cap: f64,
}

/// Attends every query row of `batch` by the definition: `softmax(scale q K^T) V`, causal.
///
/// The result is `[num_tokens, num_heads, head_dim]`, dense. Reads the cache one token at a time
/// through the block tables, in whatever format it holds.
///
/// # Errors
/// Those of reading the cache, and [`KernelError::TableTooShort`]. Offsets that do not fit the
/// arrays panic: this is for tests.
pub fn attend(
    cache: &impl ReadKv,
    batch: &AttendBatch<'_>,
    query: &Query<'_>,
) -> Result<Vec<f64>, KernelError> {
    let layout = cache.layout();
    let (num_heads, head_dim) = (query.num_heads, layout.head_dim);
    let group = num_heads / layout.num_kv_heads;
    let num_tokens = batch.query_offsets[batch.context_lens.len()] as usize;
    query.q.check("q", num_tokens, num_heads * head_dim)?;
    let mut out = vec![0.0; num_tokens * num_heads * head_dim];
    for (s, &context_len) in batch.context_lens.iter().enumerate() {
        let rows = batch.query_offsets[s] as usize..batch.query_offsets[s + 1] as usize;
        let table = batch.table_offsets[s] as usize..batch.table_offsets[s + 1] as usize;
        let table = &batch.block_tables[table];
        for kv_head in 0..layout.num_kv_heads {
            let (keys, values) = gather(cache, (query.layer, kv_head), table, context_len as usize)
                .map_err(|error| locate(error, s))?;
            for row in rows.clone() {
                let end = context_len as usize - (rows.end - 1 - row);
                let start = match query.window {
                    0 => 0,
                    window => end.saturating_sub(window),
                };
                for head in kv_head * group..(kv_head + 1) * group {
                    let q = &query.q.row(row, num_heads * head_dim)[head * head_dim..][..head_dim];
                    let at = (row * num_heads + head) * head_dim;
                    let out = &mut out[at..at + head_dim];
                    attend_row(query, q, (&keys[start..end], &values[start..end]), out);
                }
            }
        }
    }
    Ok(out)
}

fn attend_row(
    query: &Query<'_>,
    q: &[f32],
    (keys, values): (&[Vec<f32>], &[Vec<f32>]),
    out: &mut [f64],
) {
    let score = |key: &Vec<f32>| -> f64 {
        let products = q
            .iter()
            .zip(key)
            .map(|(&q, &k)| f64::from(q) * f64::from(k));
        let score = query.scale * products.sum::<f64>();
        match query.soft_cap {
            0.0 => score,
            cap => cap * (score / cap).tanh(),
        }
    };
    let scores: Vec<f64> = keys.iter().map(score).collect();
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
    cache: &impl ReadKv,
    (layer, kv_head): (usize, usize),
    table: &[u32],
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
