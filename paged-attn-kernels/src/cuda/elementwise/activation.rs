//! Activations, gated or not.

use super::params::ActivationParams;
use super::{Shape, count, grid_of_pieces, kernel};
use crate::cuda::{CudaError, Rows, RowsMut, Stream};

/// Rows of an activation.
#[derive(Debug)]
pub struct ActivationArgs<'a> {
    /// What the activation is of: `[num_rows, width]`. `None`: `out`.
    pub x: Option<Rows<'a>>,
    /// What it is multiplied by: as `x`. `None`: nothing.
    pub up: Option<Rows<'a>>,
    /// Result: as `x`.
    pub out: RowsMut<'a>,
    /// Rows.
    pub num_rows: usize,
    /// Elements a row.
    pub width: usize,
}

/// The two forms of GELU that models use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluForm {
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    Erf,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    Tanh,
}

/// Codes of `Activation` in `cuda/elementwise.cuh`.
const SILU: u32 = 0;
const GELU_ERF: u32 = 1;
const GELU_TANH: u32 = 2;
const RELU: u32 = 3;
const RELU_SQUARED: u32 = 4;

/// The gated activation of LLaMA: `out = silu(x) * up`, `silu(x) = x / (1 + exp(-x))`.
///
/// # Errors
/// [`CudaError::Dtype`] or [`CudaError::OtherDevice`] for rows that do not go together,
/// [`KernelError::Rows`](crate::KernelError::Rows) for buffers that are too short,
/// [`CudaError::Driver`].
///
/// Source: Shazeer 2020.
pub fn silu_mul(stream: &Stream, args: &ActivationArgs<'_>) -> Result<(), CudaError> {
    run(stream, "silu_mul", SILU, args)
}

/// `out = gelu(x)`, times `up` if there is one.
///
/// # Errors
/// As [`silu_mul`].
///
/// Source: Hendrycks and Gimpel 2016.
pub fn gelu(stream: &Stream, form: GeluForm, args: &ActivationArgs<'_>) -> Result<(), CudaError> {
    let code = match form {
        GeluForm::Erf => GELU_ERF,
        GeluForm::Tanh => GELU_TANH,
    };
    run(stream, "gelu", code, args)
}

/// `out = max(x, 0)`, or its square, times `up` if there is one. NaN stays NaN.
///
/// # Errors
/// As [`silu_mul`].
pub fn relu(stream: &Stream, squared: bool, args: &ActivationArgs<'_>) -> Result<(), CudaError> {
    let code = if squared { RELU_SQUARED } else { RELU };
    run(stream, "relu", code, args)
}

fn run(
    stream: &Stream,
    stem: &'static str,
    activation: u32,
    args: &ActivationArgs<'_>,
) -> Result<(), CudaError> {
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
    let params = ActivationParams {
        x,
        up: shape.view("up", args.up.as_ref())?,
        out,
        num_rows: count("num_rows", args.num_rows)?,
        width: count("width", args.width)?,
        dtype: shape.dtype as u32,
        activation,
    };
    let num_sms = stream.device().properties().num_sms;
    let grid = grid_of_pieces(params.num_rows, params.width, shape.dtype, num_sms);
    stream.launch(kernel(stem)?, grid, &params)
}
