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

use crate::{BlockId, Namespace, TokenId, pool::Pool};

/// Where a chain of blocks stands: after its root or after a published block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    hash_state: u64,
    parent: u64,
    depth: u32,
}

impl Chain {
    /// Before the first block of a sequence.
    pub(crate) fn root(namespace: Namespace) -> Self {
        Self {
            hash_state: namespace.0,
            parent: namespace.0,
            depth: 0,
        }
    }

    /// After the published `block`.
    #[inline]
    pub(crate) fn after(pool: &Pool, block: BlockId) -> Self {
        let entry = pool.get(block);
        debug_assert!(entry.is_published());
        Self {
            hash_state: u64::from(entry.hash),
            parent: entry.serial,
            depth: entry.depth + 1,
        }
    }
}

/// The index, and the tokens of every block that has any.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    hasher: Hasher,
    block_size: usize,
    next_serial: u64,
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
            next_serial: 1,
            // Twice the need: below half its capacity hashbrown clears deletion marks in place
            // and never allocates again.
            found_by: HashTable::with_capacity(2 * num_blocks),
            tokens: vec![0; num_blocks * block_size],
        }
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

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

    /// The published block that holds `tokens` (a whole block of them) after `chain`, which
    /// then stands after that block.
    #[inline]
    pub(crate) fn follow(
        &self,
        pool: &Pool,
        chain: &mut Chain,
        tokens: &[TokenId],
    ) -> Option<BlockId> {
        let hash = self.hasher.block(chain.hash_state, tokens);
        let block = self.find_hashed(pool, *chain, hash, tokens)?;
        *chain = Chain {
            // The hash just computed, not the block's: the next need not wait for the look-up.
            hash_state: u64::from(hash),
            parent: pool.get(block).serial,
            depth: chain.depth + 1,
        };
        Some(block)
    }

    #[inline]
    fn find_hashed(
        &self,
        pool: &Pool,
        chain: Chain,
        hash: u32,
        tokens: &[TokenId],
    ) -> Option<BlockId> {
        let same = |&candidate: &BlockId| {
            let entry = pool.get(candidate);
            entry.hash == hash
                && entry.parent == chain.parent
                && entry.depth == chain.depth
                && self.tokens(candidate) == tokens
        };
        self.found_by.find(spread(hash), same).copied()
    }

    /// The block found by the contents of the published `block`.
    pub(crate) fn find_again(&self, pool: &Pool, block: BlockId) -> Option<BlockId> {
        let entry = pool.get(block);
        let chain = Chain {
            hash_state: 0,
            parent: entry.parent,
            depth: entry.depth,
        };
        self.find_hashed(pool, chain, entry.hash, self.tokens(block))
    }

    /// Publishes the full `block` after `chain`, or names the block already published with the
    /// same contents.
    pub(crate) fn publish(
        &mut self,
        pool: &mut Pool,
        chain: Chain,
        block: BlockId,
    ) -> Option<BlockId> {
        let hash = self.hasher.block(chain.hash_state, self.tokens(block));
        let canonical = self.find_hashed(pool, chain, hash, self.tokens(block));
        if canonical.is_some() {
            return canonical;
        }
        let entry = pool.get_mut(block);
        entry.serial = self.next_serial;
        entry.parent = chain.parent;
        entry.depth = chain.depth;
        entry.hash = hash;
        self.next_serial += 1;
        self.found_by
            .insert_unique(spread(hash), block, |&other| spread(pool.get(other).hash));
        None
    }

    /// Takes the published `block` out of the index.
    #[inline]
    pub(crate) fn unpublish(&mut self, pool: &mut Pool, block: BlockId) {
        let hash = spread(pool.get(block).hash);
        match self.found_by.find_entry(hash, |&other| other == block) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => panic!("published block {block} is not in the prefix index"),
        }
        pool.get_mut(block).serial = 0;
    }
}

