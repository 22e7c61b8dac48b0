//! What a manager is made from.

use core::fmt;

use crate::Tier;

/// Sizes of the two tiers, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Tokens a block holds. Any size from 1; 16 by default, as in the paper.
    pub block_size: usize,
    /// Blocks on the device, from 1 to `u32::MAX - 1`.
    pub num_blocks: usize,
    /// Blocks on the host, at most `u32::MAX - 1`. With 0, the default, nothing can be swapped
    /// out and what the device evicts is lost.
    pub num_host_blocks: usize,
    /// Keep full blocks findable by their contents. Without it nothing is published and no
    /// token is stored; forks still share blocks.
    pub prefix_caching: bool,
    /// Seed of the prefix index's hash. A server draws it at random at start-up, so that no
    /// client can craft prompts that collide; a simulation fixes it. Collisions only cost time:
    /// a hit always compares the tokens.
    pub hash_seed: u64,
    /// Which cached block makes way when no free one is left.
    pub eviction: Eviction,
    /// Note each change of what is findable, for
    /// [`drain_events`](crate::BlockManager::drain_events), which must then be called now and
    /// again: what is not read is kept.
    pub events: bool,
}

/// Which cached block makes way when no free one is left: always one that was released before
/// the blocks it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Eviction {
    /// The one released longest ago.
    Lru,
    /// The one released longest ago among those that no prompt found again since they were
    /// stored; an eighth of the tier at most, those found again most recently, is spared until
    /// nothing else is left.
    ///
    /// One-time prompts then cannot wash out what is shared, and a workload without sharing
    /// loses at most what a pool smaller by an eighth would.
    #[default]
    SegmentedLru,
}

impl Eviction {
    /// Blocks of `num_blocks` that may be spared.
    pub(crate) fn most_protected(self, num_blocks: usize) -> usize {
        match self {
            Self::Lru => 0,
            Self::SegmentedLru => num_blocks / 8,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 1024,
            num_host_blocks: 0,
            prefix_caching: true,
            hash_seed: 0,
            eviction: Eviction::default(),
            events: false,
        }
    }
}

impl Config {
    /// Checks that a manager can be made from these values.
    ///
    /// # Errors
    /// [`ConfigError`] names the field and its value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.block_size == 0 {
            return Err(ConfigError::BlockSize);
        }
        // The last two ids are the list's sentinel and "not linked".
        const MOST: usize = u32::MAX as usize - 1;
        if self.num_blocks == 0 || self.num_blocks > MOST {
            return Err(ConfigError::NumBlocks {
                num_blocks: self.num_blocks,
            });
        }
        if self.num_host_blocks > MOST {
            return Err(ConfigError::NumHostBlocks {
                num_host_blocks: self.num_host_blocks,
            });
        }
        for num_blocks in [self.num_blocks, self.num_host_blocks] {
            let token_bytes = num_blocks
                .checked_mul(self.block_size)
                .and_then(|slots| slots.checked_mul(size_of::<crate::TokenId>()));
            if token_bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
                return Err(ConfigError::TooManySlots {
                    block_size: self.block_size,
                    num_blocks,
                });
            }
        }
        Ok(())
    }
}

/// Why a [`Config`] was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// `block_size` is 0.
    BlockSize,
    /// `num_blocks` is 0 or does not fit a block id.
    NumBlocks {
        /// The value given.
        num_blocks: usize,
    },
    /// `num_host_blocks` does not fit a block id.
    NumHostBlocks {
        /// The value given.
        num_host_blocks: usize,
    },
    /// `block_size` times either number of blocks is more tokens than fit the address space.
    TooManySlots {
        /// Tokens a block.
        block_size: usize,
        /// Blocks in the tier.
        num_blocks: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockSize => write!(f, "block_size is 0; a block holds at least one token"),
            Self::NumBlocks { num_blocks } => write!(
                f,
                "num_blocks is {num_blocks}; it must be between 1 and {}",
                u32::MAX - 1
            ),
            Self::NumHostBlocks { num_host_blocks } => write!(
                f,
                "num_host_blocks is {num_host_blocks}; it must be at most {}",
                u32::MAX - 1
            ),
            Self::TooManySlots {
                block_size,
                num_blocks,
            } => write!(
                f,
                "{num_blocks} blocks of {block_size} tokens do not fit the address space"
            ),
        }
    }
}

impl core::error::Error for ConfigError {}

/// A tier cannot give the blocks asked for. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks {
    /// The tier that is full.
    pub tier: Tier,
    /// Blocks the call needed there, the copy of a shared tail included.
    pub needed: usize,
    /// Blocks it could have had: free and cached ones, less those it was told to leave.
    pub available: usize,
}

impl fmt::Display for OutOfBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "out of {} blocks: {} needed, {} available",
            match self.tier {
                Tier::Device => "device",
                Tier::Host => "host",
            },
            self.needed,
            self.available
        )
    }
}

impl core::error::Error for OutOfBlocks {}
