//! Names for things: tokens, blocks, tables, namespaces, steps.

use core::fmt;

/// A token id as the tokeniser gives it.
pub type TokenId = u32;

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// The cache that attention reads.
    Device,
    /// Slower, larger memory behind it, where blocks wait.
    Host,
}

/// A physical block of the device's cache: `0..num_blocks`, stable for the manager's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct BlockId(pub(crate) u32);

impl BlockId {
    /// The block's place in the cache; its slots are
    /// `index() * block_size .. (index() + 1) * block_size`.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<BlockId> for u32 {
    #[inline]
    fn from(block: BlockId) -> u32 {
        block.0
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A physical block of the host's pool: `0..num_host_blocks`, stable for the manager's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct HostBlockId(pub(crate) u32);

impl HostBlockId {
    /// The block's place in the host's pool.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<HostBlockId> for u32 {
    #[inline]
    fn from(block: HostBlockId) -> u32 {
        block.0
    }
}

impl fmt::Display for HostBlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}", self.0)
    }
}

/// A block table: the blocks of one sequence, in order.
///
/// Carries a generation that no other table of the same manager ever has, so an id used after
/// [`release`](crate::BlockManager::release) is caught. Valid only with the manager that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId {
    pub(crate) index: u32,
    pub(crate) generation: u64,
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.index, self.generation)
    }
}

/// Sequences of different namespaces never share cached blocks.
///
/// Whatever changes the keys and values besides the tokens (adapter, image hash), or whatever
/// must not be observable across users (tenant, cache salt), is hashed into this number by the
/// caller. Forks stay inside their parent's namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(pub u64);

/// A step of the engine, named by the caller; unique among the steps sealed and not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u64);
