//! The kernels against the formula in f64, on awkward shapes.

mod common;

use common::{Paged, Sequence, Shape, tokens};
use pageloom_paged_attn_kernels::KvDtype;
use pageloom_paged_attn_kernels::cpu::{Isa, ThreadPool};
use proptest::prelude::*;

const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8];

/// f32 sums of a few hundred products; measured worst over these tests 1.7e-6.
const TOLERANCE: f64 = 1e-5;

fn check(shape: Shape, lengths: &[(usize, usize)], pool: &ThreadPool) {
    let sequences: Vec<Sequence> = lengths
        .iter()
        .enumerate()
        .map(|(s, &(context_len, num_queries))| Sequence {
            tokens: tokens(&shape, context_len, s as u64 + 1),
            num_queries,
        })
        .collect();
    let paged = Paged::new(shape, &sequences, pool, 7);
    for isa in Isa::all_supported() {
        let error = paged.worst_error(pool, isa);
        assert!(
            error < TOLERANCE,
            "{error:.2e} {isa:?} {shape:?} {lengths:?}"
        );
    }
}

fn shape(block_size: usize, group: usize, head_dim: usize, dtype: KvDtype) -> Shape {
    Shape {
        block_size,
        num_kv_heads: 2,
        group,
        head_dim,
        dtype,
    }
}

#[test]
fn every_block_size_group_and_format_agrees_with_the_reference() {
    let pool = ThreadPool::new(2);
    for block_size in [1, 3, 8, 16, 17, 32, 48, 64, 256] {
        let lengths = [
            (1, 1),
            (block_size, 1),
            (block_size + 1, 1),
            (block_size + 1, block_size + 1),
            (130, 1),
            (77, 77),
            (133, 6),
        ];
        for group in [1, 3, 4, 7] {
            for dtype in DTYPES {
                check(shape(block_size, group, 40, dtype), &lengths, &pool);
            }
        }
    }
}

#[test]
fn every_head_dim_agrees_with_the_reference() {
    let pool = ThreadPool::new(2);
    for head_dim in [8, 16, 24, 40, 64, 72, 80, 96, 128, 200, 256] {
        for dtype in DTYPES {
            for block_size in [16, 17] {
                let lengths = [(1, 1), (15, 15), (16, 1), (64, 2), (65, 30), (100, 1)];
                check(shape(block_size, 3, head_dim, dtype), &lengths, &pool);
            }
        }
    }
}

#[test]
fn contexts_of_many_segments_agree_with_the_reference() {
    let pool = ThreadPool::new(2);
    for length in [511, 512, 513, 1024, 1025, 1600] {
        for dtype in DTYPES {
            check(shape(16, 3, 16, dtype), &[(length, 1), (length, 5)], &pool);
        }
    }
    check(shape(16, 1, 8, KvDtype::F32), &[(600, 600)], &pool);
}

/// The Walsh-Hadamard transform by its definition: element (i, j) has the sign of the parity of the
/// bits that i and j share.
fn rotated(row: &[f32]) -> Vec<f64> {
    let len = 1 << row.len().trailing_zeros();
    let turn = |(i, block): (usize, &[f32])| -> f64 {
        let signed = |(j, &x): (usize, &f32)| match (i & j).count_ones() % 2 {
            0 => f64::from(x),
            _ => -f64::from(x),
        };
        block.iter().enumerate().map(signed).sum::<f64>() / (len as f64).sqrt()
    };
    let blocks = row.chunks_exact(len);
    blocks
        .flat_map(|block| (0..len).map(move |i| turn((i, block))))
        .collect()
}

