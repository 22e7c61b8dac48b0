//! Causal attention over the paged cache: prefill chunks and decodes alike.

// Register tiles are walked by constant-length index loops, which unroll.
#![allow(clippy::needless_range_loop)]

mod item;
mod micro;
mod pages;
mod plan;
mod rotate;
mod scratch;
mod softmax;

use super::simd::{self, Lanes};
use half::bf16;
use item::{AttendItem, HeadRows, MergeItem};
use pages::Pages;
pub use plan::AttendPlan;
use plan::WorkItem;
use scratch::Scratch;

use super::ThreadPool;
use crate::cache::TAIL_ELEMENTS;
use crate::{KernelError, KvCache, KvDtype, Rows, RowsMut};

/// One layer's part in a planned step.
#[derive(Debug)]
pub struct AttendArgs<'a> {
    /// Layer of the cache.
    pub layer: usize,
    /// Queries: a row of `[num_heads, head_dim]` for each token of the plan.
    pub q: Rows<'a>,
    /// Results, as `q`. Every element of the plan's rows is written.
    pub out: RowsMut<'a>,
    /// What scores are multiplied by, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// Attends each query row of the planned step to its sequence's cached keys.
///
/// Row `i` of a sequence's `n` sees its first `context_len - n + i + 1` keys. Query head `h` reads
/// key-value head `h / (num_heads / num_kv_heads)`. Scores, softmax and sums are f32. The scale of
/// an int8 key multiplies its score, and that of a value its probability.
///
/// A row's result depends, bit for bit, on its query and the visible keys and values alone: not
/// on other rows, chunking, block ids, the block size or the number of threads.
///
/// # Errors
/// [`KernelError::PlanMismatch`] if the plan was made for another cache layout,
/// [`KernelError::Layer`], [`KernelError::Scale`], [`KernelError::Rows`] or
/// [`KernelError::OverlappingRows`]; nothing has been written then.
///
/// Source: Kwon et al. 2023, section 4.1; online softmax after Milakov and Gimelshein 2018.
pub fn attend(
    pool: &ThreadPool,
    cache: &KvCache,
    plan: &mut AttendPlan,
    args: AttendArgs<'_>,
) -> Result<(), KernelError> {
    let shape = plan.shape.ok_or(KernelError::PlanMismatch)?;
    let layout = *cache.layout();
    if shape.layout != layout {
        return Err(KernelError::PlanMismatch);
    }
    layout.check_layer(args.layer)?;
    if !(args.scale.is_finite() && args.scale > 0.0) {
        return Err(KernelError::Scale { scale: args.scale });
    }
    let width = shape.num_heads * layout.head_dim;
    args.q.check("q", shape.num_tokens, width)?;
    args.out.check("out", shape.num_tokens, width)?;
    plan.scratch
        .resize_with(pool.num_threads().max(plan.scratch.len()), Scratch::default);
    for scratch in &mut plan.scratch {
        scratch.resize(layout.head_dim);
    }
    match layout.dtype {
        KvDtype::F32 => run::<f32>(pool, cache, plan, args),
        KvDtype::Bf16 => run::<bf16>(pool, cache, plan, args),
        KvDtype::Int8 => run::<i8>(pool, cache, plan, args),
        dtype @ (KvDtype::F16 | KvDtype::Fp8) => return Err(KernelError::KvDtype { dtype }),
    }
    Ok(())
}

/// A pointer that parallel tasks share; what each may touch is said where it is used.
struct Shared<P>(P);

// SAFETY: the tasks of `run` touch disjoint elements; see there.
unsafe impl<P> Sync for Shared<P> {}

impl<P: Copy> Shared<P> {
    /// A method, so that closures capture the wrapper and not the pointer in it.
    fn get(&self) -> P {
        self.0
    }
}

/// Runs a plan whose shape agrees with the cache and the arguments.
fn run<E: Lanes>(
    pool: &ThreadPool,
    cache: &KvCache,
    plan: &mut AttendPlan,
    mut args: AttendArgs<'_>,
) {
    let layout = cache.layout();
    let (isa, head_dim) = (plan.isa, layout.head_dim);
    let layer = args.layer * layout.layer_len();
    let layer = &cache.elements::<E>()[layer..layer + layout.layer_len() + TAIL_ELEMENTS];
    let scale_log2 = args.scale * std::f32::consts::LOG2_E;
    let (out, out_stride) = args.out.as_mut_ptr();
    let out = Shared(out);
    let (q, q_stride) = args.q.as_ptr();
    let q = Shared(q);
    let partials = Shared(plan.partials.as_mut_ptr());
    let scratch = Shared(plan.scratch.as_mut_ptr());
    let (sequences, block_tables) = (&plan.sequences, &plan.block_tables);
    let out_rows = |item: &WorkItem| {
        let head = item.kv_head * item.rows.group;
        let at = sequences[item.sequence].query_start * out_stride + head * head_dim;
        HeadRows {
            start: out.get().wrapping_add(at),
            stride: out_stride,
        }
    };
    let pages = |item: &WorkItem| {
        let seq = &sequences[item.sequence];
        Pages {
            layer,
            layout,
            table: &block_tables[seq.table_start..seq.table_start + seq.num_blocks],
            kv_head: item.kv_head,
        }
    };
    let (items, num_threads) = (&plan.items, pool.num_threads());
    pool.for_each_in_order(items.len(), |worker, i| {
        let item = &items[i];
        let seq = &sequences[item.sequence];
        let head = item.kv_head * item.rows.group;
        let kernel = AttendItem {
            pages: pages(item),
            // Items of a like size are handed out in turn.
            then: items.get(i + num_threads).map(pages),
            rows: item.rows,
            scale_log2,
            q: HeadRows {
                start: q
                    .get()
                    .wrapping_add(seq.query_start * q_stride + head * head_dim),
                stride: q_stride,
            },
            out: out_rows(item),
            segments: item.first_segment..item.end_segment,
            partials: item.partials.map(|at| partials.get().wrapping_add(at)),
            // SAFETY: there are as many as the pool has threads (`attend`), and no two tasks run
            // at once with the same `worker`.
            scratch: unsafe { &mut *scratch.get().add(worker) },
        };
        // `attend` has checked that q and out hold all rows, and `plan` gives each of them, and
        // each part of `partials`, to one item only.
        simd::dispatch(isa, kernel);
    });
    let merges = &plan.merges;
    pool.for_each(merges.len(), |i| {
        let item = &merges[i];
        let kernel = MergeItem {
            rows: item.rows,
            head_dim,
            num_segments: item.end_segment,
            partials: partials.get().wrapping_add(item.partials.unwrap_or(0)),
            out: out_rows(item),
        };
        simd::dispatch(isa, kernel);
    });
}
