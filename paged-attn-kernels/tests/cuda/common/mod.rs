//! What the tests of CUDA kernels share: devices, random numbers, and how far from right is right.

pub(crate) mod strided;
pub(crate) mod written;

use half::{bf16, f16};
use pageloom_paged_attn_kernels::cuda::{Data, Device, Stream};

/// The emulator, and the first GPU where there is one: `PAGELOOM_CUDA_DEVICE=emulator|gpu` asks for
/// one of them, and then it must be there.
pub(crate) fn devices() -> Vec<Device> {
    let wanted = std::env::var("PAGELOOM_CUDA_DEVICE").unwrap_or_default();
    match (wanted.as_str(), Device::open(0)) {
        ("gpu", gpu) => vec![gpu.expect("PAGELOOM_CUDA_DEVICE=gpu asks for a GPU")],
        ("", Ok(gpu)) => vec![gpu, Device::emulated()],
        ("", Err(error)) => {
            eprintln!("on the emulator only: {error}");
            vec![Device::emulated()]
        }
        ("emulator", _) => vec![Device::emulated()],
        (other, _) => panic!("PAGELOOM_CUDA_DEVICE={other}: it is `emulator` or `gpu`"),
    }
}

/// Runs a test on each device, with a stream.
pub(crate) fn on_each(test: impl Fn(&Device, &Stream)) {
    for device in devices() {
        let stream = device.new_stream().unwrap();
        test(&device, &stream);
        stream.synchronize().unwrap();
    }
}

/// Calls a generic test with each type of activation.
macro_rules! for_each_type {
    ($test:ident) => {
        $crate::common::on_each(|device, stream| {
            $test::<f32>(device, stream);
            $test::<half::bf16>(device, stream);
            $test::<half::f16>(device, stream);
        })
    };
}

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

    /// 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n
    }

    /// Roughly normal, mean 0, variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12)
            .map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64)
            .sum();
        (sum - 6.0) as f32
    }

    pub(crate) fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    /// A random order of 0 to `n - 1`.
    pub(crate) fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// How far from right results of a type may be.
pub(crate) trait TestData: Data {
    /// Largest relative error that operations on it may have.
    const BOUND: f64;

    /// What outputs are filled with beforehand.
    fn poison() -> Self {
        Self::from_f32(f32::NAN)
    }
}

impl TestData for f32 {
    const BOUND: f64 = 1e-5;
}

impl TestData for bf16 {
    const BOUND: f64 = 1e-2;
}

impl TestData for f16 {
    const BOUND: f64 = 2e-3;
}

/// `|found - expected| / |expected|`, of whole arrays; infinite if anything is NaN.
pub(crate) fn relative_error<T: TestData>(found: &[T], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut difference, mut size) = (0.0, 0.0);
    for (&x, &y) in found.iter().zip(expected) {
        difference += (f64::from(x.to_f32()) - y).powi(2);
        size += y * y;
    }
    match (difference / size.max(1e-300)).sqrt() {
        error if error.is_nan() => f64::INFINITY,
        error => error,
    }
}
