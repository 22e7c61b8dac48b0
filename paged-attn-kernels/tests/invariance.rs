//! A row's bits depend on its query and its visible keys and values alone.

mod common;

use common::{Paged, Sequence, Shape, bits, tokens};
use pageloom_paged_attn_kernels::KvDtype;
use pageloom_paged_attn_kernels::cpu::{Isa, ThreadPool};
use proptest::prelude::*;

const SHAPE: Shape = Shape {
    block_size: 16,
    num_kv_heads: 2,
    group: 3,
    head_dim: 40,
    dtype: KvDtype::F32,
};

fn formats() -> [Shape; 3] {
    [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8].map(|dtype| Shape { dtype, ..SHAPE })
}

/// Results of all of a sequence's tokens, each computed alone as a decode.
fn one_by_one(shape: Shape, sequence: &Sequence, pool: &ThreadPool, isa: Isa) -> Vec<f32> {
    let mut rows = Vec::new();
    for length in 1..=sequence.tokens.len() {
        let prefix = Sequence {
            tokens: sequence.tokens[..length].to_vec(),
            num_queries: 1,
        };
        rows.extend(Paged::new(shape, &[prefix], pool, length as u64).attend(pool, isa, 1));
    }
    rows
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_chunk() {
    let pool = ThreadPool::new(2);
    for shape in formats() {
        for isa in Isa::all_supported() {
            let sequence = Sequence {
                tokens: tokens(&shape, 150, 5),
                num_queries: 150,
            };
            let expected = one_by_one(shape, &sequence, &pool, isa);
            for chunk in [150, 64, 37, 16, 7] {
                let mut rows = Vec::new();
                for end in (0..150usize)
                    .step_by(chunk)
                    .map(|begin| (begin + chunk).min(150))
                {
                    let num_queries = if end % chunk == 0 { chunk } else { end % chunk };
                    let part = Sequence {
                        tokens: sequence.tokens[..end].to_vec(),
                        num_queries,
                    };
                    rows.extend(Paged::new(shape, &[part], &pool, 3).attend(&pool, isa, 2));
                }
                assert_eq!(bits(&rows), bits(&expected), "chunks of {chunk}, {isa:?}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_shares_its_batch() {
    let pool = ThreadPool::new(2);
    for shape in formats() {
        for isa in Isa::all_supported() {
            let sequences: Vec<Sequence> = (0..17)
                .map(|s| Sequence {
                    tokens: tokens(&shape, 1 + 23 * s % 190, s as u64 + 1),
                    num_queries: 1 + (23 * s % 190) / [1, 7, 190][s % 3],
                })
                .collect();
            let together = Paged::new(shape, &sequences, &pool, 1).attend(&pool, isa, 2);
            let mut alone = Vec::new();
            for (s, sequence) in sequences.iter().enumerate() {
                let paged = Paged::new(shape, std::slice::from_ref(sequence), &pool, s as u64);
                alone.extend(paged.attend(&pool, isa, 1));
            }
            assert_eq!(bits(&together), bits(&alone), "{isa:?}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_at_every_block_size() {
    let pool = ThreadPool::new(2);
    for shape in formats() {
        for isa in Isa::all_supported() {
            let sequence = Sequence {
                tokens: tokens(&shape, 700, 9),
                num_queries: 40,
            };
            let at = |block_size| {
                let shape = Shape {
                    block_size,
                    ..shape
                };
                bits(
                    &Paged::new(shape, std::slice::from_ref(&sequence), &pool, 2)
                        .attend(&pool, isa, 2),
                )
            };
            let expected = at(16);
            for block_size in [1, 3, 8, 17, 32, 48, 64, 100, 256] {
                assert_eq!(at(block_size), expected, "block size {block_size}, {isa:?}");
            }
        }
    }
}

#[test]
fn splitting_a_long_context_over_threads_changes_no_bit() {
    for shape in formats() {
        for isa in Isa::all_supported() {
            let pool = ThreadPool::new(1);
            let sequence = |num_queries| Sequence {
                tokens: tokens(&shape, 2100, 11),
                num_queries,
            };
            for num_queries in [1, 2, 90] {
                let paged = Paged::new(shape, &[sequence(num_queries)], &pool, 1);
                let expected = bits(&paged.attend(&pool, isa, 1));
                for num_threads in [2, 3, 8] {
                    let pool = ThreadPool::new(num_threads);
                    let out = paged.attend(&pool, isa, num_threads);
                    assert_eq!(bits(&out), expected, "{num_threads} threads, {isa:?}");
                }
            }
        }
    }
}

#[test]
fn keys_a_row_may_not_see_cannot_reach_it() {
    let pool = ThreadPool::new(2);
    for shape in formats() {
        // Borders inside of and between register tiles.
        for (isa, border) in Isa::all_supported()
            .into_iter()
            .flat_map(|isa| [99, 100, 101, 128].map(|border| (isa, border)))
        {
            let clean = tokens(&shape, 150, 5);
            let mut broken = clean.clone();
            for token in &mut broken[border..] {
                let (k, v) = token[shape.q_width()..].split_at_mut(shape.kv_width());
                k.fill(f32::NAN);
                v.fill(f32::INFINITY);
            }
            let rows = |tokens| {
                let sequence = Sequence {
                    tokens,
                    num_queries: 150,
                };
                let out = Paged::new(shape, &[sequence], &pool, 1).attend(&pool, isa, 2);
                bits(&out[..border * shape.q_width()])
            };
            assert_eq!(rows(clean), rows(broken), "{isa:?}, from {border} on");
        }
    }
}

#[test]
fn avx512_and_avx2_give_the_same_bits() {
    let pool = ThreadPool::new(2);
    for shape in formats() {
        for head_dim in [8, 40, 64, 128] {
            let shape = Shape { head_dim, ..shape };
            let sequence = Sequence {
                tokens: tokens(&shape, 1300, 5),
                num_queries: 20,
            };
            let paged = Paged::new(shape, &[sequence], &pool, 1);
            let isas = Isa::all_supported();
            let vector = isas.iter().filter(|&&isa| isa != Isa::Scalar);
            let results: Vec<_> = vector
                .map(|&isa| bits(&paged.attend(&pool, isa, 2)))
                .collect();
            assert!(
                results.windows(2).all(|pair| pair[0] == pair[1]),
                "{shape:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_batches_and_chunks_change_no_bit(
        block_size in 1usize..=40,
        group in 1usize..=8,
        head_dim in (1usize..=9).prop_map(|n| n * 8),
        dtype in prop::sample::select(&[KvDtype::F32, KvDtype::Bf16, KvDtype::Int8][..]),
        length in 1usize..700,
        cut in 0.0f64..1.0,
        neighbours in prop::collection::vec((1usize..150, 1usize..60), 0..4),
        num_threads in 1usize..4,
    ) {
        let shape = Shape { block_size, num_kv_heads: 1, group, head_dim, dtype };
        let pool = ThreadPool::new(num_threads);
        let isa = Isa::detect();
        let all = tokens(&shape, length, 1);
        let num_queries = 1 + ((length - 1) as f64 * cut) as usize;
        let mut sequences: Vec<Sequence> = neighbours
            .into_iter()
            .map(|(n, q)| Sequence { tokens: tokens(&shape, n, n as u64), num_queries: q.min(n) })
            .collect();
        sequences.push(Sequence { tokens: all.clone(), num_queries });
        let batch = Paged::new(shape, &sequences, &pool, 1).attend(&pool, isa, num_threads);
        let last = &batch[batch.len() - shape.q_width()..];
        let alone = [Sequence { tokens: all, num_queries: 1 }];
        let alone = Paged::new(shape, &alone, &pool, 2).attend(&pool, isa, 1);
        prop_assert_eq!(bits(last), bits(&alone));
    }
}
