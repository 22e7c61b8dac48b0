//! The most any eviction policy can find: it knows the future.
//!
//! Evicts the block whose next use is farthest away (Belady 1966), of equally far ones the one
//! deepest in its prompt. For blocks that are found one by one this is known to be optimal. Here
//! only a prefix is found, which costs nothing: whoever uses a block uses everything before it, so
//! a block is never used sooner than its predecessors and, the deeper one going first, never
//! outlives them. A search through all choices confirms it in the tests.

use std::collections::{BTreeSet, HashMap};

use super::trace::{Prompt, Trace};

/// When a block is used next, as the number of the request; last if never.
type NextUse = usize;
const NEVER: NextUse = usize::MAX;

/// Prompt blocks found in a pool of `num_blocks` when requests run one after another, each holding
/// all its blocks at once. Those that do not fit are left out.
pub(crate) fn num_hits(trace: &Trace, num_blocks: usize) -> usize {
    let prompts: Vec<&Prompt> = trace.fitting(num_blocks).collect();
    let next_uses = next_uses(&prompts);
    // Ordered by what is to be evicted last; the place in the prompt breaks ties.
    let mut by_use: BTreeSet<(NextUse, usize, u32)> = BTreeSet::new();
    let mut cached: HashMap<u32, NextUse> = HashMap::new();
    let mut num_hits = 0;
    for (now, (prompt, next_uses)) in prompts.iter().zip(next_uses).enumerate() {
        // Only a prefix is found; and what the request holds cannot be evicted for it.
        num_hits += prompt
            .iter()
            .take_while(|id| cached.contains_key(id))
            .count();
        for (place, &id) in prompt.iter().enumerate() {
            if cached.remove(&id).is_some() {
                by_use.remove(&(now, place, id));
            }
        }
        while cached.len() + prompt.len() > num_blocks {
            let (_, _, id) = by_use.pop_last().expect("the prompt alone fits");
            cached.remove(&id);
        }
        for (place, (&id, next_use)) in prompt.iter().zip(next_uses).enumerate() {
            by_use.insert((next_use, place, id));
            cached.insert(id, next_use);
        }
    }
    num_hits
}

/// For each block of each prompt, the request that uses it next.
fn next_uses(prompts: &[&Prompt]) -> Vec<Vec<NextUse>> {
    let mut next: HashMap<u32, NextUse> = HashMap::new();
    let mut uses: Vec<Vec<NextUse>> = prompts
        .iter()
        .enumerate()
        .rev()
        .map(|(now, prompt)| {
            let of_block = |&id| next.insert(id, now).unwrap_or(NEVER);
            prompt.iter().map(of_block).collect()
        })
        .collect();
    uses.reverse();
    uses
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::trace::tests::random_trace;
    use super::*;

    fn trace(prompts: &[&[u32]]) -> Trace {
        Trace::new(prompts.iter().map(|p| p.to_vec()).collect()).unwrap()
    }

    /// The most blocks found from request `now` on, whatever is evicted, by trying everything.
    ///
    /// `cached` is a set of ids as bits. More is allowed than a real cache could do: a block that
    /// lost its predecessors may stay, and is good again when they come back.
    fn best(
        prompts: &[&Prompt],
        now: usize,
        cached: u64,
        num_blocks: usize,
        known: &mut BTreeMap<(usize, u64), usize>,
    ) -> usize {
        let Some(prompt) = prompts.get(now) else {
            return 0;
        };
        if let Some(&answer) = known.get(&(now, cached)) {
            return answer;
        }
        let is_cached = |id: &&u32| cached & (1 << **id) != 0;
        let found = prompt.iter().take_while(is_cached).count();
        let held: u64 = prompt.iter().map(|id| 1 << id).sum();
        let others = cached & !held;
        let room = num_blocks - prompt.len();
        // Every subset of the others that fits: also evictions that are not needed yet.
        let (mut most, mut kept) = (0, others);
        loop {
            if kept.count_ones() as usize <= room {
                most = most.max(best(prompts, now + 1, held | kept, num_blocks, known));
            }
            if kept == 0 {
                break;
            }
            kept = (kept - 1) & others;
        }
        known.insert((now, cached), found + most);
        found + most
    }

    #[test]
    fn the_block_used_last_goes_first() {
        // At the fourth request 0 is needed in two, 1 in one: 0 goes, 1 is found.
        let trace = trace(&[&[0], &[1], &[0], &[2], &[1], &[0]]);
        assert_eq!(num_hits(&trace, 2), 2);
        assert_eq!(num_hits(&trace, 3), 3);
        assert_eq!(num_hits(&trace, 1), 0);
    }

    #[test]
    fn of_blocks_used_together_the_deepest_goes_first() {
        // One of the three must go for 9; whichever it is, the blocks after it are lost.
        let trace = trace(&[&[0, 1, 2], &[9], &[0, 1, 2]]);
        assert_eq!(num_hits(&trace, 3), 2);
        assert_eq!(num_hits(&trace, 4), 3);
    }

    #[test]
    fn prompts_longer_than_the_pool_find_nothing_and_evict_nothing() {
        let trace = trace(&[&[0, 1], &[0, 1, 2], &[0, 1]]);
        assert_eq!(num_hits(&trace, 2), 2);
    }

    #[test]
    fn no_choice_of_evictions_finds_more() {
        for seed in 0..400 {
            // Ids of a tree of depth 4 are below 32.
            let trace = random_trace(seed, 9, 4);
            for num_blocks in 1..8 {
                let prompts: Vec<&Prompt> = trace.fitting(num_blocks).collect();
                let best = best(&prompts, 0, 0, num_blocks, &mut BTreeMap::new());
                assert_eq!(
                    num_hits(&trace, num_blocks),
                    best,
                    "seed {seed}, {num_blocks} blocks"
                );
            }
        }
    }
}
