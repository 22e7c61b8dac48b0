//! A paged cache with random contents, and the same tokens for the reference.
#![allow(dead_code)] // Each test file uses a part of it.

use pageloom_paged_attn_kernels::cpu::{AttendArgs, AttendPlan, Isa, ThreadPool, attend, write_kv};
use pageloom_paged_attn_kernels::{
    AttendBatch, CacheLayout, KvCache, KvDtype, Rows, RowsMut, reference,
};

/// xorshift64*: a fixed sequence for each seed, on every platform.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Uniform in -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) block_size: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: KvDtype,
}

impl Shape {
    pub(crate) fn num_heads(&self) -> usize {
        self.num_kv_heads * self.group
    }

    pub(crate) fn q_width(&self) -> usize {
        self.num_heads() * self.head_dim
    }

    pub(crate) fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// A token's projections, `[q | k | v]`.
pub(crate) type Token = Vec<f32>;

/// Tokens whose keys differ enough that the softmax is neither flat nor a maximum.
pub(crate) fn tokens(shape: &Shape, n: usize, seed: u64) -> Vec<Token> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let mut token = random.floats(shape.q_width() + 2 * shape.kv_width());
            token[..shape.q_width()].iter_mut().for_each(|x| *x *= 4.0);
            token
        })
        .collect()
}

/// The last `num_queries` tokens of a sequence are attended from.
#[derive(Clone)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<Token>,
    pub(crate) num_queries: usize,
}

/// Sequences written to a cache whose blocks are handed out in random order.
pub(crate) struct Paged {
    pub(crate) shape: Shape,
    pub(crate) cache: KvCache,
    pub(crate) query_offsets: Vec<u32>,
    pub(crate) context_lens: Vec<u32>,
    pub(crate) block_tables: Vec<u32>,
    pub(crate) table_offsets: Vec<u32>,
    /// Fused rows `[q | k | v]` of the query tokens.
    pub(crate) fused: Vec<f32>,
}

pub(crate) const LAYER: usize = 1;

impl Paged {
    pub(crate) fn new(shape: Shape, sequences: &[Sequence], pool: &ThreadPool, seed: u64) -> Self {
        let blocks = |s: &Sequence| s.tokens.len().div_ceil(shape.block_size);
        let num_blocks = sequences.iter().map(blocks).sum::<usize>() + 2;
        let cache = KvCache::new(CacheLayout {
            num_layers: 2,
            num_blocks,
            block_size: shape.block_size,
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            dtype: shape.dtype,
        });
        let mut paged = Self {
            shape,
            cache: cache.unwrap(),
            query_offsets: vec![0],
            context_lens: Vec::new(),
            block_tables: Vec::new(),
            table_offsets: vec![0],
            fused: Vec::new(),
        };
        paged.poison(pool);
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        Random::new(seed).shuffle(&mut free);
        for sequence in sequences {
            let table = free.split_off(free.len() - blocks(sequence));
            paged.add(sequence, &table, pool);
        }
        paged
    }

    /// Fills every slot with values that would show in any result they reached.
    fn poison(&mut self, pool: &ThreadPool) {
        let num_slots = self.cache.layout().num_slots();
        let slots: Vec<u32> = (0..num_slots as u32).collect();
        let width = self.shape.kv_width();
        let keys = vec![f32::INFINITY; num_slots * width];
        let values = vec![f32::NAN; num_slots * width];
        let (k, v) = (Rows::new(&keys, width), Rows::new(&values, width));
        write_kv(pool, &mut self.cache, LAYER, &slots, k, v).unwrap();
    }

    fn add(&mut self, sequence: &Sequence, table: &[u32], pool: &ThreadPool) {
        let bs = self.shape.block_size;
        let slot = |i: usize| table[i / bs] * bs as u32 + (i % bs) as u32;
        let slots: Vec<u32> = (0..sequence.tokens.len()).map(slot).collect();
        let rows: Vec<f32> = sequence.tokens.concat();
        let (q, kv) = (self.shape.q_width(), self.shape.kv_width());
        if !rows.is_empty() {
            let k = Rows::new(&rows[q..], q + 2 * kv);
            let v = Rows::new(&rows[q + kv..], q + 2 * kv);
            write_kv(pool, &mut self.cache, LAYER, &slots, k, v).unwrap();
        }
        let first = sequence.tokens.len() - sequence.num_queries;
        self.fused.extend(sequence.tokens[first..].iter().flatten());
        self.query_offsets
            .push(self.query_offsets.last().unwrap() + sequence.num_queries as u32);
        self.context_lens.push(sequence.tokens.len() as u32);
        self.block_tables.extend(table);
        self.table_offsets.push(self.block_tables.len() as u32);
    }

    pub(crate) fn batch(&self) -> AttendBatch<'_> {
        AttendBatch {
            query_offsets: &self.query_offsets,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            table_offsets: &self.table_offsets,
        }
    }

    pub(crate) fn num_tokens(&self) -> usize {
        *self.query_offsets.last().unwrap() as usize
    }

    pub(crate) fn q(&self) -> Rows<'_> {
        Rows::new(
            &self.fused,
            self.shape.q_width() + 2 * self.shape.kv_width(),
        )
    }

    /// Runs the kernels; `num_planned` threads are planned for. Results are dense rows; the gaps
    /// between the kernel's rows must still hold what they did.
    pub(crate) fn attend(&self, pool: &ThreadPool, isa: Isa, num_planned: usize) -> Vec<f32> {
        const GAP: usize = 3;
        let width = self.shape.q_width();
        let mut out = vec![f32::NAN; self.num_tokens() * (width + GAP)];
        let mut plan = AttendPlan::with_isa(isa).unwrap();
        plan.plan(
            self.cache.layout(),
            self.shape.num_heads(),
            &self.batch(),
            num_planned,
        )
        .unwrap();
        let args = AttendArgs {
            layer: LAYER,
            q: self.q(),
            out: RowsMut::new(&mut out, width + GAP),
            scale: self.shape.scale(),
        };
        attend(pool, &self.cache, &mut plan, args).unwrap();
        let mut dense = Vec::new();
        for row in out.chunks_exact(width + GAP) {
            assert!(row[width..].iter().all(|x| x.is_nan()), "gap overwritten");
            dense.extend(&row[..width]);
        }
        dense
    }

    pub(crate) fn reference(&self) -> Vec<f64> {
        let query = reference::Query {
            layer: LAYER,
            num_heads: self.shape.num_heads(),
            q: self.q(),
            scale: f64::from(self.shape.scale()),
            window: 0,
            soft_cap: 0.0,
        };
        reference::attend(&self.cache, &self.batch(), &query).unwrap()
    }

    /// Largest difference from the reference, relative to the largest value.
    pub(crate) fn worst_error(&self, pool: &ThreadPool, isa: Isa) -> f64 {
        let out = self.attend(pool, isa, pool.num_threads());
        let expected = self.reference();
        let largest = expected.iter().fold(1e-3f64, |max, x| max.max(x.abs()));
        let differences = out.iter().zip(&expected).map(|(&x, &y)| {
            let difference = (f64::from(x) - y).abs() / largest;
            // A NaN must not hide from `max`.
            if difference.is_nan() {
                f64::INFINITY
            } else {
                difference
            }
        });
        differences.fold(0.0, f64::max)
    }
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
