//! The CPU back end: AVX-512, AVX2 and plain Rust, chosen at run time.

mod affinity;
mod aligned;
mod attention;
mod blocks;
mod disjoint;
mod elementwise;
mod isa;
mod linear;
mod paged;
mod pool;
mod simd;

pub use affinity::{allowed_cpus, check_cpus, pin_current_thread};
pub use aligned::AlignedFloats;
pub use attention::{AttendArgs, AttendPlan, attend};
pub use blocks::{copy_blocks, swap_blocks, write_kv};
pub use elementwise::{Heads, RopeAngles, gated_row, rms_norm, rms_norm_heads, rope};
pub use isa::Isa;
pub use linear::{
    BlockFormat, Epilogue, LinearScratch, MatrixDtype, PackedMatrix, linear, linear_silu_mul,
    quantise_row,
};
pub use paged::{Paged, PagedRows};
pub use pool::ThreadPool;
