//! Codes to bf16 by table, with AVX-512: for the matrix unit, and for single rows without it.
//!
//! A word holds the codes of several pairs, so a shift and a look-up (`vpermw` takes the low five
//! bits of each word) give a pair's weights of 16 outputs.
//!
//! One row gains nothing from tiles, whose results must go through memory: its weights are widened
//! in registers. (`vdpbf16ps` with one input of each pair zero gives the same bits, but takes twice
//! as long.)

use std::arch::x86_64::*;

use super::format::{BlockFormat, Scales};
use super::inputs::{TILE_ROWS, TILE_STEP};
use super::panel::{LANES, LOW_BYTES, PAIRS, PanelLayout, STEP};
use super::portable::num_planes;

/// Elements of a step's decoded codes, one plane: `[pair][LANES][2]` in bf16.
pub(super) const PLANE: usize = STEP * LANES;

/// How far ahead, in bytes, weights are asked for. Panels follow each other in memory, so running
/// past the end of one is a head start on the next.
const PREFETCH: usize = 4096;

/// Steps of a panel, decoded: `[step][plane][pair][LANES][2]`, the high plane first, and the
/// scales and minima of their groups.
pub(super) struct Decoded<'a> {
    pub(super) values: &'a mut [u16],
    pub(super) scales: &'a mut [[[f32; LANES]; 2]],
}

/// Elements of [`Decoded::values`] for each step.
pub(super) fn step_len(layout: &PanelLayout) -> usize {
    num_planes(layout) * PLANE
}

/// What the codes of a format stand for, in bf16, by the low five bits of a word.
#[repr(C, align(64))]
pub(super) struct Tables {
    low: [u16; 32],
    high: [u16; 32],
}

impl Tables {
    pub(super) fn new(format: BlockFormat) -> Self {
        let (low_zero, high_zero) = format.zeros();
        let high_mask = (1 << format.high_bits()) - 1;
        let table = |value: &dyn Fn(i32) -> i32| {
            std::array::from_fn(|code| half::bf16::from_f32(value(code as i32) as f32).to_bits())
        };
        Tables {
            low: table(&|code| low_zero + (code & 15)),
            high: table(&|code| high_zero + 16 * (code & high_mask)),
        }
    }

