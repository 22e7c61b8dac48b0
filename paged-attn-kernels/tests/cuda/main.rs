//! The CUDA kernels against f64 and the CPU back end: on the PTX emulator, and on the first GPU where
//! there is one. One program, since each that links the crate carries all compiled kernels.

// First: it has a macro for the others.
#[macro_use]
mod common;

mod blocks;
mod decode;
mod elementwise;
mod norms;
mod prefill;
mod rope;
mod write_kv;
