//! Rotary position embedding.

use super::params::{RopeParams, RotaryView};
use super::{Shape, count, grid_of_pieces, kernel};
use crate::KernelError;
use crate::cpu::Heads;
use crate::cuda::driver::Address;
use crate::cuda::params::RowsView;
use crate::cuda::{Buffer, CudaError, Device, RowsMut, Stream};
use crate::error::check_len;

/// Which elements of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Element `i` with `i + rotary_dim / 2`: GPT-NeoX, and LLaMA in transformers.
    HalfSplit,
    /// Element `2 i` with `2 i + 1`: GPT-J, and LLaMA as first released.
    Interleaved,
}

/// Cosines and sines of all positions that a model takes, on the device.
#[derive(Debug)]
pub struct RotaryTable {
    cos: Buffer<f32>,
    sin: Buffer<f32>,
    max_position: u32,
    rotary_dim: u32,
    pairing: Pairing,
}

impl RotaryTable {
    /// Angles of positions 0 to `max_position - 1` for the pairs' inverse frequencies; twice as many
    /// elements of a head turn.
    ///
    /// The product of position and frequency is rounded to f32, as the models were trained.
    ///
    /// # Errors
    /// [`KernelError::Zero`] for no position or no frequency, [`CudaError::Argument`] for more than
    /// 2^31, [`CudaError::Driver`].
    pub fn new(
        stream: &Stream,
        inverse_frequencies: &[f32],
        max_position: usize,
        pairing: Pairing,
    ) -> Result<Self, CudaError> {
        let pairs = inverse_frequencies.len();
        let len = count("angles", max_position.saturating_mul(pairs))? as usize;
        let (mut cos, mut sin) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for position in 0..max_position {
            for &frequency in inverse_frequencies {
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Self::from_angles(stream, (&cos, &sin), pairs, pairing)
    }

    /// A table of `[max_position, pairs]` cosines and sines that were computed elsewhere.
    ///
    /// # Errors
    /// [`KernelError::Zero`] for an empty table, [`KernelError::Length`] for cosines and sines that are
    /// not whole rows and equally many, [`CudaError::Argument`] for more than 2^31,
    /// [`CudaError::Driver`].
    pub fn from_angles(
        stream: &Stream,
        (cos, sin): (&[f32], &[f32]),
        pairs: usize,
        pairing: Pairing,
    ) -> Result<Self, CudaError> {
        for (name, value) in [("rotary pairs", pairs), ("rotary angles", cos.len())] {
            if value == 0 {
                return Err(KernelError::Zero { name }.into());
            }
        }
        check_len("cos", cos.len() / pairs * pairs, cos.len())?;
        check_len("sin", cos.len(), sin.len())?;
        count("angles", cos.len())?;
        let upload = |angles: &[f32]| -> Result<Buffer<f32>, CudaError> {
            let mut buffer = stream.device().alloc(angles.len())?;
            buffer.upload(stream, angles)?;
            Ok(buffer)
        };
        Ok(Self {
            cos: upload(cos)?,
            sin: upload(sin)?,
            max_position: count("max_position", cos.len() / pairs)?,
            rotary_dim: count("rotary_dim", pairs.saturating_mul(2))?,
            pairing,
        })
    }

    /// Positions it has angles of.
    pub fn max_position(&self) -> usize {
        self.max_position as usize
    }

    /// Elements of a head that turn: its first ones.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim as usize
    }
}

/// The positions of a step's tokens, and their angles.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Position of each row's token, at least as many as rows. Rows whose position the table does not
    /// have become NaN.
    pub positions: &'a Buffer<u32>,
    /// Angles.
    pub table: &'a RotaryTable,
}

impl Rotary<'_> {
    /// Checks that there are positions of `num_rows` rows, and that heads are long enough.
    pub(in crate::cuda) fn view(
        &self,
        device: &Device,
        num_rows: usize,
        head_dim: usize,
    ) -> Result<RotaryView, CudaError> {
        device.check_same("positions", self.positions.device())?;
        device.check_same("rotary table", self.table.cos.device())?;
        if self.positions.len() < num_rows {
            check_len("positions", num_rows, self.positions.len())?;
        }
        if self.table.rotary_dim() > head_dim {
            return Err(CudaError::Argument {
                name: "rotary_dim",
                expected: "at most head_dim",
                found: format!("{} of {head_dim}", self.table.rotary_dim),
            });
        }
        Ok(RotaryView {
            positions: self.positions.address(),
            cos: self.table.cos.address(),
            sin: self.table.sin.address(),
            max_position: self.table.max_position,
            rotary_dim: self.table.rotary_dim,
            interleaved: u32::from(self.table.pairing == Pairing::Interleaved),
            reserved: 0,
        })
    }
}

