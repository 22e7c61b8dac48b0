//! Where the fewest tokens of prompts wait: what is drawn costs a replica little, and prompts much.

use crate::bench::fleet::router::{Load, Prompt, Router};

#[derive(Debug)]
pub(crate) struct LeastWaiting;

impl Router for LeastWaiting {
    fn route(&mut self, _: &Prompt<'_>, loads: &[Load]) -> usize {
        least(loads)
    }
}

/// The first of those with the fewest tokens of prompts waiting, and of those with the fewest in
/// flight.
pub(crate) fn least(loads: &[Load]) -> usize {
    let by_load = loads.iter().enumerate();
    let least = by_load.min_by_key(|(_, load)| (load.waiting, load.in_flight));
    least.map_or(0, |(replica, _)| replica)
}
