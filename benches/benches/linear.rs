//! Linear layers of SmolLM2-135M's shapes, on all threads, beside the crates that could do the same:
//! `gemm` in f32, and `rten-gemm` in f32, in u8 x i8, and with weights in 4-bit blocks.
//!
//! `cargo bench -p pageloom-benches --bench linear [-- FILTER]`
//!
//! What the integer products of `rten-gemm` leave out: quantising the inputs, scales and minimums.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use pageloom_paged_attn_kernels::cpu::{
    Epilogue, Isa, LinearScratch, MatrixDtype, PackedMatrix, ThreadPool, linear,
};
use rten_gemm::{
    BlockQuantizedGemm, BlockQuantizedMatrix, ComputeMode, GemmExecutor, GemmInputA, GemmInputB,
    GemmOptions,
};
use rten_tensor::prelude::*;
use rten_tensor::{Contiguous, NdTensor};

/// Outputs and inputs.
const SHAPES: [(&str, usize, usize); 4] = [
    ("qkv", 960, 576),
    ("gate and up", 3072, 576),
    ("down", 576, 1536),
    ("output", 49_152, 576),
];
const ROWS: [usize; 4] = [1, 8, 64, 512];
/// Ours: a line for each way to keep weights.
const DTYPES: [(&str, MatrixDtype); 2] = [
    ("ours bf16", MatrixDtype::Bf16),
    ("ours f32", MatrixDtype::F32),
];
/// Inputs that share a scale in 4-bit blocks.
const BLOCK: usize = 32;

/// One product: `m` rows of `k` inputs to `n` outputs.
#[derive(Clone, Copy)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn value(i: usize) -> f32 {
    (i % 17) as f32 / 17.0 - 0.5
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(value).collect()
}

fn products(c: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = ThreadPool::new(threads);
    for (name, n, k) in SHAPES {
        for m in ROWS {
            // Logits are computed 64 rows at a time.
            if n > 10_000 && m > 64 {
                continue;
            }
            let title = format!("{name}, {k} to {n}, {m} rows");
            let mut group = c.benchmark_group(title);
            group.warm_up_time(Duration::from_millis(300));
            group
                .measurement_time(Duration::from_secs(1))
                .sample_size(10);
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            let product = Product { m, n, k };
            ours(&mut group, &pool, product);
            gemm_f32(&mut group, threads, product);
            rten_f32(&mut group, product);
            rten_int8(&mut group, product);
            rten_blocks(&mut group, product);
            group.finish();
        }
    }
}

fn ours(group: &mut Group<'_>, pool: &ThreadPool, Product { m, n, k }: Product) {
    let isa = Isa::detect();
    let x = values(m * k);
    let mut out = vec![0.0f32; m * n];
    for (name, dtype) in DTYPES {
        let read_row = |row: usize, out: &mut [f32]| {
            let row = out.iter_mut().zip(row * k..);
            row.for_each(|(w, i)| *w = value(i));
            Ok::<(), ()>(())
        };
        let w = PackedMatrix::pack(pool, (n, k), dtype, read_row);
        let w = w.expect("packing from memory does not fail");
        let mut scratch = LinearScratch::default();
        group.bench_function(name, |b| {
            b.iter(|| {
                let out = black_box(&mut out);
                linear(pool, isa, &mut scratch, &x, &w, Epilogue::Store, out)
            });
        });
    }
}

fn gemm_f32(group: &mut Group<'_>, threads: usize, Product { m, n, k }: Product) {
    let (x, w, mut out) = (values(m * k), values(n * k), vec![0.0f32; m * n]);
    group.bench_function("gemm f32", |b| {
        b.iter(|| {
            // SAFETY: shapes and strides are those of `out`, `x` and `w`.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    black_box(out.as_mut_ptr()),
                    1,
                    n as isize,
                    false,
                    x.as_ptr(),
                    1,
                    k as isize,
                    w.as_ptr(),
                    k as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(threads),
                );
            }
        });
    });
}

fn rten_f32(group: &mut Group<'_>, Product { m, n, k }: Product) {
    let gemm = GemmExecutor::<f32>::new();
    let x = NdTensor::from_data([m, k], values(m * k));
    let w = NdTensor::from_data([n, k], values(n * k));
    let packed = gemm.prepack_b(w.view().transposed());
    let mut out = vec![0.0f32; m * n];
    group.bench_function("rten-gemm f32", |b| {
        b.iter(|| {
            gemm.gemm(
                black_box(&mut out),
                GemmInputA::Unpacked(x.view()),
                GemmInputB::Packed(&packed),
                GemmOptions::default(),
            )
        });
    });
}

fn rten_int8(group: &mut Group<'_>, Product { m, n, k }: Product) {
    let gemm = GemmExecutor::<u8, i8, i32>::new();
    let x = NdTensor::from_data(
        [m, k],
        (0..m * k).map(|i| (i % 251) as u8).collect::<Vec<_>>(),
    );
    let w: Vec<i8> = (0..n * k).map(|i| (i % 253) as u8 as i8).collect();
    let w = NdTensor::from_data([n, k], w);
    let packed = gemm.prepack_b(w.view().transposed());
    let mut out = vec![0i32; m * n];
    group.bench_function("rten-gemm u8 x i8", |b| {
        b.iter(|| {
            gemm.gemm(
                black_box(&mut out),
                GemmInputA::Unpacked(x.view()),
                GemmInputB::Packed(&packed),
                GemmOptions::default(),
            )
        });
    });
}

fn rten_blocks(group: &mut Group<'_>, Product { m, n, k }: Product) {
    let num_blocks = k / BLOCK;
    let x = NdTensor::from_data([1, m, k], values(m * k));
    let quantised: Vec<u8> = (0..n * k / 2).map(|i| (i % 255) as u8).collect();
    let quantised = NdTensor::from_data([n, num_blocks, BLOCK / 2], quantised);
    let scales = NdTensor::from_data([n, num_blocks], vec![0.01f32; n * num_blocks]);
    let mut out = vec![MaybeUninit::new(0.0f32); m * n];
    for (name, mode) in [
        ("rten-gemm 4-bit blocks, f32 inputs", ComputeMode::Float),
        ("rten-gemm 4-bit blocks, i8 inputs", ComputeMode::Int8),
    ] {
        // It computes rows one by one, and quantises inputs for one row only.
        if m > 8 || (mode == ComputeMode::Int8 && m > 1) {
            continue;
        }
        let w = BlockQuantizedMatrix::new(
            Contiguous::new(quantised.view()).expect("just made"),
            Contiguous::new(scales.view()).expect("just made"),
            4,
        )
        .expect("blocks of 32 elements of 4 bits are supported");
        let gemm = BlockQuantizedGemm::new().with_compute(mode);
        group.bench_function(name, |b| {
            b.iter(|| {
                let done = gemm.batched_gemm_uninit(black_box(&mut out), x.view(), w);
                done.map(|out| out.len())
            });
        });
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
