use super::*;
use crate::cpu::gated_row;

/// Numbers in -1..1 that look random, from a small linear congruential generator.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn matrix(pool: &ThreadPool, rows: usize, cols: usize, dtype: MatrixDtype) -> PackedMatrix {
    let values = numbers(7, rows * cols);
    PackedMatrix::pack(pool, (rows, cols), dtype, |row, out| {
        out.copy_from_slice(&values[row * cols..(row + 1) * cols]);
        Ok::<(), ()>(())
    })
    .unwrap()
}

fn product(
    pool: &ThreadPool,
    isa: Isa,
    x: &[f32],
    w: &PackedMatrix,
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let num_rows = x.len() / w.cols();
    // Poisoned, so that an output that is not written shows.
    let fill = if matches!(epilogue, Epilogue::Add) {
        0.5
    } else {
        f32::NAN
    };
    let mut out = vec![fill; num_rows * w.rows()];
    linear(
        pool,
        isa,
        &mut LinearScratch::default(),
        x,
        w,
        epilogue,
        &mut out,
    )
    .unwrap();
    out
}

fn assert_close(found: &[f32], expected: impl Iterator<Item = f64>, what: &str) {
    for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = 1e-5 * expected.abs().max(1.0);
        assert!(
            (f64::from(found) - expected).abs() <= bound,
            "{what}: {i}: {found} {expected}"
        );
    }
}

