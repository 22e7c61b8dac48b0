//! A trace through the block manager.

use anyhow::Context;
use pageloom_block_manager::{BlockManager, BlockOps, Config, Namespace, StepId, TokenId};

use super::trace::Trace;

/// Follows every prompt, so that its last block may be found: a manager leaves one token to
/// compute. It belongs to the step after the prompt's, so no block is reserved for it.
const LAST: TokenId = TokenId::MAX;

/// Prompt blocks found by a manager made from `config`, when requests run one after another, each in
/// a step of its own. Those that do not fit the pool are left out.
///
/// Each id of the trace becomes one block, filled with the id. The manager compares blocks as a
/// whole and knows them by place and contents only, so what it finds and evicts does not depend on
/// how many tokens a block holds: blocks of 1 decide as the trace's blocks of 512 do, in a five
/// hundredth of the memory.
pub(crate) fn num_hits(trace: &Trace, config: Config) -> anyhow::Result<usize> {
    let (block_size, num_blocks) = (config.block_size, config.num_blocks);
    let mut blocks = BlockManager::new(config)?;
    let mut tokens: Vec<TokenId> = Vec::new();
    let mut ops = BlockOps::default();
    let mut num_found = 0;
    for (step, prompt) in (0..).map(StepId).zip(trace.fitting(num_blocks)) {
        tokens.clear();
        for &id in prompt {
            tokens.extend(std::iter::repeat_n(id, block_size));
        }
        tokens.push(LAST);
        let (table, num_cached) = blocks.open(&tokens, Namespace(0));
        let computed = &tokens[num_cached..tokens.len() - 1];
        blocks
            .reserve(table, computed.len())
            .with_context(|| format!("a prompt of {} blocks", prompt.len()))?;
        blocks.seal_into(step, &mut ops);
        blocks.complete(step);
        blocks.commit(table, computed);
        blocks.release(table);
        num_found += num_cached / block_size;
    }
    Ok(num_found)
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::random_trace;
    use super::super::{belady, policies};
    use super::*;

    fn config(block_size: usize, num_blocks: usize) -> Config {
        Config {
            block_size,
            num_blocks,
            ..policies()[0].config.clone()
        }
    }

    /// Least recently used, naively: ids in the order they were released, deepest of a prompt
    /// first.
    fn lru(trace: &Trace, num_blocks: usize) -> usize {
        let mut released: Vec<u32> = Vec::new();
        let mut num_found = 0;
        for prompt in trace.fitting(num_blocks) {
            let is_cached = |id: &&u32| released.contains(id);
            num_found += prompt.iter().take_while(is_cached).count();
            released.retain(|id| !prompt.contains(id));
            let excess = (released.len() + prompt.len()).saturating_sub(num_blocks);
            released.drain(..excess);
            released.extend(prompt.iter().rev());
        }
        num_found
    }

    #[test]
    fn the_first_policy_is_least_recently_used() {
        assert_eq!(policies()[0].name, "LRU");
        for seed in 0..50 {
            let trace = random_trace(seed, 60, 8);
            for num_blocks in [1, 3, 8, 20, 50] {
                let hits = num_hits(&trace, config(1, num_blocks)).unwrap();
                assert_eq!(
                    hits,
                    lru(&trace, num_blocks),
                    "seed {seed}, {num_blocks} blocks"
                );
            }
        }
    }

    #[test]
    fn no_policy_finds_more_than_belady() {
        for policy in policies() {
            for seed in 0..50 {
                let trace = random_trace(seed, 60, 8);
                for num_blocks in [1, 3, 8, 20, 50] {
                    let config = Config {
                        block_size: 1,
                        num_blocks,
                        ..policy.config.clone()
                    };
                    let hits = num_hits(&trace, config).unwrap();
                    assert!(
                        hits <= belady::num_hits(&trace, num_blocks),
                        "{}, seed {seed}, {num_blocks} blocks",
                        policy.name
                    );
                }
            }
        }
    }
}
