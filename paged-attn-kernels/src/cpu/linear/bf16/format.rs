//! Block formats of quantised weights, and the numbers their codes stand for.

use half::f16;

/// How the weights of a row are quantised: ggml's block types.
///
/// | format | weights | bytes | a block holds | a weight is |
/// |---|---:|---:|---|---|
/// | `Q4_0` | 32 | 18 | `d`, 4-bit `q` | `d (q - 8)` |
/// | `Q4_1` | 32 | 20 | `d`, `m`, 4-bit `q` | `d q + m` |
/// | `Q5_0` | 32 | 22 | `d`, 5-bit `q` | `d (q - 16)` |
/// | `Q5_1` | 32 | 24 | `d`, `m`, 5-bit `q` | `d q + m` |
/// | `Q8_0` | 32 | 34 | `d`, 8-bit `q` | `d q` |
/// | `Q4K` | 256 | 144 | `d`, `dmin`, 8 x 6-bit `s` and `t`, 4-bit `q` | `d s q - dmin t` |
/// | `Q5K` | 256 | 176 | as `Q4K`, 5-bit `q` | `d s q - dmin t` |
/// | `Q6K` | 256 | 210 | `d`, 16 x 8-bit `s`, 6-bit `q` | `d s (q - 32)` |
///
/// Source: the block structs of ggml's `ggml-common.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// 4 bits, scale.
    Q4_0,
    /// 4 bits, scale and minimum.
    Q4_1,
    /// 5 bits, scale.
    Q5_0,
    /// 5 bits, scale and minimum.
    Q5_1,
    /// 8 bits, scale.
    Q8_0,
    /// 4 bits, scales and minima of groups of 32 in blocks of 256.
    Q4K,
    /// 5 bits, as `Q4K`.
    Q5K,
    /// 6 bits, scales of groups of 16 in blocks of 256.
    Q6K,
}

/// Weights of the largest block.
pub(super) const MAX_BLOCK: usize = 256;

/// How the scales of a panel are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// `d` of each group, f16.
    Scale,
    /// `d` and `m` of each group, f16.
    ScaleMin,
    /// `d` and `dmin` of each block of 256, f16; `s` and `t` of each group, 8 bits.
    BlockScaleMin,
    /// `d` of each block of 256, f16; `s` of each group, 8 bits signed.
    BlockScale,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [BlockFormat; 8] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
    ];

    /// Weights in a block.
    pub fn block_len(self) -> usize {
        match self {
            BlockFormat::Q4K | BlockFormat::Q5K | BlockFormat::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => 18,
            BlockFormat::Q4_1 => 20,
            BlockFormat::Q5_0 => 22,
            BlockFormat::Q5_1 => 24,
            BlockFormat::Q8_0 => 34,
            BlockFormat::Q4K => 144,
            BlockFormat::Q5K => 176,
            BlockFormat::Q6K => 210,
        }
    }

    /// Weights that share a scale.
    pub(super) fn group_len(self) -> usize {
        match self {
            BlockFormat::Q6K => 16,
            _ => 32,
        }
    }

    /// Bits of a code that are kept together, and bits beyond these.
    pub(super) fn bits(self) -> (usize, usize) {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q4K => (4, 0),
            BlockFormat::Q5_0 | BlockFormat::Q5_1 | BlockFormat::Q5K => (4, 1),
            BlockFormat::Q6K => (4, 2),
            BlockFormat::Q8_0 => (8, 0),
        }
    }

    /// The code that stands for zero, or for the minimum.
    pub(super) fn zero(self) -> f32 {
        match self {
            BlockFormat::Q4_0 => 8.0,
            BlockFormat::Q5_0 => 16.0,
            BlockFormat::Q8_0 => 128.0,
            BlockFormat::Q6K => 32.0,
            _ => 0.0,
        }
    }

    pub(super) fn scales(self) -> Scales {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => Scales::Scale,
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => Scales::ScaleMin,
            BlockFormat::Q4K | BlockFormat::Q5K => Scales::BlockScaleMin,
            BlockFormat::Q6K => Scales::BlockScale,
        }
    }
}

/// A block taken apart.
pub(super) struct Block {
    /// Codes of the weights, in order.
    pub(super) codes: [u8; MAX_BLOCK],
    /// `d` and, where there is one, `m` or `dmin`.
    pub(super) halves: [f16; 2],
    /// Factors of the groups' scales, where a block has several.
    pub(super) scales: [u8; 16],
    /// Factors of the groups' minima.
    pub(super) mins: [u8; 16],
}

impl Block {
    pub(super) fn empty() -> Self {
        Block {
            codes: [0; MAX_BLOCK],
            halves: [f16::ZERO; 2],
            scales: [0; 16],
            mins: [0; 16],
        }
    }

