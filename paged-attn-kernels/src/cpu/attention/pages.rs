//! One sequence's keys and values of one head, as the kernels walk them.

use std::ops::Range;

use super::micro::{Run, STEP_KEYS};
use super::softmax::Scales;
use crate::CacheLayout;
use crate::cpu::simd::{LANES, Lanes, Simd};
use crate::layout::KEY_TILE;

// A vector is a tile's keys of one dimension.
const _: () = assert!(KEY_TILE == LANES);

const NO_SCALES: Scales = Scales {
    k: [std::ptr::null(); STEP_KEYS / LANES],
    v: [std::ptr::null(); STEP_KEYS / LANES],
};

/// Most runs that [`Pages::step`] cuts a step into: blocks of 16.
const MAX_DIRECT_RUNS: usize = STEP_KEYS / LANES;

/// A sequence's pages of one layer and head.
#[derive(Clone, Copy)]
pub(super) struct Pages<'a, E> {
    /// The layer's elements, and 16 more after its last block.
    pub(super) layer: &'a [E],
    pub(super) layout: &'a CacheLayout,
    /// Blocks in the order of the sequence's tokens; every id is below `num_blocks`.
    pub(super) table: &'a [u32],
    pub(super) kv_head: usize,
}

/// Where the keys and values of up to 64 consecutive positions lie.
pub(super) struct Step<E> {
    pub(super) k: [*const E; STEP_KEYS / LANES],
    /// Elements from one dimension of a tile to the next.
    pub(super) k_stride: usize,
    /// Bytes to what will be read next in place of each of `k`.
    pub(super) k_ahead: [isize; STEP_KEYS / LANES],
    /// Of the keys and values, if the format has any.
    pub(super) scales: Option<Scales>,
    runs: [Run<E>; MAX_DIRECT_RUNS],
    num_runs: usize,
}

impl<E> Step<E> {
    pub(super) fn runs(&self) -> &[Run<E>] {
        &self.runs[..self.num_runs]
    }

    /// Says what will be read after this step, so that it is prefetched meanwhile.
    fn announce(&mut self, next: &Step<E>) {
        let distance = |from: *const E, to: *const E| (to as isize).wrapping_sub(from as isize);
        for (i, ahead) in self.k_ahead.iter_mut().enumerate() {
            *ahead = distance(self.k[i], next.k[i]);
        }
        for (run, next) in self.runs.iter_mut().zip(&next.runs[..next.num_runs]) {
            run.ahead = distance(run.v, next.v);
        }
    }
}

/// A head's part of a block.
struct Panels<'a, E> {
    /// Tiles of `[head_dim][16]`.
    k: &'a [E],
    /// `[block_size][head_dim]`, and at least 16 more elements.
    v: &'a [E],
    /// A scale a token, or none.
    k_scales: &'a [f32],
    v_scales: &'a [f32],
}

impl<'a, E: Lanes> Pages<'a, E> {
    /// Whether vectors of 16 keys never straddle blocks, so that pages can be read in place.
    pub(super) fn are_aligned(&self) -> bool {
        self.layout.block_size.is_multiple_of(LANES)
    }

    /// The panels of the block that holds `position`, and its offset there.
    fn panels(&self, position: usize) -> (Panels<'a, E>, usize) {
        let block = self.table[position / self.layout.block_size] as usize;
        let panel_len = self.layout.panel_len();
        let k_start = block * self.layout.block_len() + self.kv_head * self.layout.head_len();
        let v_start = k_start + self.layout.scaled_panel_len();
        let scales = |start: usize| &self.layer[start + panel_len..];
        let scales_len = self.layout.scaled_panel_len() - panel_len;
        let panels = Panels {
            k: &self.layer[k_start..k_start + panel_len],
            v: &self.layer[v_start..][..panel_len + LANES],
            k_scales: bytemuck::cast_slice(&scales(k_start)[..scales_len]),
            v_scales: bytemuck::cast_slice(&scales(v_start)[..scales_len]),
        };
        (panels, position % self.layout.block_size)
    }