/// A block's hash as wide as the table wants it.
#[inline]
fn spread(hash: u32) -> u64 {
    // The table reads the low and the top seven bits; an odd factor keeps the one a bijection
    // and makes the other depend on all.
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// A seeded hash by folded multiplication, the construction of wyhash and foldhash: the high
/// half of a 64 by 64 bit product xored onto the low one mixes 16 bytes in one multiplication.
#[derive(Clone, Copy, Debug)]
struct Hasher {
    keys: [u64; 4],
}

impl Hasher {
    fn new(seed: u64) -> Self {
        // splitmix64 (Steele et al. 2014): distinct, well mixed keys from one seed.
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Self {
            keys: [next(), next(), next(), next()],
        }
    }

    #[inline]
    fn block(&self, state: u64, tokens: &[TokenId]) -> u32 {
        let [a, b, c, d] = self.keys;
        // What the tokens mix to does not depend on `state`, so that a processor hashes several
        // blocks of a prompt at once; only the last multiplication chains them.
        let mut acc = b;
        let mut quads = tokens.chunks_exact(4);
        for quad in &mut quads {
            acc = fold(word(quad[0], quad[1]) ^ a, word(quad[2], quad[3]) ^ acc);
        }
        // Every block of a manager has the same length, so the rest needs no length in it.
        for &token in quads.remainder() {
            acc = fold(u64::from(token) ^ a, acc ^ d);
        }
        let hash = fold(state ^ c, acc);
        (hash ^ hash >> 32) as u32
    }
}

#[inline]
fn word(low: TokenId, high: TokenId) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_differ_by_seed_state_and_every_token() {
        for len in 1..=33u32 {
            let tokens: Vec<TokenId> = (0..len).collect();
            let base = Hasher::new(1).block(9, &tokens);
            assert_eq!(base, Hasher::new(1).block(9, &tokens));
            assert_ne!(base, Hasher::new(2).block(9, &tokens), "{len} tokens");
            assert_ne!(base, Hasher::new(1).block(8, &tokens), "{len} tokens");
            for i in 0..tokens.len() {
                let mut other = tokens.clone();
                other[i] ^= 1;
                let other = Hasher::new(1).block(9, &other);
                assert_ne!(base, other, "token {i} of {len}");
            }
        }
    }

    #[test]
    fn sequential_blocks_spread_over_the_table() {
        // As many balls as bins leave about 1/e of the bins empty. Miri takes minutes for more.
        let bins = if cfg!(miri) { 1 << 10 } else { 1 << 16 };
        let hasher = Hasher::new(7);
        let mut hit = vec![false; bins];
        for i in 0..bins {
            hit[spread(hasher.block(0, &[i as u32, 0, 0, 0])) as usize % bins] = true;
        }
        let empty = hit.iter().filter(|&&h| !h).count() as f64 / bins as f64;
        assert!((0.33..0.40).contains(&empty), "{empty}");
    }

    #[test]
    fn a_colliding_hash_does_not_make_a_hit() {
        let mut pool = Pool::new(2);
        let mut index = PrefixIndex::new(0, 2, 2);
        let root = Chain::root(Namespace(0));
        index.write(BlockId(0), 0, &[1, 2]);
        index.publish(&mut pool, root, BlockId(0));
        let hash = pool.get(BlockId(0)).hash;
        assert_eq!(
            index.find_hashed(&pool, root, hash, &[1, 2]),
            Some(BlockId(0))
        );
        assert_eq!(index.find_hashed(&pool, root, hash, &[1, 3]), None);
        let other = Chain::root(Namespace(1));
        assert_eq!(index.find_hashed(&pool, other, hash, &[1, 2]), None);
        let child = Chain::after(&pool, BlockId(0));
        assert_eq!(index.find_hashed(&pool, child, hash, &[1, 2]), None);
        // A namespace with the number of the parent's serial is not that parent.
        index.write(BlockId(1), 0, &[1, 2]);
        index.publish(&mut pool, child, BlockId(1));
        let hash = pool.get(BlockId(1)).hash;
        let found = |chain| index.find_hashed(&pool, chain, hash, &[1, 2]);
        assert_eq!(found(child), Some(BlockId(1)));
        assert_eq!(found(Chain::root(Namespace(child.parent))), None);
    }
}
