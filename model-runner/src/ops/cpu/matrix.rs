//! Tensors of a file to matrices of the kernels.

use std::convert::Infallible;

use pageloom_paged_attn_kernels::cpu::{
    BlockFormat, MatrixDtype, PackedMatrix, ThreadPool, gated_row, quantise_row,
};

use super::{Quantization, WeightDtype, WeightOptions};
use crate::weights::{Tensor, WeightType};

/// How a matrix is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// Multiplied by f32 inputs.
    Dense(MatrixDtype),
    /// Rounded to bf16 and multiplied by bf16 inputs.
    Bf16,
    /// Blocks of the file as they are.
    Blocks(BlockFormat),
    /// Blocks made of the file's numbers.
    Quantised(BlockFormat),
}

/// Packs tensors of equal width, stacked into one matrix.
pub(super) fn pack(
    pool: &ThreadPool,
    options: WeightOptions,
    parts: &[Tensor<'_>],
) -> PackedMatrix {
    // Neighbours that are packed alike become one matrix.
    let packings: Vec<Packing> = parts.iter().map(|part| packing(options, part)).collect();
    let mut matrices = Vec::new();
    let mut first = 0;
    for alike in packings.chunk_by(|a, b| a == b) {
        let rest = &parts[first..first + alike.len()];
        matrices.push(pack_alike(pool, alike[0], rest));
        first += alike.len();
    }
    match matrices.len() {
        1 => matrices.remove(0),
        _ => PackedMatrix::stack(matrices).expect("the caller's tensors are equally wide"),
    }
}

/// Packs the matrices of gates and of what they gate as one, interleaved for the kernels.
pub(super) fn pack_gated(
    pool: &ThreadPool,
    options: WeightOptions,
    gate: Tensor<'_>,
    up: Tensor<'_>,
) -> PackedMatrix {
    let packing = match (packing(options, &gate), packing(options, &up)) {
        (of_gate, of_up) if of_gate == of_up => of_gate,
        // One matrix is packed in one way: what the file quantises in two becomes bf16.
        _ if gate.cols().is_multiple_of(32) => Packing::Bf16,
        _ => Packing::Dense(MatrixDtype::F32),
    };
    let width = gate.rows();
    let source = Source {
        rows: 2 * width.next_multiple_of(16),
        cols: gate.cols(),
        find: |row: usize| {
            let (is_gate, row) = gated_row(row);
            let part = if is_gate { &gate } else { &up };
            (row < width).then_some((part, row))
        },
    };
    pack_source(pool, packing, source)
}

fn packing(options: WeightOptions, part: &Tensor<'_>) -> Packing {
    let is_wide = matches!(part.dtype(), WeightType::F32 | WeightType::F16);
    // Steps of 32 inputs: other widths, which no quantised file has, are multiplied in f32.
    let has_steps = part.cols().is_multiple_of(32);
    let exact = if is_wide {
        MatrixDtype::F32
    } else {
        MatrixDtype::Bf16
    };
    match (
        options.dtype,
        block_format(part.dtype()),
        options.quantization,
    ) {
        (WeightDtype::F32, ..) => Packing::Dense(MatrixDtype::F32),
        (WeightDtype::Exact, ..) => Packing::Dense(exact),
        (WeightDtype::Bf16, ..) if has_steps => Packing::Bf16,
        (WeightDtype::Bf16, ..) => Packing::Dense(MatrixDtype::Bf16),
        (WeightDtype::Auto, Some(format), _) => Packing::Blocks(format),
        (WeightDtype::Auto, None, Some(bits)) if has_steps => Packing::Quantised(match bits {
            Quantization::Int8 => BlockFormat::Q8_0,
            Quantization::Int4 => BlockFormat::Q4_1,
        }),
        (WeightDtype::Auto, None, _) if has_steps && !is_wide => Packing::Bf16,
        (WeightDtype::Auto, None, _) => Packing::Dense(exact),
    }
}

fn block_format(dtype: WeightType) -> Option<BlockFormat> {
    match dtype {
        WeightType::F32 | WeightType::F16 | WeightType::Bf16 => None,
        WeightType::Q4_0 => Some(BlockFormat::Q4_0),
        WeightType::Q4_1 => Some(BlockFormat::Q4_1),
        WeightType::Q5_0 => Some(BlockFormat::Q5_0),
        WeightType::Q5_1 => Some(BlockFormat::Q5_1),
        WeightType::Q8_0 => Some(BlockFormat::Q8_0),
        WeightType::Q4K => Some(BlockFormat::Q4K),
        WeightType::Q5K => Some(BlockFormat::Q5K),
        WeightType::Q6K => Some(BlockFormat::Q6K),
    }
}

fn pack_alike(pool: &ThreadPool, packing: Packing, parts: &[Tensor<'_>]) -> PackedMatrix {
    let source = Source {
        rows: parts.iter().map(Tensor::rows).sum(),
        cols: parts.first().map_or(0, Tensor::cols),
        find: |mut row: usize| {
            parts.iter().find_map(|part| {
                let found = (row < part.rows()).then_some((part, row));
                row = row.wrapping_sub(part.rows());
                found
            })
        },
    };
    pack_source(pool, packing, source)
}

/// Where the rows of a matrix come from.
struct Source<F> {
    rows: usize,
    cols: usize,
    /// The tensor that has a row, and the row's number in it; `None` for a row of zeros.
    find: F,
}

fn pack_source<'t>(
    pool: &ThreadPool,
    packing: Packing,
    source: Source<impl Fn(usize) -> Option<(&'t Tensor<'t>, usize)> + Sync>,
) -> PackedMatrix {
    let Source { rows, cols, find } = source;
    let shape = (rows, cols);
    let read_row = |row: usize, out: &mut [f32]| match find(row) {
        Some((part, row)) => part.read_row(row, out),
        None => out.fill(0.0),
    };
    match packing {
        Packing::Dense(dtype) => {
            let read_row = |row: usize, out: &mut [f32]| {
                read_row(row, out);
                Ok::<(), Infallible>(())
            };
            match PackedMatrix::pack(pool, shape, dtype, read_row) {
                Ok(matrix) => matrix,
                Err(never) => match never {},
            }
        }
        Packing::Bf16 => PackedMatrix::pack_bf16(pool, shape, read_row)
            .expect("widths that are no multiple of 32 are packed dense"),
        Packing::Blocks(format) => {
            let read_row = |row: usize, out: &mut [u8]| match find(row) {
                Some((part, row)) => out.copy_from_slice(part.raw_row(row)),
                // Blocks whose scale is zero.
                None => out.fill(0),
            };
            PackedMatrix::pack_blocks(pool, shape, format, read_row)
                .expect("a file's quantised rows are whole blocks: checked when it was opened")
        }
        Packing::Quantised(format) => {
            let read_row = |row: usize, out: &mut [u8]| {
                let mut numbers = vec![0.0; cols];
                read_row(row, &mut numbers);
                quantise_row(format, &numbers, out);
            };
            PackedMatrix::pack_blocks(pool, shape, format, read_row)
                .expect("widths that are no multiple of 32 are packed dense")
        }
    }
}
