//! Where the fewest tokens are in flight.

use crate::bench::fleet::router::{Load, Prompt, Router};

#[derive(Debug)]
pub(crate) struct LeastLoaded;

impl Router for LeastLoaded {
    fn route(&mut self, _: &Prompt<'_>, loads: &[Load]) -> usize {
        let by_load = loads.iter().enumerate();
        let least = by_load.min_by_key(|(_, load)| load.in_flight);
        least.map_or(0, |(replica, _)| replica)
    }
}