    /// Locates `num_keys` keys from `start`, a multiple of 64, without copying.
    ///
    /// `k` is set for as many vectors of 16 keys as hold `num_keys`; lanes past `num_keys` are
    /// inside of the block too, with whatever it holds.
    pub(super) fn step(&self, start: usize, num_keys: usize) -> Step<E> {
        debug_assert!(self.are_aligned() && num_keys <= STEP_KEYS);
        let (block_size, head_dim) = (self.layout.block_size, self.layout.head_dim);
        let mut k = [self.layer.as_ptr(); STEP_KEYS / LANES];
        let mut scales = NO_SCALES;
        for tile in 0..num_keys.div_ceil(LANES) {
            let (panels, offset) = self.panels(start + tile * LANES);
            // All tiles of an aligned block have 16 keys.
            k[tile] = panels.k[self.layout.key_tile(offset).0..].as_ptr();
            if E::SCALED {
                scales.k[tile] = panels.k_scales[offset..offset + LANES].as_ptr();
                scales.v[tile] = panels.v_scales[offset..offset + LANES].as_ptr();
            }
        }
        let no_run = Run {
            first: 0,
            len: 0,
            v: self.layer.as_ptr(),
            ahead: 0,
        };
        let mut runs = [no_run; MAX_DIRECT_RUNS];
        let (mut num_runs, mut first) = (0, 0);
        while first < num_keys {
            let (panels, offset) = self.panels(start + first);
            let len = (block_size - offset).min(num_keys - first);
            runs[num_runs] = Run {
                first,
                len,
                v: panels.v[offset * head_dim..].as_ptr(),
                ahead: 0,
            };
            num_runs += 1;
            first += len;
        }
        Step {
            k,
            k_ahead: [0; STEP_KEYS / LANES],
            k_stride: LANES,
            scales: E::SCALED.then_some(scales),
            runs,
            num_runs,
        }
    }

    /// As [`step`](Self::step), prefetching the step after it: of this sequence, which has
    /// `end` keys, or the first of `then`.
    pub(super) fn step_ahead(&self, start: usize, end: usize, then: Option<&Self>) -> Step<E> {
        let mut step = self.step(start, (end - start).min(STEP_KEYS));
        let next = start + STEP_KEYS;
        if next < end {
            step.announce(&self.step(next, (end - next).min(STEP_KEYS)));
        } else if let Some(then) = then {
            let num_keys = then.table.len() * then.layout.block_size;
            step.announce(&then.step(0, num_keys.min(STEP_KEYS)));
        }
        step
    }

    /// Copies the keys and values of up to 64 positions to `stage`, as f32 but for their scales.
    ///
    /// Pays where many rows read a step of compressed pages, and makes blocks of any size look
    /// the same to the kernels.
    #[inline(always)]
    pub(super) fn stage<S: Simd>(
        &self,
        simd: S,
        keys: Range<usize>,
        stage: &mut Stage,
    ) -> Step<f32> {
        let (start, num_keys) = (keys.start, keys.len());
        let head_dim = self.layout.head_dim;
        let mut first = 0;
        while first < num_keys {
            let (panels, offset) = self.panels(start + first);
            let (tile, width) = self.layout.key_tile(offset);
            let at = offset % LANES;
            let len = (width - at).min(num_keys - first);
            for (d, row) in panels.k[tile..]
                .chunks_exact(width)
                .take(head_dim)
                .enumerate()
            {
                let to = &mut stage.k[d * STEP_KEYS + first..][..len];
                if len == LANES {
                    // SAFETY: both have `len` elements.
                    unsafe { simd.store(to.as_mut_ptr(), E::load(simd, row.as_ptr())) };
                    continue;
                }
                for (to, from) in to.iter_mut().zip(&row[at..at + len]) {
                    *to = from.to_f32();
                }
            }
            let to = &mut stage.v[first * head_dim..][..len * head_dim];
            for (to, from) in to.iter_mut().zip(&panels.v[offset * head_dim..]) {
                *to = from.to_f32();
            }
            if E::SCALED {
                let (from, to) = (offset..offset + len, first..first + len);
                stage.k_scales[to.clone()].copy_from_slice(&panels.k_scales[from.clone()]);
                stage.v_scales[to].copy_from_slice(&panels.v_scales[from]);
            }
            first += len;
        }
        let run = Run {
            first: 0,
            len: num_keys,
            v: stage.v.as_ptr(),
            ahead: 0,
        };
        let tiles = |row: &[f32]| std::array::from_fn(|i| row[i * LANES..].as_ptr());
        let scales = Scales {
            k: tiles(&stage.k_scales),
            v: tiles(&stage.v_scales),
        };
        Step {
            k: tiles(&stage.k),
            k_ahead: [0; STEP_KEYS / LANES],
            k_stride: STEP_KEYS,
            scales: E::SCALED.then_some(scales),
            runs: [run; MAX_DIRECT_RUNS],
            num_runs: 1,
        }
    }
}

/// Keys and values of a step, copied out of their pages.
#[derive(Default)]
pub(super) struct Stage {
    /// `[head_dim][64]`
    k: Vec<f32>,
    /// `[64][head_dim]`, and 16 more.
    v: Vec<f32>,
    k_scales: Vec<f32>,
    v_scales: Vec<f32>,
}

impl Stage {
    pub(super) fn resize(&mut self, head_dim: usize) {
        self.k.resize(STEP_KEYS * head_dim, 0.0);
        self.v.resize(STEP_KEYS * head_dim + LANES, 0.0);
        self.k_scales.resize(STEP_KEYS, 0.0);
        self.v_scales.resize(STEP_KEYS, 0.0);
    }
}
