//! Copying blocks within a cache, and swapping them between caches.

use super::params::{CopyBlocksParams, SlabView};
use crate::cuda::elementwise::{THREADS, count, grid, kernel};
use crate::cuda::{Buffer, CudaError, Device, KvCache, Stream};
use crate::{CacheLayout, KernelError};

/// Bytes that a CTA copies at once: 4 times 16 for each of its threads.
const SEGMENT_BYTES: u32 = 4 * 16 * THREADS;

/// CTAs of a swap with host memory: 256 KiB in flight, twice what a bus of 64 GB/s carries in 2 us.
const SWAP_CTAS: u32 = 16;

/// Pairs of blocks `(from, to)` on the device: one step's copies, or one step's swaps one way.
///
/// Set once a step, outside of captured graphs; buffers are kept for the next.
#[derive(Debug)]
pub struct BlockPairs {
    pairs: Buffer<[u32; 2]>,
    host: Vec<[u32; 2]>,
    /// Room to sort in.
    scratch: Vec<u32>,
    /// One past the largest block read, and the largest written.
    ends: [usize; 2],
    /// A block that one pair writes and another reads: then one cache cannot be both ends.
    chained: Option<u32>,
}

impl BlockPairs {
    /// No pairs.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            pairs: device.alloc(0)?,
            host: Vec::new(),
            scratch: Vec::new(),
            ends: [0; 2],
            chained: None,
        })
    }

    /// Pairs it holds.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }

    /// Replaces its pairs. They may be carried out in any order, so no block may be written twice.
    ///
    /// # Errors
    /// [`CudaError::Argument`] for a block that two pairs write or for 2^31 pairs, after which it holds
    /// what it held; [`CudaError::OtherDevice`], [`CudaError::Capturing`] or [`CudaError::Driver`],
    /// after which it holds none.
    pub fn set(&mut self, stream: &Stream, pairs: &[(u32, u32)]) -> Result<(), CudaError> {
        count("pairs", pairs.len())?;
        let chained = find_chained(pairs, &mut self.scratch)?;
        self.host.clear();
        self.pairs.reserve(pairs.len())?;
        let end = |blocks: &mut dyn Iterator<Item = u32>| {
            blocks.max().map_or(0, |block| block as usize + 1)
        };
        self.ends = [
            end(&mut pairs.iter().map(|pair| pair.0)),
            end(&mut pairs.iter().map(|pair| pair.1)),
        ];
        self.chained = chained;
        self.host.extend(pairs.iter().map(|&(from, to)| [from, to]));
        let uploaded = self.pairs.upload(stream, &self.host);
        if uploaded.is_err() {
            self.host.clear();
        }
        uploaded
    }

    fn check(&self, end: usize, layout: &CacheLayout) -> Result<(), KernelError> {
        if self.ends[end] <= layout.num_blocks {
            return Ok(());
        }
        Err(KernelError::Block {
            // A block id plus one.
            block: (self.ends[end] - 1) as u32,
            num_blocks: layout.num_blocks,
        })
    }
}

/// A block that one pair writes and another reads, if there is one. `sorted` is overwritten.
fn find_chained(pairs: &[(u32, u32)], sorted: &mut Vec<u32>) -> Result<Option<u32>, CudaError> {
    sorted.clear();
    sorted.extend(pairs.iter().map(|&(_, to)| to));
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|two| two[0] == two[1]) {
        return Err(CudaError::Argument {
            name: "pairs",
            expected: "writing each block at most once",
            found: format!("writing block {} twice", twice[0]),
        });
    }
    let read = |&(from, to): &(u32, u32)| from != to && sorted.binary_search(&from).is_ok();
    Ok(pairs.iter().copied().find(read).map(|(from, _)| from))
}

/// Copies whole blocks of all layers, every pair in one launch.
///
/// # Errors
/// [`KernelError::Block`] for a block that the cache does not have, [`CudaError::Argument`] if one pair
/// writes what another reads, [`CudaError::OtherDevice`], [`CudaError::Driver`].
///
/// Source: Kwon et al. 2023, section 5.1 (fused block copy).
pub fn copy_blocks(
    stream: &Stream,
    cache: &mut KvCache,
    pairs: &BlockPairs,
) -> Result<(), CudaError> {
    if let Some(block) = pairs.chained {
        return Err(CudaError::Argument {
            name: "pairs",
            expected: "independent of one another",
            found: format!("writing block {block}, which another pair reads"),
        });
    }
    let (slab, layout) = (slab(cache), *cache.layout());
    let ends = Ends {
        from: slab,
        to: slab,
        device: cache.device(),
    };
    pairs.check(0, &layout)?;
    pairs.check(1, &layout)?;
    let params = params(stream, &layout, ends, pairs)?;
    let num_sms = stream.device().properties().num_sms;
    let shape = grid(num_segments(&params), num_sms);
    stream.launch(kernel("copy_blocks")?, shape, &params)
}

