//! What is kept in the cache for good.

use pageloom_block_manager::{Namespace, TokenId};

use crate::Scheduler;

impl Scheduler {
    /// Keeps in the cache for good what it has of the beginning of `tokens`, in whole blocks.
    /// Returns how many tokens that is.
    ///
    /// # Panics
    /// If more than [`Config::num_resident_blocks`](crate::Config::num_resident_blocks) would be held.
    pub fn hold(&mut self, tokens: &[TokenId], namespace: Namespace) -> usize {
        // A look-up leaves the last token to be computed.
        let mut known = tokens.to_vec();
        known.push(0);
        let (table, num_tokens) = self.blocks.open(&known, namespace);
        let (tables, blocks) = &mut self.held;
        tables.push(table);
        blocks.extend_from_slice(self.blocks.blocks(table));
        blocks.sort_unstable();
        blocks.dedup();
        let most = self.config.num_resident_blocks;
        assert!(
            blocks.len() <= most,
            "{} blocks are held, and {most} were set aside",
            blocks.len()
        );
        num_tokens
    }

    /// Blocks that [`hold`](Self::hold) keeps.
    #[must_use]
    pub fn num_held_blocks(&self) -> usize {
        self.held.1.len()
    }
}
