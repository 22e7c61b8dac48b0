//! Groups that wait for blocks and seats.

use std::collections::VecDeque;

use crate::group::Order;

/// A queue in order of precedence, whatever the order of insertion: a group that was preempted
/// re-enters at its own place.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    /// The order and the place of each group.
    entries: VecDeque<(Order, u32)>,
}

impl WaitingQueue {
    pub(crate) fn front(&self) -> Option<u32> {
        self.entries.front().map(|&(_, group)| group)
    }

    pub(crate) fn pop_front(&mut self) {
        self.entries.pop_front();
    }

    pub(crate) fn insert(&mut self, order: Order, group: u32) {
        let place = self.entries.partition_point(|&(o, _)| o < order);
        self.entries.insert(place, (order, group));
    }

    pub(crate) fn remove(&mut self, order: Order) {
        let place = self
            .entries
            .binary_search_by_key(&order, |&(o, _)| o)
            .expect("a waiting group is in the queue");
        self.entries.remove(place);
    }
}
