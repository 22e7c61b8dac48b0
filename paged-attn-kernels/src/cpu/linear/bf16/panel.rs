//! Weights in the order the kernels read them.
//!
//! A panel holds 16 outputs, one in each lane of a vector. Inputs come in steps of 32. A line is 64
//! bytes: a 32-bit word for each lane.
//!
//! ```text
//! quantised: | scales of all groups | low codes of all steps | high codes of all steps |
//!            a step has as many lines of low (high) codes as a code has low (high) bits; bits
//!            i b .. (i + 1) b of a word are input 32 / b * line + i of the step
//! bf16:      | all steps |
//!            a step has 16 lines; a word is a pair of inputs, the even one below
//! ```

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::format::{Block, BlockFormat, Scales};

/// Outputs of a panel.
pub(super) const LANES: usize = 16;
/// Inputs of a step.
pub(super) const STEP: usize = 32;
/// Pairs of inputs in a step.
pub(super) const PAIRS: usize = STEP / 2;
/// Bytes of a line.
pub(super) const LINE: usize = 4 * LANES;

/// Bytes that kernels may read past a panel, and do not mind: they load words from any byte on.
pub(super) const OVERRUN: usize = LINE;

/// What scales and minima are multiplied by before weights are cut to bf16, so that cutting does
/// not make them smaller on average: 1 + ln 2 / 256, for mantissas as likely as those of numbers
/// spread over many magnitudes.
pub(super) const SPREAD: f32 = 1.002_707_6;

/// How the weights of a panel are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Blocks(BlockFormat),
    Bf16,
}

/// Where the parts of a panel lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct PanelLayout {
    pub(super) format: Format,
    pub(super) num_steps: usize,
}

/// Where the scales of a group begin: the halves, and the bytes that they are multiplied by.
pub(super) struct GroupScales {
    pub(super) halves: usize,
    pub(super) factors: usize,
}

impl PanelLayout {
    /// `cols`: a multiple of [`STEP`] and of the block length.
    pub(super) fn new(format: Format, cols: usize) -> Self {
        PanelLayout {
            format,
            num_steps: cols / STEP,
        }
    }

    /// Groups of inputs with one scale in a step.
    pub(super) fn groups_per_step(&self) -> usize {
        match self.format {
            Format::Blocks(format) => STEP / format.group_len(),
            Format::Bf16 => 1,
        }
    }

    fn scale_bytes(&self) -> usize {
        let Format::Blocks(format) = self.format else {
            return 0;
        };
        let num_groups = self.num_steps * self.groups_per_step();
        let bytes = match format.scales() {
            Scales::Scale => num_groups * 2 * LANES,
            Scales::ScaleMin => num_groups * 4 * LANES,
            _ => num_groups / groups_per_block(format) * block_scale_bytes(format),
        };
        bytes.next_multiple_of(LINE)
    }

    /// Lines of low codes, and of high codes, in a step.
    pub(super) fn lines(&self) -> (usize, usize) {
        match self.format {
            Format::Blocks(format) => format.bits(),
            Format::Bf16 => (PAIRS, 0),
        }
    }

    /// Where a step's low codes begin.
    pub(super) fn low(&self, step: usize) -> usize {
        self.scale_bytes() + step * self.lines().0 * LINE
    }

    /// Where a step's high codes begin.
    pub(super) fn high(&self, step: usize) -> usize {
        self.low(self.num_steps) + step * self.lines().1 * LINE
    }

    /// Bytes of a panel, a multiple of 64.
    pub(super) fn num_bytes(&self) -> usize {
        self.high(self.num_steps)
    }

    /// Puts a block of a row into its panel.
    pub(super) fn place(&self, panel: &mut [u8], lane: usize, index: usize, block: &Block) {
        let Format::Blocks(format) = self.format else {
            return;
        };
        let (low_bits, high_bits) = format.bits();
        let first_step = index * format.block_len() / STEP;
        let codes = &block.codes[..format.block_len()];
        for (step, codes) in (first_step..).zip(codes.as_chunks::<STEP>().0) {
            let low = &mut panel[self.low(step)..];
            match low_bits {
                8 => place_codes::<8>(codes, low, lane, |code| code),
                _ => place_codes::<4>(codes, low, lane, |code| code & 15),
            }
            let high = &mut panel[self.high(step)..];
            match high_bits {
                1 => place_codes::<1>(codes, high, lane, |code| code >> 4),
                2 => place_codes::<2>(codes, high, lane, |code| code >> 4),
                _ => {}
            }
        }
        place_scales(format, panel, lane, index, block);
    }

    /// Puts a row of bf16 into its panel.
    pub(super) fn place_bf16(&self, panel: &mut [u8], lane: usize, row: &[f32]) {
        for (line, pair) in panel.chunks_exact_mut(LINE).zip(row.as_chunks::<2>().0) {
            let word = &mut line[4 * lane..4 * lane + 4];
            word[..2].copy_from_slice(&half::bf16::from_f32(pair[0]).to_le_bytes());
            word[2..].copy_from_slice(&half::bf16::from_f32(pair[1]).to_le_bytes());
        }
    }