#[test]
fn products_agree_with_f64_on_awkward_shapes() {
    let pool = ThreadPool::new(3);
    for isa in Isa::all_supported() {
        for dtype in [MatrixDtype::F32, MatrixDtype::Bf16] {
            for (n, k) in [(1, 1), (31, 3), (32, 17), (33, 64), (100, 45), (96, 128)] {
                let w = matrix(&pool, n, k, dtype);
                let mut rows = vec![vec![0.0; k]; n];
                rows.iter_mut()
                    .enumerate()
                    .for_each(|(i, row)| w.read_row(i, row));
                for m in [1, 2, 3, 4, 5, 8, 9, 12, 13, 20, 25, 64] {
                    let x = numbers(m as u64, m * k);
                    let dot = |i: usize| {
                        let (x, w) = (&x[i / n * k..][..k], &rows[i % n]);
                        x.iter()
                            .zip(w)
                            .map(|(&a, &b)| f64::from(a) * f64::from(b))
                            .sum::<f64>()
                    };
                    let what = format!("{isa:?} {dtype:?} {m}x{k}x{n}");
                    let found = product(&pool, isa, &x, &w, Epilogue::Store);
                    assert_close(&found, (0..m * n).map(dot), &what);
                    let found = product(&pool, isa, &x, &w, Epilogue::Add);
                    assert_close(&found, (0..m * n).map(|i| dot(i) + 0.5), &what);
                    let bias = numbers(99, n);
                    let found = product(&pool, isa, &x, &w, Epilogue::Bias(&bias));
                    let biased = (0..m * n).map(|i| dot(i) + f64::from(bias[i % n]));
                    assert_close(&found, biased, &what);
                }
            }
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_and_in_any_batch() {
    let (n, k) = (70, 200);
    for isa in Isa::all_supported() {
        for dtype in [MatrixDtype::F32, MatrixDtype::Bf16] {
            let w = matrix(&ThreadPool::new(1), n, k, dtype);
            let x = numbers(3, 40 * k);
            let alone: Vec<f32> = x
                .chunks_exact(k)
                .flat_map(|row| product(&ThreadPool::new(1), isa, row, &w, Epilogue::Store))
                .collect();
            for (threads, m) in [(1, 2), (2, 5), (3, 12), (2, 13), (4, 40)] {
                let pool = ThreadPool::new(threads);
                let batch = product(&pool, isa, &x[..m * k], &w, Epilogue::Store);
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(&batch),
                    bits(&alone[..m * n]),
                    "{isa:?} {dtype:?} {m} rows"
                );
            }
        }
    }
}

#[test]
fn wide_instruction_sets_agree_bit_for_bit() {
    let pool = ThreadPool::new(2);
    let wide: Vec<Isa> = Isa::all_supported()
        .into_iter()
        .filter(|i| *i != Isa::Scalar)
        .collect();
    let w = matrix(&pool, 65, 333, MatrixDtype::Bf16);
    let x = numbers(11, 17 * 333);
    let results: Vec<_> = wide
        .iter()
        .map(|&isa| product(&pool, isa, &x, &w, Epilogue::Store))
        .collect();
    for pair in results.windows(2) {
        assert_eq!(pair[0], pair[1]);
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let pool = ThreadPool::new(1);
    let value = 1.0 + 1.0 / 256.0;
    let w = PackedMatrix::pack(&pool, (1, 1), MatrixDtype::Bf16, |_, out| {
        out[0] = value;
        Ok::<(), ()>(())
    })
    .unwrap();
    let mut row = [0.0];
    w.read_row(0, &mut row);
    assert_eq!(row[0], 1.0);
}

#[test]
fn wrong_shapes_are_errors_and_name_the_operand() {
    let pool = ThreadPool::new(1);
    let w = matrix(&pool, 4, 8, MatrixDtype::F32);
    let mut scratch = LinearScratch::default();
    let mut out = vec![0.0; 4];
    let mut run =
        |x: &[f32], epilogue| linear(&pool, Isa::Scalar, &mut scratch, x, &w, epilogue, &mut out);
    assert!(
        run(&[0.0; 9], Epilogue::Store)
            .unwrap_err()
            .to_string()
            .contains("linear: x")
    );
    assert!(
        run(&[0.0; 16], Epilogue::Store)
            .unwrap_err()
            .to_string()
            .contains("linear: out")
    );
    assert!(
        run(&[0.0; 8], Epilogue::Bias(&[0.0]))
            .unwrap_err()
            .to_string()
            .contains("bias")
    );
}

#[test]
fn an_error_while_packing_is_passed_on() {
    let pool = ThreadPool::new(2);
    let packed = PackedMatrix::pack(&pool, (100, 4), MatrixDtype::F32, |row, _| {
        if row == 57 { Err(row) } else { Ok(()) }
    });
    assert_eq!(packed.err(), Some(57));
}

/// Gates and what they gate, interleaved for the kernels, of weights that `pack` keeps.
fn gated(
    width: usize,
    cols: usize,
    pack: impl Fn((usize, usize), &[f32]) -> PackedMatrix,
) -> PackedMatrix {
    let rows = 2 * width.next_multiple_of(16);
    let mut values = numbers(3, rows * cols);
    for (row, values) in values.chunks_exact_mut(cols).enumerate() {
        if gated_row(row).1 >= width {
            values.fill(0.0);
        }
    }
    pack((rows, cols), &values)
}

#[test]
fn gating_at_once_equals_gating_afterwards() {
    let pool = ThreadPool::new(3);
    let cols = 96;
    let dense = |shape, values: &[f32]| {
        PackedMatrix::pack(&pool, shape, MatrixDtype::F32, |row, out| {
            out.copy_from_slice(&values[row * cols..(row + 1) * cols]);
            Ok::<(), ()>(())
        })
        .unwrap()
    };
    let quantised = |shape, values: &[f32]| {
        PackedMatrix::pack_blocks(&pool, shape, BlockFormat::Q8_0, |row, out| {
            quantise_row(
                BlockFormat::Q8_0,
                &values[row * cols..(row + 1) * cols],
                out,
            );
        })
        .unwrap()
    };
    for width in [1, 16, 40, 72] {
        for w in [gated(width, cols, dense), gated(width, cols, quantised)] {
            for m in [1, 2, 5, 17, 40] {
                let x = numbers(m as u64, m * cols);
                for isa in Isa::all_supported() {
                    let gate_up = product(&pool, isa, &x, &w, Epilogue::Store);
                    let mut expected = vec![f32::NAN; m * width];
                    silu_mul(&pool, &gate_up, width, &mut expected);
                    let mut found = vec![f32::NAN; m * width];
                    let mut scratch = LinearScratch::default();
                    linear_silu_mul(&pool, isa, &mut scratch, &x, &w, &mut found).unwrap();
                    if isa == Isa::Scalar {
                        // Gated with the machine's instructions where they are not gated at once.
                        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                        assert!(found.iter().zip(&expected).all(close));
                    } else {
                        assert_eq!(found, expected, "{isa:?} {width} {m}");
                    }
                }
            }
            let mut short = vec![0.0; 2 * width + 1];
            let x = numbers(1, 2 * cols);
            let mut scratch = LinearScratch::default();
            assert!(linear_silu_mul(&pool, Isa::Scalar, &mut scratch, &x, &w, &mut short).is_err());
        }
    }
}
