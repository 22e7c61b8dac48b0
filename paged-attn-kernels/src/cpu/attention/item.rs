//! One unit of parallel work: some query rows of one sequence and key-value head.
//!
//! A query row's result is defined by absolute positions alone, so that it does not depend on
//! the batch, on chunking, on block ids or sizes, or on threads:
//!
//! ```text
//! positions  0        512       1024      1536     visible keys of the row
//!            |---------|---------|---------|---|
//!            segment 0   segment 1 ...               each summed on its own, then merged in order
//!            |--|--|--|--|                           steps of 64 keys: scores, running maximum,
//!                                                    probabilities, values in ascending order
//! ```
//!
//! Segments are what one long sequence is split over threads by. Keys past a row's last visible
//! one never reach its sums: their scores are replaced, and their values not read.

use super::micro::{self, MAX_ROWS, QUERY_STRIDE, STEP_KEYS, ScoreArgs, ValueArgs};
use super::pages::{Pages, Step};
use super::scratch::{Scratch, tiles};
use super::softmax::{Sums, merge, normalize, softmax_step};
use crate::cpu::simd::{Kernel, LANES, Lanes, Simd};

/// Keys of a segment.
pub(super) const SEGMENT_KEYS: usize = 512;

/// Most query rows of an item: what keeps its scratch in the L2 cache.
pub(super) const MAX_ITEM_ROWS: usize = 96;

/// Register tiles of an item from which on steps of compressed pages are converted only once.
const STAGING_TILES: usize = 3;

/// Query rows of one sequence that share a key-value head.
///
/// Row `r` is query position `r / group` and the `r % group`-th query head of the group.
#[derive(Clone, Copy)]
pub(super) struct QueryRows {
    /// Rows of the sequence that belong to this item.
    pub(super) begin: usize,
    /// As `begin`, exclusive.
    pub(super) end: usize,
    /// Query heads that share a key-value head.
    pub(super) group: usize,
    /// Keys that the sequence's first query position sees.
    pub(super) first_visible: usize,
}

impl QueryRows {
    pub(super) fn len(&self) -> usize {
        self.end - self.begin
    }

    /// Keys that the item's i-th row sees.
    pub(super) fn num_visible(&self, i: usize) -> usize {
        self.first_visible + (self.begin + i) / self.group
    }

    /// Keys that the item's last row sees: the most of all.
    pub(super) fn max_visible(&self) -> usize {
        self.num_visible(self.len() - 1)
    }
}

/// Where rows of queries or results lie: `[position][head][head_dim]` with a stride.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<P> {
    /// The sequence's first position, first head of the group.
    pub(super) start: P,
    /// Elements from one position to the next.
    pub(super) stride: usize,
}

impl<P> HeadRows<P> {
    pub(super) fn offset(&self, rows: &QueryRows, i: usize, head_dim: usize) -> usize {
        let row = rows.begin + i;
        (row / rows.group) * self.stride + (row % rows.group) * head_dim
    }
}

/// What an item computes, and where results go.
///
/// # Safety
/// For whoever constructs it: `q` and `out` hold all rows of `rows`; no other thread touches
/// those of `out` or, when `partials` is set, its elements.
pub(super) struct AttendItem<'a, E> {
    pub(super) pages: Pages<'a, E>,
    /// What this thread will probably read afterwards.
    pub(super) then: Option<Pages<'a, E>>,
    pub(super) rows: QueryRows,
    pub(super) scale_log2: f32,
    pub(super) q: HeadRows<*const f32>,
    pub(super) out: HeadRows<*mut f32>,
    /// Segments to sum. Without `partials` these are all.
    pub(super) segments: std::ops::Range<usize>,
    /// Where each segment's sums go, segment 0's first, if another item merges them:
    /// [`partial_len`] elements each.
    pub(super) partials: Option<*mut f32>,
    pub(super) scratch: &'a mut Scratch,
}