    /// Decodes the steps from `first_step` on, as many as `out` has room for.
    ///
    /// # Safety
    /// The machine has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn decode(
        &self,
        layout: &PanelLayout,
        panel: &[u8],
        first_step: usize,
        out: &mut Decoded<'_>,
    ) {
        let num_steps = out.values.len() / step_len(layout);
        let mut codes = Codes::new(self, layout, panel, first_step, num_steps);
        for out in out.values.chunks_exact_mut(step_len(layout)) {
            let (high_out, low_out) = out.split_at_mut(out.len() - PLANE);
            // SAFETY: `Codes::new` has checked the steps; planes have `PLANE` elements.
            unsafe {
                let store = |out: &mut [u16], pair: usize, values| {
                    _mm512_storeu_si512(out.as_mut_ptr().add(pair * 2 * LANES).cast(), values);
                };
                match layout.format.high_bits() {
                    1 => codes.high::<1>(|pair, values| store(high_out, pair, values)),
                    2 => codes.high::<2>(|pair, values| store(high_out, pair, values)),
                    4 => codes.high::<4>(|pair, values| store(high_out, pair, values)),
                    _ => {}
                }
                codes.low(|pair, values| store(low_out, pair, values));
            }
        }
        let groups_per_step = STEP / layout.format.group_len();
        for (group, out) in (first_step * groups_per_step..).zip(out.scales.iter_mut()) {
            let [scale, min] = scales(layout, panel, group);
            // SAFETY: an array of scales is as long as a vector.
            unsafe {
                _mm512_storeu_ps(out[0].as_mut_ptr(), scale);
                _mm512_storeu_ps(out[1].as_mut_ptr(), min);
            }
        }
    }

    /// Sums of one row for the outputs of a panel, from zero.
    ///
    /// `x`: the row's inputs, `[step][TILE_ROWS][STEP]`; `x_sums`: `[step][TILE_ROWS]`. Both begin
    /// at the row.
    ///
    /// # Safety
    /// The machine has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn row(
        &self,
        layout: &PanelLayout,
        panel: &[u8],
        (x, x_sums): (&[f32], &[f32]),
        sums: &mut [f32; LANES],
    ) {
        // SAFETY: as this function's.
        let sums_of_row = unsafe {
            match (layout.format.high_bits(), layout.format.group_len()) {
                (0, 32) => self.row_of::<0, 1>(layout, panel, x, x_sums),
                (1, 32) => self.row_of::<1, 1>(layout, panel, x, x_sums),
                (4, 32) => self.row_of::<4, 1>(layout, panel, x, x_sums),
                (2, 16) => self.row_of::<2, 2>(layout, panel, x, x_sums),
                _ => unreachable!("no format has these codes and groups"),
            }
        };
        // SAFETY: an array of sums is as long as a vector.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sums_of_row) };
    }

    /// # Safety
    /// As [`row`](Self::row); `HIGH` and `GROUPS` are the format's.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn row_of<const HIGH: u32, const GROUPS: usize>(
        &self,
        layout: &PanelLayout,
        panel: &[u8],
        x: &[f32],
        x_sums: &[f32],
    ) -> __m512 {
        let num_steps = layout.num_steps;
        assert!(x.len() >= (num_steps - 1) * TILE_STEP + STEP);
        assert!(x_sums.len() > (num_steps - 1) * TILE_ROWS);
        let has_min = layout.format.has_min();
        let mut codes = Codes::new(self, layout, panel, 0, num_steps);
        let mut total = _mm512_setzero_ps();
        for step in 0..num_steps {
            // The groups' sums, and the chains of the plane being added: even, odd.
            let mut sums = [_mm512_setzero_ps(); GROUPS];
            let mut chains = [[_mm512_setzero_ps(); 2]; GROUPS];
            // SAFETY: the row's step lies inside `x` and `x_sums`, as asserted; there are
            // `num_steps` steps of codes.
            unsafe {
                let x = x.as_ptr().add(step * TILE_STEP);
                let odd_half = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                let add = |chains: &mut [[__m512; 2]; GROUPS], pair: usize, values: __m512i| {
                    let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(values));
                    let odd = _mm512_castsi512_ps(_mm512_and_si512(values, odd_half));
                    let [evens, odds] = &mut chains[pair * GROUPS / PAIRS];
                    let x = x.add(2 * pair);
                    *evens = _mm512_fmadd_ps(_mm512_set1_ps(*x), even, *evens);
                    *odds = _mm512_fmadd_ps(_mm512_set1_ps(*x.add(1)), odd, *odds);
                };
                let close = |sums: &mut [__m512; GROUPS], chains: &mut [[__m512; 2]; GROUPS]| {
                    for (sum, chain) in sums.iter_mut().zip(chains) {
                        *sum = _mm512_add_ps(*sum, _mm512_add_ps(chain[0], chain[1]));
                        *chain = [_mm512_setzero_ps(); 2];
                    }
                };
                if HIGH > 0 {
                    codes.high::<HIGH>(|pair, values| add(&mut chains, pair, values));
                    close(&mut sums, &mut chains);
                }
                codes.low(|pair, values| add(&mut chains, pair, values));
                close(&mut sums, &mut chains);
                for (group, sum) in (step * GROUPS..).zip(sums) {
                    let [scale, min] = scales(layout, panel, group);
                    total = _mm512_fmadd_ps(sum, scale, total);
                    if has_min {
                        let x_sum = _mm512_set1_ps(*x_sums.as_ptr().add(step * TILE_ROWS));
                        total = _mm512_fmadd_ps(x_sum, min, total);
                    }
                }
            }
        }
        total
    }
}

/// A walk over a panel's steps of codes.
struct Codes {
    low: *const u8,
    high: *const u8,
    low_table: __m512i,
    high_table: __m512i,
}

