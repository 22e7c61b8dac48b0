//! Sequences of one request, which are let in, preempted and resumed together.

use crate::SeqId;

/// Where a group stands among all: the lower goes first, whatever it does.
///
/// First come, first served: all are due at 0 and the arrival decides. With priorities a request
/// is due when it arrived, later by the ageing time for each class; so it waits for every request
/// of a more urgent class, but only for those that arrived before it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    /// Microseconds.
    pub(crate) due: i64,
    pub(crate) arrival: u64,
}

/// Where a group is.
///
/// ```text
///  add ───> Waiting ──────> Running ──all ended──>
///              ^  recompute │ ^ │
///              └────────────┘ │ │ swap
///                     Swapped ┘<┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Waits for blocks and seats; holds no block.
    Waiting,
    /// Waits for blocks and seats with its tables on the host.
    Swapped,
    /// Has its seats; its members have block tables, or are about to get one.
    Running,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) order: Order,
    pub(crate) priority: i32,
    pub(crate) place: Place,
    /// The first sequence it had.
    pub(crate) first: SeqId,
    /// The rule of admission let it in.
    pub(crate) admitted: bool,
    /// Slots of the sequences, the oldest first; never empty.
    pub(crate) members: Vec<u32>,
    /// Sequences it may still be at once.
    pub(crate) num_seats: usize,
    /// All members draw in the same step or none.
    pub(crate) lockstep: bool,
    /// Sequences and prompt tokens it counts in the queue caps: until it is first scheduled.
    pub(crate) queued: Option<(usize, usize)>,
    /// Blocks that only it held when it was last preempted to be recomputed.
    pub(crate) num_blocks_lost: usize,
}
