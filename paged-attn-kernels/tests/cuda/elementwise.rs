//! Activations, sums and embeddings on a device, against f64.

use crate::common::strided::{PLACES, Place, Strided, assert_close, place, same_bits, upload};
use crate::common::{Random, TestData, on_each};
use half::{bf16, f16};
use pageloom_paged_attn_kernels::KernelError;
use pageloom_paged_attn_kernels::cuda::elementwise::{
    ActivationArgs, AddBiasArgs, EmbedArgs, GeluForm, add_bias, embed, gelu, relu, silu_mul,
};
use pageloom_paged_attn_kernels::cuda::{CudaError, Device, Stream};

/// `1 + erf(x)`, from a series of positive terms.
fn one_plus_erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..400 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    1.0 + 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn silu_f64(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu_erf_f64(x: f64) -> f64 {
    x / 2.0 * one_plus_erf(x / 2f64.sqrt())
}

fn gelu_tanh_f64(x: f64) -> f64 {
    x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

type Activate = fn(&Stream, &ActivationArgs<'_>) -> Result<(), CudaError>;

type Formula = fn(f64) -> f64;

/// The kernels, and what they compute.
const ACTIVATIONS: [(Activate, Formula); 5] = [
    (silu_mul, silu_f64),
    (|s, args| gelu(s, GeluForm::Erf, args), gelu_erf_f64),
    (|s, args| gelu(s, GeluForm::Tanh, args), gelu_tanh_f64),
    (|s, args| relu(s, false, args), |x| x.max(0.0)),
    (|s, args| relu(s, true, args), |x| x.max(0.0).powi(2)),
];

fn activations<T: TestData>(_: &Device, stream: &Stream) {
    let mut random = Random::new(6);
    for (a, (launch, f)) in ACTIVATIONS.into_iter().enumerate() {
        for (i, place) in PLACES.into_iter().enumerate() {
            let gated = i % 2 == 0;
            let x = Strided::<T>::random(stream, &mut random, place);
            let up = Strided::<T>::random(stream, &mut random, place);
            let mut out = Strided::<T>::poisoned(stream, place);
            let args = ActivationArgs {
                x: Some(x.rows()),
                up: gated.then(|| up.rows()),
                out: out.rows_mut(),
                num_rows: place.num_rows,
                width: place.width,
            };
            launch(stream, &args).unwrap();
            let of = |(x, up): (f64, f64)| if gated { f(x) * up } else { f(x) };
            let expected: Vec<f64> = x.f64s().into_iter().zip(up.f64s()).map(of).collect();
            assert_close(&out.download(stream), &expected, (a, place));

            // In place, the same bits.
            let mut x = x;
            let args = ActivationArgs {
                x: None,
                up: gated.then(|| up.rows()),
                out: x.rows_mut(),
                num_rows: place.num_rows,
                width: place.width,
            };
            launch(stream, &args).unwrap();
            assert!(same_bits(&x.download(stream), &out.download(stream)));
        }
    }
}

#[test]
fn activations_agree_with_f64_at_every_width_and_stride() {
    for_each_type!(activations);
}

#[test]
fn activations_keep_their_digits_in_the_tails() {
    on_each(|_, stream| {
        for (a, (launch, f)) in ACTIVATIONS.into_iter().enumerate() {
            let reach: i16 = if a == 0 { 80 } else { 4 };
            let xs: Vec<f32> = (-100i16..=100)
                .map(|i| f32::from(i) / 100.0 * f32::from(reach))
                .collect();
            let mut x = Strided::new(stream, place(1, xs.len(), 0, 0), xs.clone());
            let args = ActivationArgs {
                x: None,
                up: None,
                out: x.rows_mut(),
                num_rows: 1,
                width: xs.len(),
            };
            launch(stream, &args).unwrap();
            for (x, y) in xs.iter().zip(x.download(stream)) {
                let expected = f(f64::from(*x));
                let error = (f64::from(y) - expected).abs();
                assert!(error <= 1e-5 * expected.abs(), "{a}: {x} {y} {expected}");
            }
        }
    });
}

#[test]
fn activations_of_what_is_huge_or_broken() {
    on_each(|_, stream| {
        for (a, (launch, _)) in ACTIVATIONS.into_iter().enumerate() {
            let xs = vec![-1e4f32, 1e4, f32::NAN, -0.0];
            let mut x = Strided::new(stream, place(1, 4, 0, 0), xs);
            let args = ActivationArgs {
                x: None,
                up: None,
                out: x.rows_mut(),
                num_rows: 1,
                width: 4,
            };
            launch(stream, &args).unwrap();
            let y = x.download(stream);
            let large = if a == 4 { 1e8 } else { 1e4 };
            assert_eq!((y[0], y[1], y[3]), (0.0, large, 0.0), "{a}");
            assert!(y[2].is_nan(), "{a}");
        }
    });
}

fn sums<T: TestData>(_: &Device, stream: &Stream) {
    let mut random = Random::new(7);
    for (i, place) in PLACES.into_iter().enumerate() {
        for (has_bias, has_residual) in [(true, true), (true, false), (false, true)] {
            let x = Strided::<T>::random(stream, &mut random, place);
            let mut residual = Strided::<T>::random(stream, &mut random, place);
            let one = Place {
                num_rows: 1,
                lead: 8 * (i % 2),
                ..place
            };
            let bias = Strided::<bf16>::random(stream, &mut random, one);
            let mut out = Strided::<T>::poisoned(stream, place);
            let args = AddBiasArgs {
                x: Some(x.rows()),
                bias: has_bias.then(|| bias.rows()),
                residual: has_residual.then(|| residual.rows()),
                out: out.rows_mut(),
                num_rows: place.num_rows,
                width: place.width,
            };
            add_bias(stream, &args).unwrap();
            let value = |i: usize| {
                let mut sum = x.values[i].to_f32();
                if has_bias {
                    sum += bias.values[i % place.width].to_f32();
                }
                if has_residual {
                    sum += residual.values[i].to_f32();
                }
                T::from_f32(sum)
            };
            // Sums of f32 in a fixed order: exact.
            let expected: Vec<T> = (0..x.values.len()).map(value).collect();
            assert!(same_bits(&out.download(stream), &expected), "{place:?}");
            if !has_residual {
                let args = AddBiasArgs {
                    x: None,
                    bias: Some(bias.rows()),
                    residual: Some(x.rows()),
                    out: residual.rows_mut(),
                    num_rows: place.num_rows,
                    width: place.width,
                };
                add_bias(stream, &args).unwrap();
                let value = |i: usize| {
                    let sum = residual.values[i].to_f32() + bias.values[i % place.width].to_f32();
                    T::from_f32(sum + x.values[i].to_f32())
                };
                let expected: Vec<T> = (0..x.values.len()).map(value).collect();
                assert!(same_bits(&residual.download(stream), &expected));
            }
        }
    }
}

#[test]
fn biases_and_residuals_are_added() {
    for_each_type!(sums);
}

fn embeddings<T: TestData>(device: &Device, stream: &Stream) {
    embeddings_of::<f32, T>(device, stream);
    embeddings_of::<bf16, T>(device, stream);
    embeddings_of::<f16, T>(device, stream);
}

fn embeddings_of<S: TestData, T: TestData>(device: &Device, stream: &Stream) {
    let mut random = Random::new(8);
    for place in PLACES {
        let table_place = Place {
            num_rows: 11,
            ..place
        };
        let table = Strided::<S>::random(stream, &mut random, table_place);
        // The last is not in the table.
        let ids: Vec<u32> = (0..place.num_rows as u32)
            .map(|i| 10 + i % 2 - i / 2 * 3)
            .collect();
        let ids_on_device = upload(device, stream, &ids);
        let mut out = Strided::<T>::poisoned(stream, place);
        let args = EmbedArgs {
            table: table.rows(),
            num_ids: 11,
            ids: &ids_on_device,
            out: out.rows_mut(),
            num_rows: place.num_rows,
            width: place.width,
            scale: 1.5,
        };
        embed(stream, &args).unwrap();
        let found = out.download(stream);
        for (row, &id) in found.chunks(place.width).zip(&ids) {
            if id >= 11 {
                assert!(row.iter().all(|x| x.to_f32().is_nan()));
                continue;
            }
            let source = &table.values[id as usize * place.width..][..place.width];
            let expected: Vec<T> = source
                .iter()
                .map(|x| T::from_f32(x.to_f32() * 1.5))
                .collect();
            assert!(same_bits(row, &expected), "{place:?} {id}");
        }
    }
}

#[test]
fn embeddings_are_rows_of_the_table() {
    for_each_type!(embeddings);
}

fn strided_of<T: TestData>(stream: &Stream, width: usize) -> Strided<T> {
    Strided::random(stream, &mut Random::new(9), place(2, width, 0, 0))
}

#[test]
fn what_does_not_go_together_is_refused() {
    on_each(|_, stream| {
        let (x, half) = (strided_of::<f32>(stream, 16), strided_of::<f16>(stream, 16));
        let elsewhere = Device::emulated();
        let elsewhere = upload(&elsewhere, &elsewhere.new_stream().unwrap(), &[0f32; 32]);
        let try_silu = |x, num_rows, width| {
            let mut out = strided_of::<f32>(stream, 16);
            let args = ActivationArgs {
                x: Some(x),
                up: None,
                out: out.rows_mut(),
                num_rows,
                width,
            };
            silu_mul(stream, &args)
        };
        assert_eq!(try_silu(x.rows(), 2, 16), Ok(()));
        let error = try_silu(half.rows(), 2, 16);
        assert!(matches!(error, Err(CudaError::Dtype { name: "x", .. })));
        let error = try_silu(elsewhere.rows(16), 2, 16);
        assert_eq!(error, Err(CudaError::OtherDevice { name: "x" }));
        let error = try_silu(x.rows(), 3, 16);
        assert!(matches!(
            error,
            Err(CudaError::Kernel(KernelError::Rows { .. }))
        ));
        let error = try_silu(x.rows(), 2, 17);
        assert!(matches!(
            error,
            Err(CudaError::Kernel(KernelError::OverlappingRows {
                name: "out",
                ..
            }))
        ));
    });
}