/// Elements of one segment's partial sums: maximum and sum of each row, then the accumulators.
pub(super) fn partial_len(num_rows: usize, head_dim: usize) -> usize {
    num_rows * (2 + head_dim.next_multiple_of(LANES))
}

impl<E: Lanes> Kernel for AttendItem<'_, E> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let Self { rows, scratch, .. } = self;
        let head_dim = self.pages.layout.head_dim;
        // SAFETY: `q` holds all rows.
        unsafe { scratch.load_queries::<S, E>(simd, &rows, self.q, head_dim) };
        let compressed = size_of::<E>() < size_of::<f32>();
        let staged =
            !self.pages.are_aligned() || (compressed && tiles(rows.len()).len() >= STAGING_TILES);
        for segment in self.segments.clone() {
            let start = segment * SEGMENT_KEYS;
            let end = rows.max_visible().min(start + SEGMENT_KEYS);
            scratch.start_segment(rows.len());
            for first in (start..end).step_by(STEP_KEYS) {
                let num_keys = (end - first).min(STEP_KEYS);
                let step = StepArgs {
                    rows: &rows,
                    scale_log2: self.scale_log2,
                    first,
                    head_dim,
                };
                if staged {
                    let mut stage = std::mem::take(&mut scratch.stage);
                    let keys = self.pages.stage(simd, first..first + num_keys, &mut stage);
                    attend_step(simd, scratch, step, &keys);
                    scratch.stage = stage;
                } else {
                    let visible = rows.max_visible();
                    let keys = self.pages.step_ahead(first, visible, self.then.as_ref());
                    attend_step(simd, scratch, step, &keys);
                }
            }
            match self.partials {
                Some(partials) => {
                    let len = partial_len(rows.len(), head_dim);
                    // SAFETY: `partials` has `len` elements for each segment, and these are
                    // touched by this item alone.
                    let partial =
                        unsafe { std::slice::from_raw_parts_mut(partials.add(segment * len), len) };
                    scratch.store_partial(simd, rows.len(), partial);
                }
                None => scratch.merge_segment(simd, &rows, segment),
            }
        }
        if self.partials.is_none() {
            for i in 0..rows.len() {
                let at = self.out.offset(&rows, i, head_dim);
                // SAFETY: `out` holds all rows, and these are touched by this item alone.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(self.out.start.add(at), head_dim) };
                let (acc, sum) = scratch.total(i);
                normalize(simd, acc, sum, out);
            }
        }
    }
}

/// Merges the segments of an item that was split over threads.
///
/// # Safety
/// For whoever constructs it: as [`AttendItem`], with `partials` written for all segments.
pub(super) struct MergeItem {
    pub(super) rows: QueryRows,
    pub(super) head_dim: usize,
    pub(super) num_segments: usize,
    pub(super) partials: *mut f32,
    pub(super) out: HeadRows<*mut f32>,
}

impl Kernel for MergeItem {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let num_rows = self.rows.len();
        let width = self.head_dim.next_multiple_of(LANES);
        let len = partial_len(num_rows, self.head_dim);
        // SAFETY: `partials` has `len` elements for each segment, and these are touched by this
        // item alone.
        let partials =
            unsafe { std::slice::from_raw_parts_mut(self.partials, self.num_segments * len) };
        let (total, others) = partials.split_at_mut(len);
        let (heads, accs) = total.split_at_mut(2 * num_rows);
        let (maxs, sums) = heads.split_at_mut(num_rows);
        for (i, acc) in accs.chunks_exact_mut(width).enumerate() {
            for (segment, part) in others.chunks_exact(len).enumerate() {
                if self.rows.num_visible(i) <= (segment + 1) * SEGMENT_KEYS {
                    break;
                }
                let total = Sums {
                    max: &mut maxs[i],
                    sum: &mut sums[i],
                    acc: &mut *acc,
                };
                let part_acc = &part[2 * num_rows + i * width..][..width];
                merge(simd, total, part[i], part[num_rows + i], part_acc);
            }
            let at = self.out.offset(&self.rows, i, self.head_dim);
            // SAFETY: `out` holds all rows, and these are touched by this item alone.
            let out =
                unsafe { std::slice::from_raw_parts_mut(self.out.start.add(at), self.head_dim) };
            normalize(simd, acc, sums[i], out);
        }
    }
}

