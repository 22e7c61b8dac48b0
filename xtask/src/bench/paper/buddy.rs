//! A buddy allocator, as the paper gives its Orca baselines one (section 6.1).

/// Hands out chunks of a power of two of blocks from a pool.
///
/// ```text
///  pool of 23 blocks, chunks of 8 at most:  [8][8][4][2][1]     carved greedily
///  allocate 3: a chunk of 4                 [8][8][4*][2][1]
///  allocate 1: the last chunk of 1, then the smallest larger one is split in half, and again
///  free: joined with its buddy, the chunk of the same size at `address XOR size`, if that is free
/// ```
#[derive(Debug)]
pub(crate) struct Buddy {
    /// Free chunks by the logarithm of their size; the one freed last is taken first.
    free: Vec<Vec<usize>>,
    num_blocks: usize,
}

/// What was allocated: `1 << order` blocks from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    first: usize,
    order: usize,
}

impl Buddy {
    /// A pool of `num_blocks`, carved into chunks of at most `largest`, which is a power of two.
    pub(crate) fn new(num_blocks: usize, largest: usize) -> Self {
        let largest = order_of(largest);
        let mut free = vec![Vec::new(); largest + 1];
        let mut first = 0;
        for order in (0..=largest).rev() {
            while num_blocks - first >= 1 << order {
                free[order].push(first);
                first += 1 << order;
            }
            // What is carved first is taken first.
            free[order].reverse();
        }
        Self { free, num_blocks }
    }

    /// The smallest chunk of at least `num_blocks`; `None` if there is none.
    pub(crate) fn allocate(&mut self, num_blocks: usize) -> Option<Chunk> {
        let order = order_of(num_blocks);
        let found = (order..self.free.len()).find(|&order| !self.free[order].is_empty())?;
        let first = self.free[found].pop()?;
        for half in (order..found).rev() {
            self.free[half].push(first + (1 << half));
        }
        Some(Chunk { first, order })
    }

    /// Takes a chunk back.
    pub(crate) fn release(&mut self, chunk: Chunk) {
        let Chunk {
            mut first,
            mut order,
        } = chunk;
        while order + 1 < self.free.len() {
            let buddy = first ^ (1 << order);
            let Some(place) = self.free[order].iter().position(|&other| other == buddy) else {
                break;
            };
            self.free[order].remove(place);
            first = first.min(buddy);
            order += 1;
        }
        debug_assert!(first + (1 << order) <= self.num_blocks);
        self.free[order].push(first);
    }
}

/// Logarithm of the smallest power of two that is at least this.
fn order_of(num_blocks: usize) -> usize {
    num_blocks.next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Chunk {
        fn num_blocks(self) -> usize {
            1 << self.order
        }
    }

    /// Free blocks, each once.
    fn free_blocks(buddy: &Buddy) -> Vec<usize> {
        let chunks = buddy.free.iter().enumerate();
        let mut blocks: Vec<usize> = chunks
            .flat_map(|(order, firsts)| firsts.iter().flat_map(move |&f| f..f + (1 << order)))
            .collect();
        blocks.sort_unstable();
        blocks
    }

    #[test]
    fn the_papers_pool_holds_seven_longest_requests() {
        let mut buddy = Buddy::new(15_728 / 16, 128);
        let chunks: Vec<Chunk> = core::iter::from_fn(|| buddy.allocate(128)).collect();
        assert_eq!(chunks.len(), 7);
        let rest = [64, 16, 4, 2, 1].map(|size| buddy.allocate(size).unwrap().num_blocks());
        assert_eq!(rest, [64, 16, 4, 2, 1]);
        assert_eq!(buddy.allocate(1), None);
    }

    proptest! {
        /// Chunks are disjoint, large enough and inside the pool; what is not theirs is free; and
        /// when all are back, the pool is carved as in the beginning.
        #[test]
        fn chunks_never_overlap_and_join_again(
            num_blocks in 1usize..300,
            largest in 0u32..8,
            steps in prop::collection::vec((any::<bool>(), 0usize..1000), 0..200),
        ) {
            let largest = 1 << largest;
            let mut buddy = Buddy::new(num_blocks, largest);
            let carved = sorted(&buddy);
            let mut held: Vec<Chunk> = Vec::new();
            for (takes, number) in steps {
                if takes {
                    let wanted = 1 + number % largest;
                    if let Some(chunk) = buddy.allocate(wanted) {
                        prop_assert!(chunk.num_blocks() >= wanted && chunk.num_blocks() < 2 * wanted);
                        held.push(chunk);
                    }
                } else if !held.is_empty() {
                    buddy.release(held.swap_remove(number % held.len()));
                }
                let mut all = free_blocks(&buddy);
                all.extend(held.iter().flat_map(|c| c.first..c.first + c.num_blocks()));
                all.sort_unstable();
                prop_assert_eq!(all, (0..num_blocks).collect::<Vec<_>>());
            }
            for chunk in held {
                buddy.release(chunk);
            }
            prop_assert_eq!(sorted(&buddy), carved);
        }
    }

    fn sorted(buddy: &Buddy) -> Vec<Vec<usize>> {
        let mut free = buddy.free.clone();
        free.iter_mut().for_each(|chunks| chunks.sort_unstable());
        free
    }
}
