//! The same cases through `cuda::attend`: on the emulator, and on a GPU where there is one.

use half::{bf16, f16};
use pageloom_paged_attn_kernels::cuda::attention::{AttendArgs, AttendPlan, PlanShape, attend};
use pageloom_paged_attn_kernels::cuda::{CudaError, Data, KvCache, Stream};
use pageloom_paged_attn_kernels::{AttendBatch, CacheLayout, KvDtype};

use super::{Input, dense};

/// What a device computes, `[num_tokens, num_heads, head_dim]`.
pub(crate) fn attend_on(stream: &Stream, input: &Input) -> Result<Vec<f64>, CudaError> {
    let q = &input.q;
    let out = match input.case.f16 {
        true => run::<f16>(
            stream,
            input,
            q.iter().map(|&x| f16::from_bits(x)).collect(),
        )?
        .iter()
        .map(|x| x.to_bits())
        .collect(),
        false => run::<bf16>(
            stream,
            input,
            q.iter().map(|&x| bf16::from_bits(x)).collect(),
        )?
        .iter()
        .map(|x| x.to_bits())
        .collect::<Vec<_>>(),
    };
    Ok(dense(&input.case, &out))
}

fn run<T: Data>(stream: &Stream, input: &Input, q: Vec<T>) -> Result<Vec<T>, CudaError> {
    let (case, device) = (&input.case, stream.device());
    let layout = CacheLayout {
        num_layers: 1,
        num_blocks: input.pages.len() / input.block_bytes,
        block_size: case.block_size,
        num_kv_heads: case.num_kv_heads,
        head_dim: case.head_dim,
        dtype: [KvDtype::Bf16, KvDtype::F16, KvDtype::Int8, KvDtype::Fp8][case.kv as usize],
    };
    let mut cache = KvCache::new(device, layout)?;
    cache.upload(stream, &input.pages)?;
    let ends = |lens: Vec<usize>| -> Vec<u32> {
        let end = |sum: &mut usize, len: usize| {
            *sum += len;
            Some(*sum as u32)
        };
        std::iter::once(0)
            .chain(lens.into_iter().scan(0, end))
            .collect()
    };
    let sequences = &input.sequences;
    let batch = AttendBatch {
        query_offsets: &ends(sequences.iter().map(|s| s.chunk).collect()),
        context_lens: &sequences
            .iter()
            .map(|s| (s.prefix + s.chunk) as u32)
            .collect::<Vec<_>>(),
        block_tables: &sequences
            .iter()
            .flat_map(|s| s.table.clone())
            .collect::<Vec<_>>(),
        table_offsets: &ends(sequences.iter().map(|s| s.table.len()).collect()),
    };
    let shape = PlanShape {
        layout: &layout,
        num_heads: case.num_heads(),
        dtype: T::DTYPE,
        window: case.window,
        batch_invariant: false,
        replayed: false,
    };
    let mut plan = AttendPlan::new(device)?;
    plan.plan(stream, &shape, &batch)?;
    let mut queries = device.alloc::<T>(q.len())?;
    queries.upload(stream, &q)?;
    let mut out = device.alloc::<T>(q.len() + case.stride())?;
    out.fill(stream, 0xff)?;
    let args = AttendArgs {
        layer: 0,
        q: queries.rows(case.stride()),
        out: out.rows_mut(case.stride()),
        scale: case.scale() as f32,
        soft_cap: case.soft_cap,
    };
    attend(stream, &cache, &mut plan, args)?;
    out.download(stream)
}
