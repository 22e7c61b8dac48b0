//! Quantised weights in the order the kernels read them.
//!
//! A panel holds 16 outputs, one in each lane of a vector. Inputs come in steps of 32, each 16
//! pairs of neighbours:
//!
//! ```text
//! panel:     | scales of all groups | low codes of all steps | high codes of all steps |
//! low codes: a step is 4 lines of 64 bytes; a line is 16 lanes of two 16-bit words, one for the
//!            even and one for the odd input of a pair; nibble i of a word is pair 4 * line + i
//! high codes (b = 1, 2 or 4 bits): a step is b lines; bits i b .. (i + 1) b of a word are pair
//!            16 / b * line + i
//! ```
//!
//! A shift thus brings a pair's codes of 16 outputs into place, in the order that the matrix
//! instructions want their bf16 operand and that AVX-512 and AVX2 widen from.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::format::{Block, BlockFormat, Scales};

/// Outputs of a panel.
pub(super) const LANES: usize = 16;
/// Inputs of a step.
pub(super) const STEP: usize = 32;
/// Pairs of inputs in a step.
pub(super) const PAIRS: usize = STEP / 2;

const LINE: usize = 64;
/// Bytes of a step's low codes.
pub(super) const LOW_BYTES: usize = 4 * LINE;

/// Where the parts of a panel lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct PanelLayout {
    pub(super) format: BlockFormat,
    pub(super) num_steps: usize,
}

/// Where the scales of a group begin: the halves, and the bytes that they are multiplied by.
pub(super) struct GroupScales {
    pub(super) halves: usize,
    pub(super) factors: usize,
}

impl PanelLayout {
    /// `cols`: a multiple of the format's block length.
    pub(super) fn new(format: BlockFormat, cols: usize) -> Self {
        PanelLayout {
            format,
            num_steps: cols / STEP,
        }
    }

    pub(super) fn num_groups(&self) -> usize {
        self.num_steps * STEP / self.format.group_len()
    }

    fn groups_per_block(&self) -> usize {
        self.format.block_len() / self.format.group_len()
    }

    /// Bytes of a block's scales, for formats whose blocks have several groups.
    fn block_scale_bytes(&self) -> usize {
        let factors = match self.format.scales() {
            Scales::BlockScaleMin => 2,
            _ => 1,
        };
        LINE + self.groups_per_block() * factors * LANES
    }

    fn scale_bytes(&self) -> usize {
        let num_groups = self.num_groups();
        let bytes = match self.format.scales() {
            Scales::Scale => num_groups * 2 * LANES,
            Scales::ScaleMin => num_groups * 4 * LANES,
            _ => num_groups / self.groups_per_block() * self.block_scale_bytes(),
        };
        bytes.next_multiple_of(LINE)
    }

    /// Where a step's low codes begin.
    pub(super) fn low(&self, step: usize) -> usize {
        self.scale_bytes() + step * LOW_BYTES
    }

    /// Where a step's high codes begin.
    pub(super) fn high(&self, step: usize) -> usize {
        self.low(self.num_steps) + step * self.high_bytes()
    }

    /// Bytes of a step's high codes.
    pub(super) fn high_bytes(&self) -> usize {
        self.format.high_bits() * LINE
    }

    /// Bytes of a panel, a multiple of 64.
    pub(super) fn num_bytes(&self) -> usize {
        self.high(self.num_steps)
    }

    /// Puts a block of a row into its panel.
    pub(super) fn place(&self, panel: &mut [u8], lane: usize, index: usize, block: &Block) {
        let first_step = index * self.format.block_len() / STEP;
        let codes = &block.codes[..self.format.block_len()];
        for (step, codes) in (first_step..).zip(codes.chunks_exact(STEP)) {
            let low = &mut panel[self.low(step)..][..LOW_BYTES];
            for (line, codes) in codes.chunks_exact(8).enumerate() {
                for parity in 0..2 {
                    let word = (0..4).fold(0u16, |word, i| {
                        word | (u16::from(codes[2 * i + parity] & 15) << (4 * i))
                    });
                    let at = line * LINE + 4 * lane + 2 * parity;
                    low[at..at + 2].copy_from_slice(&word.to_le_bytes());
                }
            }
            let bits = self.format.high_bits();
            if bits > 0 {
                let high = &mut panel[self.high(step)..][..bits * LINE];
                for (line, codes) in codes.chunks_exact(STEP / bits).enumerate() {
                    for parity in 0..2 {
                        let word = (0..16 / bits).fold(0u16, |word, i| {
                            word | (u16::from(codes[2 * i + parity] >> 4) << (bits * i))
                        });
                        let at = line * LINE + 4 * lane + 2 * parity;
                        high[at..at + 2].copy_from_slice(&word.to_le_bytes());
                    }
                }
            }
        }
        self.place_scales(panel, lane, index, block);
    }

