//! Finding published blocks by what they hold.
//!
//! A block's keys and values depend on every token before it, so it is found by the block before
//! it and its own tokens. The block before it is named by its *serial*, a number that each
//! publication gets once and no other ever gets. Block ids are reused; if they named the parent,
//! a child that outlives it would be found under whatever the id holds next. Serials make that
//! impossible whatever the order of eviction: no block ever published later has that serial.
//!
//! The hash chains over the parents' hashes, not their serials, so hashing one block does not
//! wait for finding the one before it.

use alloc::{vec, vec::Vec};

use hashbrown::HashTable;

use crate::{
    BlockId, Namespace, TokenId,
    hash::{Hasher, spread},
    pool::Pool,
};

/// Where a chain of blocks stands: after its root or after a published block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    hash_state: u64,
    parent: u64,
    is_root: bool,
}

impl Chain {
    /// Before the first block of a sequence.
    pub(crate) fn root(namespace: Namespace) -> Self {
        Self {
            hash_state: namespace.0,
            parent: namespace.0,
            is_root: true,
        }
    }

    /// After a published block.
    #[inline]
    pub(crate) fn after(identity: Identity) -> Self {
        Self::following(identity.serial, identity.hash)
    }

    /// After the contents known as `serial`, with this hash.
    #[inline]
    pub(crate) fn following(serial: u64, hash: u32) -> Self {
        debug_assert!(serial != 0, "the block before is published");
        Self {
            hash_state: u64::from(hash),
            parent: serial,
            is_root: false,
        }
    }
}

/// What a published block is known by: the same in both tiers, and of no other contents ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Unique over the manager's life for each contents published; never 0.
    pub(crate) serial: u64,
    /// Serial of the block before it, or the namespace if it is a sequence's first.
    pub(crate) parent: u64,
    /// Hash of everything up to its last token.
    pub(crate) hash: u32,
    /// Whether it is a sequence's first block.
    pub(crate) is_root: bool,
}

impl Identity {
    /// Contents with `hash`, known from now on as `serial`, after `chain`.
    pub(crate) fn new(serial: u64, chain: Chain, hash: u32) -> Self {
        Self {
            serial,
            parent: chain.parent,
            hash,
            is_root: chain.is_root,
        }
    }

    /// What stands before it; fit to find it, not to hash what follows.
    pub(crate) fn before(self) -> Chain {
        Chain {
            hash_state: 0,
            parent: self.parent,
            is_root: self.is_root,
        }
    }
}

/// The index of one tier, and the tokens of each of its blocks that has any.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    hasher: Hasher,
    block_size: usize,
    found_by: HashTable<BlockId>,
    /// `[num_blocks, block_size]`: the token each slot holds keys and values of. Tails keep
    /// theirs here too until they are full.
    tokens: Vec<TokenId>,
}

impl PrefixIndex {
    pub(crate) fn new(seed: u64, block_size: usize, num_blocks: usize) -> Self {
        Self {
            hasher: Hasher::new(seed),
            block_size,
            // Twice the need: below half its capacity hashbrown clears deletion marks in place
            // and never allocates again.
            found_by: HashTable::with_capacity(2 * num_blocks),
            tokens: vec![0; num_blocks * block_size],
        }
    }

    /// Blocks published.
    pub(crate) fn len(&self) -> usize {
        self.found_by.len()
    }

    /// The tokens stored for `block`; meaningful as far as its table has committed.
    #[inline]
    pub(crate) fn tokens(&self, block: BlockId) -> &[TokenId] {
        let start = block.index() * self.block_size;
        &self.tokens[start..start + self.block_size]
    }

    /// Stores the tokens of the slots of `block` from `offset` on.
    #[inline]
    pub(crate) fn write(&mut self, block: BlockId, offset: usize, tokens: &[TokenId]) {
        let start = block.index() * self.block_size + offset;
        match tokens {
            // Decoding writes one at a time; a call of memcpy costs 2 of its 13 ns.
            &[token] => self.tokens[start] = token,
            _ => self.tokens[start..start + tokens.len()].copy_from_slice(tokens),
        }
    }

