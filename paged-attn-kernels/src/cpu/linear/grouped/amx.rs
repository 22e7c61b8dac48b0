//! The same sums on the matrix unit of recent Xeons.
//!
//! `tdpbf16ps` multiplies a tile of 16 rows by 16 pairs of bf16 with one of 16 pairs by 16 lanes:
//! for each row and lane it adds the even and the odd products in two chains of fused
//! multiply-adds, in order, then their sum to the accumulator. That is a step of the definition in
//! [`portable`](super::portable), bit for bit. A group's sums go through memory to be scaled.
//!
//! The instructions are written as assembly: their intrinsics are not stable yet.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS.

use std::arch::asm;
use std::arch::x86_64::*;

use super::inputs::{TILE_ROWS, TILE_STEP};
use super::panel::{LANES, PanelLayout, STEP};
use super::lookup::{Decoded, PLANE, step_len};
use super::portable::num_planes;

/// Results of the matrix unit on their way to be scaled: a ring, so that the scaling of a group
/// does not wait for its products.
#[repr(C, align(64))]
pub(super) struct Ring([[[f32; LANES]; TILE_ROWS]; RING]);

const RING: usize = 2;

impl Default for Ring {
    fn default() -> Self {
        Ring([[[0.0; LANES]; TILE_ROWS]; RING])
    }
}

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
///
/// Tiles 0 and 1 accumulate, 2 and 3 are inputs, 4 to 7 weights.
pub(super) struct Session {
    num_rows: usize,
}