/// Corrections of sums that are added to a second time.
const UNCORRECTED: [f32; MAX_ROWS] = [1.0; MAX_ROWS];

/// Which keys a step is about.
#[derive(Clone, Copy)]
struct StepArgs<'a> {
    rows: &'a QueryRows,
    scale_log2: f32,
    /// Position of the step's first key.
    first: usize,
    head_dim: usize,
}

/// Adds the keys of a step to the sums of all rows that see any of them.
#[inline(always)]
fn attend_step<S: Simd, E: Lanes>(
    simd: S,
    scratch: &mut Scratch,
    step: StepArgs<'_>,
    keys: &Step<E>,
) {
    let acc_stride = scratch.width;
    for tile in tiles(step.rows.len()) {
        let num_rows = tile.len();
        // Rows ascend in position, so the last one sees the most.
        let visible = |i: usize| {
            let num_visible = step.rows.num_visible(tile.start + i);
            num_visible.saturating_sub(step.first).min(STEP_KEYS)
        };
        let most_visible = visible(num_rows - 1);
        let num_vectors = most_visible.div_ceil(LANES);
        let scores = scratch.scores.as_mut_ptr();
        // Fetched earlier, the next step would push this one out of L1 for the tiles to come.
        let prefetch = tile.end == step.rows.len();
        // SAFETY: queries of the tile start at its first row; `keys` has the vectors of the
        // most visible keys; `scores` is [MAX_ROWS][STEP_KEYS].
        unsafe {
            micro::scores(
                simd,
                num_rows,
                num_vectors,
                ScoreArgs {
                    head_dim: step.head_dim,
                    q: scratch.q[tile.start * QUERY_STRIDE..].as_ptr(),
                    k: keys.k,
                    k_stride: keys.k_stride,
                    k_ahead: if prefetch { keys.k_ahead } else { [0; 4] },
                    scores: scores.cast(),
                },
            );
        }
        let mut corrections = [1.0; MAX_ROWS];
        for i in (0..num_rows).filter(|&i| visible(i) > 0) {
            let row = tile.start + i;
            // SAFETY: `keys` has the scales of the most visible keys.
            (scratch.max[row], corrections[i]) = unsafe {
                softmax_step(
                    simd,
                    &mut scratch.scores[i],
                    (visible(i), num_vectors),
                    (step.scale_log2, keys.scales.as_ref()),
                    scratch.max[row],
                    &mut scratch.partial_sums[row],
                )
            };
        }
        let shared = visible(0);
        let values = ValueArgs {
            head_dim: step.head_dim,
            runs: keys.runs(),
            prefetch,
            from: 0,
            to: shared,
            p: scratch.scores.as_ptr().cast(),
            corrections: corrections.as_ptr(),
            acc: scratch.acc[tile.start * acc_stride..].as_mut_ptr(),
            acc_stride,
        };
        // SAFETY: `runs` holds the visible keys; the rest are arrays of at least `num_rows` rows.
        unsafe { micro::add_values(simd, num_rows, values) };
        // Keys that only the tile's later positions see: not even a zero times a value that a row
        // may not see is added to it, since that value could be infinite.
        let mut first = 1;
        while first < num_rows {
            let to = visible(first);
            let same = (first + 1..num_rows).take_while(|&i| visible(i) == to);
            let num_same = 1 + same.count();
            if to > shared {
                let rows = ValueArgs {
                    from: shared,
                    to,
                    p: scratch.scores[first].as_ptr(),
                    corrections: UNCORRECTED.as_ptr(),
                    acc: scratch.acc[(tile.start + first) * acc_stride..].as_mut_ptr(),
                    ..values
                };
                // SAFETY: as above, for `num_same` rows from `first`.
                unsafe { micro::add_values(simd, num_same, rows) };
            }
            first += num_same;
        }
    }
}
