//! Prefill attention against an f64 reference over what the pages hold: the PTX of `attend_prefill` alone
//! on the emulator, with items made by hand; and whole calls of `attend` on each device.
//!
//! Slots that no row sees are NaN, outputs are poisoned, tables shuffled; the emulator faults on races
//! in shared memory, on accesses outside of buffers, and on copies that are not waited for.

mod cases;

use crate::common::on_each;
use cases::{Case, Input, Kv, Output, attend_on, launch};

/// Relative error that all rows together may have, and each row alone.
///
/// Pages of int8 and fp8 are compared as what their bytes mean: what is left is that queries, once
/// rotated or of f16, are rounded to bf16, and weights too. Where two keys compete for a row, an
/// error of 0.5 % in their scores' difference shows most.
fn bounds(case: &Case) -> (f64, f64) {
    match case.kv {
        Kv::Bf16 => (1e-2, 1e-2),
        Kv::F16 => (2e-3, 2e-3),
        Kv::Int8 | Kv::Fp8 => (1e-2, 4e-2),
    }
}

/// `|found - expected| / |expected|`, of all rows together, and the largest of a row; infinite if
/// anything is NaN.
fn errors(case: &Case, found: &[f64], expected: &[f64]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let error = |(x, y): (&[f64], &[f64])| {
        let difference: f64 = x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum();
        let size: f64 = y.iter().map(|y| y * y).sum();
        match (difference / size).sqrt() {
            nan if nan.is_nan() => f64::INFINITY,
            error => error,
        }
    };
    let rows = found.chunks_exact(case.head_dim);
    let rows = rows.zip(expected.chunks_exact(case.head_dim));
    (
        error((found, expected)),
        rows.map(error).fold(0.0, f64::max),
    )
}

fn check_output(case: &Case, found: &[f64], expected: &[f64]) {
    let ((all, row), (all_bound, row_bound)) = (errors(case, found, expected), bounds(case));
    assert!(
        all <= all_bound && row <= row_bound,
        "off by {all:.1e}, a row by {row:.1e}: {case:?}"
    );
}

fn check(case: &Case) -> Output {
    let input = Input::new(case);
    let found = launch(&input);
    check_output(case, &found.out, &input.reference());
    found
}

#[test]
fn chunks_of_every_length_attend_to_themselves_and_what_was_cached() {
    for chunk in [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200] {
        for prefix in [0, 1, 64, 333] {
            check(&Case::new(64, Kv::Bf16, chunk, prefix));
        }
    }
}

#[test]
fn every_head_dim_and_format_is_right() {
    for head_dim in [64, 80, 96, 128, 256] {
        for kv in Kv::ALL {
            for f16 in [false, true] {
                if kv.takes(f16) {
                    check(&Case {
                        f16,
                        num_kv_heads: 2,
                        group: 3,
                        ..Case::new(head_dim, kv, 50, 61)
                    });
                }
            }
        }
    }
}

#[test]
fn blocks_of_every_size_are_found_through_the_table() {
    for block_size in [8, 16, 32, 64, 128] {
        for kv in [Kv::Bf16, Kv::Int8] {
            check(&Case {
                block_size,
                num_kv_heads: 2,
                ..Case::new(128, kv, 130, 75)
            });
        }
    }
}

#[test]
fn query_heads_of_every_group_share_their_keys() {
    for group in [1, 3, 4, 8] {
        for kv in [Kv::F16, Kv::Fp8] {
            check(&Case {
                group,
                num_kv_heads: 2,
                ..Case::new(80, kv, 37, 30)
            });
        }
    }
}

#[test]
fn a_window_hides_keys_that_may_be_gone_already() {
    for window in [1, 7, 64, 100, 1000] {
        for kv in Kv::ALL {
            check(&Case {
                window,
                group: 2,
                ..Case::new(128, kv, 90, 150)
            });
        }
    }
}

#[test]
fn scores_are_capped() {
    for soft_cap in [0.5, 5.0, 50.0] {
        for (kv, window) in [(Kv::Bf16, 0), (Kv::F16, 40), (Kv::Int8, 0), (Kv::Fp8, 40)] {
            check(&Case {
                soft_cap,
                window,
                group: 2,
                ..Case::new(96, kv, 40, 70)
            });
        }
    }
}

#[test]
fn sequences_of_a_batch_keep_to_their_own_blocks() {
    for head_dim in [64, 256] {
        for kv in [Kv::Bf16, Kv::Int8] {
            let sequences = vec![(70, 20), (1, 0), (33, 190)];
            check(&Case {
                sequences,
                num_kv_heads: 2,
                group: 2,
                ..Case::new(head_dim, kv, 0, 0)
            });
        }
    }
}

#[test]
fn split_items_combine_to_the_whole() {
    // Pieces begin and end within tiles and blocks; rows see nothing of some.
    for (head_dim, kv) in [
        (64, Kv::Int8),
        (128, Kv::Bf16),
        (128, Kv::Fp8),
        (256, Kv::F16),
    ] {
        for (splits, window, soft_cap) in [(2, 0, 0.0), (5, 0, 10.0), (3, 50, 0.0)] {
            check(&Case {
                splits,
                window,
                soft_cap,
                group: 2,
                ..Case::new(head_dim, kv, 90, 143)
            });
        }
    }
}

#[test]
fn two_runs_give_equal_bits() {
    for kv in [Kv::Bf16, Kv::Fp8] {
        let case = Case {
            group: 2,
            ..Case::new(128, kv, 70, 40)
        };
        assert_eq!(check(&case).bits, launch(&Input::new(&case)).bits);
    }
}

#[test]
fn a_broken_key_breaks_the_rows_that_see_it() {
    for kv in Kv::ALL {
        let case = Case::new(64, kv, 40, 30);
        let mut input = Input::new(&case);
        input.break_key(0, 50);
        let found = launch(&input).out;
        for (token, row) in found.chunks_exact(case.head_dim).enumerate() {
            let sees = 30 + token >= 50;
            assert!(
                row.iter().all(|x| x.is_nan() == sees),
                "token {token}, {kv:?}"
            );
        }
    }
}

#[test]
fn one_missing_value_is_more_than_the_bound() {
    for kv in Kv::ALL {
        let case = Case::new(64, kv, 40, 30);
        let mut input = Input::new(&case);
        let expected = input.reference();
        input.clear_value(0, 50);
        let (all, row) = errors(&case, &launch(&input).out, &expected);
        let (all_bound, row_bound) = bounds(&case);
        assert!(all > 2.0 * all_bound && row > 2.0 * row_bound, "{kv:?}");
    }
}

#[test]
fn planned_steps_match_on_every_device() {
    on_each(|_, stream| {
        for head_dim in [64, 80, 96, 128, 256] {
            for kv in Kv::ALL {
                for (f16, window, soft_cap) in
                    [(false, 0, 0.0), (true, 0, 0.0), (kv == Kv::F16, 70, 20.0)]
                {
                    if !kv.takes(f16) {
                        continue;
                    }
                    let sequences = vec![(70, 333), (1, 90), (129, 0)];
                    let shape = Case {
                        sequences,
                        num_kv_heads: 2,
                        group: 2,
                        ..Case::new(head_dim, kv, 0, 0)
                    };
                    let case = Case {
                        f16,
                        window,
                        soft_cap,
                        ..shape
                    };
                    let input = Input::new(&case);
                    let found = attend_on(stream, &input).unwrap();
                    check_output(&case, &found, &input.reference());
                }
            }
        }
    });
}
