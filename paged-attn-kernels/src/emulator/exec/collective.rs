//! Instructions that wait for the other lanes of the warp, and barriers.

use super::super::fault::Cause;
use super::super::inst::{Barrier, BarrierKind, Collective, Op, ReduxOp, ShflMode, VoteMode};
use super::super::ty::Ty;
use super::super::warp::Warp;
use super::{Machine, Raised, lanes};
use crate::emulator::inst::Reg;

impl Machine<'_> {
    /// Lanes arrive at a collective instruction. Whether all of them went on at once; else the
    /// warp's state says where each lane is.
    pub(super) fn collective(
        &mut self,
        warp: &mut Warp,
        (collective, members): (&Collective, Option<Reg>),
        (pc, mask): (usize, u32),
    ) -> Result<bool, Raised> {
        // The usual case: all lanes come together.
        if mask == warp.alive && self.members(warp, members, (mask, mask))? == mask {
            self.perform(warp, (collective, members), mask)?;
            return Ok(true);
        }
        warp.place(mask, pc);
        warp.running &= !mask;
        warp.gathering |= mask;
        self.gather(warp, pc)?;
        Ok(false)
    }

    /// The lanes that the lowest of some lanes waits for, itself included.
    fn members(
        &self,
        warp: &Warp,
        members: Option<Reg>,
        (waiting, here): (u32, u32),
    ) -> Result<u32, Raised> {
        let lane = waiting.trailing_zeros() as usize;
        let Some(reg) = members else {
            // Blocks need not fill their last warp, but these instructions need all of it.
            return if warp.alive == u32::MAX {
                Ok(u32::MAX)
            } else {
                Err((lane, Cause::WarpIncomplete { lanes: warp.alive }))
            };
        };
        let mask = warp.regs[reg as usize][lane] as u32;
        if mask >> lane & 1 == 0 {
            return Err((lane, Cause::NotInMask { mask }));
        }
        // All members must name the same members.
        let same = |lane: &usize| warp.regs[reg as usize][*lane] as u32 == mask;
        let agree = lanes(here)
            .filter(same)
            .fold(0, |mask, lane| mask | 1 << lane);
        let wanted = mask & warp.alive;
        Ok(if agree & wanted == wanted { wanted } else { 0 })
    }

    /// Performs the collective instruction at a position for each set of lanes that is complete.
    fn gather(&mut self, warp: &mut Warp, pc: usize) -> Result<(), Raised> {
        let entry = self.entry;
        let Op::Collective(collective, members) = &entry.code[pc].op else {
            return Ok(());
        };
        let here = warp.standing(warp.gathering, pc);
        let mut left = here;
        while left != 0 {
            let set = match members {
                Some(_) => self.members(warp, *members, (left, here))?,
                None if here == warp.alive => self.members(warp, None, (left, here))?,
                None => 0,
            };
            if set == 0 {
                left &= left - 1;
                continue;
            }
            self.perform(warp, (collective, *members), set)?;
            warp.gathering &= !set;
            warp.running |= set;
            warp.place(set, pc + 1);
            left &= !set;
        }
        Ok(())
    }

    /// Lanes have ended: others may have waited for them.
    pub(crate) fn regather(&mut self, warp: &mut Warp) -> Result<bool, Raised> {
        let before = warp.gathering;
        let mut left = before;
        while left != 0 {
            let pc = warp.pc[left.trailing_zeros() as usize];
            left &= !warp.standing(left, pc);
            self.gather(warp, pc)?;
        }
        Ok(warp.gathering != before)
    }

    fn perform(
        &mut self,
        warp: &mut Warp,
        (collective, _): (&Collective, Option<Reg>),
        set: u32,
    ) -> Result<(), Raised> {
        self.shared.sync_warp(warp.index);
        match collective {
            Collective::Sync => {}
            Collective::Mma(mma) => {
                self.stats.mma += 1;
                super::tensor::mma(warp, mma);
            }
            Collective::LdMatrix {
                address,
                trans,
                dst,
            } => {
                self.ldmatrix(warp, *address, (*trans, *dst))?;
            }
            Collective::Shfl { .. } => shuffle(warp, collective, set),
            Collective::Vote {
                mode,
                src,
                dst,
                pred,
            } => {
                let votes = warp.cond(*src) & set;
                let value = match mode {
                    VoteMode::Ballot => {
                        for lane in lanes(set) {
                            warp.regs[*dst as usize][lane] = u64::from(votes);
                        }
                        return Ok(());
                    }
                    VoteMode::All => votes == set,
                    VoteMode::Any => votes != 0,
                    VoteMode::Uni => votes == set || votes == 0,
                };
                warp.set_pred(*pred, if value { u32::MAX } else { 0 }, set);
            }
            Collective::Match { .. } => matching(warp, collective, set),
            Collective::Redux { op, ty, dst, src } => {
                let values: Vec<u32> = lanes(set)
                    .map(|lane| warp.regs[*src as usize][lane] as u32)
                    .collect();
                let total = reduce(*op, *ty, &values);
                for lane in lanes(set) {
                    warp.regs[*dst as usize][lane] = u64::from(total);
                }
            }
        }
        Ok(())
    }

    /// Lanes arrive at a barrier; the block's scheduler lets them go on.
    pub(super) fn arrive(
        &mut self,
        warp: &mut Warp,
        barrier: &Barrier,
        (pc, mask): (usize, u32),
    ) -> Result<(), Raised> {
        for lane in lanes(mask) {
            let id = warp.regs[barrier.id as usize][lane] as u32;
            let count = barrier
                .count
                .map_or(0, |reg| warp.regs[reg as usize][lane] as u32);
            let counted = barrier.count.is_some();
            if id > 15 || (counted && (count == 0 || !count.is_multiple_of(32))) {
                return Err((lane, Cause::Barrier { id, count }));
            }
            if barrier.kind == BarrierKind::Arrive {
                self.arrivals[id as usize] += 1;
            }
            warp.barriers[lane] = (id, count);
        }
        if barrier.kind == BarrierKind::Arrive {
            warp.place(mask, pc + 1);
            return Ok(());
        }
        warp.place(mask, pc);
        warp.running &= !mask;
        warp.at_barrier |= mask;
        Ok(())
    }
}