/// What rounding can do to a row when the numbers of values, and of rotated keys, move by at most
/// 1/254 of their largest.
///
/// A score then moves by at most d = scale * |Hq|_1 * max|Hk| / 254, a weight by a factor of at
/// most e^(2 d), and the values themselves by max|v| / 254.
fn int8_bound(shape: &Shape, q: &[f32], tokens: &[Vec<f32>]) -> f64 {
    let keys = shape.q_width()..shape.q_width() + shape.kv_width();
    let values = keys.end..keys.end + shape.kv_width();
    let keys = tokens
        .iter()
        .flat_map(|token| token[keys.clone()].chunks(shape.head_dim));
    let largest_key = keys.flat_map(rotated).fold(0.0, |max, x| x.abs().max(max));
    let values = tokens.iter().flat_map(|token| &token[values.clone()]);
    let largest_value = f64::from(values.fold(0.0f32, |max, x| max.max(x.abs())));
    let sum: f64 = rotated(q).iter().map(|x| x.abs()).sum();
    let moved = f64::from(shape.scale()) * sum * largest_key / 254.0;
    largest_value * ((2.0 * moved).exp_m1() + 1.0 / 254.0)
}

#[test]
fn int8_pages_stay_within_their_bound_of_what_was_written() {
    let pool = ThreadPool::new(2);
    for (head_dim, block_size) in [(8, 16), (64, 16), (40, 17), (128, 32)] {
        let exact = shape(block_size, 3, head_dim, KvDtype::F32);
        let int8 = Shape {
            dtype: KvDtype::Int8,
            ..exact
        };
        let sequence = Sequence {
            tokens: tokens(&exact, 300, 5),
            num_queries: 40,
        };
        let paged = |shape| Paged::new(shape, std::slice::from_ref(&sequence), &pool, 7);
        let expected = paged(exact).reference();
        let (mut squares, mut largest) = (0.0, 0.0f64);
        let found = paged(int8).attend(&pool, Isa::detect(), 2);
        let heads = found.chunks(head_dim).zip(expected.chunks(head_dim));
        for (i, (found, expected)) in heads.enumerate() {
            let token = &sequence.tokens[260 + i / exact.num_heads()];
            let q = &token[i % exact.num_heads() * head_dim..][..head_dim];
            let bound = int8_bound(&exact, q, &sequence.tokens);
            for (&x, &y) in found.iter().zip(expected) {
                let difference = (f64::from(x) - y).abs();
                assert!(difference <= bound, "{difference} of {bound}");
                squares += difference * difference;
                largest = largest.max(y.abs());
            }
        }
        // The bound is for errors that conspire; random ones mostly cancel.
        let error = (squares / found.len() as f64).sqrt() / largest;
        assert!(error < 4e-3, "head_dim {head_dim}: {error}");
    }
}

#[test]
fn an_empty_batch_and_sequences_without_queries_are_fine() {
    let pool = ThreadPool::new(2);
    let shape = shape(16, 2, 16, KvDtype::F32);
    check(shape, &[], &pool);
    check(shape, &[(0, 0), (20, 3), (5, 0), (9, 9)], &pool);
}

#[test]
fn large_scores_do_not_overflow() {
    let pool = ThreadPool::new(1);
    let shape = shape(16, 2, 64, KvDtype::F32);
    let mut tokens = tokens(&shape, 100, 3);
    for token in &mut tokens {
        let qk = shape.q_width() + shape.kv_width();
        token[..qk].iter_mut().for_each(|x| *x *= 30.0);
    }
    let sequence = Sequence {
        tokens,
        num_queries: 9,
    };
    let paged = Paged::new(shape, &[sequence], &pool, 7);
    for isa in Isa::all_supported() {
        // Scores of some 1e4 carry an absolute error of 1e-3: the softmax is nearly a maximum.
        let error = paged.worst_error(&pool, isa);
        assert!(error < 2e-2, "{error} {isa:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_batches_agree_with_the_reference(
        block_size in 1usize..=70,
        num_kv_heads in 1usize..=3,
        group in 1usize..=9,
        head_dim in (1usize..=16).prop_map(|n| n * 8),
        dtype in prop::sample::select(&DTYPES[..]),
        lengths in prop::collection::vec((1usize..200, 1usize..80), 0..5),
        num_threads in 1usize..4,
    ) {
        let shape = Shape {
            block_size,
            num_kv_heads,
            group,
            head_dim,
            dtype,
        };
        let lengths: Vec<_> = lengths.into_iter().map(|(n, q)| (n, q.min(n))).collect();
        check(shape, &lengths, &ThreadPool::new(num_threads));
    }
}
