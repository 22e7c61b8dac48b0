//! How much of the blocks a workload holds carries no token.

use std::collections::VecDeque;

use anyhow::Context;
use pageloom_block_manager::{BlockManager, Config, Namespace, TableId};

use super::lengths::Request;

/// Slots at work, summed over steps.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    /// Slots of all blocks that some sequence holds.
    pub(crate) held: f64,
    /// Those that hold a token.
    pub(crate) used: f64,
}

impl Usage {
    /// Internal fragmentation: share of held memory without a token, in percent.
    pub(crate) fn waste_percent(&self) -> f64 {
        100.0 * (1.0 - self.used / self.held)
    }

    /// Share of the memory that reserving `max_len` tokens for each sequence would waste.
    pub(crate) fn wasted_by_reserving(&self, max_len: usize, sequence_steps: f64) -> f64 {
        100.0 * (1.0 - self.used / (sequence_steps * max_len as f64))
    }
}

/// Plays requests through the block manager, `concurrency` at a time: the prompt in one step, then
/// a token each step. Counts what every step holds; also returns the number of sequence-steps.
pub(crate) fn play(
    requests: &[Request],
    block_size: usize,
    concurrency: usize,
) -> anyhow::Result<(Usage, f64)> {
    let longest = requests.iter().map(|r| r.prompt + r.output).max();
    let longest = longest.context("no requests")?;
    let mut blocks = BlockManager::new(Config {
        block_size,
        num_blocks: longest.div_ceil(block_size) * concurrency,
        prefix_caching: false,
        ..Config::default()
    })?;
    let tokens = vec![0; longest];
    let mut waiting: VecDeque<&Request> = requests.iter().collect();
    let mut running: Vec<(TableId, usize)> = Vec::new();
    let (mut usage, mut sequence_steps) = (Usage::default(), 0.0);
    loop {
        for (table, left) in &mut running {
            blocks.reserve(*table, 1)?;
            blocks.commit(*table, &tokens[..1]);
            *left -= 1;
        }
        while running.len() < concurrency
            && let Some(request) = waiting.pop_front()
        {
            let prompt = &tokens[..request.prompt];
            let (table, _) = blocks.open(prompt, Namespace(0));
            blocks.reserve(table, prompt.len())?;
            blocks.commit(table, prompt);
            running.push((table, request.output));
        }
        if running.is_empty() {
            return Ok((usage, sequence_steps));
        }
        let num_tokens: usize = running.iter().map(|&(t, _)| blocks.num_tokens(t)).sum();
        usage.used += num_tokens as f64;
        usage.held += (blocks.stats().device.num_referenced * block_size) as f64;
        sequence_steps += running.len() as f64;
        running.retain(|&(table, left)| {
            if left == 0 {
                blocks.release(table);
            }
            left > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waste_is_the_empty_end_of_last_blocks() {
        let request = Request {
            prompt: 3,
            output: 2,
        };
        // Steps hold 3, 4, 5 tokens in 1, 1, 2 blocks of 4.
        let (usage, sequence_steps) = play(&[request; 6], 4, 2).unwrap();
        let expected = Usage {
            held: 6.0 * 16.0,
            used: 6.0 * 12.0,
        };
        assert_eq!((usage, sequence_steps), (expected, 18.0));
        assert_eq!(usage.waste_percent(), 25.0);
        let (usage, _) = play(&[request; 6], 1, 2).unwrap();
        assert_eq!(usage.waste_percent(), 0.0);
    }
}
