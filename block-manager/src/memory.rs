//! One tier: its blocks, and what is found among them.

use crate::{
    BlockId, Config,
    index::{Identity, PrefixIndex},
    pool::Pool,
};

/// The blocks of one tier and, with prefix caching, where each contents is found among them.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) pool: Pool,
    /// `None` without prefix caching.
    pub(crate) index: Option<PrefixIndex>,
    pub(crate) num_evictions: u64,
}

impl Memory {
    pub(crate) fn new(num_blocks: usize, config: &Config) -> Self {
        let index = || PrefixIndex::new(config.hash_seed, config.block_size, num_blocks);
        Self {
            pool: Pool::new(num_blocks, config.eviction.most_protected(num_blocks)),
            index: config.prefix_caching.then(index),
            num_evictions: 0,
        }
    }

    /// The block published here as `identity`.
    pub(crate) fn find_identity(&self, identity: Identity) -> Option<BlockId> {
        self.index.as_ref()?.find_identity(&self.pool, identity)
    }

    /// What `block` is known by, if it is published.
    pub(crate) fn identity(&self, block: BlockId) -> Option<Identity> {
        let entry = self.pool.get(block);
        entry.is_published().then(|| entry.identity())
    }

    /// Takes a published block out of the index.
    pub(crate) fn unpublish(&mut self, block: BlockId) {
        let index = self.index.as_mut().expect("published blocks are indexed");
        index.remove(&mut self.pool, block);
    }
}
