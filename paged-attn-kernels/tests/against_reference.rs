//! The kernels against the formula in f64, on awkward shapes.

mod common;

use common::{Paged, Sequence, Shape, tokens};
use pageloom_paged_attn_kernels::KvDtype;
use pageloom_paged_attn_kernels::cpu::{Isa, ThreadPool};
use proptest::prelude::*;

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
            for dtype in [KvDtype::F32, KvDtype::Bf16] {
                check(shape(block_size, group, 40, dtype), &lengths, &pool);
            }
        }
    }
}

#[test]
fn every_head_dim_agrees_with_the_reference() {
    let pool = ThreadPool::new(2);
    for head_dim in [8, 16, 24, 40, 64, 72, 80, 96, 128, 200, 256] {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
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
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            check(shape(16, 3, 16, dtype), &[(length, 1), (length, 5)], &pool);
        }
    }
    check(shape(16, 1, 8, KvDtype::F32), &[(600, 600)], &pool);
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
        bf16 in any::<bool>(),
        lengths in prop::collection::vec((1usize..200, 1usize..80), 0..5),
        num_threads in 1usize..4,
    ) {
        let shape = Shape {
            block_size,
            num_kv_heads,
            group,
            head_dim,
            dtype: if bf16 { KvDtype::Bf16 } else { KvDtype::F32 },
        };
        let lengths: Vec<_> = lengths.into_iter().map(|(n, q)| (n, q.min(n))).collect();
        check(shape, &lengths, &ThreadPool::new(num_threads));
    }
}
