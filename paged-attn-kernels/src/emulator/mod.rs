//! Executes compiled PTX on the CPU, to test CUDA kernels where there is no GPU.
//!
//! Slow, and exact about memory. It runs what `nvcc -ptx -arch=compute_80` writes, thread by
//! thread, and faults where a GPU would silently go wrong:
//!
//! - global accesses outside of an allocation, shared and local ones outside of their space, and
//!   misaligned ones; fresh memory is filled with `0xff`, NaN in every float format;
//! - races on shared memory, byte by byte: two threads access a byte, one of them writes, and no
//!   barrier (or, within a warp, no `.sync` instruction) lies between. Writes of one value by
//!   several threads do not count, nor do atomics among themselves;
//! - shared memory that an asynchronous copy writes and its thread has not waited for;
//! - threads that wait for each other forever, and barriers that a warp reaches on two ways.
//!
//! ```text
//! text --lex--> tokens --parse--> variables, functions --decode--> Entry: instructions
//! launch: block by block -> warp by warp, until it waits -> groups of lanes at one position
//! ```
//!
//! # Numbers
//!
//! What PTX rounds correctly is exact. `.approx` functions are computed in f64 and rounded once,
//! so they differ from a GPU's in the last bits. Matrix products are summed in f64.
//!
//! # Absences
//!
//! What is unknown is refused when the text is parsed. Blocks run one after the other, so a
//! block that waits for a later one never ends ([`Fault::Endless`]). Races on global memory are
//! not looked for. Variables of a module (`__device__`) can be read but not written. Caches,
//! clocks and `mbarrier`, clusters, textures and what came after compute capability 8.0 are
//! absent.

mod block;
mod cursor;
mod decode;
mod error;
mod exec;
mod fault;
mod inst;
mod lanes;
mod launch;
mod lex;
mod memory;
mod parse;
mod program;
mod rounding;
mod shared;
mod stats;
mod ty;
mod warp;

pub use error::ParseError;
pub use fault::{Cause, Extent, Fault, Location};
pub use launch::{LaunchConfig, launch};
pub use memory::Memory;
pub use program::{Entry, Module};
pub use stats::Stats;
pub use ty::Space;