/// Heads to rotate.
#[derive(Debug)]
pub struct RopeArgs<'a> {
    /// Rows of a fused projection: `[num_tokens, width]`, rotated in place.
    pub x: RowsMut<'a>,
    /// Rows.
    pub num_tokens: usize,
    /// Elements a row.
    pub width: usize,
    /// Query heads. `num_heads` may be 0.
    pub q: Heads,
    /// Key heads, of the same dimension. `num_heads` may be 0.
    pub k: Heads,
    /// Angles.
    pub rotary: Rotary<'a>,
}

/// Where heads of a fused row start: an address of the first row's first one.
pub(in crate::cuda) fn start_of(rows: &RowsMut<'_>, offset: usize) -> Address {
    rows.address() + (offset * rows.dtype().bytes()) as Address
}

/// Rotary position embedding of heads in place: a pair `(a, b)` becomes
/// `(a cos - b sin, b cos + a sin)`.
///
/// # Errors
/// [`KernelError::Rows`] if the heads reach past a row or the rows past the buffer,
/// [`KernelError::Length`] for too few positions, [`CudaError::Argument`] for heads of two dimensions,
/// heads that overlap, or shorter than what turns, [`CudaError::OtherDevice`], [`CudaError::Driver`].
///
/// Source: Su et al. 2021.
pub fn rope(stream: &Stream, args: &RopeArgs<'_>) -> Result<(), CudaError> {
    let (q, k) = (args.q, args.k);
    check_heads(q, k, args.width)?;
    let shape = Shape {
        device: stream.device(),
        num_rows: args.num_tokens,
        width: args.width,
        dtype: args.x.dtype(),
    };
    let x = shape.view_mut("x", Some(&args.x))?;
    let view = |heads: Heads| RowsView {
        data: start_of(&args.x, heads.offset),
        ..x
    };
    let params = RopeParams {
        q: view(q),
        k: view(k),
        rotary: args
            .rotary
            .view(shape.device, args.num_tokens, q.head_dim)?,
        num_tokens: count("num_tokens", args.num_tokens)?,
        num_q_heads: count("num_q_heads", q.num_heads)?,
        num_k_heads: count("num_k_heads", k.num_heads)?,
        head_dim: count("head_dim", q.head_dim)?,
        dtype: shape.dtype as u32,
        reserved: 0,
    };
    // Heads do not overlap within a row, so that all of them are fewer elements than it has.
    let pairs = (q.num_heads + k.num_heads) * args.rotary.table.rotary_dim() / 2;
    let num_sms = stream.device().properties().num_sms;
    let grid = grid_of_pieces(
        params.num_tokens,
        count("pairs", pairs)?,
        shape.dtype,
        num_sms,
    );
    stream.launch(kernel("rope")?, grid, &params)
}

fn check_heads(q: Heads, k: Heads, width: usize) -> Result<(), CudaError> {
    q.check(width)?;
    k.check(width)?;
    if q.head_dim != k.head_dim {
        return Err(CudaError::Argument {
            name: "head_dim of k",
            expected: "as that of q",
            found: format!("{}, not {}", k.head_dim, q.head_dim),
        });
    }
    let end = |heads: Heads| heads.offset + heads.num_heads * heads.head_dim;
    if q.num_heads > 0 && k.num_heads > 0 && q.offset < end(k) && k.offset < end(q) {
        return Err(CudaError::Argument {
            name: "offset of k",
            expected: "outside of the heads of q",
            found: format!("{}, in {} to {}", k.offset, q.offset, end(q)),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_overlap_or_reach_past_a_row_are_refused() {
        let heads = |offset, num_heads| Heads {
            offset,
            num_heads,
            head_dim: 8,
        };
        let refused = |q, k| check_heads(q, k, 40).is_err();
        assert!(!refused(heads(0, 4), heads(32, 1)));
        assert!(!refused(heads(8, 4), heads(0, 1)));
        assert!(!refused(heads(0, 4), heads(3, 0)));
        assert!(refused(heads(0, 4), heads(31, 1)));
        assert!(refused(heads(1, 4), heads(0, 1)));
        assert!(refused(heads(0, 4), heads(33, 1)));
        let other = Heads {
            head_dim: 4,
            ..heads(32, 1)
        };
        assert!(refused(heads(0, 4), other));
    }
}
