//! How much memory the KV cache gets.

use crate::bytes::HumanBytes;

/// Share of the available memory that the KV cache takes unless told otherwise.
pub const DEFAULT_SHARE: f64 = 0.25;
/// Assumed available where the system does not say.
const UNKNOWN_AVAILABLE_BYTES: u64 = 4 << 30;

/// What the plan depends on.
#[derive(Debug, Clone)]
pub struct MemoryRequest {
    /// Memory free to take; `None` where the system does not say.
    pub available_bytes: Option<u64>,
    /// Bytes of keys and values in one block, all layers.
    pub bytes_per_block: u64,
    /// Tokens in one block.
    pub block_size: usize,
    /// Longest sequence the model can attend over.
    pub model_context: usize,
    /// `--max-model-len`.
    pub max_model_len: Option<usize>,
    /// `--max-num-seqs`.
    pub max_num_seqs: usize,
    /// Blocks that `--shared-prefix` keeps for good.
    pub num_resident_blocks: usize,
    /// `--kv-cache-memory-bytes`.
    pub kv_cache_bytes: Option<u64>,
    /// `--swap-space`, in bytes.
    pub swap_bytes: u64,
}

/// The KV cache's size and the context that fits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Bytes of the pool.
    pub kv_cache_bytes: u64,
    /// Blocks of the host tier.
    pub num_host_blocks: usize,
    /// Bytes of the host tier.
    pub swap_bytes: u64,
    /// Longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Requests of that length that fit at once.
    pub max_full_requests: usize,
    /// Whether `max_model_len` was lowered to fit the pool.
    pub shortened: bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// `--max-model-len` is past what the model was trained for.
    #[error("--max-model-len {asked}: this model's context is {model_context} tokens")]
    ContextTooLong {
        /// What was asked for.
        asked: usize,
        /// What the model has.
        model_context: usize,
    },
    /// The pool would take more than there is.
    #[error("--kv-cache-memory-bytes {asked} is more than the {available} bytes available")]
    NotAvailable {
        /// What was asked for.
        asked: u64,
        /// What there is.
        available: u64,
    },
    /// The host tier would take more than there is.
    #[error(
        "--swap-space of {} is more than the {} of memory available",
        HumanBytes(*.asked),
        HumanBytes(*.available)
    )]
    SwapNotAvailable {
        /// Bytes asked for.
        asked: u64,
        /// Bytes there are.
        available: u64,
    },
    /// Each of the two would fit alone.
    #[error(
        "--kv-cache-memory-bytes of {} and --swap-space of {} are together more than the {} of \
         memory available",
        HumanBytes(*.kv_cache),
        HumanBytes(*.swap),
        HumanBytes(*.available)
    )]
    SumNotAvailable {
        /// Bytes asked for the KV cache.
        kv_cache: u64,
        /// Bytes asked for the host tier.
        swap: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The host tier cannot hold a block.
    #[error(
        "--swap-space of {} is less than one block, which takes {}; 0 is none at all",
        HumanBytes(*.asked),
        HumanBytes(*.bytes_per_block)
    )]
    SwapTooSmall {
        /// Bytes asked for.
        asked: u64,
        /// Bytes of a block.
        bytes_per_block: u64,
    },
    /// The shared prefixes leave nothing of the pool.
    #[error(
        "--shared-prefix: {needed} blocks of the KV cache would be kept for good, and there are {got}: \
         raise --kv-cache-memory-bytes"
    )]
    SharedPrefix {
        /// Blocks of the prefixes.
        needed: usize,
        /// Blocks there are.
        got: u64,
    },
    /// The pool cannot hold a sequence of the wanted length.
    #[error(
        "{wanted} tokens of context need {needed} bytes of KV cache and {got} bytes are granted: \
         raise --kv-cache-memory-bytes or lower --max-model-len"
    )]
    TooSmall {
        /// Tokens of one sequence.
        wanted: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        got: u64,
    },
    /// A count is zero or too large to count with.
    #[error("{what} is out of range: {value}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

