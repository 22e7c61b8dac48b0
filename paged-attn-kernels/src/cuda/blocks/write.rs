//! Storing the keys and values of a step's tokens.

use bytemuck::Zeroable;

use super::params::WriteKvParams;
use crate::cpu::Heads;
use crate::cuda::driver::LaunchShape;
use crate::cuda::elementwise::{self, Rotary, RotaryView, THREADS, check_dtype, count};
use crate::cuda::params::{RowsView, kv_code};
use crate::cuda::{Buffer, CudaError, Dtype, KvCache, Rows, RowsMut, Stream};
use crate::error::check_len;
use crate::{CacheLayout, KernelError};

/// A slot that is none: its row is skipped. What rows that pad a captured graph have.
pub const NO_SLOT: u32 = u32::MAX;

/// Where the keys and values of a step's tokens are.
#[derive(Debug)]
pub enum KvRows<'a> {
    /// In rows of their own: `[num_tokens, num_kv_heads, head_dim]` each.
    Apart {
        /// Keys.
        k: Rows<'a>,
        /// Values.
        v: Rows<'a>,
    },
    /// Side by side in the rows of a fused projection.
    Fused {
        /// `[num_tokens, width]`. Query heads are rotated in place if there is a rotary embedding; keys
        /// and values stay.
        x: RowsMut<'a>,
        /// Elements a row.
        width: usize,
        /// Query heads, of the cache's head dimension. `num_heads` may be 0.
        q: Heads,
        /// First element of the first key head in a row.
        k_offset: usize,
        /// First element of the first value head in a row.
        v_offset: usize,
    },
}

/// What is stored where.
#[derive(Debug)]
pub struct WriteKvArgs<'a> {
    /// Layer of the cache.
    pub layer: usize,
    /// Slot of each row, at least `num_tokens` of them: offset `s % block_size` of block
    /// `s / block_size`. Rows whose slot the cache does not have, as [`NO_SLOT`], are skipped: see
    /// [`check_slots`]. No slot may occur twice.
    pub slots: &'a Buffer<u32>,
    /// Rows.
    pub num_tokens: usize,
    /// Keys and values.
    pub rows: KvRows<'a>,
    /// Rotates keys on the way into the cache, and fused queries in place. `None`: as they are.
    pub rotary: Option<Rotary<'a>>,
}

/// Refuses slots that a cache does not have, before they are uploaded; [`NO_SLOT`] is let through.
///
/// # Errors
/// [`KernelError::Slot`] with the first such slot.
pub fn check_slots(layout: &CacheLayout, slots: &[u32]) -> Result<(), KernelError> {
    let num_slots = layout.num_slots();
    let bad = |&slot: &u32| slot != NO_SLOT && slot as usize >= num_slots;
    match slots.iter().position(bad) {
        None => Ok(()),
        Some(token) => Err(KernelError::Slot {
            token,
            slot: slots[token],
            num_slots,
        }),
    }
}

/// Stores keys and values of new tokens in their slots: the fused reshape and block write.
///
/// Formats and rounding are those of [`KvDtype`](crate::KvDtype); int8 pages get the same integers
/// and scales as from [`cpu::write_kv`](crate::cpu::write_kv).
///
/// # Errors
/// [`KernelError::Layer`], [`KernelError::Rows`] or [`KernelError::Length`] for what is not there,
/// [`KernelError::HeadDim`] for queries of another head dimension, [`CudaError::Dtype`],
/// [`CudaError::OtherDevice`], [`CudaError::Argument`] for more than 2^31 heads of all tokens,
/// [`CudaError::Driver`].
///
/// Source: Kwon et al. 2023, section 5.1.
pub fn write_kv(
    stream: &Stream,
    cache: &mut KvCache,
    args: &WriteKvArgs<'_>,
) -> Result<(), CudaError> {
    let layout = *cache.layout();
    let device = stream.device();
    device.check_same("cache", cache.device())?;
    device.check_same("slots", args.slots.device())?;
    layout.check_layer(args.layer)?;
    if args.slots.len() < args.num_tokens {
        check_len("slots", args.num_tokens, args.slots.len())?;
    }
    let rows = views(stream, &layout, args)?;
    let rotary = match &args.rotary {
        None => RotaryView::zeroed(),
        Some(rotary) => rotary.view(device, args.num_tokens, layout.head_dim)?,
    };
    let hadamard_len = 1u32 << layout.head_dim.trailing_zeros();
    let lanes = (layout.head_dim as u32 / 8).next_power_of_two();
    let heads = rows.num_heads.max(layout.num_kv_heads);
    count("heads of all tokens", args.num_tokens.saturating_mul(heads))?;
    let params = WriteKvParams {
        k: rows.k,
        v: rows.v,
        q: rows.q,
        kv: cache.view(args.layer),
        slots: args.slots.address(),
        rotary,
        num_tokens: count("num_tokens", args.num_tokens)?,
        num_heads: count("num_heads", rows.num_heads)?,
        num_kv_heads: count("num_kv_heads", layout.num_kv_heads)?,
        head_dim: layout.head_dim as u32,
        // `validate` found them to fit; NO_SLOT is never below.
        num_slots: layout.num_slots() as u32,
        hadamard_len,
        hadamard_norm: 1.0 / (hadamard_len as f32).sqrt(),
        dtype: rows.dtype as u32,
        kv_type: kv_code(layout.dtype),
        lanes,
    };
    let turning = args.rotary.map_or(0, |_| params.num_heads);
    let num_sms = device.properties().num_sms;
    let grid = shape(&params, turning, num_sms);
    stream.launch(elementwise::kernel("write_kv")?, grid, &params)
}