/// `shfl.sync`: the source lane is within a segment, or the lane keeps its own value.
fn shuffle(warp: &mut Warp, collective: &Collective, set: u32) {
    let Collective::Shfl {
        mode,
        dst,
        valid,
        src,
        lane: amount,
        clamp,
    } = *collective
    else {
        return;
    };
    let source = warp.regs[src as usize];
    let mut inside = 0;
    for lane in lanes(set) {
        let b = warp.regs[amount as usize][lane] as u32 & 31;
        let c = warp.regs[clamp as usize][lane] as u32;
        let (limit, segment) = (c & 31, c >> 8 & 31);
        let own = lane as u32;
        let highest = (own & segment) | (limit & !segment);
        let lowest = own & segment;
        let (from, ok) = match mode {
            ShflMode::Up => (own.wrapping_sub(b), own as i32 - b as i32 >= highest as i32),
            ShflMode::Down => (own + b, own + b <= highest),
            ShflMode::Bfly => (own ^ b, own ^ b <= highest),
            ShflMode::Idx => (lowest | (b & !segment), lowest | (b & !segment) <= highest),
        };
        let from = if ok { from } else { own };
        inside |= u32::from(ok) << lane;
        warp.regs[dst as usize][lane] = source[from as usize & 31];
    }
    if let Some(pred) = valid {
        warp.set_pred(pred, inside, set);
    }
}

fn matching(warp: &mut Warp, collective: &Collective, set: u32) {
    let Collective::Match {
        ty,
        all,
        dst,
        same,
        src,
    } = *collective
    else {
        return;
    };
    let part = if ty.bytes() == 8 {
        u64::MAX
    } else {
        u64::from(u32::MAX)
    };
    let source = warp.regs[src as usize].map(|value| value & part);
    let mut agreed = 0;
    for lane in lanes(set) {
        let equal = lanes(set).filter(|other| source[*other] == source[lane]);
        let equal = equal.fold(0u32, |mask, other| mask | 1 << other);
        let value = if !all || equal == set { equal } else { 0 };
        agreed |= u32::from(equal == set) << lane;
        warp.regs[dst as usize][lane] = u64::from(value);
    }
    if let Some(pred) = same {
        warp.set_pred(pred, agreed, set);
    }
}

fn reduce(op: ReduxOp, ty: Ty, values: &[u32]) -> u32 {
    let signed = ty.is_signed();
    let combine = |a: u32, b: u32| match op {
        ReduxOp::Add => a.wrapping_add(b),
        ReduxOp::And => a & b,
        ReduxOp::Or => a | b,
        ReduxOp::Xor => a ^ b,
        ReduxOp::Min if signed => (a as i32).min(b as i32) as u32,
        ReduxOp::Max if signed => (a as i32).max(b as i32) as u32,
        ReduxOp::Min => a.min(b),
        ReduxOp::Max => a.max(b),
    };
    values.iter().copied().reduce(combine).unwrap_or(0)
}
