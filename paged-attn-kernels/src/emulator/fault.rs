//! What can go wrong while a kernel runs.

use std::fmt;

use thiserror::Error;

use super::ty::Space;

/// Where a thread was: kernel, line of the PTX, block and thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Name of the kernel.
    pub kernel: String,
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in its block.
    pub thread: [u32; 3],
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            line,
            block,
            thread,
        } = self;
        write!(
            f,
            "{kernel}, line {line}, block {block:?}, thread {thread:?}"
        )
    }
}

/// An allocation of global memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Address of its first byte.
    pub address: u64,
    /// Its size.
    pub bytes: usize,
}

/// What a thread did wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Cause {
    /// An access outside of any variable or allocation.
    #[error(
        "{bytes} bytes of {space:?} memory at {address:#x} are out of bounds; {}",
        near(nearest)
    )]
    OutOfBounds {
        /// The state space.
        space: Space,
        /// The address in it.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
        /// For global memory the allocation closest to it; else the space's own extent.
        nearest: Option<Extent>,
    },
    /// An access to an address that is no multiple of its size.
    #[error("{bytes} bytes of {space:?} memory at {address:#x} are misaligned")]
    Misaligned {
        /// The state space.
        space: Space,
        /// The address in it.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
    },
    /// A store to constants, parameters or the module's own variables.
    #[error("{space:?} memory at {address:#x} cannot be written")]
    ReadOnly {
        /// The state space.
        space: Space,
        /// The address in it.
        address: u64,
    },
    /// Two threads accessed a byte of shared memory, one of them writing, with no barrier between.
    #[error("{access} of shared memory at {address:#x} races with a {other} by thread {thread}")]
    Race {
        /// What this thread does.
        access: &'static str,
        /// Address in shared memory.
        address: u64,
        /// What the other thread did.
        other: &'static str,
        /// The other thread's index, counted x first.
        thread: u32,
    },
    /// An access to shared memory that an asynchronous copy is writing.
    #[error("shared memory at {address:#x} is being written by a copy of thread {thread}")]
    CopyPending {
        /// Address in shared memory.
        address: u64,
        /// The thread that has not waited for its copy.
        thread: u32,
    },
    /// A `.sync` instruction by a lane that its own mask leaves out.
    #[error("the lane is not in its own mask {mask:#x}")]
    NotInMask {
        /// The mask.
        mask: u32,
    },
    /// An `.aligned` instruction in a warp of which lanes have ended or never were.
    #[error("only lanes {lanes:#x} of the warp are left for an instruction of the whole warp")]
    WarpIncomplete {
        /// The lanes that are left.
        lanes: u32,
    },
    /// Threads of a warp wait for an `.aligned` barrier at different instructions.
    #[error("threads of the warp wait for the barrier at lines {lines:?}")]
    BarrierDivergence {
        /// Two of the lines.
        lines: [u32; 2],
    },
    /// A barrier that does not exist, or a count that is no multiple of a warp.
    #[error("there is no barrier {id} of {count} threads")]
    Barrier {
        /// Its number.
        id: u32,
        /// Threads it waits for.
        count: u32,
    },
    /// A branch table has no such entry.
    #[error("the branch table of {targets} targets has no entry {index}")]
    BranchTable {
        /// The entry asked for.
        index: u32,
        /// Entries there are.
        targets: usize,
    },
    /// An asynchronous copy that reads more bytes than it writes.
    #[error("an asynchronous copy of {bytes} bytes from {source_bytes}")]
    CopySize {
        /// Bytes written.
        bytes: usize,
        /// Bytes read.
        source_bytes: u32,
    },
    /// `trap` was executed.
    #[error("trap")]
    Trap,
}

fn near(nearest: &Option<Extent>) -> String {
    match nearest {
        Some(Extent { address, bytes }) => format!("the nearest {bytes} bytes are at {address:#x}"),
        None => "there is nothing near".into(),
    }
}

/// Why a launch or an access from the host failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// A thread did something wrong.
    #[error("{at}: {cause}")]
    Thread {
        /// Where.
        at: Box<Location>,
        /// What.
        cause: Cause,
    },
    /// Every thread that is left waits for others.
    #[error("{at}: nothing can proceed: {waiting} threads wait at a barrier or for their warp")]
    Deadlock {
        /// One of the threads that wait.
        at: Box<Location>,
        /// How many wait.
        waiting: usize,
    },
    /// A block took more instructions than any kernel here should.
    #[error("{at}: the block has executed {instructions} instructions of warps")]
    Endless {
        /// One of the threads that run.
        at: Box<Location>,
        /// Instructions of the block.
        instructions: u64,
    },
    /// A launch the device would refuse.
    #[error("{kernel}: a launch with {what} {given}, where the limit is {limit}")]
    Launch {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong.
        what: &'static str,
        /// Its value.
        given: u64,
        /// The most, or the exact value for parameters.
        limit: u64,
    },
    /// The host accessed memory that is not allocated.
    #[error("the host accessed {bytes} bytes at {address:#x}; {}", near(nearest))]
    Host {
        /// First address.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
        /// The allocation closest to it.
        nearest: Option<Extent>,
    },
}
