//! Number formats of activations.

use bytemuck::Pod;
use half::{bf16, f16};

/// Number format of activations. The codes are those of `cuda/types.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Dtype {
    /// 32-bit floats.
    F32 = 0,
    /// bfloat16.
    Bf16 = 1,
    /// IEEE half precision.
    F16 = 2,
}

impl Dtype {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }
}

/// A type that activations may have.
pub trait Data: Pod + Send + Sync {
    /// Its format.
    const DTYPE: Dtype;

    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;

    /// Exact.
    fn to_f32(self) -> f32;
}

impl Data for f32 {
    const DTYPE: Dtype = Dtype::F32;

    fn from_f32(x: f32) -> Self {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Data for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

impl Data for f16 {
    const DTYPE: Dtype = Dtype::F16;

    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}
