//! What can be wrong with a call, with the values that were.

use thiserror::Error;

use crate::KvDtype;

/// Why an operation was refused. Nothing has been read or written when one is returned.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The head dimension has no kernel.
    #[error("head_dim {head_dim} is not supported: it must be a multiple of 8, from 8 to 256")]
    HeadDim {
        /// The head dimension asked for.
        head_dim: usize,
    },
    /// The block size is outside of what the kernels address.
    #[error("block_size {block_size} is not supported: it must be from 1 to 256")]
    BlockSize {
        /// The block size asked for, in tokens.
        block_size: usize,
    },
    /// A format of pages that the CPU back end does not have.
    #[error("{} pages exist on CUDA devices only", dtype.name())]
    KvDtype {
        /// The format.
        dtype: KvDtype,
    },
    /// A dimension that must not be zero is.
    #[error("{name} must not be zero")]
    Zero {
        /// The dimension.
        name: &'static str,
    },
    /// Slots are counted in 32 bits.
    #[error("{num_blocks} blocks of {block_size} tokens are more slots than 32 bits count")]
    TooManySlots {
        /// Blocks asked for.
        num_blocks: usize,
        /// Tokens a block.
        block_size: usize,
    },
    /// The cache's size does not fit in an address.
    #[error("the size of the cache overflows: {num_blocks} blocks over {num_layers} layers")]
    SizeOverflow {
        /// Blocks asked for.
        num_blocks: usize,
        /// Layers asked for.
        num_layers: usize,
    },
    /// The system has no room for the cache.
    #[error("no memory for a KV cache of {bytes} bytes: {reason}")]
    OutOfMemory {
        /// Size of the cache.
        bytes: usize,
        /// What the system said.
        reason: String,
    },
    /// A layer the cache does not have.
    #[error("layer {layer} is out of range: the cache has {num_layers}")]
    Layer {
        /// The layer asked for.
        layer: usize,
        /// Layers of the cache.
        num_layers: usize,
    },
    /// A slot the cache does not have.
    #[error("slot {slot} of token {token} is out of range: the cache has {num_slots}")]
    Slot {
        /// Row of the token in the call.
        token: usize,
        /// The slot asked for: `block * block_size + offset`.
        slot: u32,
        /// Slots of the cache.
        num_slots: usize,
    },
    /// A block the cache does not have.
    #[error("block {block} is out of range: the cache has {num_blocks}")]
    Block {
        /// The block asked for.
        block: u32,
        /// Blocks of the cache.
        num_blocks: usize,
    },
    /// A buffer is too short for the rows it should hold.
    #[error(
        "{name} is too short: {num_rows} rows of {width} at stride {stride} \
         do not fit in {len} elements"
    )]
    Rows {
        /// The argument.
        name: &'static str,
        /// Rows needed.
        num_rows: usize,
        /// Elements a row.
        width: usize,
        /// Elements from one row to the next.
        stride: usize,
        /// Elements given.
        len: usize,
    },
    /// A dense buffer has another length than its shape says.
    #[error("{name} has {found} elements, not {expected}")]
    Length {
        /// The argument.
        name: &'static str,
        /// Elements its shape asks for.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// Rows of an output overlap.
    #[error("rows of {name} overlap: stride {stride} is below their width {width}")]
    OverlappingRows {
        /// The argument.
        name: &'static str,
        /// Elements a row.
        width: usize,
        /// Elements from one row to the next.
        stride: usize,
    },
    /// Query heads cannot be grouped over the key-value heads.
    #[error("{num_heads} query heads do not divide into {num_kv_heads} key-value heads")]
    HeadGroups {
        /// Query heads.
        num_heads: usize,
        /// Key-value heads of the cache.
        num_kv_heads: usize,
    },
    /// An offsets array is not `0 <= .. <= total`, ascending, with one entry more than sequences.
    #[error("{name} is not an ascending list of {expected_len} offsets from 0 to {total}")]
    Offsets {
        /// The argument.
        name: &'static str,
        /// Entries it should have.
        expected_len: usize,
        /// What its last entry may be at most.
        total: usize,
    },
    /// A sequence has more query rows than visible keys.
    #[error(
        "sequence {sequence} has {num_queries} query rows but only {context_len} keys: \
         the keys of the rows themselves must be written and counted"
    )]
    ContextTooShort {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Its query rows.
        num_queries: usize,
        /// Its keys.
        context_len: usize,
    },
    /// A block table does not cover its sequence's context.
    #[error(
        "the block table of sequence {sequence} has {num_blocks} blocks of {block_size}, \
         too few for {context_len} keys"
    )]
    TableTooShort {
        /// Index of the sequence in the batch.
        sequence: usize,
        /// Blocks in its table.
        num_blocks: usize,
        /// Tokens a block.
        block_size: usize,
        /// Its keys.
        context_len: usize,
    },
    /// The score scale is unusable.
    #[error("the score scale {scale} is not a positive number")]
    Scale {
        /// The scale given.
        scale: f32,
    },
    /// A plan was run on a cache of another shape than it was made for.
    #[error("the plan was made for another cache layout, or none was made")]
    PlanMismatch,
    /// Two caches that blocks are swapped between do not hold the same kind of blocks.
    #[error("blocks cannot be swapped: {name} is {from} in the one cache and {to} in the other")]
    LayoutMismatch {
        /// The field of [`CacheLayout`](crate::CacheLayout) that differs.
        name: &'static str,
        /// Its value in the cache to read.
        from: String,
        /// Its value in the cache to write.
        to: String,
    },
    /// This machine cannot run the instruction set asked for.
    #[error("this machine has no {isa}")]
    IsaUnsupported {
        /// Name of the instruction set.
        isa: &'static str,
    },
    /// A CPU that the thread may not run on.
    #[error("CPU {cpu} is not one of those this process may run on: {allowed}")]
    Cpu {
        /// The CPU asked for, as the system counts them.
        cpu: usize,
        /// Those it may run on, as `0-3,6`.
        allowed: String,
    },
    /// The system does not let threads be pinned to CPUs.
    #[error("threads cannot be pinned to CPUs: {reason}")]
    Affinity {
        /// What the system said.
        reason: String,
    },
}

/// Refuses a dense buffer that is not as long as its shape says.
pub(crate) fn check_len(
    name: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), KernelError> {
    if expected == found {
        return Ok(());
    }
    Err(KernelError::Length {
        name,
        expected,
        found,
    })
}