    fn place_scales(&self, panel: &mut [u8], lane: usize, index: usize, block: &Block) {
        let mut set_half = |line: usize, half: f16| {
            panel[line + 2 * lane..][..2].copy_from_slice(&half.to_le_bytes());
        };
        let [first, second] = block.halves;
        match self.format.scales() {
            Scales::Scale => set_half(index * 2 * LANES, first),
            Scales::ScaleMin => {
                set_half(index * 4 * LANES, first);
                set_half(index * 4 * LANES + 2 * LANES, second);
            }
            scales => {
                let start = index * self.block_scale_bytes();
                set_half(start, first);
                set_half(start + 2 * LANES, second);
                let factors = &mut panel[start + LINE..];
                for group in 0..self.groups_per_block() {
                    if scales == Scales::BlockScaleMin {
                        factors[2 * group * LANES + lane] = block.scales[group];
                        factors[(2 * group + 1) * LANES + lane] = block.mins[group];
                    } else {
                        factors[group * LANES + lane] = block.scales[group];
                    }
                }
            }
        }
    }

    /// The value of one weight's code, low and high part together.
    fn value(&self, panel: &[u8], lane: usize, input: usize) -> i32 {
        let (step, pair, parity) = (input / STEP, input % STEP / 2, input % 2);
        let word = |start: usize, line: usize| {
            let at = start + line * LINE + 4 * lane + 2 * parity;
            i32::from(u16::from_le_bytes([panel[at], panel[at + 1]]))
        };
        let (low_zero, high_zero) = self.format.zeros();
        let low = (word(self.low(step), pair / 4) >> (4 * (pair % 4))) & 15;
        let bits = self.format.high_bits();
        let high = match bits {
            0 => 0,
            bits => {
                let pairs = 16 / bits;
                let shifted = word(self.high(step), pair / pairs) >> (bits * (pair % pairs));
                (shifted & ((1 << bits) - 1)) << 4
            }
        };
        low + low_zero + high + high_zero
    }

    /// Where a group's scales lie.
    #[inline(always)]
    pub(super) fn group_scales(&self, group: usize) -> GroupScales {
        match self.format.scales() {
            Scales::Scale => GroupScales {
                halves: group * 2 * LANES,
                factors: 0,
            },
            Scales::ScaleMin => GroupScales {
                halves: group * 4 * LANES,
                factors: 0,
            },
            scales => {
                let per_block = self.groups_per_block();
                let (block, group) = (group / per_block, group % per_block);
                let halves = block * self.block_scale_bytes();
                let factors = if scales == Scales::BlockScaleMin { 2 } else { 1 };
                GroupScales {
                    halves,
                    factors: halves + LINE + group * factors * LANES,
                }
            }
        }
    }

    /// Scales and minima of a group, each output's in its lane.
    #[inline(always)]
    pub(super) fn scales(&self, panel: &[u8], group: usize, out: &mut [[f32; LANES]; 2]) {
        // Halves of a slice are converted by the processor's own instructions where it has them.
        let halves = |at: usize, out: &mut [f32; LANES]| {
            bytemuck::cast_slice::<u8, f16>(&panel[at..at + 2 * LANES]).convert_to_f32_slice(out);
        };
        let [scale, min] = out;
        let at = self.group_scales(group);
        halves(at.halves, scale);
        match self.format.scales() {
            Scales::Scale => {}
            Scales::ScaleMin => halves(at.halves + 2 * LANES, min),
            Scales::BlockScaleMin => {
                halves(at.halves + 2 * LANES, min);
                let (s, t) = panel[at.factors..][..2 * LANES].split_at(LANES);
                for lane in 0..LANES {
                    scale[lane] *= f32::from(s[lane]);
                    min[lane] = -(min[lane] * f32::from(t[lane]));
                }
            }
            Scales::BlockScale => {
                for (x, &s) in scale.iter_mut().zip(&panel[at.factors..]) {
                    *x *= f32::from(s as i8);
                }
            }
        }
    }

    /// The weights of one output.
    pub(super) fn read_row(&self, panel: &[u8], lane: usize, out: &mut [f32]) {
        let group_len = self.format.group_len();
        for (group, out) in out.chunks_mut(group_len).enumerate() {
            let mut scales = [[0.0; LANES]; 2];
            self.scales(panel, group, &mut scales);
            for (i, x) in out.iter_mut().enumerate() {
                let value = self.value(panel, lane, group * group_len + i) as f32;
                *x = scales[0][lane] * value + scales[1][lane];
            }
        }
    }
}
