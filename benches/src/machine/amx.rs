//! The matrix unit (AMX), through assembly: its intrinsics are not stable.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// Products between two looks at the clock, in fours.
const ROUNDS: usize = 5_000;
/// Operations of one product of tiles of 16 rows of 64 bytes: 16 x 16 x 32 multiply-adds of bf16.
const BF16_OPERATIONS: usize = 16 * 16 * 32 * 2;
/// 16 x 16 x 64 multiply-adds of i8.
const INT8_OPERATIONS: usize = 16 * 16 * 64 * 2;

/// Leaf 7 of `cpuid`, register edx.
fn features() -> u32 {
    // Safe in later releases of the standard library.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has `cpuid`, and leaf 7 is asked for only where there is one.
    unsafe {
        if __cpuid_count(0, 0).eax < 7 {
            return 0;
        }
        __cpuid_count(7, 0).edx
    }
}

fn has(bit: u32) -> bool {
    let tiles = 1 << 24;
    features() & tiles != 0 && features() & (1 << bit) != 0
}

pub(super) fn has_bf16() -> bool {
    has(22)
}

pub(super) fn has_int8() -> bool {
    has(25)
}

/// Asks the kernel for the state of the tiles, for all threads; false where it does not know them.
#[cfg(target_os = "linux")]
pub(super) fn ask_permission() -> bool {
    const SYS_ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: this call reads and writes no memory of ours; it clobbers what is listed.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL as i64 => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
pub(super) fn ask_permission() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    num_rows: [u8; 16],
}

/// Multiplies tiles of zeros; returns how many operations that were.
///
/// # Safety
/// The machine has the instruction ([`has_bf16`], [`has_int8`]), and [`ask_permission`] said yes.
pub(super) unsafe fn run(bf16: bool) -> f64 {
    let mut config = TileConfig {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        num_rows: [0; 16],
    };
    config.row_bytes[..8].fill(64);
    config.num_rows[..8].fill(16);
    // SAFETY: the caller made sure of the instructions and of the permission; the configuration is
    // 64 bytes, aligned, with what palette 1 allows; tiles are all that is written, and released.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            config = in(reg) &raw const config,
            options(nostack),
        );
        if bf16 {
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) ROUNDS => _,
                options(nostack),
            );
        } else {
            asm!(
                "2:",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) ROUNDS => _,
                options(nostack),
            );
        }
        asm!("tilerelease", options(nostack));
    }
    let operations = if bf16 {
        BF16_OPERATIONS
    } else {
        INT8_OPERATIONS
    };
    (ROUNDS * 4 * operations) as f64
}
