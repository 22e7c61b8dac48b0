//! Sequences that wait for blocks, first come, first served.

use std::collections::VecDeque;

/// A queue in order of arrival, whatever the order of insertion: a sequence that was preempted,
/// or waited for the one it follows, re-enters at its own place.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    /// Arrival and slot.
    entries: VecDeque<(u64, u32)>,
}

impl WaitingQueue {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn front(&self) -> Option<u32> {
        self.entries.front().map(|&(_, slot)| slot)
    }

    pub(crate) fn pop_front(&mut self) {
        self.entries.pop_front();
    }

    pub(crate) fn insert(&mut self, arrival: u64, slot: u32) {
        let place = self.entries.partition_point(|&(a, _)| a < arrival);
        self.entries.insert(place, (arrival, slot));
    }

    pub(crate) fn remove(&mut self, arrival: u64) {
        let place = self
            .entries
            .binary_search_by_key(&arrival, |&(a, _)| a)
            .expect("a waiting sequence is in the queue");
        self.entries.remove(place);
    }
}
