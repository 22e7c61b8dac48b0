//! Atomic read-modify-write instructions.

use half::{bf16, f16};

use super::super::fault::Cause;
use super::super::inst::{Atom, AtomOp};
use super::super::lanes::{Half, Lane};
use super::super::ty::{MODULE_GLOBALS, Space, Ty};
use super::super::warp::Warp;
use super::{Machine, Raised, lanes};

impl Machine<'_> {
    /// Lane after lane, which is one of the orders that hardware may take.
    pub(super) fn atom(&mut self, warp: &mut Warp, atom: &Atom, mask: u32) -> Result<(), Raised> {
        let bytes = atom.ty.bytes();
        for lane in lanes(mask) {
            let (space, address) = warp.address(atom.address, lane);
            let value = warp.regs[atom.value as usize][lane];
            let swap = warp.regs[atom.swap as usize][lane];
            let place = match space {
                Space::Shared => self.shared.atomic(address, bytes, warp.thread(lane)),
                Space::Global if address % bytes as u64 != 0 => Err(Cause::Misaligned {
                    space,
                    address,
                    bytes,
                }),
                Space::Global if address < MODULE_GLOBALS => {
                    self.stats.global_load_bytes += bytes as u64;
                    self.stats.global_store_bytes += bytes as u64;
                    self.memory.access(address, bytes)
                }
                _ => Err(Cause::ReadOnly { space, address }),
            };
            let place = place.map_err(|cause| (lane, cause))?;
            let mut old = [0; 8];
            old[..bytes].copy_from_slice(place);
            let old = u64::from_le_bytes(old);
            let new = update(atom, old, (value, swap));
            place.copy_from_slice(&new.to_le_bytes()[..bytes]);
            if let Some(dst) = atom.dst {
                warp.regs[dst as usize][lane] = old;
            }
        }
        Ok(())
    }
}

fn update(atom: &Atom, old: u64, (value, swap): (u64, u64)) -> u64 {
    let bits = 8 * atom.ty.bytes() as u32;
    let part = u64::MAX >> (64 - bits);
    match atom.op {
        AtomOp::Exch => value,
        AtomOp::Cas if old == value & part => swap,
        AtomOp::Cas => old,
        AtomOp::And => old & value,
        AtomOp::Or => old | value,
        AtomOp::Xor => old ^ value,
        AtomOp::Inc if old >= value & part => 0,
        AtomOp::Inc => old + 1,
        AtomOp::Dec if old == 0 || old > value & part => value,
        AtomOp::Dec => old - 1,
        AtomOp::Add => add(atom.ty, old, value),
        AtomOp::Min | AtomOp::Max => {
            let unused = 64 - bits;
            let signed = |x: u64| (x << unused) as i64 >> unused;
            let value_is_less = match atom.ty.is_signed() {
                true => signed(value) < signed(old),
                false => value & part < old,
            };
            if value_is_less == (atom.op == AtomOp::Min) {
                value
            } else {
                old
            }
        }
    }
}

fn add(ty: Ty, old: u64, value: u64) -> u64 {
    fn half<T: Half + Lane>(a: u64, b: u64) -> u64 {
        T::narrow(T::get(a).wide() + T::get(b).wide()).put()
    }
    fn halves<T: Half>(a: u64, b: u64) -> u64 {
        let (a, b) = (<[T; 2]>::get(a), <[T; 2]>::get(b));
        [0, 1]
            .map(|i: usize| T::narrow(a[i].wide() + b[i].wide()))
            .put()
    }
    match ty {
        Ty::F32 => (f32::get(old) + f32::get(value)).put(),
        Ty::F64 => (f64::get(old) + f64::get(value)).put(),
        Ty::F16 => half::<f16>(old, value),
        Ty::Bf16 => half::<bf16>(old, value),
        Ty::F16x2 => halves::<f16>(old, value),
        Ty::Bf16x2 => halves::<bf16>(old, value),
        _ => old.wrapping_add(value),
    }
}
