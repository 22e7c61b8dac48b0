//! Weights from a panel to vectors, on any instruction set.

use std::ops::Range;

use super::format::{BlockFormat, Scales};
use super::panel::{Format, LANES, LINE, OVERRUN, PAIRS, PanelLayout, SPREAD, STEP};
use crate::cpu::simd::Simd;

/// How far ahead, in bytes, weights are asked for. Panels follow each other in memory, so running
/// past the end of one is a head start on the next.
pub(super) const PREFETCH: usize = 4096;

/// Most bytes of panels that [`Steps::ahead`] runs ahead, so that they stay in the second cache level.
const MAX_AHEAD: usize = 1 << 16;

/// Words of a line.
const WORDS: usize = LINE / 4;

/// Calls a function with a format's bits as constants: low, high, groups in a step; then others.
macro_rules! with_bits {
    ($format:expr, $function:ident [$($other:ident)?] $arguments:tt) => {
        match $format {
            Format::Bf16 => with_bits!(@call $function, 16, 0, 1, [$($other)?], $arguments),
            Format::Blocks(format) => match (format.bits(), format.group_len()) {
                ((4, 0), 32) => with_bits!(@call $function, 4, 0, 1, [$($other)?], $arguments),
                ((4, 1), 32) => with_bits!(@call $function, 4, 1, 1, [$($other)?], $arguments),
                ((4, 2), 16) => with_bits!(@call $function, 4, 2, 2, [$($other)?], $arguments),
                ((8, 0), 32) => with_bits!(@call $function, 8, 0, 1, [$($other)?], $arguments),
                _ => unreachable!("no format has these codes and groups"),
            },
        }
    };
    (@call $function:ident, $low:literal, $high:literal, $groups:literal, [$($other:ident)?],
     ($($argument:expr),*)) => {
        $function::<S, $low, $high, $groups $(, $other)?>($($argument),*)
    };
}
pub(super) use with_bits;

/// A walk over the steps of a panel.
pub(super) struct Steps<'a> {
    layout: &'a PanelLayout,
    panel: &'a [u8],
    low: *const u32,
    high: *const u32,
    step: usize,
    end: usize,
    /// How far ahead, in bytes, weights are asked for.
    ahead: usize,
}

impl<'a> Steps<'a> {
    /// At `first_step` of a panel, to take at most `num_steps`.
    pub(super) fn new(
        layout: &'a PanelLayout,
        panel: &'a [u8],
        first_step: usize,
        num_steps: usize,
    ) -> Self {
        let len = layout.num_bytes() + OVERRUN;
        assert!(panel.len() >= len && first_step + num_steps <= layout.num_steps);
        Steps {
            layout,
            panel,
            low: panel.as_ptr().wrapping_add(layout.low(first_step)).cast(),
            high: panel.as_ptr().wrapping_add(layout.high(first_step)).cast(),
            step: first_step,
            end: first_step + num_steps,
            ahead: PREFETCH,
        }
    }

    /// Asks for weights as many panels ahead as are walked at once, scales with them, if these panels
    /// are small. (Two walked at once, from memory: a quarter faster than by [`PREFETCH`], which
    /// misses the head of every second panel.)
    pub(super) fn ahead(mut self, num_panels: usize) -> Self {
        let bytes = num_panels * self.layout.num_bytes();
        if bytes <= MAX_AHEAD {
            self.ahead = bytes;
        }
        self
    }

    /// Steps that are left.
    pub(super) fn len(&self) -> usize {
        self.end - self.step
    }

    /// The next step.
    ///
    /// # Safety
    /// No more steps are taken than `new` was told; `LOW`, `HIGH` and `GROUPS` are the format's.
    #[inline(always)]
    pub(super) unsafe fn next<S: Simd, const LOW: u32, const HIGH: u32, const GROUPS: usize>(
        &mut self,
        simd: S,
    ) -> Step<S, LOW, HIGH, GROUPS> {
        let (low, high) = (self.low, self.high);
        self.low = low.wrapping_add(LOW as usize * WORDS);
        self.high = high.wrapping_add(HIGH as usize * WORDS);
        let first_group = self.step * GROUPS;
        self.step += 1;
        let mut scales = [[simd.splat(0.0); 2]; GROUPS];
        for (group, scales) in (first_group..).zip(&mut scales) {
            *scales = self.scales(simd, group);
        }
        Step {
            simd,
            ahead: self.ahead,
            low,
            high,
            scales,
        }
    }

    /// What codes of a group are multiplied by, and what is added, each output's in its lane.
    #[inline(always)]
    fn scales<S: Simd>(&self, simd: S, group: usize) -> [S::F; 2] {
        let Format::Blocks(format) = self.layout.format else {
            return [simd.splat(1.0), simd.splat(0.0)];
        };
        let at = self.layout.group_scales(format, group);
        simd.prefetch(
            self.panel[at.halves..]
                .as_ptr()
                .wrapping_byte_add(self.ahead),
        );
        let halves =
            |at: usize| simd.widen_halves(self.panel[at..].first_chunk().unwrap_or(&[0; 32]));
        let bytes = |at: usize| self.panel[at..].first_chunk().unwrap_or(&[0; LANES]);
        let scale = match format.scales() {
            Scales::Scale | Scales::ScaleMin => halves(at.halves),
            Scales::BlockScaleMin => simd.mul(halves(at.halves), simd.widen_u8(bytes(at.factors))),
            Scales::BlockScale => simd.mul(halves(at.halves), simd.widen_i8(bytes(at.factors))),
        };
        let min = match format.scales() {
            Scales::ScaleMin => Some(halves(at.halves + 2 * LANES)),
            Scales::BlockScaleMin => {
                let min = halves(at.halves + 2 * LANES);
                let factor = simd.widen_u8(bytes(at.factors + LANES));
                Some(simd.sub(simd.splat(0.0), simd.mul(min, factor)))
            }
            Scales::Scale | Scales::BlockScale => None,
        };
        finish(simd, format, scale, min)
    }
}

