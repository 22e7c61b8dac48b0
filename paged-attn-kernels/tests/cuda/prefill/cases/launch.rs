//! One launch of the kernel on the emulator.

use bytemuck::{Pod, Zeroable};
use pageloom_paged_attn_kernels::cuda;
use pageloom_paged_attn_kernels::emulator::{self, LaunchConfig, Memory, Module};

use super::{Case, Input, Item, dense};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    q: u64,
    q_stride: i64,
    out: u64,
    out_stride: i64,
    kv: [u64; 4],
    block_stride: i64,
    scale_block_stride: i64,
    head_stride: u32,
    token_stride: u32,
    scale_head_stride: u32,
    block_shift: u32,
    block_tables: u64,
    items: u64,
    num_items: u64,
    partial_out: u64,
    partial_lse: u64,
    group: u32,
    dtype: u32,
    kv_type: u32,
    window: u32,
    scale_log2: f32,
    soft_cap: f32,
}

/// What a launch wrote.
pub(crate) struct Output {
    /// `[num_tokens, num_heads, head_dim]`; split items were combined.
    pub(crate) out: Vec<f64>,
    /// The bits of it all: of out, its gaps and a row behind, of partial results.
    pub(crate) bits: Vec<u32>,
}

/// Launches a grid of three CTAs, and checks that nothing but results was written.
pub(crate) fn launch(input: &Input) -> Output {
    let case = &input.case;
    let variant = format!("attend_prefill_{}_{}", case.head_dim, case.kv.name());
    let module = Module::parse(cuda::ptx(&variant).unwrap()).unwrap();
    let items = input.items();
    let num_partials: usize = match case.splits {
        1 => 0,
        _ => items.iter().map(|item| item.num_packed as usize).sum(),
    };
    let mut memory = Memory::new();
    let params = params(input, &items, num_partials, &mut memory);
    let config = LaunchConfig {
        grid: [3, 1, 1],
        block: [128, 1, 1],
        dynamic_shared_bytes: case.shared_bytes(),
    };
    let entry = module.entry("attend_prefill").unwrap();
    emulator::launch(entry, config, bytemuck::bytes_of(&params), &mut memory)
        .unwrap_or_else(|fault| panic!("{fault}\n{case:?}"));
    let out: Vec<u16> = read(&memory, params.out, (case.num_tokens() + 1) * case.stride());
    let sums: Vec<f32> = read(
        &memory,
        params.partial_out,
        (num_partials + 1) * case.head_dim,
    );
    let logarithms: Vec<f32> = read(&memory, params.partial_lse, num_partials + 1);
    check_untouched(
        case,
        &out,
        &sums[num_partials * case.head_dim..],
        logarithms[num_partials],
    );
    let bits = out
        .iter()
        .map(|&x| u32::from(x))
        .chain(sums.iter().chain(&logarithms).map(|x| x.to_bits()));
    let bits = bits.collect();
    let out = match case.splits {
        1 => dense(case, &out),
        _ => combine(case, &items, &sums, &logarithms),
    };
    Output { out, bits }
}

/// What the kernel is given; a row and a partial result more than it may write.
fn params(input: &Input, items: &[Item], num_partials: usize, memory: &mut Memory) -> Params {
    let case = &input.case;
    // Fresh memory is 0xff: NaN in every format.
    let out_len = (case.num_tokens() + 1) * case.stride();
    let out = memory.alloc(out_len * 2);
    let partial_out = memory.alloc((num_partials + 1) * case.head_dim * 4);
    let partial_lse = memory.alloc((num_partials + 1) * 4);
    let mut put = |bytes: &[u8]| {
        let address = memory.alloc(bytes.len());
        memory.write(address, bytes).unwrap();
        address
    };
    let tables: Vec<u32> = input
        .sequences
        .iter()
        .flat_map(|s| s.table.clone())
        .collect();
    let (pages, tokens) = (put(&input.pages), case.num_kv_heads * case.block_size);
    let panel = (tokens * case.head_dim * case.kv.bytes()) as u64;
    let scales = pages + 2 * panel;
    Params {
        q: put(bytemuck::cast_slice(&input.q)),
        q_stride: case.stride() as i64,
        out,
        out_stride: case.stride() as i64,
        kv: [pages, pages + panel, scales, scales + 4 * tokens as u64],
        block_stride: (input.block_bytes / case.kv.bytes()) as i64,
        scale_block_stride: (input.block_bytes / 4) as i64,
        head_stride: (case.block_size * case.head_dim) as u32,
        token_stride: case.head_dim as u32,
        scale_head_stride: case.block_size as u32,
        block_shift: case.block_size.trailing_zeros(),
        block_tables: put(bytemuck::cast_slice(&tables)),
        items: put(bytemuck::cast_slice(items)),
        num_items: put(&(items.len() as u32).to_le_bytes()),
        partial_out,
        partial_lse,
        group: case.group as u32,
        dtype: if case.f16 { 2 } else { 1 },
        kv_type: case.kv as u32 + 1,
        window: case.window as u32,
        scale_log2: case.scale() as f32 * std::f32::consts::LOG2_E,
        soft_cap: case.soft_cap,
    }
}

fn read<T: Pod>(memory: &Memory, address: u64, len: usize) -> Vec<T> {
    let mut data = vec![T::zeroed(); len];
    memory
        .read(address, bytemuck::cast_slice_mut(&mut data))
        .unwrap();
    data
}

fn check_untouched(case: &Case, out: &[u16], sums: &[f32], logarithm: f32) {
    let (width, rows) = (case.stride() - 8, case.num_tokens());
    for (i, row) in out.chunks_exact(case.stride()).enumerate() {
        let start = if i == rows || case.splits > 1 {
            0
        } else {
            width
        };
        assert!(
            row[start..].iter().all(|&x| x == 0xffff),
            "row {i} was written past its end: {case:?}"
        );
    }
    let untouched = sums
        .iter()
        .chain([&logarithm])
        .all(|x| x.to_bits() == u32::MAX);
    assert!(untouched, "written past the last partial result: {case:?}");
}

/// Sums partial results by their logarithms.
fn combine(case: &Case, items: &[Item], sums: &[f32], logarithms: &[f32]) -> Vec<f64> {
    let width = case.num_heads() * case.head_dim;
    let mut out = vec![0.0; case.num_tokens() * width];
    let mut weights = vec![0.0; case.num_tokens() * case.num_heads()];
    for pass in 0..2 {
        for item in items {
            for i in 0..item.num_packed as usize {
                let packed = item.first_packed as usize + i;
                let token = item.first_row as usize + packed / case.group;
                let head = item.kv_head as usize * case.group + packed % case.group;
                let row = token * case.num_heads() + head;
                let partial = item.partial as usize + i;
                let weight = f64::from(logarithms[partial]).exp2();
                if pass == 0 {
                    weights[row] += weight;
                    continue;
                }
                for d in 0..case.head_dim {
                    out[row * case.head_dim + d] +=
                        weight / weights[row] * f64::from(sums[partial * case.head_dim + d]);
                }
            }
        }
    }
    out
}
