//! Operation streams on the block manager, against the naive model and the shadow memory of its
//! own tests.
//!
//! From the repository's root, with cargo-fuzz and a nightly compiler installed:
//!
//! ```text
//! cargo +nightly fuzz run block_manager -- -max_total_time=300 -max_len=1024
//! ```
//!
//! The first eight bytes choose the pools and the engine, then each operation takes four: its
//! kind and three numbers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pageloom_block_manager::{Config, Eviction};

// The faults of the negative controls are not switched on here.
#[allow(dead_code)]
#[path = "../../block-manager/tests/harness/mod.rs"]
mod harness;

use harness::{Fault, Op, Setup, run};

fuzz_target!(|data: &[u8]| {
    let Some((head, stream)) = data.split_first_chunk::<8>() else {
        return;
    };
    let ops: Vec<Op> = stream.chunks_exact(4).map(op).collect();
    if let Err(failure) = run(setup(head), &ops) {
        panic!("{failure}\n{:?}\n{ops:#?}", setup(head));
    }
});

fn setup(head: &[u8; 8]) -> Setup {
    let [
        block_size,
        num_blocks,
        flags,
        hash_seed,
        shuffle_seed,
        num_host_blocks,
        ..,
    ] = *head;
    Setup {
        config: Config {
            block_size: 1 + usize::from(block_size % 5),
            num_blocks: 1 + usize::from(num_blocks % 32),
            num_host_blocks: usize::from(num_host_blocks % 25),
            prefix_caching: flags & 1 == 0,
            hash_seed: u64::from(hash_seed),
            eviction: if flags & 4 == 0 {
                Eviction::Lru
            } else {
                Eviction::SegmentedLru
            },
            events: flags & 8 == 0,
        },
        commit_early: flags & 2 == 0,
        shuffle_seed: 1 + u64::from(shuffle_seed),
        fault: Fault::None,
    }
}

fn op(bytes: &[u8]) -> Op {
    let [kind, a, b, c] = [bytes[0], bytes[1], bytes[2], bytes[3]];
    match kind % 32 {
        0..=2 => Op::Open {
            family: a,
            len: b,
            ns: c,
        },
        3 => Op::OpenEmpty {
            family: a,
            len: b,
            ns: c,
        },
        // Two numbers in one byte.
        4..=6 => Op::Admit {
            family: a,
            len: b,
            ns: a / 4,
            keep: c,
            extra: c / 16,
        },
        7..=13 => Op::Plan {
            seq: a,
            num_tokens: b,
            token: c,
        },
        14..=16 => Op::Seal,
        17..=19 => Op::Run,
        20 | 21 => Op::Complete,
        22 | 23 => Op::Fork { seq: a },
        24 => Op::Truncate { seq: a, keep: b },
        25 => Op::ReleaseBefore {
            seq: a,
            position: b,
        },
        26 => Op::SwapOut { seq: a, others: b },
        27 | 28 => Op::SwapIn {
            seq: a,
            others: b,
            keep: c,
        },
        29 | 30 => Op::Release { seq: a },
        _ if a < 64 => Op::Reset,
        _ => Op::Release { seq: a },
    }
}
