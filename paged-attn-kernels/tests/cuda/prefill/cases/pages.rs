//! What pages hold.

use half::{bf16, f16};

use crate::common::Random;

/// Of pages; its name is that of the kernel's variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kv {
    Bf16,
    F16,
    Int8,
    Fp8,
}

impl Kv {
    pub(crate) const ALL: [Kv; 4] = [Kv::Bf16, Kv::F16, Kv::Int8, Kv::Fp8];

    pub(super) fn name(self) -> &'static str {
        ["bf16", "f16", "int8", "fp8"][self as usize]
    }

    pub(crate) fn scaled(self) -> bool {
        matches!(self, Kv::Int8 | Kv::Fp8)
    }

    /// Whether activations of f16, or else bf16, go with it.
    pub(crate) fn takes(self, f16: bool) -> bool {
        self.scaled() || f16 == (self == Kv::F16)
    }

    pub(super) fn bytes(self) -> usize {
        if self.scaled() { 1 } else { 2 }
    }

    pub(super) fn read(self, bytes: &[u8]) -> f64 {
        match self {
            Kv::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
            Kv::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
            Kv::Int8 => f64::from(bytes[0] as i8),
            Kv::Fp8 => fp8(bytes[0]),
        }
    }

    pub(super) fn random(self, random: &mut Random) -> Vec<u8> {
        let x = random.normal();
        match self {
            Kv::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            Kv::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            Kv::Int8 => vec![(x * 42.0).clamp(-127.0, 127.0) as i8 as u8],
            // Every code but the NaNs, small ones among them.
            Kv::Fp8 => match random.below(256) as u8 {
                nan if nan & 0x7f == 0x7f => vec![0],
                code => vec![code],
            },
        }
    }

    /// Such that keys and values have about the size 1.
    pub(super) fn scale(self, random: &mut Random) -> f32 {
        let size = if self == Kv::Int8 { 42.0 } else { 120.0 };
        (0.5 + random.below(1000) as f32 / 1000.0) / size
    }
}

/// By the definition of e4m3.
fn fp8(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 { size } else { -size }
}
