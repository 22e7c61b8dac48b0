//! Where the longest beginning of the prompt was sent before, unless that is too busy.

use std::collections::HashMap;

use super::least;
use crate::bench::fleet::router::{Fleet, Load, Prompt, Router};

/// Keeps a map of what was sent where. It is not told what replicas evict: what they were sent more
/// than a pool ago counts as gone.
///
/// ```text
///  prefix ──> (replica, tokens it had been sent by then), the last few
/// ```
#[derive(Debug)]
pub(crate) struct PrefixAware {
    /// Only looked up, so its order does not matter.
    holders: HashMap<u64, Vec<Holder>>,
    /// Tokens of prompts sent to each replica so far.
    num_sent: Vec<u64>,
    num_slots: u64,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    replica: u32,
    /// Of [`PrefixAware::num_sent`], when it was last sent this.
    sent: u64,
}

/// Replicas remembered for a prefix.
const MOST_HOLDERS: usize = 4;
/// A replica is too busy if so many more tokens wait there than at the least loaded, for each token of
/// the prompt that it need not compute.
const MOST_IMBALANCE: usize = 2;

impl PrefixAware {
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self {
            holders: HashMap::new(),
            num_sent: vec![0; fleet.num_replicas],
            num_slots: fleet.num_slots as u64,
        }
    }

    /// The least loaded of those that have most of the prompt, and how many of its blocks.
    fn longest(&self, request: &Prompt<'_>, loads: &[Load]) -> Option<(usize, usize)> {
        let still_there = |holder: &&Holder| {
            self.num_sent[holder.replica as usize] - holder.sent <= self.num_slots
        };
        let found = request.prefixes.iter().enumerate().rev();
        let mut found = found.filter_map(|(place, prefix)| {
            let holders = self.holders.get(prefix)?.iter().filter(still_there);
            let replica = holders.map(|holder| holder.replica as usize);
            let lightest = replica.min_by_key(|&replica| (loads[replica].waiting, replica))?;
            Some((lightest, place + 1))
        });
        found.next()
    }

    fn note(&mut self, request: &Prompt<'_>, replica: usize) {
        self.num_sent[replica] += (request.prefixes.len() * request.block_len) as u64;
        let sent = self.num_sent[replica];
        let replica = replica as u32;
        for &prefix in request.prefixes {
            let holders = self.holders.entry(prefix).or_default();
            holders.retain(|holder| holder.replica != replica);
            if holders.len() == MOST_HOLDERS {
                holders.remove(0);
            }
            holders.push(Holder { replica, sent });
        }
    }
}

impl Router for PrefixAware {
    fn route(&mut self, request: &Prompt<'_>, loads: &[Load]) -> usize {
        let least = least(loads);
        let chosen = match self.longest(request, loads) {
            Some((replica, num_blocks))
                if loads[replica].waiting - loads[least].waiting
                    <= MOST_IMBALANCE * num_blocks * request.block_len =>
            {
                replica
            }
            _ => least,
        };
        self.note(request, chosen);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> PrefixAware {
        PrefixAware::new(Fleet {
            num_replicas: 2,
            num_slots: 30,
        })
    }

    fn prompt(prefixes: &[u64]) -> Prompt<'_> {
        Prompt {
            prefixes,
            block_len: 10,
        }
    }

    fn waiting(tokens: [usize; 2]) -> [Load; 2] {
        tokens.map(|waiting| Load {
            in_flight: 0,
            waiting,
        })
    }

    #[test]
    fn the_longest_match_is_taken_until_it_is_too_busy() {
        let mut router = router();
        assert_eq!(router.route(&prompt(&[1, 2]), &waiting([0, 5])), 0);
        assert_eq!(router.route(&prompt(&[1, 3]), &waiting([100, 5])), 1);
        // Both have the first block, one the second too.
        assert_eq!(router.route(&prompt(&[1, 3, 4]), &waiting([0, 40])), 1);
        assert_eq!(router.route(&prompt(&[1, 2, 4]), &waiting([41, 0])), 1);
    }

    #[test]
    fn what_was_sent_a_pool_ago_is_gone() {
        let mut router = router();
        assert_eq!(router.route(&prompt(&[1]), &waiting([0, 5])), 0);
        for other in 10..13 {
            assert_eq!(router.route(&prompt(&[1]), &waiting([5, 0])), 0, "{other}");
            assert_eq!(router.route(&prompt(&[other]), &waiting([0, 5])), 0);
        }
        for other in 20..24 {
            assert_eq!(router.route(&prompt(&[other]), &waiting([0, 5])), 0);
        }
        assert_eq!(router.route(&prompt(&[1]), &waiting([5, 0])), 1);
    }
}