    /// Gives `dst` the first `num_tokens` tokens of `src`.
    pub(crate) fn copy(&mut self, src: BlockId, dst: BlockId, num_tokens: usize) {
        let start = src.index() * self.block_size;
        let to = dst.index() * self.block_size;
        self.tokens.copy_within(start..start + num_tokens, to);
    }

    /// The hash of `tokens` (a whole block of them) after `chain`.
    #[inline]
    pub(crate) fn hash(&self, chain: Chain, tokens: &[TokenId]) -> u32 {
        self.hasher.block(chain.hash_state, tokens)
    }

    /// The published block that holds `tokens`, whose hash this is, after `chain`.
    #[inline]
    pub(crate) fn find(
        &self,
        pool: &Pool,
        chain: Chain,
        hash: u32,
        tokens: &[TokenId],
    ) -> Option<BlockId> {
        let same = |&candidate: &BlockId| {
            let identity = pool.get(candidate).identity();
            identity.hash == hash
                && identity.parent == chain.parent
                && identity.is_root == chain.is_root
                && self.tokens(candidate) == tokens
        };
        self.found_by.find(spread(hash), same).copied()
    }

    /// The block published as `identity`. Serials are unique, so no token need be compared.
    pub(crate) fn find_identity(&self, pool: &Pool, identity: Identity) -> Option<BlockId> {
        let same = |&candidate: &BlockId| pool.get(candidate).identity().serial == identity.serial;
        self.found_by.find(spread(identity.hash), same).copied()
    }

    /// The block found by the contents of the published `block`.
    pub(crate) fn find_again(&self, pool: &Pool, block: BlockId) -> Option<BlockId> {
        let identity = pool.get(block).identity();
        self.find(pool, identity.before(), identity.hash, self.tokens(block))
    }

    /// Publishes the full `block`, whose contents are not published yet, as `identity`.
    pub(crate) fn insert(&mut self, pool: &mut Pool, block: BlockId, identity: Identity) {
        pool.get_mut(block).set_identity(identity);
        self.found_by
            .insert_unique(spread(identity.hash), block, |&other| {
                spread(pool.get(other).identity().hash)
            });
    }

    /// Takes the published `block` out of the index.
    #[inline]
    pub(crate) fn remove(&mut self, pool: &mut Pool, block: BlockId) {
        let hash = spread(pool.get(block).identity().hash);
        match self.found_by.find_entry(hash, |&other| other == block) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => panic!("published block {block} is not in the prefix index"),
        }
        pool.get_mut(block).forget_identity();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colliding_hash_does_not_make_a_hit() {
        let mut pool = Pool::new(2, 0);
        let mut index = PrefixIndex::new(0, 2, 2);
        let root = Chain::root(Namespace(0));
        let hash = index.hash(root, &[1, 2]);
        let first = Identity::new(7, root, hash);
        index.write(BlockId(0), 0, &[1, 2]);
        index.insert(&mut pool, BlockId(0), first);
        assert_eq!(index.find(&pool, root, hash, &[1, 2]), Some(BlockId(0)));
        assert_eq!(index.find(&pool, root, hash, &[1, 3]), None);
        let other = Chain::root(Namespace(1));
        assert_eq!(index.find(&pool, other, hash, &[1, 2]), None);
        let child = Chain::after(first);
        assert_eq!(index.find(&pool, child, hash, &[1, 2]), None);

        // A namespace with the number of the parent's serial is not that parent.
        index.write(BlockId(1), 0, &[1, 2]);
        index.insert(&mut pool, BlockId(1), Identity::new(8, child, hash));
        let found = |chain| index.find(&pool, chain, hash, &[1, 2]);
        assert_eq!(found(child), Some(BlockId(1)));
        assert_eq!(found(Chain::root(Namespace(7))), None);

        // An identity is told from another with the same hash by its serial.
        let by = |serial| index.find_identity(&pool, Identity::new(serial, root, hash));
        assert_eq!(by(7), Some(BlockId(0)));
        assert_eq!(by(8), Some(BlockId(1)));
        assert_eq!(by(9), None);
    }
}
