//! Embedding: rows of a table.

use super::params::EmbedParams;
use super::{Shape, count, grid_of_pieces, kernel};
use crate::cuda::params::RowsView;
use crate::cuda::{Buffer, CudaError, Rows, RowsMut, Stream};
use crate::error::check_len;

/// Which rows of what table.
#[derive(Debug)]
pub struct EmbedArgs<'a> {
    /// `[num_ids, width]`, of any type.
    pub table: Rows<'a>,
    /// Rows of the table.
    pub num_ids: usize,
    /// Row of the table for each row of `out`, at least `num_rows` of them. Those that are not below
    /// `num_ids` give rows of NaN: see [`check_ids`].
    pub ids: &'a Buffer<u32>,
    /// Result: `[num_rows, width]`.
    pub out: RowsMut<'a>,
    /// Rows of `out`.
    pub num_rows: usize,
    /// Elements a row.
    pub width: usize,
    /// What the table's numbers are multiplied by.
    pub scale: f32,
}

/// Refuses ids that a table does not have, before they are uploaded.
///
/// # Errors
/// [`CudaError::Argument`] with the first such id.
pub fn check_ids(ids: &[u32], num_ids: usize) -> Result<(), CudaError> {
    match ids.iter().position(|&id| id as usize >= num_ids) {
        None => Ok(()),
        Some(i) => Err(CudaError::Argument {
            name: "ids",
            expected: "below the rows of the table",
            found: format!("{} of row {i}, of {num_ids}", ids[i]),
        }),
    }
}

/// `out[i] = table[ids[i]] * scale`.
///
/// # Errors
/// [`KernelError::Rows`](crate::KernelError::Rows) or
/// [`KernelError::Length`](crate::KernelError::Length) for buffers that are too short,
/// [`CudaError::OtherDevice`], [`CudaError::Driver`].
pub fn embed(stream: &Stream, args: &EmbedArgs<'_>) -> Result<(), CudaError> {
    let shape = Shape {
        device: stream.device(),
        num_rows: args.num_rows,
        width: args.width,
        dtype: args.out.dtype(),
    };
    let table = &args.table;
    table.check("table", shape.device, args.num_ids, args.width)?;
    shape.device.check_same("ids", args.ids.device())?;
    if args.ids.len() < args.num_rows {
        check_len("ids", args.num_rows, args.ids.len())?;
    }
    let params = EmbedParams {
        table: RowsView::new(table),
        out: shape.view_mut("out", Some(&args.out))?,
        ids: args.ids.address(),
        num_rows: count("num_rows", args.num_rows)?,
        width: count("width", args.width)?,
        num_ids: count("num_ids", args.num_ids)?,
        scale: args.scale,
        dtype: shape.dtype as u32,
        table_dtype: table.dtype() as u32,
    };
    let num_sms = stream.device().properties().num_sms;
    let grid = grid_of_pieces(params.num_rows, params.width, shape.dtype, num_sms);
    stream.launch(kernel("embed")?, grid, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_past_the_table_are_named() {
        assert_eq!(check_ids(&[], 0), Ok(()));
        assert_eq!(check_ids(&[0, 4], 5), Ok(()));
        let error = check_ids(&[0, 5], 5).unwrap_err();
        assert!(error.to_string().contains("5 of row 1, of 5"), "{error}");
    }
}