    /// Where a group's scales lie.
    #[inline(always)]
    pub(super) fn group_scales(&self, format: BlockFormat, group: usize) -> GroupScales {
        match format.scales() {
            Scales::Scale => GroupScales {
                halves: group * 2 * LANES,
                factors: 0,
            },
            Scales::ScaleMin => GroupScales {
                halves: group * 4 * LANES,
                factors: 0,
            },
            scales => {
                let per_block = groups_per_block(format);
                let (block, group) = (group / per_block, group % per_block);
                let halves = block * block_scale_bytes(format);
                let factors = if scales == Scales::BlockScaleMin {
                    2
                } else {
                    1
                };
                GroupScales {
                    halves,
                    factors: halves + LINE + group * factors * LANES,
                }
            }
        }
    }

    /// Scales and minima of a group as the file has them, each output's in its lane.
    #[inline(always)]
    pub(super) fn scales(&self, panel: &[u8], group: usize) -> [[f32; LANES]; 2] {
        let mut out = [[1.0; LANES], [0.0; LANES]];
        let Format::Blocks(format) = self.format else {
            return out;
        };
        // Halves of a slice are converted by the processor's own instructions where it has them.
        let halves = |at: usize, out: &mut [f32; LANES]| {
            bytemuck::cast_slice::<u8, f16>(&panel[at..at + 2 * LANES]).convert_to_f32_slice(out);
        };
        let [scale, min] = &mut out;
        let at = self.group_scales(format, group);
        halves(at.halves, scale);
        match format.scales() {
            Scales::Scale => {}
            Scales::ScaleMin => halves(at.halves + 2 * LANES, min),
            Scales::BlockScaleMin => {
                halves(at.halves + 2 * LANES, min);
                let (s, t) = panel[at.factors..][..2 * LANES].split_at(LANES);
                for lane in 0..LANES {
                    scale[lane] *= f32::from(s[lane]);
                    min[lane] *= -f32::from(t[lane]);
                }
            }
            Scales::BlockScale => {
                for (x, &s) in scale.iter_mut().zip(&panel[at.factors..]) {
                    *x *= f32::from(s as i8);
                }
            }
        }
        out
    }

    /// The weights of one output, as the file has them.
    pub(super) fn read_row(&self, panel: &[u8], lane: usize, out: &mut [f32]) {
        let word = |at: usize| {
            let at = at + 4 * lane;
            u32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]])
        };
        let Format::Blocks(format) = self.format else {
            for (pair, out) in out.chunks_exact_mut(2).enumerate() {
                let word = word(pair * LINE);
                out[0] = f32::from_bits(word << 16);
                out[1] = f32::from_bits(word & 0xffff_0000);
            }
            return;
        };
        let (low_bits, high_bits) = format.bits();
        let code = |start: usize, bits: usize, input: usize| {
            let per_line = STEP / bits;
            let word = word(start + input / per_line * LINE);
            (word >> (bits * (input % per_line))) & ((1 << bits) - 1)
        };
        for (group, out) in out.chunks_mut(format.group_len()).enumerate() {
            let [scale, min] = self.scales(panel, group);
            let first = group * format.group_len();
            for (input, x) in (first..).zip(out) {
                let (step, input) = (input / STEP, input % STEP);
                let mut code_of_input = code(self.low(step), low_bits, input);
                if high_bits > 0 {
                    code_of_input |= code(self.high(step), high_bits, input) << 4;
                }
                *x = scale[lane] * (code_of_input as f32 - format.zero()) + min[lane];
            }
        }
    }
}

fn groups_per_block(format: BlockFormat) -> usize {
    format.block_len() / format.group_len()
}

/// Bytes of a block's scales, for formats whose blocks have several groups.
fn block_scale_bytes(format: BlockFormat) -> usize {
    let factors = match format.scales() {
        Scales::BlockScaleMin => 2,
        _ => 1,
    };
    LINE + groups_per_block(format) * factors * LANES
}

/// Puts `BITS` bits of each code of a step into the words of a lane.
#[inline(always)]
fn place_codes<const BITS: usize>(
    codes: &[u8; STEP],
    lines: &mut [u8],
    lane: usize,
    part: impl Fn(u8) -> u8,
) {
    for (line, codes) in codes.chunks_exact(STEP / BITS).enumerate() {
        let bits = |word, (i, &code): (usize, &u8)| word | (u32::from(part(code)) << (BITS * i));
        let word = codes.iter().enumerate().fold(0u32, bits);
        let at = line * LINE + 4 * lane;
        lines[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
}

fn place_scales(format: BlockFormat, panel: &mut [u8], lane: usize, index: usize, block: &Block) {
    let mut set_half = |line: usize, half: f16| {
        panel[line + 2 * lane..][..2].copy_from_slice(&half.to_le_bytes());
    };
    let [first, second] = block.halves;
    match format.scales() {
        Scales::Scale => set_half(index * 2 * LANES, first),
        Scales::ScaleMin => {
            set_half(index * 4 * LANES, first);
            set_half(index * 4 * LANES + 2 * LANES, second);
        }
        scales => {
            let start = index * block_scale_bytes(format);
            set_half(start, first);
            set_half(start + 2 * LANES, second);
            let factors = &mut panel[start + LINE..];
            for group in 0..groups_per_block(format) {
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
