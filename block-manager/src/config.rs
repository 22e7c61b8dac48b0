//! What a manager is made from.

use core::fmt;

/// Size and policy of the pool of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Tokens a block holds. Any size from 1; 16 by default, as in the paper.
    pub block_size: usize,
    /// Blocks in the pool, at most `u32::MAX - 1`.
    pub num_blocks: usize,
    /// Keep full blocks findable by their contents. Without it nothing is published and no
    /// token is stored; forks still share blocks.
    pub prefix_caching: bool,
    /// Seed of the prefix index's hash. A server draws it at random at start-up, so that no
    /// client can craft prompts that collide; a simulation fixes it. Collisions only cost time:
    /// a hit always compares the tokens.
    pub hash_seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 1024,
            prefix_caching: true,
            hash_seed: 0,
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
        if self.num_blocks == 0 || self.num_blocks > u32::MAX as usize - 1 {
            return Err(ConfigError::NumBlocks {
                num_blocks: self.num_blocks,
            });
        }
        let token_bytes = self
            .num_blocks
            .checked_mul(self.block_size)
            .and_then(|slots| slots.checked_mul(size_of::<crate::TokenId>()));
        if token_bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(ConfigError::TooManySlots {
                block_size: self.block_size,
                num_blocks: self.num_blocks,
            });
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
    /// `block_size * num_blocks` tokens do not fit the address space.
    TooManySlots {
        /// Tokens a block.
        block_size: usize,
        /// Blocks in the pool.
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

/// The pool cannot give the blocks asked for. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks {
    /// Blocks the call needed, the copy of a shared tail included.
    pub needed: usize,
    /// Blocks it could have had: free and cached ones.
    pub available: usize,
}

impl fmt::Display for OutOfBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "out of blocks: {} needed, {} available",
            self.needed, self.available
        )
    }
}

impl core::error::Error for OutOfBlocks {}