impl MemoryRequest {
    /// Sizes the pool and its host tier.
    ///
    /// Unless told a size: a quarter of the available memory that the host tier leaves, but no
    /// more than `max_num_seqs` sequences of full length can use. If not even one fits, the
    /// context is shortened, unless its length was asked for.
    ///
    /// # Errors
    /// [`PlanError`] if what was asked for does not fit.
    pub fn plan(&self) -> Result<MemoryPlan, PlanError> {
        let in_range = |what, value: u64| match value {
            0 => Err(PlanError::OutOfRange { what, value }),
            value => Ok(value),
        };
        let per_block = in_range("the size of a block", self.bytes_per_block)?;
        let block_size = in_range("--block-size", self.block_size as u64)?;
        let max_num_seqs = in_range("--max-num-seqs", self.max_num_seqs as u64)?;
        let asked_len = self.max_model_len.unwrap_or(self.model_context);
        let wanted_len = in_range("--max-model-len", asked_len as u64)?;
        if asked_len > self.model_context {
            return Err(PlanError::ContextTooLong {
                asked: asked_len,
                model_context: self.model_context,
            });
        }
        let resident = self.num_resident_blocks as u64;
        let blocks_per_request = wanted_len.div_ceil(block_size);
        let num_host_blocks = self.host_blocks()?;
        let available = match self.available_bytes {
            // What the host tier leaves.
            Some(available) => available - self.swap_bytes,
            None => UNKNOWN_AVAILABLE_BYTES,
        };
        let budget = match self.kv_cache_bytes {
            Some(asked) => {
                self.check_available(asked)?;
                asked
            }
            None => {
                let most = blocks_per_request
                    .saturating_mul(max_num_seqs)
                    .saturating_add(resident)
                    .saturating_mul(per_block);
                most.min((available as f64 * DEFAULT_SHARE) as u64)
            }
        };
        let num_blocks = (budget / per_block).min(most_blocks(block_size));
        if resident > 0 && resident >= num_blocks {
            return Err(PlanError::SharedPrefix {
                needed: self.num_resident_blocks,
                got: num_blocks,
            });
        }
        let num_shared_out = num_blocks - resident;
        let fits = num_shared_out * block_size;
        let shortened = fits < wanted_len;
        if shortened && (self.max_model_len.is_some() || fits == 0) {
            return Err(PlanError::TooSmall {
                wanted: asked_len,
                needed: blocks_per_request.saturating_mul(per_block),
                got: budget,
            });
        }
        let max_model_len = wanted_len.min(fits);
        Ok(MemoryPlan {
            num_blocks: num_blocks as usize,
            kv_cache_bytes: num_blocks * per_block,
            num_host_blocks: num_host_blocks as usize,
            swap_bytes: num_host_blocks * per_block,
            max_model_len: max_model_len as usize,
            max_full_requests: (num_shared_out / max_model_len.div_ceil(block_size)) as usize,
            shortened,
        })
    }

    /// Blocks of the host tier.
    fn host_blocks(&self) -> Result<u64, PlanError> {
        check_swap_space(self.swap_bytes, self.available_bytes)?;
        let num_blocks = self.swap_bytes / self.bytes_per_block;
        if num_blocks == 0 && self.swap_bytes > 0 {
            return Err(PlanError::SwapTooSmall {
                asked: self.swap_bytes,
                bytes_per_block: self.bytes_per_block,
            });
        }
        Ok(num_blocks.min(most_blocks(self.block_size as u64)))
    }

    /// Whether there is memory for a pool of this size beside the host tier.
    fn check_available(&self, kv_cache: u64) -> Result<(), PlanError> {
        let Some(available) = self.available_bytes else {
            return Ok(());
        };
        if kv_cache > available {
            let asked = kv_cache;
            return Err(PlanError::NotAvailable { asked, available });
        }
        let swap = self.swap_bytes;
        match kv_cache > available - swap {
            false => Ok(()),
            true => Err(PlanError::SumNotAvailable {
                kv_cache,
                swap,
                available,
            }),
        }
    }
}

/// Block ids are 32 bits wide, and so are slots.
fn most_blocks(block_size: u64) -> u64 {
    u64::from(u32::MAX) / block_size
}