/// Copies whole blocks of all layers from one cache to another, every pair in one launch: out to
/// pinned host memory, and back.
///
/// Meant for a stream of its own: see [`Stream::wait_for`]. Few multiprocessors take part if one of
/// the caches is in host memory.
///
/// # Errors
/// [`KernelError::LayoutMismatch`] if the blocks of the two are not alike, [`KernelError::Block`] for a
/// block that its cache does not have, [`CudaError::OtherDevice`], [`CudaError::Driver`].
///
/// Source: Kwon et al. 2023, section 4.5 (swapping).
pub fn swap_blocks(
    stream: &Stream,
    from: &KvCache,
    to: &mut KvCache,
    pairs: &BlockPairs,
) -> Result<(), CudaError> {
    from.layout().check_swap(to.layout())?;
    pairs.check(0, from.layout())?;
    pairs.check(1, to.layout())?;
    stream.device().check_same("from", from.device())?;
    let ends = Ends {
        from: slab(from),
        to: slab(to),
        device: to.device(),
    };
    let params = params(stream, from.layout(), ends, pairs)?;
    let mut shape = grid(num_segments(&params), stream.device().properties().num_sms);
    if from.is_pinned() || to.is_pinned() {
        shape.grid[0] = shape.grid[0].min(SWAP_CTAS);
    }
    stream.launch(kernel("swap_blocks")?, shape, &params)
}

/// Two slabs; one of them was found on the stream's device.
struct Ends<'a> {
    from: SlabView,
    to: SlabView,
    device: &'a Device,
}

fn slab(cache: &KvCache) -> SlabView {
    SlabView {
        data: cache.address(),
        layer_stride: cache.layout().layer_bytes() as i64,
    }
}

fn params(
    stream: &Stream,
    layout: &CacheLayout,
    ends: Ends<'_>,
    pairs: &BlockPairs,
) -> Result<CopyBlocksParams, CudaError> {
    stream.device().check_same("cache", ends.device)?;
    stream.device().check_same("pairs", pairs.pairs.device())?;
    let block_bytes = count("bytes of a block", layout.block_bytes())?;
    Ok(CopyBlocksParams {
        from: ends.from,
        to: ends.to,
        pairs: pairs.pairs.address(),
        num_pairs: count("pairs", pairs.len())?,
        num_layers: count("num_layers", layout.num_layers)?,
        block_bytes,
        segment_bytes: SEGMENT_BYTES.min(block_bytes),
    })
}

fn num_segments(params: &CopyBlocksParams) -> u64 {
    let per_block = u64::from(params.block_bytes.div_ceil(params.segment_bytes));
    let blocks = u64::from(params.num_pairs) * u64::from(params.num_layers);
    per_block.saturating_mul(blocks)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn chained(pairs: &[(u32, u32)]) -> Result<Option<u32>, CudaError> {
        find_chained(pairs, &mut vec![2])
    }

    #[test]
    fn pairs_that_another_order_would_change_are_found() {
        assert_eq!(chained(&[]), Ok(None));
        assert_eq!(chained(&[(1, 2), (1, 3), (4, 5)]), Ok(None));
        assert_eq!(chained(&[(7, 7), (1, 2)]), Ok(None));
        assert_eq!(chained(&[(1, 2), (2, 3)]), Ok(Some(2)));
        assert_eq!(chained(&[(2, 3), (1, 2)]), Ok(Some(2)));
        assert_eq!(chained(&[(1, 2), (2, 1)]), Ok(Some(1)));
        assert!(chained(&[(1, 2), (3, 2)]).is_err());
        assert!(chained(&[(1, 2), (1, 2)]).is_err());
    }

    #[test]
    fn a_block_is_cut_into_segments() {
        let segments = |block_bytes: u32| {
            num_segments(&CopyBlocksParams {
                num_pairs: 5,
                num_layers: 3,
                block_bytes,
                segment_bytes: SEGMENT_BYTES.min(block_bytes),
                ..CopyBlocksParams::zeroed()
            })
        };
        assert_eq!(segments(16), 15);
        assert_eq!(segments(SEGMENT_BYTES), 15);
        assert_eq!(segments(SEGMENT_BYTES + 16), 30);
    }
}
