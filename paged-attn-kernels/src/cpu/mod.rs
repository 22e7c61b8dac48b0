//! The CPU back end: AVX-512, AVX2 and plain Rust, chosen at run time.

mod disjoint;
mod isa;
mod linear;
mod pool;

pub use isa::Isa;
pub use linear::{Epilogue, LinearScratch, MatrixDtype, PackedMatrix, linear};
pub use pool::ThreadPool;
