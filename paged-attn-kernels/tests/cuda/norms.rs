//! Norms on a device, against f64.

use crate::common::strided::{
    PLACES, Place, Strided, assert_close, f64s, place, same_bits, upload,
};
use crate::common::{Random, TestData, on_each};
use half::f16;
use pageloom_paged_attn_kernels::KernelError;
use pageloom_paged_attn_kernels::cuda::elementwise::{NormArgs, layer_norm, rms_norm};
use pageloom_paged_attn_kernels::cuda::{CudaError, Device, Stream};

/// One row of a norm in f64.
fn norm_row(row: &[f64], is_layer: bool, eps: f64, weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let len = row.len() as f64;
    let mean = if is_layer {
        row.iter().sum::<f64>() / len
    } else {
        0.0
    };
    let squares: f64 = row.iter().map(|x| (x - mean).powi(2)).sum();
    let scale = 1.0 / (squares / len + eps).sqrt();
    let scaled = row.iter().map(|x| (x - mean) * scale);
    scaled
        .zip(weight)
        .zip(bias)
        .map(|((x, w), b)| x * w + b)
        .collect()
}

type Launch = fn(&Stream, &NormArgs<'_>) -> Result<(), CudaError>;

const NORMS: [(Launch, bool); 2] = [(rms_norm, false), (layer_norm, true)];

fn norms_of_rows<T: TestData>(_: &Device, stream: &Stream) {
    let mut random = Random::new(1);
    for (launch, is_layer) in NORMS {
        for (i, place) in PLACES.into_iter().enumerate() {
            let x = Strided::<T>::random(stream, &mut random, place);
            let mut out = Strided::<T>::poisoned(stream, place);
            // Weights of another type and place than the rows.
            let one = Place {
                num_rows: 1,
                lead: 8 * (i % 2),
                ..place
            };
            let weight = Strided::<f32>::random(stream, &mut random, one);
            let bias = Strided::<f32>::random(stream, &mut random, one);
            launch(
                stream,
                &NormArgs {
                    x: Some(x.rows()),
                    residual: None,
                    out: out.rows_mut(),
                    weight: Some(weight.rows()),
                    bias: is_layer.then(|| bias.rows()),
                    num_tokens: place.num_rows,
                    num_heads: 1,
                    width: place.width,
                    eps: 1e-5,
                },
            )
            .unwrap();
            let zeros = vec![0.0; place.width];
            let b = if is_layer { bias.f64s() } else { zeros };
            let rows = x.f64s();
            let expected = rows
                .chunks(place.width)
                .flat_map(|row| norm_row(row, is_layer, 1e-5, &weight.f64s(), &b));
            let expected: Vec<f64> = expected.collect();
            assert_close(&out.download(stream), &expected, (place, is_layer));
            assert!(same_bits(&x.download(stream), &x.values));
        }
    }
}

#[test]
fn norms_agree_with_f64_at_every_width_and_stride() {
    for_each_type!(norms_of_rows);
}

fn norms_with_residual<T: TestData>(_: &Device, stream: &Stream) {
    let mut random = Random::new(2);
    for (launch, is_layer) in NORMS {
        for place in PLACES {
            let x = Strided::<T>::random(stream, &mut random, place);
            let mut residual = Strided::<T>::random(stream, &mut random, place);
            let mut out = Strided::<T>::poisoned(stream, place);
            launch(
                stream,
                &NormArgs {
                    x: Some(x.rows()),
                    residual: Some(residual.rows_mut()),
                    out: out.rows_mut(),
                    weight: None,
                    bias: None,
                    num_tokens: place.num_rows,
                    num_heads: 1,
                    width: place.width,
                    eps: 1e-3,
                },
            )
            .unwrap();
            let sums = x.values.iter().zip(&residual.values);
            let sums: Vec<T> = sums
                .map(|(x, r)| T::from_f32(x.to_f32() + r.to_f32()))
                .collect();
            assert!(same_bits(&residual.download(stream), &sums), "{place:?}");
            let (ones, zeros) = (vec![1.0; place.width], vec![0.0; place.width]);
            let expected: Vec<f64> = f64s(&sums)
                .chunks(place.width)
                .flat_map(|row| norm_row(row, is_layer, 1e-3, &ones, &zeros))
                .collect();
            assert_close(&out.download(stream), &expected, (place, is_layer));
        }
    }
}

#[test]
fn a_residual_becomes_the_sum_and_that_is_normed() {
    for_each_type!(norms_with_residual);
}

fn norms_of_wide_rows<T: TestData>(_: &Device, stream: &Stream) {
    let mut random = Random::new(3);
    // Past what a group keeps: read again, with vectors and without.
    for place in [place(1, 16384 + 64, 0, 0), place(1, 16384 + 63, 1, 0)] {
        for (launch, is_layer) in NORMS {
            let mut x = Strided::<T>::random(stream, &mut random, place);
            let mut residual = Strided::<T>::random(stream, &mut random, place);
            launch(
                stream,
                &NormArgs {
                    x: None,
                    residual: Some(residual.rows_mut()),
                    out: x.rows_mut(),
                    weight: None,
                    bias: None,
                    num_tokens: 1,
                    num_heads: 1,
                    width: place.width,
                    eps: 0.0,
                },
            )
            .unwrap();
            let sums = f64s(&residual.download(stream));
            let (ones, zeros) = (vec![1.0; place.width], vec![0.0; place.width]);
            let expected = norm_row(&sums, is_layer, 0.0, &ones, &zeros);
            assert_close(&x.download(stream), &expected, (place, is_layer));
        }
    }
}

#[test]
fn rows_wider_than_registers_hold_are_read_again() {
    for_each_type!(norms_of_wide_rows);
}

fn norms_of_heads<T: TestData>(_: &Device, stream: &Stream) {
    let mut random = Random::new(4);
    for (num_heads, head_dim, lead, gap) in [(3, 64, 128, 64), (5, 80, 0, 16), (2, 24, 1, 3)] {
        let place = place(7, num_heads * head_dim, lead, gap);
        let mut x = Strided::<T>::random(stream, &mut random, place);
        let weight = random.normals(head_dim);
        let weight_on_device = upload(stream.device(), stream, &weight);
        rms_norm(
            stream,
            &NormArgs {
                x: None,
                residual: None,
                out: x.rows_mut(),
                weight: Some(weight_on_device.rows(head_dim)),
                bias: None,
                num_tokens: place.num_rows,
                num_heads,
                width: head_dim,
                eps: 1e-6,
            },
        )
        .unwrap();
        let zeros = vec![0.0; head_dim];
        let expected: Vec<f64> = x
            .f64s()
            .chunks(head_dim)
            .flat_map(|head| norm_row(head, false, 1e-6, &f64s(&weight), &zeros))
            .collect();
        assert_close(&x.download(stream), &expected, place);
    }
}

#[test]
fn heads_are_normed_in_place_and_the_columns_around_them_stay() {
    for_each_type!(norms_of_heads);
}

/// A norm's row does not depend on the rows beside it.
#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    on_each(|_, stream| {
        let (width, num_rows) = (200, 37);
        let data = Random::new(5).normals(num_rows * width);
        let run = |rows: &[f32]| {
            let count = rows.len() / width;
            let mut x = Strided::new(stream, place(count, width, 0, 0), rows.to_vec());
            let args = NormArgs {
                x: None,
                residual: None,
                out: x.rows_mut(),
                weight: None,
                bias: None,
                num_tokens: count,
                num_heads: 1,
                width,
                eps: 1e-5,
            };
            layer_norm(stream, &args).unwrap();
            x.download(stream)
        };
        let (all, last) = (run(&data), run(&data[36 * width..]));
        assert!(same_bits(&all[36 * width..], &last));
        assert!(same_bits(&all, &run(&data)));
    });
}

#[test]
fn what_does_not_go_together_is_refused() {
    on_each(|_, stream| {
        let mut random = Random::new(9);
        let x = Strided::<f32>::random(stream, &mut random, place(2, 16, 0, 0));
        let half = Strided::<f16>::random(stream, &mut random, place(2, 16, 0, 0));
        let mut out = Strided::<f32>::random(stream, &mut random, place(2, 16, 0, 0));
        let mut try_norm = |weight, width, num_heads| {
            let args = NormArgs {
                x: None,
                residual: None,
                out: out.rows_mut(),
                weight: Some(weight),
                bias: Some(half.rows()),
                num_tokens: 2,
                num_heads,
                width,
                eps: 0.0,
            };
            rms_norm(stream, &args)
        };
        assert_eq!(try_norm(half.rows(), 8, 2), Ok(()));
        let error = try_norm(x.rows(), 16, 1);
        assert!(matches!(error, Err(CudaError::Dtype { name: "bias", .. })));
        for (width, num_heads) in [(0, 1), (1, 0)] {
            let error = try_norm(half.rows(), width, num_heads);
            assert!(matches!(
                error,
                Err(CudaError::Kernel(KernelError::Zero { .. }))
            ));
        }
    });
}
