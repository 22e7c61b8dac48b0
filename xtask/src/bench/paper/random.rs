//! The random numbers of the paper's artifact: those of numpy and of Python, bit for bit.

/// Words of the generator's state.
const N: usize = 624;
const M: usize = 397;

/// MT19937 (Matsumoto, Nishimura 1998), which numpy's `RandomState` and Python's `random` both are.
pub(crate) struct Mt19937 {
    state: [u32; N],
    next: usize,
}

impl Mt19937 {
    /// As `numpy.random.seed(seed)` with an integer.
    pub(crate) fn numpy(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let before = state[i - 1];
            state[i] = (before ^ (before >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// As Python's `random.seed(seed)` with an integer: its 32-bit digits, lowest first, are a key.
    pub(crate) fn python(seed: u64) -> Self {
        let digits = [seed as u32, (seed >> 32) as u32];
        let key = &digits[..1 + usize::from(digits[1] != 0)];
        let mut state = Self::numpy(19_650_218).state;
        let mixed = |before: u32, factor: u32| (before ^ (before >> 30)).wrapping_mul(factor);
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            state[i] = (state[i] ^ mixed(state[i - 1], 1_664_525))
                .wrapping_add(key[j])
                .wrapping_add(j as u32);
            i = wrap(&mut state, i);
            j = (j + 1) % key.len();
        }
        for _ in 0..N - 1 {
            state[i] = (state[i] ^ mixed(state[i - 1], 1_566_083_941)).wrapping_sub(i as u32);
            i = wrap(&mut state, i);
        }
        state[0] = 1 << 31;
        Self { state, next: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & (1 << 31)) | (self.state[(i + 1) % N] & !(1 << 31));
            let odd = (y & 1) * 0x9908_b0df;
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// Uniform in 0..1 with 53 bits, as `random_sample()` and `random.random()`.
    pub(crate) fn uniform(&mut self) -> f64 {
        let high = f64::from(self.next_u32() >> 5);
        let low = f64::from(self.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// As numpy's `poisson(mean)` for means below 10: by multiplying uniform numbers (Knuth).
    pub(crate) fn poisson(&mut self, mean: f64) -> usize {
        debug_assert!(mean < 10.0, "numpy draws larger ones in another way");
        if mean == 0.0 {
            return 0;
        }
        let least = (-mean).exp();
        let (mut product, mut count) = (1.0, 0);
        loop {
            product *= self.uniform();
            if product <= least {
                return count;
            }
            count += 1;
        }
    }

    /// As Python's `random.shuffle(items)`.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u32 + 1);
            items.swap(i, j as usize);
        }
    }

    /// As Python's `random.randrange(n)`: as many bits as `n` has, until they are below it.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        let unused = n.leading_zeros();
        loop {
            let drawn = self.next_u32() >> unused;
            if drawn < n {
                return drawn;
            }
        }
    }
}

/// The place after `i` of a state being seeded, whose first word is carried over at the end.
fn wrap(state: &mut [u32; N], i: usize) -> usize {
    if i + 1 < N {
        return i + 1;
    }
    state[0] = state[N - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values of this file were computed with numpy 2 and Python 3.

    #[test]
    fn numbers_are_numpys() {
        let mut random = Mt19937::numpy(0);
        let drawn = [(); 3].map(|()| random.uniform());
        assert_eq!(
            drawn,
            [0.5488135039273248, 0.7151893663724195, 0.6027633760716439]
        );
    }

    #[test]
    fn poisson_draws_are_numpys() {
        let mut random = Mt19937::numpy(7);
        let drawn: Vec<usize> = (0..60_000).map(|_| random.poisson(0.3)).collect();
        let first = [0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0];
        assert_eq!(drawn[..20], first);
        assert_eq!(drawn.iter().sum::<usize>(), 18_131);
        assert_eq!(Mt19937::numpy(0).poisson(0.0), 0);
    }

    #[test]
    fn shuffles_are_pythons() {
        let shuffled = |seed, len: u32| {
            let mut items: Vec<u32> = (0..len).collect();
            Mt19937::python(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(0, 10), [7, 8, 1, 5, 3, 4, 2, 0, 9, 6]);
        assert_eq!(shuffled(12_345_678_901, 10), [8, 7, 3, 1, 0, 4, 2, 6, 5, 9]);
        let long = shuffled(0, 1000);
        assert_eq!(long[..8], [439, 621, 160, 549, 237, 389, 658, 507]);
        assert_eq!(long[997..], [776, 394, 864]);
    }
}