    /// Takes apart the bytes of one block, `format.block_bytes()` of them.
    pub(super) fn read(&mut self, format: BlockFormat, b: &[u8]) {
        self.halves[0] = half_at(b, if format == BlockFormat::Q6K { 208 } else { 0 });
        match format {
            BlockFormat::Q4_0 => nibbles(&b[2..18], &mut self.codes),
            BlockFormat::Q4_1 => {
                self.halves[1] = half_at(b, 2);
                nibbles(&b[4..20], &mut self.codes);
            }
            BlockFormat::Q5_0 => five_bits(&b[2..6], &b[6..22], &mut self.codes),
            BlockFormat::Q5_1 => {
                self.halves[1] = half_at(b, 2);
                five_bits(&b[4..8], &b[8..24], &mut self.codes);
            }
            BlockFormat::Q8_0 => {
                for (code, &q) in self.codes.iter_mut().zip(&b[2..34]) {
                    *code = q ^ 0x80;
                }
            }
            BlockFormat::Q4K => {
                self.halves[1] = half_at(b, 2);
                self.six_bit_scales(&b[4..16]);
                for (pair, codes) in self.codes.chunks_exact_mut(64).enumerate() {
                    for (l, &q) in b[16 + 32 * pair..][..32].iter().enumerate() {
                        codes[l] = q & 15;
                        codes[l + 32] = q >> 4;
                    }
                }
            }
            BlockFormat::Q5K => {
                self.halves[1] = half_at(b, 2);
                self.six_bit_scales(&b[4..16]);
                let (high, low) = (&b[16..48], &b[48..176]);
                for (pair, codes) in self.codes.chunks_exact_mut(64).enumerate() {
                    for (l, (&q, &h)) in low[32 * pair..][..32].iter().zip(high).enumerate() {
                        let h = h >> (2 * pair);
                        codes[l] = (q & 15) | ((h & 1) << 4);
                        codes[l + 32] = (q >> 4) | ((h & 2) << 3);
                    }
                }
            }
            BlockFormat::Q6K => {
                self.scales.copy_from_slice(&b[192..208]);
                for (half, codes) in self.codes.chunks_exact_mut(128).enumerate() {
                    let (low, high) = (&b[64 * half..][..64], &b[128 + 32 * half..][..32]);
                    for (l, &h) in high.iter().enumerate() {
                        codes[l] = (low[l] & 15) | ((h & 3) << 4);
                        codes[l + 32] = (low[l + 32] & 15) | (((h >> 2) & 3) << 4);
                        codes[l + 64] = (low[l] >> 4) | (((h >> 4) & 3) << 4);
                        codes[l + 96] = (low[l + 32] >> 4) | ((h >> 6) << 4);
                    }
                }
            }
        }
    }

    /// 8 scales and 8 minima of 6 bits in 12 bytes.
    ///
    /// ```text
    /// bytes 0..4   low 6 bits: scales 0..4     high 2 bits: top of scales 4..8
    /// bytes 4..8   low 6 bits: minima 0..4     high 2 bits: top of minima 4..8
    /// bytes 8..12  low nibble: scales 4..8     high nibble: minima 4..8
    /// ```
    fn six_bit_scales(&mut self, b: &[u8]) {
        for j in 0..4 {
            self.scales[j] = b[j] & 63;
            self.mins[j] = b[j + 4] & 63;
            self.scales[j + 4] = (b[j + 8] & 15) | ((b[j] >> 6) << 4);
            self.mins[j + 4] = (b[j + 8] >> 4) | ((b[j + 4] >> 6) << 4);
        }
    }

    /// Scale and minimum of a group: its weights are `scale * (code - zero) + min`.
    #[cfg(test)]
    pub(super) fn scale_min(&self, format: BlockFormat, group: usize) -> (f32, f32) {
        let (first, second) = (self.halves[0].to_f32(), self.halves[1].to_f32());
        match format.scales() {
            Scales::Scale => (first, 0.0),
            Scales::ScaleMin => (first, second),
            Scales::BlockScaleMin => (
                first * f32::from(self.scales[group]),
                -(second * f32::from(self.mins[group])),
            ),
            Scales::BlockScale => (first * f32::from(self.scales[group] as i8), 0.0),
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([b[at], b[at + 1]])
}

/// Low nibbles are the first half of a block of 32, high nibbles the second.
fn nibbles(b: &[u8], codes: &mut [u8; MAX_BLOCK]) {
    for (j, &q) in b.iter().enumerate() {
        codes[j] = q & 15;
        codes[j + 16] = q >> 4;
    }
}

/// As [`nibbles`], with a fifth bit for each weight in order.
fn five_bits(high: &[u8], low: &[u8], codes: &mut [u8; MAX_BLOCK]) {
    nibbles(low, codes);
    for (j, code) in codes.iter_mut().enumerate().take(32) {
        *code |= ((high[j / 8] >> (j % 8)) & 1) << 4;
    }
}
