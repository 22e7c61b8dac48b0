//! The same product on the matrix unit of recent Xeons.
//!
//! `tdpbf16ps` multiplies a tile of 16 rows by 16 pairs of bf16 with one of 16 pairs by 16 lanes:
//! for each row and lane it adds the even and the odd products in two chains of fused
//! multiply-adds, in order, then their sum to the accumulator. That is a step of the definition,
//! bit for bit.
//!
//! ```text
//!            panel 0  panel 1        a block: up to 32 rows by 32 outputs
//! rows 0-15  tile 0   tile 1         tiles 4, 5: inputs of 16 rows
//! rows 16-31 tile 2   tile 3         tiles 6, 7: weights of 16 outputs
//! ```
//!
//! The instructions are written as assembly: their intrinsics are not stable yet.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS.

use std::arch::asm;
use std::arch::x86_64::*;

use super::Sums;
use super::inputs::{TILE_ROWS, TILE_STEP};
use super::panel::{Format, LANES, PanelLayout, STEP};
use super::weights::{Steps, with_bits};
use crate::cpu::simd::{Avx512, Kernel, Simd};

/// Elements of a step of weights: `[pair][LANES][2]`.
pub(super) const WEIGHTS_STEP: usize = STEP * LANES;

/// The shapes of tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    num_rows: [u8; 16],
}

/// A thread's matrix unit, configured for tiles of some rows until this is dropped.
pub(super) struct Session(());

impl Session {
    /// `num_rows`: rows of every tile of inputs, at most 16.
    ///
    /// # Safety
    /// The machine has the matrix unit and the process may use it: [`Isa::Amx`](crate::cpu::Isa)
    /// is supported.
    pub(super) unsafe fn new(num_rows: usize) -> Self {
        let num_rows = num_rows.min(TILE_ROWS) as u8;
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            num_rows: [0; 16],
        };
        for tile in 0..8 {
            config.row_bytes[tile] = 64;
            config.num_rows[tile] = if tile < 6 { num_rows } else { 16 };
        }
        // SAFETY: the configuration is valid for palette 1: at most 16 rows of at most 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Session(())
    }

    /// Adds the products of tiles and panels to their sums, or starts these.
    ///
    /// `x`: one or two tiles, `[step][TILE_ROWS][STEP]`; `weights`: one or two panels,
    /// `[step][pair][LANES][2]`.
    pub(super) fn multiply(&self, x: &[&[u16]], weights: &[&[u16]], sums: &mut Sums, start: bool) {
        let num_steps = weights.first().map_or(0, |w| w.len() / WEIGHTS_STEP);
        for (slices, len) in [(x, TILE_STEP), (weights, WEIGHTS_STEP)] {
            let is_long = |slice: &&[u16]| slice.len() >= num_steps * len;
            assert!((1..=2).contains(&slices.len()) && slices.iter().all(is_long));
        }
        let block = Block {
            num_steps,
            x: [x[0].as_ptr(), x[x.len() - 1].as_ptr()],
            weights: [weights[0].as_ptr(), weights[weights.len() - 1].as_ptr()],
            sums: sums.as_mut_ptr().cast(),
            start,
        };
        // SAFETY: the unit is configured while a session lives; there are `num_steps` steps, as
        // asserted, and `sums` holds those of two tiles and panels.
        unsafe {
            match (x.len(), weights.len()) {
                (2, 2) => block.two_by_two(),
                (1, 2) => block.one_by_two(),
                (2, 1) => block.two_by_one(),
                _ => block.one_by_one(),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the session configured the unit. Released, its state costs nothing at a switch
        // of threads.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Pointers to what a block reads and writes; the same twice where it has one tile or panel.
struct Block {
    num_steps: usize,
    x: [*const u16; 2],
    weights: [*const u16; 2],
    /// `[tile][panel][TILE_ROWS][LANES]`
    sums: *mut [[f32; LANES]; TILE_ROWS],
    /// Whether sums start from zero.
    start: bool,
}

/// Bytes from one row of a tile in memory to the next, for all of them.
const STRIDE: usize = 64;

/// The instructions of a block of some shape: its sums' start, its steps, stores of its sums.
///
/// Inputs pass by once for each pair of panels, from the second cache level; `tileloaddt1` keeps
/// them from pushing the widened weights out of the first (measured: a quarter faster).
macro_rules! block {
    ($self:ident, sums: [$(($at:literal, $tile:literal)),+], step: [$($step:literal),+]) => {{
        match $self.start {
            true => {
                $(asm!(concat!("tilezero tmm", $tile), options(nostack, nomem));)+
            }
            false => {
                $(asm!(concat!("tileloadd tmm", $tile, ", [{sums} + {stride}]"),
                    sums = in(reg) $self.sums.wrapping_add($at), stride = in(reg) STRIDE,
                    options(nostack, readonly));)+
            }
        }
        for step in 0..$self.num_steps {
            asm!($($step),+,
                x0 = in(reg) $self.x[0].wrapping_add(step * TILE_STEP),
                x1 = in(reg) $self.x[1].wrapping_add(step * TILE_STEP),
                w0 = in(reg) $self.weights[0].wrapping_add(step * WEIGHTS_STEP),
                w1 = in(reg) $self.weights[1].wrapping_add(step * WEIGHTS_STEP),
                stride = in(reg) STRIDE,
                options(nostack, readonly));
        }
        $(asm!(concat!("tilestored [{sums} + {stride}], tmm", $tile),
            sums = in(reg) $self.sums.wrapping_add($at), stride = in(reg) STRIDE,
            options(nostack));)+
    }};
}

impl Block {
    /// # Safety
    /// The unit is configured; all pointers are to `num_steps` steps, or to the sums of a tile.
    unsafe fn two_by_two(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            block!(self,
            sums: [(0, "0"), (1, "1"), (2, "2"), (3, "3")],
            step: [
                "tileloaddt1 tmm4, [{x0} + {stride}]",
                "tileloadd tmm6, [{w0} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloaddt1 tmm5, [{x1} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7"
            ]);
        }
    }

    /// # Safety
    /// As [`two_by_two`](Self::two_by_two), for one tile of inputs.
    unsafe fn one_by_two(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            block!(self,
            sums: [(0, "0"), (1, "1")],
            step: [
                "tileloaddt1 tmm4, [{x0} + {stride}]",
                "tileloadd tmm6, [{w0} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w1} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "/* {x1} */"
            ]);
        }
    }

    /// # Safety
    /// As [`two_by_two`](Self::two_by_two), for one panel.
    unsafe fn two_by_one(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            block!(self,
            sums: [(0, "0"), (2, "2")],
            step: [
                "tileloaddt1 tmm4, [{x0} + {stride}]",
                "tileloadd tmm6, [{w0} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloaddt1 tmm5, [{x1} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "/* {w1} */"
            ]);
        }
    }

    /// # Safety
    /// As [`two_by_two`](Self::two_by_two), for one tile of inputs and one panel.
    unsafe fn one_by_one(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            block!(self,
            sums: [(0, "0")],
            step: [
                "tileloaddt1 tmm4, [{x0} + {stride}]",
                "tileloadd tmm6, [{w0} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "/* {x1} {w1} */"
            ]);
        }
    }
}