/// CTAs for rows of keys and values, and of `turning` query heads a token.
fn shape(params: &WriteKvParams, turning: u32, num_sms: u32) -> LaunchShape {
    let per_cta = u64::from(THREADS / params.lanes);
    let turns = |heads: u32| (u64::from(params.num_tokens) * u64::from(heads)).div_ceil(per_cta);
    elementwise::grid(turns(params.num_kv_heads) + turns(turning), num_sms)
}

/// What the kernel is told of the rows.
struct Views {
    k: RowsView,
    v: RowsView,
    q: RowsView,
    num_heads: usize,
    dtype: Dtype,
}

fn views(
    stream: &Stream,
    layout: &CacheLayout,
    args: &WriteKvArgs<'_>,
) -> Result<Views, CudaError> {
    let (device, columns) = (stream.device(), layout.num_kv_heads * layout.head_dim);
    match &args.rows {
        KvRows::Apart { k, v } => {
            k.check("k", device, args.num_tokens, columns)?;
            v.check("v", device, args.num_tokens, columns)?;
            check_dtype("v", k.dtype(), v.dtype())?;
            Ok(Views {
                k: RowsView::new(k),
                v: RowsView::new(v),
                q: RowsView::zeroed(),
                num_heads: 0,
                dtype: k.dtype(),
            })
        }
        KvRows::Fused {
            x,
            width,
            q,
            k_offset,
            v_offset,
        } => {
            x.check("x", device, args.num_tokens, *width)?;
            check_fused(layout, *width, *q, [*k_offset, *v_offset])?;
            let row = RowsView::new_mut(x);
            let view = |offset| RowsView {
                data: elementwise::start_of(x, offset),
                ..row
            };
            Ok(Views {
                k: view(*k_offset),
                v: view(*v_offset),
                q: view(q.offset),
                num_heads: q.num_heads,
                dtype: x.dtype(),
            })
        }
    }
}

/// Refuses heads that reach past a row, are not as long as the cache's, or that are both rotated and
/// read.
fn check_fused(
    layout: &CacheLayout,
    width: usize,
    q: Heads,
    offsets: [usize; 2],
) -> Result<(), CudaError> {
    q.check(width)?;
    if q.head_dim != layout.head_dim {
        return Err(KernelError::HeadDim {
            head_dim: q.head_dim,
        }
        .into());
    }
    for (name, offset) in ["k_offset", "v_offset"].into_iter().zip(offsets) {
        let heads = Heads {
            offset,
            num_heads: layout.num_kv_heads,
            head_dim: layout.head_dim,
        };
        heads.check(width)?;
        let end = |heads: Heads| heads.offset + heads.num_heads * heads.head_dim;
        if q.num_heads > 0 && offset < end(q) && q.offset < end(heads) {
            return Err(CudaError::Argument {
                name,
                expected: "outside of the query heads",
                found: format!("{offset}, and they are {} to {}", q.offset, end(q)),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvDtype;

    const LAYOUT: CacheLayout = CacheLayout {
        num_layers: 1,
        num_blocks: 3,
        block_size: 16,
        num_kv_heads: 2,
        head_dim: 64,
        dtype: KvDtype::Bf16,
    };

    #[test]
    fn slots_past_the_cache_are_named_and_padding_is_not() {
        assert_eq!(check_slots(&LAYOUT, &[0, NO_SLOT, 47]), Ok(()));
        assert_eq!(
            check_slots(&LAYOUT, &[0, NO_SLOT, 48]),
            Err(KernelError::Slot {
                token: 2,
                slot: 48,
                num_slots: 48
            })
        );
    }

    #[test]
    fn every_row_has_a_group_of_lanes() {
        let ctas = |lanes, num_tokens, turning| {
            let params = WriteKvParams {
                lanes,
                num_tokens,
                num_kv_heads: 2,
                ..WriteKvParams::zeroed()
            };
            shape(&params, turning, 132).grid[0]
        };
        assert_eq!(ctas(8, 0, 0), 0);
        assert_eq!(ctas(8, 1, 0), 1);
        assert_eq!(ctas(8, 16, 0), 1);
        assert_eq!(ctas(8, 17, 0), 2);
        assert_eq!(ctas(32, 17, 0), 5);
        assert_eq!(ctas(32, 17, 8), 5 + 17);
        assert_eq!(ctas(32, 1 << 30, 8), 132 * 8);
    }

    #[test]
    fn fused_heads_must_fit_and_lie_apart_from_queries() {
        let q = |offset, num_heads| Heads {
            offset,
            num_heads,
            head_dim: 64,
        };
        let refused = |q, k, v| check_fused(&LAYOUT, 512, q, [k, v]).is_err();
        assert!(!refused(q(0, 4), 256, 384));
        assert!(!refused(q(256, 4), 0, 128));
        assert!(!refused(q(0, 0), 0, 128));
        assert!(refused(q(0, 4), 255, 384));
        assert!(refused(q(0, 4), 256, 385));
        assert!(refused(q(0, 4), 256, usize::MAX));
        assert!(refused(q(257, 4), 0, 128));
        let short = Heads {
            head_dim: 32,
            ..q(0, 4)
        };
        assert!(refused(short, 256, 384));
    }
}
