//! Which block size suits a model and a workload: the choice that the paper leaves to its users.
//!
//! Two costs pull in opposite directions. Small blocks make attention slow: each has its place in the
//! table and its own run of memory. Large blocks waste memory: the last of every sequence is half empty,
//! so fewer sequences run at once. Both are told as a share of throughput where memory is what limits
//! it, and the size with the smallest sum is recommended.
//!
//! What this leaves out: the copies of shared blocks (a few per request), how many tokens of a cached
//! prefix are lost at a block's end (which favours small blocks as waste does), and swaps.

use pageloom_model_runner::KvDtype;

/// Attention's time by block size over that of 256 tokens, for sizes below a vector of 16 tokens, whose
/// other lanes are computed for nothing: measured in f32 on 2 cores with 16-lane vectors
/// (`cargo xtask bench block-size`; `benches/RESULTS.md`, block sizes).
const BELOW_A_VECTOR: [(usize, f64); 4] = [(1, 8.91), (2, 5.79), (4, 3.34), (8, 2.08)];
/// Going to another block costs attention as much as reading so many bytes of a head's keys: from the
/// same table, 1.10 at 16 tokens of 256 bytes and 1.07 at 32.
const BYTES_OF_A_BLOCK: f64 = 500.0;
/// Of a decode step with many sequences, attention's time: 43 % with 64 sequences at once
/// (`benches/RESULTS.md`, where the time goes).
const ATTENTION_SHARE: f64 = 0.43;
/// Sizes that are considered.
const BLOCK_SIZES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// What the choice of a block size depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockSizeInputs {
    /// Elements of a key-value head.
    pub head_dim: usize,
    /// Number format of keys and values.
    pub kv_dtype: KvDtype,
    /// Tokens of a prompt, on average.
    pub mean_prompt: f64,
    /// Tokens of an output, on average.
    pub mean_output: f64,
}

/// What a block size costs, as shares of throughput.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockSizeCost {
    /// Tokens a block.
    pub block_size: usize,
    /// Longer steps, by slower attention.
    pub attention: f64,
    /// Slots of the pool that hold no token.
    pub waste: f64,
}

impl BlockSizeCost {
    /// Both together.
    pub fn total(&self) -> f64 {
        self.attention + self.waste
    }
}

impl BlockSizeInputs {
    /// What each size of 1 to 256 tokens costs.
    pub fn costs(&self) -> impl Iterator<Item = BlockSizeCost> + '_ {
        BLOCK_SIZES
            .into_iter()
            .map(|block_size| self.cost(block_size))
    }

    /// The size that costs least; the smaller one if two do.
    ///
    /// Number of key-value heads and layers do not matter: they multiply the work and what a block
    /// adds to it alike.
    pub fn recommended(&self) -> usize {
        let least = self.costs().min_by(|a, b| a.total().total_cmp(&b.total()));
        least.map_or(BLOCK_SIZES[4], |cost| cost.block_size)
    }

    fn cost(&self, block_size: usize) -> BlockSizeCost {
        let below = BELOW_A_VECTOR.iter().find(|(size, _)| *size == block_size);
        let slower = match below {
            Some((_, times)) => times - 1.0,
            None => {
                let row_bytes = self.head_dim.max(1) * self.kv_dtype.bytes();
                BYTES_OF_A_BLOCK / (block_size * row_bytes) as f64
            }
        };
        // A moment of decoding is more likely one of a long output than of a short one. With outputs
        // spread as widely as their mean, as chats are, sequences are on average a whole mean output
        // long at that moment, not half of one.
        let held = (self.mean_prompt + self.mean_output).max(1.0);
        let empty = (block_size - 1) as f64 / 2.0;
        BlockSizeCost {
            block_size,
            attention: ATTENTION_SHARE * slower,
            waste: empty / (held + empty),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(mean_prompt: f64, mean_output: f64) -> BlockSizeInputs {
        BlockSizeInputs {
            head_dim: 64,
            kv_dtype: KvDtype::Bf16,
            mean_prompt,
            mean_output,
        }
    }

    #[test]
    fn waste_is_what_the_block_manager_was_measured_to_waste() {
        // 2,000 requests, means 158 and 320 tokens: benches/RESULTS.md, block sizes.
        for (block_size, percent) in [(16, 1.7), (64, 6.6), (128, 12.4), (256, 22.3)] {
            let waste = 100.0 * inputs(158.0, 320.0).cost(block_size).waste;
            assert!(
                (waste - percent).abs() < 0.1 * percent,
                "{block_size}: {waste}"
            );
        }
    }

    #[test]
    fn longer_sequences_and_shorter_rows_want_larger_blocks() {
        // The paper finds 16 to 128 best for ShareGPT, 16 to 32 for Alpaca (figure 18b).
        let (sharegpt, alpaca) = (inputs(161.31, 337.99), inputs(19.31, 58.45));
        assert!((16..=128).contains(&sharegpt.recommended()), "{sharegpt:?}");
        assert!((16..=32).contains(&alpaca.recommended()), "{alpaca:?}");
        let long = inputs(12_035.0, 343.0).recommended();
        assert!(long > sharegpt.recommended(), "{long}");
        let int8 = BlockSizeInputs {
            kv_dtype: KvDtype::Int8,
            ..sharegpt
        };
        let wide = BlockSizeInputs {
            head_dim: 256,
            kv_dtype: KvDtype::F32,
            ..sharegpt
        };
        assert!(int8.recommended() > wide.recommended());
    }

    #[test]
    fn nothing_known_of_a_workload_is_no_panic() {
        for mean in [0.0, f64::NAN, f64::INFINITY, -5.0] {
            assert!(BLOCK_SIZES.contains(&inputs(mean, mean).recommended()));
        }
    }
}
