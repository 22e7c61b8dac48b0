//! Register tiles: the two matrix products of attention.
//!
//! Scores and weighted values are the same product, a sum of outer products of a column of A
//! (queries, or probabilities) with a row of B (a dimension of 16 keys each, or a key's value):
//!
//! ```text
//! acc[R][C x 16 lanes] += A[R, k] B[k, C x 16 lanes]      k ascending, one multiply-add each
//! ```
//!
//! Every accumulator lane belongs to one (row, key) or (row, dimension) and is summed over k in
//! ascending order, whatever the shape of the tile: that is why a row's bits do not depend on the
//! rows it shares a tile with.

use crate::cpu::simd::{Kernel, LANES, Lanes, Simd};
use crate::layout::MAX_HEAD_DIM;

/// Rows of a register tile.
pub(super) const MAX_ROWS: usize = 6;

/// Keys that the softmax takes at once.
pub(super) const STEP_KEYS: usize = 64;

/// Elements from one query row to the next: constant, so that it is part of the instructions; no
/// power of two, so that rows do not share a set of the cache.
pub(super) const QUERY_STRIDE: usize = MAX_HEAD_DIM + LANES;

/// Adds `k` outer products to a tile.
///
/// Element (r, i) of A is at `a[r * a_row + i * a_k]`; row i of B's column block c at
/// `b[c][i * b_k]`. What lies `ahead` bytes further is prefetched: the hardware does not foresee
/// the next page (measured: 25 % faster decodes from bf16 pages, 5 % from f32).
///
/// # Safety
/// Those elements of A, and 16 elements from there in B, are valid for reads.
#[inline(always)]
unsafe fn add_outer_products<S: Simd, E: Lanes, const R: usize, const C: usize>(
    simd: S,
    k: usize,
    (a, a_row, a_k): (*const f32, usize, usize),
    (b, b_k, ahead): ([*const E; C], usize, [isize; C]),
    acc: &mut [[S::F; C]; R],
) {
    for i in 0..k {
        let mut row = [simd.splat(0.0); C];
        for c in 0..C {
            // SAFETY: i < k; as this function's.
            row[c] = unsafe { E::load(simd, b[c].add(i * b_k)) };
            simd.prefetch(b[c].wrapping_add(i * b_k).wrapping_byte_offset(ahead[c]));
        }
        for r in 0..R {
            // SAFETY: r < R, i < k; as this function's.
            let x = simd.splat(unsafe { *a.add(r * a_row + i * a_k) });
            for c in 0..C {
                acc[r][c] = simd.fma(x, row[c], acc[r][c]);
            }
        }
    }
}

/// Scores of R query rows against C x 16 keys.
///
/// # Safety
/// For whoever constructs it: `q` is `[R][QUERY_STRIDE]`; the first C of `k` each start `head_dim`
/// rows of 16 elements at distance `k_stride`; `scores` is `[R][STEP_KEYS]`, of which the first
/// C x 16 columns are written.
#[derive(Clone, Copy)]
pub(super) struct ScoreArgs<E> {
    pub(super) head_dim: usize,
    pub(super) q: *const f32,
    pub(super) k: [*const E; 4],
    pub(super) k_stride: usize,
    /// Bytes from each of `k` to what will be read next in its place.
    pub(super) k_ahead: [isize; 4],
    pub(super) scores: *mut f32,
}

struct ScoreTile<E, const R: usize, const C: usize>(ScoreArgs<E>);

impl<E: Lanes, const R: usize, const C: usize> Kernel for ScoreTile<E, R, C> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let args = self.0;
        let mut k = [args.k[0]; C];
        k.copy_from_slice(&args.k[..C]);
        let mut ahead = [0; C];
        ahead.copy_from_slice(&args.k_ahead[..C]);
        let mut acc = [[simd.splat(0.0); C]; R];
        // SAFETY: `ScoreArgs`.
        unsafe {
            add_outer_products(
                simd,
                args.head_dim,
                (args.q, QUERY_STRIDE, 1),
                (k, args.k_stride, ahead),
                &mut acc,
            );
        }
        for (r, row) in acc.into_iter().enumerate() {
            for (c, v) in row.into_iter().enumerate() {
                // SAFETY: `ScoreArgs`: row r, columns 16 c to 16 c + 16.
                unsafe { simd.store(args.scores.add(r * STEP_KEYS + c * LANES), v) };
            }
        }
    }
}

/// Values of consecutive keys of a step.
#[derive(Clone, Copy)]
pub(super) struct Run<E> {
    /// First key, counted from the start of the step.
    pub(super) first: usize,
    /// Number of keys.
    pub(super) len: usize,
    /// Value of the first key; the next one follows `head_dim` elements later.
    pub(super) v: *const E,
    /// Bytes from there to what will be read next in its place.
    pub(super) ahead: isize,
}

