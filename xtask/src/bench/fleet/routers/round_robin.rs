//! One after the other.

use crate::bench::fleet::router::{Load, Prompt, Router};

#[derive(Debug, Default)]
pub(crate) struct RoundRobin {
    next: usize,
}

impl Router for RoundRobin {
    fn route(&mut self, _: &Prompt<'_>, loads: &[Load]) -> usize {
        let chosen = self.next;
        self.next = (chosen + 1) % loads.len();
        chosen
    }
}
