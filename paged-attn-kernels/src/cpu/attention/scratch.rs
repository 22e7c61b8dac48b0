//! What one thread works in while it computes an item.

use std::ops::Range;

use super::item::{HeadRows, MAX_ITEM_ROWS, QueryRows, SEGMENT_KEYS};
use super::micro::{MAX_ROWS, QUERY_STRIDE, STEP_KEYS};
use super::pages::Stage;
use super::rotate::rotate;
use super::softmax::{Sums, merge};
use crate::cpu::simd::{LANES, Simd};
use crate::element::Element;

/// Cuts rows into register tiles of up to [`MAX_ROWS`] rows, as even as possible.
pub(super) fn tiles(num_rows: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let num_tiles = num_rows.div_ceil(MAX_ROWS);
    let (each, longer) = match num_tiles {
        0 => (0, 0),
        n => (num_rows / n, num_rows % n),
    };
    (0..num_tiles).map(move |tile| {
        let start = tile * each + tile.min(longer);
        start..start + each + usize::from(tile < longer)
    })
}

/// Copies numbers, vector by vector: a call of `memcpy` costs more than a short row.
#[inline(always)]
fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    let (vectors, rest) = from.as_chunks::<LANES>();
    let (to, last) = to[..from.len()].as_chunks_mut::<LANES>();
    for (from, to) in vectors.iter().zip(to) {
        // SAFETY: both are as long as a vector.
        unsafe { simd.store(to.as_mut_ptr(), simd.load(from.as_ptr())) };
    }
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
}

/// Buffers of a thread, allocated once.
#[derive(Default)]
pub(super) struct Scratch {
    /// Elements of an accumulator row: `head_dim` rounded up to a multiple of 16.
    pub(super) width: usize,
    /// Queries, `[row][QUERY_STRIDE]`.
    pub(super) q: Vec<f32>,
    /// Scores, then probabilities, of the current register tile.
    pub(super) scores: Vec<[f32; STEP_KEYS]>,
    /// Largest score of each row in this segment, in log2.
    pub(super) max: Vec<f32>,
    /// 16 partial sums of each row's probabilities in this segment.
    pub(super) partial_sums: Vec<[f32; LANES]>,
    /// Weighted values of this segment, `[row][width]`.
    pub(super) acc: Vec<f32>,
    /// Sums of the segments before.
    total_max: Vec<f32>,
    total_sum: Vec<f32>,
    total_acc: Vec<f32>,
    pub(super) stage: Stage,
}

impl Scratch {
    /// Makes room for items of `head_dim`.
    pub(super) fn resize(&mut self, head_dim: usize) {
        self.width = head_dim.next_multiple_of(LANES);
        self.q.resize(MAX_ITEM_ROWS * QUERY_STRIDE, 0.0);
        self.scores.resize(MAX_ROWS, [0.0; STEP_KEYS]);
        self.max.resize(MAX_ITEM_ROWS, 0.0);
        self.partial_sums.resize(MAX_ITEM_ROWS, [0.0; LANES]);
        self.acc.resize(MAX_ITEM_ROWS * self.width, 0.0);
        self.total_max.resize(MAX_ITEM_ROWS, 0.0);
        self.total_sum.resize(MAX_ITEM_ROWS, 0.0);
        self.total_acc.resize(MAX_ITEM_ROWS * self.width, 0.0);
        self.stage.resize(head_dim);
    }

    /// Copies an item's queries to where the register tiles read them, for pages of `E`.
    ///
    /// # Safety
    /// `q` holds all rows of `rows`.
    #[inline(always)]
    pub(super) unsafe fn load_queries<S: Simd, E: Element>(
        &mut self,
        simd: S,
        rows: &QueryRows,
        q: HeadRows<*const f32>,
        head_dim: usize,
    ) {
        for (i, to) in self
            .q
            .chunks_exact_mut(QUERY_STRIDE)
            .take(rows.len())
            .enumerate()
        {
            // SAFETY: `q` holds all rows, each of `head_dim` elements.
            let row = unsafe {
                std::slice::from_raw_parts(q.start.add(q.offset(rows, i, head_dim)), head_dim)
            };
            copy(simd, row, to);
            if E::SCALED {
                rotate(simd, &mut to[..head_dim]);
            }
        }
    }

    /// Sums nothing yet.
    #[inline(always)]
    pub(super) fn start_segment(&mut self, num_rows: usize) {
        self.max[..num_rows].fill(f32::NEG_INFINITY);
        self.partial_sums[..num_rows].fill([0.0; LANES]);
        self.acc[..num_rows * self.width].fill(0.0);
    }

    /// Adds the segment to the totals; segment 0 starts them.
    #[inline(always)]
    pub(super) fn merge_segment<S: Simd>(&mut self, simd: S, rows: &QueryRows, segment: usize) {
        if segment == 0 {
            std::mem::swap(&mut self.acc, &mut self.total_acc);
            std::mem::swap(&mut self.max, &mut self.total_max);
            for i in 0..rows.len() {
                self.total_sum[i] = self.segment_sum(simd, i);
            }
            return;
        }
        // Rows that see nothing of the segment have nothing to add.
        let sees = |&i: &usize| rows.num_visible(i) > segment * SEGMENT_KEYS;
        for i in (0..rows.len()).filter(sees) {
            let sum = self.segment_sum(simd, i);
            let columns = i * self.width..(i + 1) * self.width;
            let total = Sums {
                max: &mut self.total_max[i],
                sum: &mut self.total_sum[i],
                acc: &mut self.total_acc[columns.clone()],
            };
            merge(simd, total, self.max[i], sum, &self.acc[columns]);
        }
    }

    /// Writes the segment's sums: `[row]` maxima, `[row]` sums, `[row][width]` accumulators.
    #[inline(always)]
    pub(super) fn store_partial<S: Simd>(&self, simd: S, num_rows: usize, partial: &mut [f32]) {
        let (heads, acc) = partial.split_at_mut(2 * num_rows);
        let (max, sum) = heads.split_at_mut(num_rows);
        max.copy_from_slice(&self.max[..num_rows]);
        for (i, sum) in sum.iter_mut().enumerate() {
            *sum = self.segment_sum(simd, i);
        }
        acc.copy_from_slice(&self.acc[..num_rows * self.width]);
    }

    /// A row's weighted values and sum of probabilities over all segments.
    #[inline(always)]
    pub(super) fn total(&mut self, i: usize) -> (&mut [f32], f32) {
        let acc = &mut self.total_acc[i * self.width..][..self.width];
        (acc, self.total_sum[i])
    }

    #[inline(always)]
    fn segment_sum<S: Simd>(&self, simd: S, i: usize) -> f32 {
        // SAFETY: 16 elements.
        simd.reduce_sum(unsafe { simd.load(self.partial_sums[i].as_ptr()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_rows_evenly() {
        for num_rows in 0..100 {
            let mut next = 0;
            let sizes: Vec<usize> = tiles(num_rows)
                .map(|tile| {
                    assert_eq!(tile.start, next);
                    next = tile.end;
                    tile.len()
                })
                .collect();
            assert_eq!(next, num_rows);
            assert!(sizes.iter().all(|&n| (1..=MAX_ROWS).contains(&n)));
            if let (Some(max), Some(min)) = (sizes.iter().max(), sizes.iter().min()) {
                assert!(max - min <= 1);
            }
        }
    }
}
