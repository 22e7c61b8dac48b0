//! The CPU back end: AVX-512, AVX2 and plain Rust, chosen at run time.

mod isa;
mod pool;

pub use isa::Isa;
pub use pool::ThreadPool;
