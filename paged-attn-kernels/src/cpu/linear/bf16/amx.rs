//! The same product on the matrix unit of recent Xeons.
//!
//! `tdpbf16ps` multiplies a tile of 16 rows by 16 pairs of bf16 with one of 16 pairs by 16 lanes:
//! for each row and lane it adds the even and the odd products in two chains of fused
//! multiply-adds, in order, then their sum to the accumulator. That is a step of the definition,
//! bit for bit.
//!
//! ```text
//!            panel 0  panel 1        a block: up to 32 rows by 32 outputs
//! rows 0-15  tile 0   tile 1         tiles 4, 5: a step of inputs, 16 rows each
//! rows 16-31 tile 2   tile 3         tile 6: a step of weights, 16 outputs
//! ```
//!
//! The instructions are written as assembly: their intrinsics are not stable yet.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS.

use std::arch::asm;
use std::arch::x86_64::*;

use super::Sums;
use super::inputs::{TILE_ROWS, TILE_STEP};
use super::panel::{LANES, STEP};

/// A step of a tile of inputs: `[TILE_ROWS][STEP]`.
pub(super) type InputStep = [u16; TILE_STEP];
/// A step of a panel: `[pair][LANES][2]`.
pub(super) type WeightStep = [u16; STEP * LANES];

/// The shapes of tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    num_rows: [u8; 16],
}

/// Bytes from one row of a tile in memory to the next, for all of them.
const STRIDE: usize = 64;

/// An instruction for each sum of one or two tiles of rows; `$sums`: `[tile][panel]...`.
macro_rules! each_sum {
    ($before:literal, $after:literal, $sums:expr, $num_tiles:expr) => {{
        let sums = $sums.cast::<[[f32; LANES]; TILE_ROWS]>();
        // SAFETY: the unit is configured while a session lives; `Sums` are those of two tiles and
        // panels.
        unsafe {
            each_sum!(@one $before, "0", $after, sums);
            each_sum!(@one $before, "1", $after, sums.wrapping_add(1));
            if $num_tiles > 1 {
                each_sum!(@one $before, "2", $after, sums.wrapping_add(2));
                each_sum!(@one $before, "3", $after, sums.wrapping_add(3));
            }
        }
    }};
    (@one $before:literal, $tile:literal, $after:literal, $sums:expr) => {
        asm!(concat!($before, $tile, $after), sums = in(reg) $sums, stride = in(reg) STRIDE,
            options(nostack))
    };
}

/// Loads of a step's inputs and weights, where they are not in the unit yet, and their product.
macro_rules! product {
    ($x:expr, $weights:expr, $($line:literal),+) => {
        // SAFETY: the unit is configured while a session lives; both are as long as a tile.
        unsafe {
            asm!($($line),+, x = in(reg) $x, w = in(reg) $weights, stride = in(reg) STRIDE,
                options(nostack, readonly));
        }
    };
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

    /// Starts the sums of one or two tiles of rows: from zero, or where they were left.
    pub(super) fn start(&self, num_tiles: usize, sums: Option<&Sums>) {
        match sums {
            // SAFETY: the unit is configured while a session lives, as below.
            None => unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            },
            Some(sums) => {
                each_sum!(
                    "tileloadd tmm",
                    ", [{sums} + {stride}]",
                    sums.as_ptr(),
                    num_tiles
                );
            }
        }
    }

    /// Leaves the sums of one or two tiles of rows in memory.
    pub(super) fn store(&self, num_tiles: usize, sums: &mut Sums) {
        each_sum!(
            "tilestored [{sums} + {stride}], tmm",
            "",
            sums.as_mut_ptr(),
            num_tiles
        );
    }

    /// Adds a step of one of two tiles times one of two panels to the block's sums.
    ///
    /// Of every step, the products of panel 0 come first, and of each panel that of tile 0: the
    /// others find the step in the unit.
    ///
    /// Inputs pass by once for each pair of panels, from the second cache level; `tileloaddt1`
    /// keeps them from pushing the widened weights out of the first (measured: a quarter faster).
    #[inline(always)]
    pub(super) fn add(&self, tile: usize, panel: usize, x: &InputStep, weights: &WeightStep) {
        match (tile, panel) {
            (0, 0) => product!(
                x,
                weights,
                "tileloaddt1 tmm4, [{x} + {stride}]",
                "tileloadd tmm6, [{w} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6"
            ),
            (0, _) => product!(
                x,
                weights,
                "/* {x} */",
                "tileloadd tmm6, [{w} + {stride}]",
                "tdpbf16ps tmm1, tmm4, tmm6"
            ),
            (_, 0) => product!(
                x,
                weights,
                "tileloaddt1 tmm5, [{x} + {stride}]",
                "/* {w} */",
                "tdpbf16ps tmm2, tmm5, tmm6"
            ),
            _ => product!(
                x,
                weights,
                "/* {x} {stride} */",
                "/* {w} */",
                "tdpbf16ps tmm3, tmm5, tmm6"
            ),
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
