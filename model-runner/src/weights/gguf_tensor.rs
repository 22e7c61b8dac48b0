//! The tensor entries of a GGUF header.

use std::collections::BTreeMap;

use super::dtype::ggml_type_name;
use super::gguf_value::Cursor;
use super::mapped::FileBytes;
use super::{LoadError, WeightType};

/// Longest key or tensor name in bytes, as in the specification.
const MAX_NAME_BYTES: usize = (1 << 16) - 1;
const MAX_DIMS: u32 = 4;

/// Where a tensor's elements lie. The range was checked against the file.
#[derive(Debug, Clone)]
pub(crate) struct GgufTensor {
    pub(crate) dtype: WeightType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// What went wrong in the header: a reason at the cursor, or an error that says where by itself.
pub(super) enum Fault {
    Reason(String),
    Load(Box<LoadError>),
}

impl From<String> for Fault {
    fn from(reason: String) -> Fault {
        Fault::Reason(reason)
    }
}

/// A metadata key or a tensor name.
pub(super) fn name(cursor: &mut Cursor<'_>) -> Result<Box<str>, Fault> {
    let name = cursor.string()?;
    if name.len() > MAX_NAME_BYTES {
        return Err(Fault::Reason(format!("a name of {} bytes", name.len())));
    }
    Ok(name.into())
}

/// A tensor's entry as the file gives it.
struct RawTensor {
    name: Box<str>,
    dims: [u64; MAX_DIMS as usize],
    ggml_type: u32,
    offset: u64,
}

/// Reads the entries and finds each tensor's bytes in the file.
pub(super) fn parse_tensors(
    cursor: &mut Cursor<'_>,
    file: &FileBytes,
    num_tensors: u64,
    alignment: usize,
) -> Result<BTreeMap<Box<str>, GgufTensor>, Fault> {
    let mut raw = Vec::new();
    for _ in 0..num_tensors {
        let name = name(cursor)?;
        let num_dims = cursor.u32()?;
        if !(1..=MAX_DIMS).contains(&num_dims) {
            return Err(Fault::Reason(format!(
                "tensor `{name}` has {num_dims} dimensions"
            )));
        }
        let mut dims = [1; MAX_DIMS as usize];
        for dim in &mut dims[..num_dims as usize] {
            *dim = cursor.u64()?;
        }
        let (ggml_type, offset) = (cursor.u32()?, cursor.u64()?);
        raw.push(RawTensor {
            name,
            dims,
            ggml_type,
            offset,
        });
    }
    let data_start = cursor
        .offset()
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| "the data section starts past the address space".to_owned())?;
    let mut tensors = BTreeMap::new();
    for tensor in raw {
        let located = locate(&tensor, file, data_start, alignment)?;
        if tensors.contains_key(&tensor.name) {
            return Err(Fault::Reason(format!(
                "tensor `{}` appears twice",
                tensor.name
            )));
        }
        tensors.insert(tensor.name, located);
    }
    Ok(tensors)
}

fn locate(
    raw: &RawTensor,
    file: &FileBytes,
    data_start: usize,
    alignment: usize,
) -> Result<GgufTensor, Fault> {
    let fault = |reason: String| {
        Fault::Load(Box::new(LoadError::Tensor {
            path: file.path_buf(),
            tensor: raw.name.to_string(),
            reason,
        }))
    };
    let overflow = || fault(format!("its size overflows: dimensions {:?}", raw.dims));
    if raw.dims.contains(&0) {
        return Err(fault(format!("a dimension is zero: {:?}", raw.dims)));
    }
    let dtype = WeightType::from_ggml(raw.ggml_type).ok_or_else(|| {
        Fault::Load(Box::new(LoadError::TensorType {
            path: file.path_buf(),
            tensor: raw.name.to_string(),
            found: ggml_type_name(raw.ggml_type),
        }))
    })?;
    // GGUF lists the fastest dimension first: the row length.
    let cols = usize::try_from(raw.dims[0]).map_err(|_| overflow())?;
    let rows = raw.dims[1..]
        .iter()
        .try_fold(1u64, |rows, dim| rows.checked_mul(*dim));
    let rows = rows
        .and_then(|rows| usize::try_from(rows).ok())
        .ok_or_else(overflow)?;
    if !cols.is_multiple_of(dtype.block_len()) {
        let block = dtype.block_len();
        return Err(fault(format!(
            "rows of {cols} elements are not whole {dtype} blocks of {block}"
        )));
    }
    let len = dtype
        .row_bytes(cols)
        .and_then(|row| row.checked_mul(rows))
        .ok_or_else(overflow)?;
    if !raw.offset.is_multiple_of(alignment as u64) {
        return Err(fault(format!(
            "offset {} is not aligned to {alignment}",
            raw.offset
        )));
    }
    let start = usize::try_from(raw.offset)
        .ok()
        .and_then(|at| at.checked_add(data_start));
    match start.and_then(|start| Some((start, start.checked_add(len)?))) {
        Some((start, end)) if end <= file.len() => Ok(GgufTensor {
            dtype,
            rows,
            cols,
            start,
            len,
        }),
        _ => Err(fault(format!(
            "{len} bytes at offset {} of the data at byte {data_start} end past the file's {} bytes",
            raw.offset,
            file.len()
        ))),
    }
}
