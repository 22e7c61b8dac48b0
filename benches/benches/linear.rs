//! Linear layers of SmolLM2-135M's shapes beside the `gemm` crate, on one and on all threads.
//!
//! `cargo bench -p pageloom-benches --bench linear`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageloom_paged_attn_kernels::cpu::{
    Epilogue, Isa, LinearScratch, MatrixDtype, PackedMatrix, ThreadPool, linear,
};

/// Outputs and inputs of the fused gate and up projections.
const SHAPE: (usize, usize) = (3072, 576);

fn products(c: &mut Criterion) {
    let (n, k) = SHAPE;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = ThreadPool::new(threads);
    let isa = Isa::detect();
    let value = |i: usize| (i % 17) as f32 / 17.0 - 0.5;
    let pack = |dtype| {
        PackedMatrix::pack(&pool, (n, k), dtype, |row, out| {
            out.iter_mut()
                .enumerate()
                .for_each(|(col, w)| *w = value(row * k + col));
            Ok::<(), ()>(())
        })
        .expect("packing from memory does not fail")
    };
    let matrices = [
        ("bf16", pack(MatrixDtype::Bf16)),
        ("f32", pack(MatrixDtype::F32)),
    ];
    let dense: Vec<f32> = (0..n * k).map(value).collect();

    let mut group = c.benchmark_group(format!("linear {k} to {n}, {threads} threads"));
    for m in [1, 4, 8, 32, 64, 512] {
        let x: Vec<f32> = (0..m * k).map(value).collect();
        let mut out = vec![0.0f32; m * n];
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        for (name, w) in &matrices {
            let mut scratch = LinearScratch::default();
            group.bench_function(BenchmarkId::new(*name, m), |b| {
                b.iter(|| {
                    linear(
                        &pool,
                        isa,
                        &mut scratch,
                        &x,
                        w,
                        Epilogue::Store,
                        black_box(&mut out),
                    )
                });
            });
        }
        group.bench_function(BenchmarkId::new("gemm crate f32", m), |b| {
            b.iter(|| {
                // SAFETY: shapes and strides are those of `out`, `x` and `dense`.
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
                        dense.as_ptr(),
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
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