/// Whether there is memory for a host tier of this size; asked before a model is loaded, and
/// again when its weights have taken theirs.
///
/// # Errors
/// [`PlanError::SwapNotAvailable`].
pub fn check_swap_space(asked: u64, available_bytes: Option<u64>) -> Result<(), PlanError> {
    match available_bytes.filter(|&available| asked > available) {
        Some(available) => Err(PlanError::SwapNotAvailable { asked, available }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> MemoryRequest {
        MemoryRequest {
            available_bytes: Some(8 << 30),
            bytes_per_block: 1 << 20,
            block_size: 16,
            num_resident_blocks: 0,
            model_context: 1000,
            max_model_len: None,
            max_num_seqs: 4,
            kv_cache_bytes: None,
            swap_bytes: 0,
        }
    }

    #[test]
    fn the_pool_is_no_larger_than_all_sequences_can_use() {
        let plan = request().plan().unwrap();
        // 1000 tokens take 63 blocks.
        assert_eq!((plan.num_blocks, plan.max_full_requests), (4 * 63, 4));
        assert_eq!((plan.max_model_len, plan.shortened), (1000, false));
    }

    #[test]
    fn the_pool_is_no_larger_than_a_quarter_of_what_is_free() {
        let small = MemoryRequest {
            available_bytes: Some(400 << 20),
            ..request()
        };
        let plan = small.plan().unwrap();
        assert_eq!((plan.num_blocks, plan.max_full_requests), (100, 1));
    }

    #[test]
    fn a_context_that_does_not_fit_is_shortened_unless_it_was_asked_for() {
        let small = MemoryRequest {
            available_bytes: Some(40 << 20),
            ..request()
        };
        let plan = small.plan().unwrap();
        assert_eq!(
            (plan.num_blocks, plan.max_model_len, plan.shortened),
            (10, 160, true)
        );
        assert_eq!(plan.max_full_requests, 1);
        let asked = MemoryRequest {
            max_model_len: Some(1000),
            ..small
        };
        assert!(matches!(
            asked.plan(),
            Err(PlanError::TooSmall { wanted: 1000, .. })
        ));
    }

    #[test]
    fn what_cannot_be_granted_is_an_error() {
        let greedy = MemoryRequest {
            kv_cache_bytes: Some(9 << 30),
            ..request()
        };
        assert!(matches!(greedy.plan(), Err(PlanError::NotAvailable { .. })));
        let long = MemoryRequest {
            max_model_len: Some(1001),
            ..request()
        };
        assert!(matches!(long.plan(), Err(PlanError::ContextTooLong { .. })));
        let none = MemoryRequest {
            kv_cache_bytes: Some(1),
            ..request()
        };
        assert!(matches!(none.plan(), Err(PlanError::TooSmall { .. })));
        let zero = MemoryRequest {
            block_size: 0,
            ..request()
        };
        assert!(matches!(zero.plan(), Err(PlanError::OutOfRange { .. })));
    }

    #[test]
    fn shared_prefixes_take_their_blocks_from_the_contexts() {
        let plain = request().plan().unwrap();
        let shared = MemoryRequest {
            num_resident_blocks: 10,
            ..request()
        };
        let plan = shared.plan().unwrap();
        assert_eq!(plan.num_blocks, plain.num_blocks + 10);
        assert_eq!(plan.max_full_requests, plain.max_full_requests);
        let small = MemoryRequest {
            kv_cache_bytes: Some(40 << 20),
            ..shared
        };
        let plan = small.plan().unwrap();
        assert_eq!((plan.num_blocks, plan.max_model_len), (40, 30 * 16));
        let full = MemoryRequest {
            num_resident_blocks: 40,
            ..small
        };
        assert_eq!(
            full.plan(),
            Err(PlanError::SharedPrefix {
                needed: 40,
                got: 40
            })
        );
    }

    #[test]
    fn swap_space_is_cut_into_blocks_of_the_same_size_and_leaves_the_rest_to_the_pool() {
        let plan = request().plan().unwrap();
        assert_eq!((plan.num_host_blocks, plan.swap_bytes), (0, 0));
        let swapping = MemoryRequest {
            available_bytes: Some(400 << 20),
            swap_bytes: (200 << 20) + 5,
            ..request()
        };
        let plan = swapping.plan().unwrap();
        assert_eq!((plan.num_host_blocks, plan.swap_bytes), (200, 200 << 20));
        assert_eq!(plan.num_blocks, 49, "a quarter of what is left");
        let unknown = MemoryRequest {
            available_bytes: None,
            swap_bytes: 8 << 30,
            ..swapping
        };
        let plan = unknown.plan().unwrap();
        assert_eq!((plan.num_host_blocks, plan.num_blocks), (8 << 10, 4 * 63));
    }

    #[test]
    fn swap_space_that_cannot_be_granted_is_an_error_that_names_it() {
        let greedy = MemoryRequest {
            swap_bytes: (8 << 30) + 1,
            ..request()
        };
        let error = greedy.plan().unwrap_err();
        assert!(matches!(error, PlanError::SwapNotAvailable { .. }));
        assert_eq!(
            error.to_string(),
            "--swap-space of 8.00 GiB is more than the 8.00 GiB of memory available"
        );
        let both = MemoryRequest {
            swap_bytes: 5 << 30,
            kv_cache_bytes: Some((3 << 30) + 1),
            ..request()
        };
        assert!(matches!(
            both.plan(),
            Err(PlanError::SumNotAvailable { .. })
        ));
        let fitting = MemoryRequest {
            kv_cache_bytes: Some(3 << 30),
            ..both
        };
        assert_eq!(fitting.plan().unwrap().num_blocks, 3 << 10);
        let small = MemoryRequest {
            swap_bytes: (1 << 20) - 1,
            ..request()
        };
        assert!(matches!(small.plan(), Err(PlanError::SwapTooSmall { .. })));
        check_swap_space(7, Some(7)).unwrap();
        check_swap_space(8, Some(7)).unwrap_err();
        check_swap_space(u64::MAX, None).unwrap();
    }
}
