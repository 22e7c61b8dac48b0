//! Bias and residual.

use super::params::AddBiasParams;
use super::{Shape, count, grid_of_pieces, kernel, weights};
use crate::cuda::{CudaError, Rows, RowsMut, Stream};

/// What is added to what.
#[derive(Debug)]
pub struct AddBiasArgs<'a> {
    /// `[num_rows, width]`. `None`: `out`.
    pub x: Option<Rows<'a>>,
    /// Added to each row: `[width]`, of any type.
    pub bias: Option<Rows<'a>>,
    /// Added: as `x`.
    pub residual: Option<Rows<'a>>,
    /// Result: as `x`.
    pub out: RowsMut<'a>,
    /// Rows.
    pub num_rows: usize,
    /// Elements a row.
    pub width: usize,
}

/// `out = x + bias + residual`, each where there is one; summed in f32, in this order.
///
/// # Errors
/// [`CudaError::Dtype`] or [`CudaError::OtherDevice`] for rows that do not go together,
/// [`KernelError::Rows`](crate::KernelError::Rows) for buffers that are too short,
/// [`CudaError::Driver`].
pub fn add_bias(stream: &Stream, args: &AddBiasArgs<'_>) -> Result<(), CudaError> {
    let shape = Shape {
        device: stream.device(),
        num_rows: args.num_rows,
        width: args.width,
        dtype: args.out.dtype(),
    };
    let out = shape.view_mut("out", Some(&args.out))?;
    let x = match &args.x {
        None => out,
        x => shape.view("x", x.as_ref())?,
    };
    let (bias, bias_dtype) = weights("bias", shape.device, args.width, args.bias.as_ref())?;
    let params = AddBiasParams {
        x,
        residual: shape.view("residual", args.residual.as_ref())?,
        out,
        bias,
        num_rows: count("num_rows", args.num_rows)?,
        width: count("width", args.width)?,
        dtype: shape.dtype as u32,
        bias_dtype: bias_dtype as u32,
    };
    let num_sms = stream.device().properties().num_sms;
    let grid = grid_of_pieces(params.num_rows, params.width, shape.dtype, num_sms);
    stream.launch(kernel("add_bias")?, grid, &params)
}
