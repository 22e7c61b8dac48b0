//! The prefix index's hash.

use crate::TokenId;

/// A block's hash as wide as the table wants it.
#[inline]
pub(crate) fn spread(hash: u32) -> u64 {
    // The table reads the low and the top seven bits; an odd factor keeps the one a bijection
    // and makes the other depend on all.
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// A seeded hash by folded multiplication, the construction of wyhash and foldhash: the high
/// half of a 64 by 64 bit product xored onto the low one mixes 16 bytes in one multiplication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher {
    keys: [u64; 4],
}

impl Hasher {
    pub(crate) fn new(seed: u64) -> Self {
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
    pub(crate) fn block(&self, state: u64, tokens: &[TokenId]) -> u32 {
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
    use alloc::{vec, vec::Vec};

    use super::*;

    #[test]
    fn hashes_have_these_values() {
        // From an implementation of the module's construction in another language.
        let cases: [(u64, u64, &[TokenId], u32); 3] = [
            (1, 9, &[1, 2, 3, 4, 5, 6, 7], 0x4170_6bd1),
            (0, 0, &[49152, 17, 0, 2147483648], 0x7298_24d3),
            (7, 1099511627776, &[3], 0x8cdc_8913),
        ];
        for (seed, state, tokens, hash) in cases {
            assert_eq!(Hasher::new(seed).block(state, tokens), hash);
        }
    }

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
}