/// Adds the values of the step's keys `from..to`, weighted, to R rows of accumulators.
///
/// # Safety
/// For whoever constructs it: `runs` holds those keys, and 16 elements from each multiple of 16
/// below `head_dim` of their rows are valid for reads (past the row's end included); `p` is
/// `[R][STEP_KEYS]`; `corrections` is `[R]`; `acc` is `[R][acc_stride]`, where `acc_stride` is
/// `head_dim` rounded up to a multiple of 16.
#[derive(Clone, Copy)]
pub(super) struct ValueArgs<'a, E> {
    pub(super) head_dim: usize,
    pub(super) runs: &'a [Run<E>],
    /// Whether to prefetch what lies ahead of the runs.
    pub(super) prefetch: bool,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) p: *const f32,
    /// What each row's accumulator is multiplied by first.
    pub(super) corrections: *const f32,
    pub(super) acc: *mut f32,
    pub(super) acc_stride: usize,
}

struct ValueTile<'a, E, const R: usize, const C: usize> {
    args: ValueArgs<'a, E>,
    /// First dimension, a multiple of 16.
    column: usize,
}

impl<E: Lanes, const R: usize, const C: usize> Kernel for ValueTile<'_, E, R, C> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let args = self.args;
        let mut acc = [[simd.splat(0.0); C]; R];
        for r in 0..R {
            // SAFETY: `ValueArgs`: [R].
            let correction = simd.splat(unsafe { *args.corrections.add(r) });
            for c in 0..C {
                let at = r * args.acc_stride + self.column + c * LANES;
                // SAFETY: `ValueArgs`: columns up to `acc_stride` of row r.
                acc[r][c] = simd.mul(unsafe { simd.load(args.acc.add(at)) }, correction);
            }
        }
        for run in args.runs {
            let from = args.from.max(run.first);
            let to = args.to.min(run.first + run.len);
            if from >= to {
                continue;
            }
            let ahead = if args.prefetch { run.ahead } else { 0 };
            let mut v = [run.v; C];
            for (c, v) in v.iter_mut().enumerate() {
                let at = (from - run.first) * args.head_dim + self.column + c * LANES;
                *v = run.v.wrapping_add(at);
            }
            // SAFETY: `ValueArgs`: keys from..to of the run, and their columns of P.
            unsafe {
                add_outer_products(
                    simd,
                    to - from,
                    (args.p.add(from), STEP_KEYS, 1),
                    (v, args.head_dim, [ahead; C]),
                    &mut acc,
                );
            }
        }
        for (r, row) in acc.into_iter().enumerate() {
            for (c, v) in row.into_iter().enumerate() {
                let at = r * args.acc_stride + self.column + c * LANES;
                // SAFETY: as the load above.
                unsafe { simd.store(args.acc.add(at), v) };
            }
        }
    }
}

/// Calls the kernel compiled for a shape given at run time.
macro_rules! by_shape {
    ($rows:expr, $cols:expr, |$R:ident, $C:ident| $call:expr) => {
        by_shape!(@arms $rows, $cols, $R, $C, $call,
            1 1, 1 2, 1 3, 1 4, 2 1, 2 2, 2 3, 2 4, 3 1, 3 2, 3 3, 3 4,
            4 1, 4 2, 4 3, 4 4, 5 1, 5 2, 5 3, 5 4, 6 1, 6 2, 6 3, 6 4)
    };
    (@arms $rows:expr, $cols:expr, $R:ident, $C:ident, $call:expr, $($r:literal $c:literal),*) => {
        match ($rows, $cols) {
            $(($r, $c) => {
                const $R: usize = $r;
                const $C: usize = $c;
                $call
            })*
            (rows, cols) => unreachable!("no register tile of {rows} x {cols}"),
        }
    };
}

/// Scores of `rows` query rows against `num_tiles` x 16 keys.
///
/// # Safety
/// [`ScoreArgs`] with R = `rows` (1 to 6) and C = `num_tiles` (1 to 4).
#[inline(always)]
pub(super) unsafe fn scores<S: Simd, E: Lanes>(
    simd: S,
    rows: usize,
    num_tiles: usize,
    args: ScoreArgs<E>,
) {
    let mut tile = 0;
    while tile < num_tiles {
        let cols = S::COLS.min(num_tiles - tile);
        let mut k = args.k;
        k.copy_within(tile..tile + cols, 0);
        let mut k_ahead = args.k_ahead;
        k_ahead.copy_within(tile..tile + cols, 0);
        let args = ScoreArgs {
            k,
            k_ahead,
            scores: args.scores.wrapping_add(tile * LANES),
            ..args
        };
        by_shape!(rows, cols, |R, C| simd
            .vectorize(ScoreTile::<E, R, C>(args)));
        tile += cols;
    }
}

/// Adds weighted values to `rows` rows of accumulators.
///
/// # Safety
/// [`ValueArgs`] with R = `rows` (1 to 6).
#[inline(always)]
pub(super) unsafe fn add_values<S: Simd, E: Lanes>(simd: S, rows: usize, args: ValueArgs<'_, E>) {
    let num_columns = args.acc_stride / LANES;
    let mut column = 0;
    while column < num_columns {
        let cols = S::COLS.min(num_columns - column);
        by_shape!(rows, cols, |R, C| simd.vectorize(ValueTile::<E, R, C> {
            args,
            column: column * LANES,
        }));
        column += cols;
    }
}