impl Codes {
    /// At `first_step` of a panel that has `num_steps` from there on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn new(
        tables: &Tables,
        layout: &PanelLayout,
        panel: &[u8],
        first_step: usize,
        num_steps: usize,
    ) -> Self {
        assert!(panel.len() >= layout.num_bytes() && first_step + num_steps <= layout.num_steps);
        // SAFETY: a table is as long as a vector and aligned; offsets lie inside the panel.
        unsafe {
            Codes {
                low: panel.as_ptr().add(layout.low(first_step)),
                high: panel.as_ptr().add(layout.high(first_step)),
                low_table: _mm512_load_si512(tables.low.as_ptr().cast()),
                high_table: _mm512_load_si512(tables.high.as_ptr().cast()),
            }
        }
    }

    /// Low parts of the next step: `each(pair, values)`.
    ///
    /// # Safety
    /// There is such a step.
    #[inline(always)]
    unsafe fn low(&mut self, each: impl FnMut(usize, __m512i)) {
        // SAFETY: the caller's promise; the user of a `Codes` has the instructions.
        unsafe { look_up::<4>(self.low, self.low_table, each) };
        self.low = self.low.wrapping_add(LOW_BYTES);
    }

    /// High parts of the next step, of `BITS` bits: `each(pair, values)`.
    ///
    /// # Safety
    /// There is such a step.
    #[inline(always)]
    unsafe fn high<const BITS: u32>(&mut self, each: impl FnMut(usize, __m512i)) {
        // SAFETY: the caller's promise; the user of a `Codes` has the instructions.
        unsafe { look_up::<BITS>(self.high, self.high_table, each) };
        self.high = self.high.wrapping_add(64 * BITS as usize);
    }
}

/// Looks up every code of a step in a table that does not mind bits above the code.
///
/// # Safety
/// The machine has AVX-512. `lines`: `BITS` lines of 64 bytes.
#[inline(always)]
unsafe fn look_up<const BITS: u32>(
    lines: *const u8,
    table: __m512i,
    mut each: impl FnMut(usize, __m512i),
) {
    let per_line = PAIRS / BITS as usize;
    for line in 0..BITS as usize {
        // SAFETY: the caller's promise.
        unsafe {
            let address = lines.add(line * 64);
            _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(PREFETCH).cast());
            let mut words = _mm512_loadu_si512(address.cast());
            for i in 0..per_line {
                each(line * per_line + i, _mm512_permutexvar_epi16(words, table));
                words = _mm512_srli_epi16::<BITS>(words);
            }
        }
    }
}

/// Scales and minima of a group; minima of formats without any are zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn scales(layout: &PanelLayout, panel: &[u8], group: usize) -> [__m512; 2] {
    let at = layout.group_scales(group);
    // SAFETY: 16 halves, and 16 bytes, inside the panel by their slices' bounds.
    let halves = |at: usize| unsafe {
        _mm512_cvtph_ps(_mm256_loadu_si256(panel[at..at + 32].as_ptr().cast()))
    };
    // SAFETY: as above.
    let bytes = |at: usize| unsafe { _mm_loadu_si128(panel[at..at + 16].as_ptr().cast()) };
    let zero = _mm512_setzero_ps();
    match layout.format.scales() {
        Scales::Scale => [halves(at.halves), zero],
        Scales::ScaleMin => [halves(at.halves), halves(at.halves + 2 * LANES)],
        Scales::BlockScaleMin => {
            let factor = |at| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(at)));
            let scale = _mm512_mul_ps(halves(at.halves), factor(at.factors));
            let min = halves(at.halves + 2 * LANES);
            let min = _mm512_mul_ps(min, factor(at.factors + LANES));
            // Subtracting from minus zero flips the sign of zero too.
            [scale, _mm512_sub_ps(_mm512_set1_ps(-0.0), min)]
        }
        Scales::BlockScale => {
            let factor = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(at.factors)));
            [_mm512_mul_ps(halves(at.halves), factor), zero]
        }
    }
}
