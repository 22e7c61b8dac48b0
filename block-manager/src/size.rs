//! Positions split into blocks and places in them.

/// How many tokens a block holds.
///
/// Nearly always a power of two, and then a shift divides: a division instruction would cost
/// as much as the rest of an append.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSize {
    tokens: usize,
    /// `None` for sizes that are no power of two.
    shift: Option<u32>,
}

impl BlockSize {
    pub(crate) fn new(tokens: usize) -> Self {
        Self {
            tokens,
            shift: tokens.is_power_of_two().then(|| tokens.trailing_zeros()),
        }
    }

    #[inline]
    pub(crate) fn tokens(self) -> usize {
        self.tokens
    }

    /// The block that holds position `n`, and its place in there.
    #[inline]
    pub(crate) fn split(self, n: usize) -> (usize, usize) {
        match self.shift {
            Some(shift) => (n >> shift, n & (self.tokens - 1)),
            None => (n / self.tokens, n % self.tokens),
        }
    }

    /// Blocks that `n` tokens need.
    #[inline]
    pub(crate) fn blocks_for(self, n: usize) -> usize {
        let (full, rest) = self.split(n);
        full + usize::from(rest > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_and_divisions_agree() {
        for tokens in 1..40 {
            let size = BlockSize::new(tokens);
            for n in 0..200 {
                assert_eq!(size.split(n), (n / tokens, n % tokens));
                assert_eq!(size.blocks_for(n), n.div_ceil(tokens));
            }
        }
    }
}
