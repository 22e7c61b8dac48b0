//! Writing, copying and swapping blocks.

mod copy;
mod params;
mod write;

pub use copy::{BlockPairs, copy_blocks, swap_blocks};
pub use write::{KvRows, NO_SLOT, WriteKvArgs, check_slots, write_kv};