/// A step of a panel of some format, whose codes may be read.
pub(super) struct Step<S: Simd, const LOW: u32, const HIGH: u32, const GROUPS: usize> {
    simd: S,
    ahead: usize,
    low: *const u32,
    high: *const u32,
    scales: [[S::F; 2]; GROUPS],
}

impl<S: Simd, const LOW: u32, const HIGH: u32, const GROUPS: usize> Step<S, LOW, HIGH, GROUPS> {
    /// The weights, pair by pair, of quantised ones before they are cut to bf16:
    /// `each(pair, even, odd)`.
    #[inline(always)]
    pub(super) fn pairs(&self, each: impl FnMut(usize, S::F, S::F)) {
        self.lines(0..LOW as usize, each);
    }

    /// Those of the first or the second half of the step.
    #[cfg(target_arch = "x86_64")] // For the matrix unit.
    #[inline(always)]
    pub(super) fn half(&self, half: usize, each: impl FnMut(usize, S::F, S::F)) {
        let num_lines = LOW as usize / 2;
        self.lines(half * num_lines..(half + 1) * num_lines, each);
    }

    #[inline(always)]
    fn lines(&self, lines: Range<usize>, mut each: impl FnMut(usize, S::F, S::F)) {
        let simd = self.simd;
        let pairs_of_line = PAIRS / LOW as usize;
        let mut high_words = self.words(self.high, 0);
        for line in lines {
            let address = self.low.wrapping_add(line * WORDS);
            simd.prefetch(address.wrapping_byte_add(self.ahead));
            if LOW == 16 {
                let [even, odd] = simd.halves(self.words(address, 0));
                each(line, even, odd);
                continue;
            }
            for i in 0..pairs_of_line {
                let pair = line * pairs_of_line + i;
                let high_bit = 2 * pair * HIGH as usize;
                if HIGH > 0 && high_bit.is_multiple_of(8) {
                    let line = self.high.wrapping_add(high_bit / 32 * WORDS);
                    if high_bit.is_multiple_of(32) {
                        simd.prefetch(line.wrapping_byte_add(self.ahead));
                    }
                    high_words = self.words(line, high_bit % 32 / 8);
                }
                let [scale, min] = self.scales[pair * GROUPS / PAIRS];
                let mut weight = |parity: usize| {
                    let bit = (2 * i + parity) * LOW as usize;
                    let mut words = self.words(address, bit / 8);
                    if !bit.is_multiple_of(8) {
                        words = simd.shift_right::<4>(words);
                    }
                    let mut code = simd.low_bits::<LOW>(words);
                    if HIGH > 0 {
                        let high = simd.low_bits::<HIGH>(high_words);
                        high_words = simd.shift_right::<HIGH>(high_words);
                        code = simd.fma(high, simd.splat(16.0), code);
                    }
                    simd.fused(code, scale, min)
                };
                let even = weight(0);
                let odd = weight(1);
                each(pair, even, odd);
            }
        }
    }

    /// The words of a line, shifted down by some bytes: loaded from as far on, which leaves the
    /// ports of arithmetic free. What comes from the next word is not minded.
    #[inline(always)]
    fn words(&self, line: *const u32, bytes: usize) -> S::Words {
        // SAFETY: a step has `LOW` lines of low and `HIGH` of high codes inside the panel, which may
        // be read less than a word past its end.
        unsafe { self.simd.load_words(line.wrapping_byte_add(bytes)) }
    }
}

/// Spreads scale and minimum, and moves the minimum to where code 0 is.
#[inline(always)]
fn finish<S: Simd>(simd: S, format: BlockFormat, scale: S::F, min: Option<S::F>) -> [S::F; 2] {
    let scale = simd.mul(scale, simd.splat(SPREAD));
    let min = match min {
        Some(min) => simd.mul(min, simd.splat(SPREAD)),
        None => simd.mul(scale, simd.splat(-format.zero())),
    };
    [scale, min]
}

/// Steps of a panel as f32: `[step][pair][parity][LANES]`.
///
/// # Safety
/// As [`Steps::next`], with as many steps as `out` has room for.
#[inline(always)]
pub(super) unsafe fn decode<S: Simd, const LOW: u32, const HIGH: u32, const GROUPS: usize>(
    simd: S,
    mut steps: Steps<'_>,
    out: &mut [f32],
) {
    for out in out.chunks_exact_mut(STEP * LANES) {
        let out = out.as_mut_ptr();
        // SAFETY: the caller's promise; a step has `STEP * LANES` elements.
        unsafe {
            let step = steps.next::<S, LOW, HIGH, GROUPS>(simd);
            step.pairs(|pair, even, odd| {
                let out = out.add(pair * 2 * LANES);
                simd.store(out, simd.truncate_to_bf16(even));
                simd.store(out.add(LANES), simd.truncate_to_bf16(odd));
            });
        }
    }
}