impl Session {
    /// `num_rows`: 1 to 16, rounded up to a power of two.
    ///
    /// # Safety
    /// The machine has the matrix unit and the process may use it: [`Isa::Amx`](crate::cpu::Isa)
    /// is supported.
    pub(super) unsafe fn new(num_rows: usize, layout: &PanelLayout) -> Self {
        let num_rows = num_rows.next_power_of_two().min(TILE_ROWS);
        let pairs = layout.format.group_len() / 2;
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            num_rows: [0; 16],
        };
        for tile in 0..8 {
            (config.num_rows[tile], config.row_bytes[tile]) = match tile {
                0 | 1 => (num_rows as u8, 64),
                2 | 3 => (num_rows as u8, 4 * pairs as u16),
                _ => (pairs as u8, 64),
            };
        }
        // SAFETY: the configuration is valid for palette 1: at most 16 rows of at most 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Session { num_rows }
    }

    /// Adds decoded steps to a tile's sums, for as many rows as the session was made for.
    ///
    /// `x`: `[step][TILE_ROWS][STEP]`; `x_sums`: `[step][TILE_ROWS]`.
    pub(super) fn accumulate(
        &self,
        layout: &PanelLayout,
        decoded: &Decoded<'_>,
        (x, x_sums): (&[u16], &[f32]),
        (acc, ring): (&mut [[f32; LANES]; TILE_ROWS], &mut Ring),
    ) {
        let num_steps = decoded.values.len() / step_len(layout);
        let groups_per_step = STEP / layout.format.group_len();
        assert!(x.len() >= num_steps * TILE_STEP && x_sums.len() >= num_steps * TILE_ROWS);
        assert!(decoded.scales.len() >= num_steps * groups_per_step);
        let pass = Pass {
            num_steps,
            values: decoded.values.as_ptr(),
            scales: decoded.scales.as_ptr(),
            x: x.as_ptr(),
            x_sums: x_sums.as_ptr(),
            acc: acc.as_mut_ptr(),
            ring: ring.0.as_mut_ptr(),
        };
        let kind = (num_planes(layout), groups_per_step, layout.format.has_min());
        // SAFETY: a session exists only where the matrix unit does, and with it AVX-512; it is
        // configured for these rows; `Pass` was made of slices checked above.
        unsafe {
            match self.num_rows {
                1 => pass.of_rows::<1>(kind),
                2 => pass.of_rows::<2>(kind),
                4 => pass.of_rows::<4>(kind),
                8 => pass.of_rows::<8>(kind),
                _ => pass.of_rows::<16>(kind),
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

/// Pointers to everything that [`Session::accumulate`] reads and writes.
struct Pass {
    num_steps: usize,
    values: *const u16,
    scales: *const [[f32; LANES]; 2],
    x: *const u16,
    x_sums: *const f32,
    acc: *mut [f32; LANES],
    ring: *mut [[f32; LANES]; TILE_ROWS],
}

impl Pass {
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn of_rows<const ROWS: usize>(self, kind: (usize, usize, bool)) {
        // SAFETY: the caller's promise.
        unsafe {
            match kind {
                (1, 1, false) => self.run::<ROWS, 1, 1, false>(),
                (1, 1, true) => self.run::<ROWS, 1, 1, true>(),
                (2, 1, false) => self.run::<ROWS, 2, 1, false>(),
                (2, 1, true) => self.run::<ROWS, 2, 1, true>(),
                (2, 2, false) => self.run::<ROWS, 2, 2, false>(),
                _ => unreachable!("no format has these planes, groups and minima"),
            }
        }
    }

    /// # Safety
    /// The machine has AVX-512 and the matrix unit, configured for tiles of `ROWS` rows and groups
    /// of `STEP / GROUPS` inputs. The pointers are to `num_steps` steps of what they are named for,
    /// `acc` to `ROWS` rows at least, `ring` to [`RING`] elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn run<const ROWS: usize, const PLANES: usize, const GROUPS: usize, const MIN: bool>(
        self,
    ) {
        let num_groups = self.num_steps * GROUPS;
        if num_groups == 0 {
            return;
        }
        // SAFETY: the caller's promise; groups are below `num_groups`.
        unsafe {
            let mut acc = [_mm512_setzero_ps(); ROWS];
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_loadu_ps(self.acc.add(r).cast());
            }
            for first in (0..num_groups).step_by(RING) {
                let groups = first..num_groups.min(first + RING);
                for group in groups.clone() {
                    self.multiply::<PLANES, GROUPS>(group);
                }
                for group in groups {
                    let sums = self.ring.add(group % RING).cast::<f32>();
                    let scales = self.scales.add(group).cast::<f32>();
                    let scale = _mm512_loadu_ps(scales);
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = _mm512_fmadd_ps(_mm512_load_ps(sums.add(r * LANES)), scale, *acc);
                    }
                    if MIN {
                        let min = _mm512_loadu_ps(scales.add(LANES));
                        let x_sums = self.x_sums.add(group / GROUPS * TILE_ROWS);
                        for (r, acc) in acc.iter_mut().enumerate() {
                            *acc = _mm512_fmadd_ps(_mm512_set1_ps(*x_sums.add(r)), min, *acc);
                        }
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                _mm512_storeu_ps(self.acc.add(r).cast(), *acc);
            }
        }
    }

    /// A group's products into the ring.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    unsafe fn multiply<const PLANES: usize, const GROUPS: usize>(&self, group: usize) {
        let (step, part) = (group / GROUPS, group % GROUPS);
        // SAFETY: the caller's promise: all of it lies inside what the pointers are to.
        unsafe {
            let x = self.x.add(step * TILE_STEP + part * STEP / GROUPS);
            let plane = self
                .values
                .add(step * PLANES * PLANE + part * PLANE / GROUPS);
            let sums = self.ring.add(group % RING);
            if PLANES == 1 {
                asm!(
                    "tilezero tmm0",
                    "tileloadd tmm2, [{x} + {stride}]",
                    "tileloadd tmm4, [{w} + {stride}]",
                    "tdpbf16ps tmm0, tmm2, tmm4",
                    "tilestored [{sums} + {stride}], tmm0",
                    x = in(reg) x, w = in(reg) plane, sums = in(reg) sums, stride = in(reg) 64usize,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tileloadd tmm2, [{x} + {stride}]",
                    "tileloadd tmm4, [{high} + {stride}]",
                    "tileloadd tmm5, [{low} + {stride}]",
                    "tdpbf16ps tmm0, tmm2, tmm4",
                    "tdpbf16ps tmm0, tmm2, tmm5",
                    "tilestored [{sums} + {stride}], tmm0",
                    x = in(reg) x, high = in(reg) plane, low = in(reg) plane.add(PLANE),
                    sums = in(reg) sums, stride = in(reg) 64usize,
                    options(nostack),
                );
            }
        }
    }
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
