//! Which replica a request is sent to.

use super::routers::{LeastLoaded, LeastWaiting, PrefixAware, RoundRobin};

/// A rule that spreads requests over replicas. It sees what a router in front of real servers could:
/// the prompt, and how many tokens each server is busy with.
///
/// A new one is a file of `routers` that implements this, and a line in [`ALL`].
pub(crate) trait Router {
    /// The replica to send a request to, below `loads.len()`.
    fn route(&mut self, request: &Prompt<'_>, loads: &[Load]) -> usize;
}

/// How busy a replica is, as a router sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Tokens of its requests that have not ended: prompts, and what was drawn after them.
    pub(crate) in_flight: usize,
    /// Tokens of prompts that no token has come after yet.
    pub(crate) waiting: usize,
}

/// A prompt as a router sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompt<'a> {
    /// A name for each of its blocks and all before it: requests that have one in common have the same
    /// beginning up to there. None if nothing is known to be in common with others.
    pub(crate) prefixes: &'a [u64],
    /// Tokens that such a block has.
    pub(crate) block_len: usize,
}

/// Names, and what makes one for a fleet.
pub(crate) const ALL: [(&str, Make); 4] = [
    ("round-robin", |_| Box::new(RoundRobin::default())),
    ("least-loaded", |_| Box::new(LeastLoaded)),
    ("least-waiting", |_| Box::new(LeastWaiting)),
    ("prefix-aware", |fleet| Box::new(PrefixAware::new(fleet))),
];

pub(crate) type Make = fn(Fleet) -> Box<dyn Router>;

/// What a router is told of the fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fleet {
    pub(crate) num_replicas: usize,
    /// Tokens that a replica's pool holds, on the device and the host.
    pub(crate) num_slots: usize,
}