/// Widens steps of a panel to bf16, as the matrix unit reads them.
pub(super) struct Decode<'a> {
    pub(super) layout: &'a PanelLayout,
    pub(super) panel: &'a [u8],
    pub(super) first_step: usize,
    /// `[step][pair][LANES][2]`, for as many steps as are wanted.
    pub(super) weights: &'a mut [u16],
}

impl Decode<'_> {
    /// Widens; nothing without AVX-512, which is there where the matrix unit is.
    pub(super) fn run(self) {
        if let Some(simd) = Avx512::new() {
            simd.vectorize(self);
        }
    }
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let num_steps = self.weights.len() / WEIGHTS_STEP;
        let steps = Steps::new(self.layout, self.panel, self.first_step, num_steps);
        // SAFETY: there are as many steps as there is room for.
        unsafe { with_bits!(self.layout.format, decode[](simd, steps, self.weights)) }
    }
}

/// # Safety
/// As [`Steps::next`], with as many steps as `out` has room for.
#[inline(always)]
unsafe fn decode<S: Simd, const LOW: u32, const HIGH: u32, const GROUPS: usize>(
    simd: S,
    mut steps: Steps<'_>,
    out: &mut [u16],
) {
    for out in out.chunks_exact_mut(WEIGHTS_STEP) {
        let out = out.as_mut_ptr();
        // SAFETY: the caller's promise; a step has `WEIGHTS_STEP` elements.
        unsafe {
            steps.next::<S, LOW, HIGH, GROUPS>(simd, |pair, even, odd| {
                simd.store_pairs(out.add(pair * 2 * LANES), even, odd);
            });
        }
    }
}

/// Hints that a line will be written soon; any address will do.
pub(super) fn prefetch_to_write<T>(p: *const T) {
    // As assembly: the intrinsic asks to read unless the build demands the instruction.
    // SAFETY: a hint that never faults, older than the matrix unit.
    unsafe { asm!("prefetchw [{}]", in(reg) p, options(nostack, readonly)) }
}

/// Whether this machine has a matrix unit for bf16 and lets this process use it.
pub(in super::super::super) fn is_available() -> bool {
    static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && is_permitted())
}

/// Whether processor and system know tiles and bf16 products of them.
fn has_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const OS_SAVES_STATE: u32 = 1 << 27;
    const TILE_STATE: u64 = 3 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OS_SAVES_STATE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: the system saves extended state, so the instruction exists.
    let state = unsafe { saved_state() };
    features & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE && state & TILE_STATE == TILE_STATE
}

/// # Safety
/// The processor has XGETBV.
#[target_feature(enable = "xsave")]
unsafe fn saved_state() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

/// Linux saves a thread's tiles only for processes that ask for it.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but this permission.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
