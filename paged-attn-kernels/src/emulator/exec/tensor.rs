//! `mma` and `ldmatrix`: fragments of matrices spread over a warp.
//!
//! Products of halves are exact; they are summed in f64, the depth in ascending order and the
//! accumulator last, and rounded to f32 once. Hardware sums in an order, and with a precision,
//! that PTX leaves open.
//!
//! Fragments of m16n8k16, `g = lane / 4`, `t = lane % 4` (PTX ISA, "Matrix Fragments for
//! mma.m16n8k16 with floating point type"); each register holds two neighbours:
//!
//! ```text
//! A 16x16: a0 (g, 2t)  a1 (g+8, 2t)  a2 (g, 2t+8)  a3 (g+8, 2t+8)    (row, column)
//! B 16x8:  b0 (2t, g)  b1 (2t+8, g)                                  (row, column)
//! C 16x8:  c0 c1 (g, 2t) (g, 2t+1)  c2 c3 (g+8, 2t) (g+8, 2t+1)
//! ```

use half::{bf16, f16};

use super::super::inst::{Address, Mma, Vector};
use super::super::lanes::Half;
use super::super::shared::By;
use super::super::ty::{Space, Ty};
use super::super::warp::Warp;
use super::{Machine, Raised};
use crate::emulator::fault::Cause;

/// D = A B + C for 16x8 results.
pub(super) fn mma(warp: &mut Warp, mma: &Mma) {
    let wide: fn(u16) -> f64 = match mma.ty {
        Ty::F16 => |bits| f16::from_half(bits).wide(),
        _ => |bits| bf16::from_half(bits).wide(),
    };
    // A by rows, B by rows: the inner loop below runs along both.
    let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
    for lane in 0..32 {
        let (group, pair) = (lane / 4, 2 * (lane % 4));
        for (i, reg) in mma.a.as_slice().iter().enumerate() {
            let bits = warp.regs[*reg as usize][lane];
            let row = &mut a[group + 8 * (i % 2)];
            row[pair + 8 * (i / 2)] = wide(bits as u16);
            row[pair + 8 * (i / 2) + 1] = wide((bits >> 16) as u16);
        }
        for (i, reg) in mma.b.as_slice().iter().enumerate() {
            let bits = warp.regs[*reg as usize][lane];
            b[pair + 8 * i][group] = wide(bits as u16);
            b[pair + 8 * i + 1][group] = wide((bits >> 16) as u16);
        }
    }
    let mut sums = [[0.0f64; 8]; 16];
    for (sums, a) in sums.iter_mut().zip(&a) {
        for (a, b) in a.iter().zip(&b).take(mma.depth) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    let mut out = [[0u64; 32]; 4];
    for (i, (out, reg)) in out.iter_mut().zip(mma.c.as_slice()).enumerate() {
        for (lane, out) in out.iter_mut().enumerate() {
            let c = f32::from_bits(warp.regs[*reg as usize][lane] as u32);
            let sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
            *out = u64::from(((sum + f64::from(c)) as f32).to_bits());
        }
    }
    for (out, reg) in out.iter().zip(mma.d.as_slice()) {
        warp.regs[*reg as usize] = *out;
    }
}

impl Machine<'_> {
    /// Loads 8x8 matrices of 16-bit items, whose rows lie at the addresses of lanes 0-7, 8-15, ...
    /// Each lane gets two neighbours of row `lane / 4`, of the transposed matrix with `.trans`.
    pub(super) fn ldmatrix(
        &mut self,
        warp: &mut Warp,
        address: Address,
        (trans, dst): (bool, Vector),
    ) -> Result<(), Raised> {
        let mut out = [[0u64; 32]; 4];
        for (matrix, out) in out.iter_mut().enumerate().take(dst.len) {
            let mut rows = [[0u16; 8]; 8];
            for (row, items) in rows.iter_mut().enumerate() {
                let lane = matrix * 8 + row;
                let raise = |cause| (lane, cause);
                let (space, at) = warp.address(address, lane);
                if space != Space::Shared {
                    let cause = Cause::OutOfBounds {
                        space,
                        address: at,
                        bytes: 16,
                        nearest: None,
                    };
                    return Err(raise(cause));
                }
                let mut bytes = [0; 16];
                let by = By {
                    thread: warp.thread(lane),
                    strong: false,
                };
                self.stats.shared_load_bytes += 16;
                self.shared.read(at, &mut bytes, by).map_err(raise)?;
                for (item, pair) in items.iter_mut().zip(bytes.chunks_exact(2)) {
                    *item = u16::from_le_bytes([pair[0], pair[1]]);
                }
            }
            for (lane, out) in out.iter_mut().enumerate() {
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let [low, high] = if trans {
                    [rows[column][row], rows[column + 1][row]]
                } else {
                    [rows[row][column], rows[row][column + 1]]
                };
                *out = u64::from(low) | u64::from(high) << 16;
            }
        }
        for (out, reg) in out.iter().zip(dst.as_slice()) {
            warp.regs[*reg as usize] = *out;
        }
        Ok(())
    }
}
