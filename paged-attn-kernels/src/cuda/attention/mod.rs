//! Attention over paged keys and values.
//!
//! ```text
//!  AttendPlan::plan   once a step, on the host: which rows, which keys, split how   (work.rs, split.rs)
//!       |             -> lists on the device
//!  attend             once a layer: fixed grids that walk the lists
//!       +-- few rows of a sequence (a decode, a speculated tail)   attend_decode, attend_f32
//!       +-- many rows (a prefill chunk)                            attend_prefill
//!       +-- sums over pieces of the keys, where they were split    attend_combine
//! ```

mod decode;
mod params;
mod plan;
mod prefill;
mod split;
mod work;

use std::f32::consts::LOG2_E;

pub use plan::{AttendPlan, PlanShape};

use self::decode::FewRows;
use self::params::{AttendParams, CombineParams};
use super::params::{RowsView, kv_code};
use super::{CudaError, Dtype, KvCache, Rows, RowsMut, Stream};
use crate::{KernelError, KvDtype};

/// What one layer attends with.
#[derive(Debug)]
pub struct AttendArgs<'a> {
    /// Layer of the cache.
    pub layer: usize,
    /// Queries, of the plan's type: `[num_tokens, num_heads * head_dim]`.
    pub q: Rows<'a>,
    /// As `q`; not the same memory.
    pub out: RowsMut<'a>,
    /// What scores are multiplied by, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// `cap * tanh(score / cap)` of each score; 0: the score.
    pub soft_cap: f32,
}

/// Attends each query row of a plan to the cached keys of its sequence.
///
/// bf16 activations go with bf16, int8 and fp8 pages, f16 with f16, int8 and fp8, f32 with all.
/// Scores, exponentials and sums are f32. With bf16 and f16, queries, keys, values and
/// probabilities are multiplied on tensor cores, in the pages' type for 16-bit pages and in bf16
/// for 8-bit ones. Two runs give the same bits.
///
/// Only keys that a row may see are read; the rest of their blocks may hold anything.
///
/// # Errors
/// [`KernelError::PlanMismatch`] if the plan was made for another cache layout,
/// [`KernelError::Layer`], [`KernelError::Scale`], [`KernelError::Rows`],
/// [`KernelError::OverlappingRows`]; [`CudaError::Argument`] for a soft cap that is not a finite
/// number of 0 or more, and for rows of q or out that are not 16-byte aligned where a sequence has
/// more than a few; [`CudaError::Dtype`], [`CudaError::KvDtype`], [`CudaError::OtherDevice`];
/// nothing has been launched then. [`CudaError::Driver`].
///
/// Source: Kwon et al. 2023, section 4.1; split keys after Dao et al. 2023, "Flash-Decoding";
/// online softmax after Milakov and Gimelshein 2018.
pub fn attend(
    stream: &Stream,
    cache: &KvCache,
    plan: &mut AttendPlan,
    args: AttendArgs<'_>,
) -> Result<(), CudaError> {
    let shape = plan.shape.ok_or(KernelError::PlanMismatch)?;
    check(stream, cache, plan, &args)?;
    let addresses = plan.addresses();
    let params = AttendParams {
        q: RowsView::new(&args.q),
        out: RowsView::new_mut(&args.out),
        kv: cache.view(args.layer),
        block_tables: addresses.block_tables,
        items: addresses.few.0,
        num_items: addresses.few.1,
        partial_out: addresses.partial_out,
        partial_lse: addresses.partial_lse,
        group: (shape.num_heads / shape.layout.num_kv_heads) as u32,
        dtype: plan.dtype as u32,
        kv_type: kv_code(shape.layout.dtype),
        // No row has more keys than 32 bits number.
        window: u32::try_from(shape.window).unwrap_or(0),
        scale_log2: args.scale * LOG2_E,
        soft_cap: args.soft_cap,
    };
    if plan.launches.few {
        FewRows::of(plan.dtype).launch(stream, &shape.layout, &params)?;
    }
    if plan.launches.many {
        let (items, num_items) = addresses.many;
        let params = AttendParams {
            items,
            num_items,
            ..params
        };
        prefill::launch(stream, &shape.layout, &params)?;
    }
    if plan.launches.combine {
        let params = CombineParams {
            out: params.out,
            items: addresses.combine.0,
            num_items: addresses.combine.1,
            partial_out: params.partial_out,
            partial_lse: params.partial_lse,
            group: params.group,
            head_dim: shape.layout.head_dim as u32,
            dtype: params.dtype,
            padding: 0,
        };
        decode::combine(stream, &params)?;
    }
    Ok(())
}

/// Refuses arguments that do not fit the plan, which was made, or the cache.
fn check(
    stream: &Stream,
    cache: &KvCache,
    plan: &AttendPlan,
    args: &AttendArgs<'_>,
) -> Result<(), CudaError> {
    let shape = plan.shape.ok_or(KernelError::PlanMismatch)?;
    let (layout, device) = (shape.layout, stream.device());
    device.check_same("plan", plan.device())?;
    device.check_same("cache", cache.device())?;
    if *cache.layout() != layout {
        return Err(KernelError::PlanMismatch.into());
    }
    layout.check_layer(args.layer)?;
    if !(args.scale.is_finite() && args.scale > 0.0) {
        return Err(KernelError::Scale { scale: args.scale }.into());
    }
    if !(args.soft_cap.is_finite() && args.soft_cap >= 0.0) {
        return Err(CudaError::Argument {
            name: "soft_cap",
            expected: "finite, 0 or more",
            found: args.soft_cap.to_string(),
        });
    }
    for (name, found) in [("q", args.q.dtype()), ("out", args.out.dtype())] {
        if found != plan.dtype {
            let expected = plan.dtype;
            return Err(CudaError::Dtype {
                name,
                expected,
                found,
            });
        }
    }
    check_types(plan.dtype, layout.dtype)?;
    let width = shape.num_heads * layout.head_dim;
    args.q.check("q", device, plan.num_tokens, width)?;
    args.out.check("out", device, plan.num_tokens, width)?;
    if plan.launches.many {
        prefill::check_alignment("q", &args.q)?;
        prefill::check_alignment("out", &args.out.as_rows())?;
    }
    Ok(())
}

fn check_types(dtype: Dtype, kv_dtype: KvDtype) -> Result<(), CudaError> {
    match (dtype, kv_dtype) {
        (Dtype::F32, _)
        | (Dtype::Bf16, KvDtype::Bf16)
        | (Dtype::F16, KvDtype::F16)
        | (Dtype::Bf16 | Dtype::F16, KvDtype::Int8 | KvDtype::Fp8) => Ok(()),
        _ => Err(CudaError::KvDtype { dtype, kv_dtype }),
    }
}
