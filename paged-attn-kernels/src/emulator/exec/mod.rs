//! Executes the instructions of a warp.

mod atomic;
mod collective;
mod copy;
mod memory;
mod tensor;

use super::fault::Cause;
use super::inst::{BoolOp, Carry, CarryOp, Cond, Inst, Op, Reg};
use super::lanes::Lanes;
use super::memory::Memory;
use super::program::Entry;
use super::shared::Shared;
use super::stats::Stats;
use super::warp::Warp;

/// What the warps of a block share.
pub(crate) struct Machine<'a> {
    pub(crate) entry: &'a Entry,
    pub(crate) memory: &'a mut Memory,
    pub(crate) shared: Shared,
    pub(crate) params: &'a [u8],
    pub(crate) stats: Stats,
    /// Threads that have arrived at a barrier without waiting.
    pub(crate) arrivals: [u32; 16],
}

/// A cause and the lane it happened in.
pub(crate) type Raised = (usize, Cause);

/// Where a group of lanes goes on.
pub(crate) enum Flow {
    Next,
    Jump(usize),
    /// The warp's own state says where each lane is now.
    Split,
}

/// The lanes of a mask.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

impl Warp {
    /// A predicate's lanes.
    pub(crate) fn cond(&self, cond: Cond) -> u32 {
        let mask = self.preds[cond.pred as usize];
        if cond.negated { !mask } else { mask }
    }

    pub(crate) fn set_pred(&mut self, pred: u32, value: u32, mask: u32) {
        let old = &mut self.preds[pred as usize];
        *old = *old & !mask | value & mask;
    }

    fn set(&mut self, reg: Reg, value: &Lanes, mask: u32) {
        let old = &mut self.regs[reg as usize];
        if mask == u32::MAX {
            *old = *value;
            return;
        }
        for (lane, (old, new)) in old.iter_mut().zip(value).enumerate() {
            if mask >> lane & 1 == 1 {
                *old = *new;
            }
        }
    }

    fn reg(&self, reg: Reg) -> &Lanes {
        &self.regs[reg as usize]
    }
}

impl Machine<'_> {
    /// Executes an instruction for the lanes of `active`, all of which stand at `pc`.
    pub(crate) fn step(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        (pc, active): (usize, u32),
    ) -> Result<Flow, Raised> {
        let mask = inst.guard.map_or(active, |guard| active & warp.cond(guard));
        self.stats.count(active);
        if mask == 0 {
            return Ok(Flow::Next);
        }
        match &inst.op {
            Op::Map1(..) | Op::Map2(..) | Op::Map3(..) | Op::Map4(..) => {
                compute(warp, &inst.op, mask);
            }
            Op::Carry(carry) => add_carry(warp, carry, mask),
            Op::Setp { .. } | Op::Set { .. } | Op::Logic { .. } | Op::SetPred { .. } => {
                predicates(warp, &inst.op, mask);
            }
            Op::Select { .. } | Op::Pack { .. } | Op::Unpack { .. } => moves(warp, &inst.op, mask),
            Op::Load(access) => self.load(warp, access, mask)?,
            Op::Store(access) => self.store(warp, access, mask)?,
            Op::Atom(atom) => self.atom(warp, atom, mask)?,
            Op::CopyLocal { to, from, bytes } => warp.copy_local((*to, *from), *bytes, mask),
            Op::CopyAsync(copy) => self.copy_async(warp, copy, mask)?,
            Op::CommitGroup => lanes(mask).for_each(|lane| warp.copies[lane].commit()),
            Op::WaitGroup(groups) => self.wait_group(warp, *groups, mask),
            Op::ActiveMask(dst) => warp.set(*dst, &[u64::from(mask); 32], mask),
            Op::Clock(dst) => warp.set(*dst, &[self.stats.warp_instructions; 32], mask),
            Op::Nop => {}
            Op::Trap => return Err((mask.trailing_zeros() as usize, Cause::Trap)),
            Op::Branch(_)
            | Op::BranchTable(..)
            | Op::Call(..)
            | Op::Return(_)
            | Op::Exit
            | Op::Barrier(_)
            | Op::Collective(..) => return self.transfer(warp, &inst.op, (pc, active, mask)),
        }
        Ok(Flow::Next)
    }

    /// What ends a run of instructions in order.
    fn transfer(
        &mut self,
        warp: &mut Warp,
        op: &Op,
        (pc, active, mask): (usize, u32, u32),
    ) -> Result<Flow, Raised> {
        let rest = active & !mask;
        match op {
            Op::Branch(target) if rest == 0 => return Ok(Flow::Jump(*target)),
            Op::Branch(target) => warp.place(mask, *target),
            Op::Call(target, back) => {
                warp.set(*back, &[pc as u64 + 1; 32], mask);
                if rest == 0 {
                    return Ok(Flow::Jump(*target));
                }
                warp.place(mask, *target);
            }
            Op::Return(back) => {
                for lane in lanes(mask) {
                    warp.pc[lane] = warp.reg(*back)[lane] as usize;
                }
            }
            Op::BranchTable(table, index) => {
                let table = &self.entry.tables[*table];
                for lane in lanes(mask) {
                    let index = warp.reg(*index)[lane] as u32;
                    let cause = Cause::BranchTable {
                        index,
                        targets: table.len(),
                    };
                    warp.pc[lane] = *table.get(index as usize).ok_or((lane, cause))?;
                }
            }
            Op::Exit => warp.exit(mask),
            Op::Barrier(barrier) => self.arrive(warp, barrier, (pc, mask))?,
            Op::Collective(collective, members) => {
                let done = self.collective(warp, (collective, *members), (pc, mask))?;
                if done && rest == 0 {
                    return Ok(Flow::Next);
                }
            }
            _ => return Ok(Flow::Next),
        }
        warp.place(rest, pc + 1);
        Ok(Flow::Split)
    }
}

fn compute(warp: &mut Warp, op: &Op, mask: u32) {
    let mut out = [0; 32];
    let dst = match *op {
        Op::Map1(f, dst, a) => {
            f(&mut out, warp.reg(a));
            dst
        }
        Op::Map2(f, dst, [a, b]) => {
            f(&mut out, warp.reg(a), warp.reg(b));
            dst
        }
        Op::Map3(f, dst, src) => {
            f(&mut out, src.map(|r| warp.reg(r)));
            dst
        }
        Op::Map4(f, dst, src) => {
            f(&mut out, src.map(|r| warp.reg(r)));
            dst
        }
        _ => return,
    };
    warp.set(dst, &out, mask);
}

fn combine(op: BoolOp, a: u32, b: u32) -> u32 {
    match op {
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}

fn predicates(warp: &mut Warp, op: &Op, mask: u32) {
    match *op {
        Op::Setp {
            test,
            src: [a, b],
            combine: with,
            to,
        } => {
            let test = test(warp.reg(a), warp.reg(b));
            // The complement combines with the predicate as it was before either is written.
            let values = [test, !test]
                .map(|test| with.map_or(test, |(op, cond)| combine(op, test, warp.cond(cond))));
            for (pred, value) in to.iter().zip(values) {
                if let Some(pred) = pred {
                    warp.set_pred(*pred, value, mask);
                }
            }
        }
        Op::Set {
            test,
            src: [a, b],
            combine: with,
            ones,
            dst,
        } => {
            let test = test(warp.reg(a), warp.reg(b));
            let test = with.map_or(test, |(op, cond)| combine(op, test, warp.cond(cond)));
            let value = std::array::from_fn(|lane| if test >> lane & 1 == 1 { ones } else { 0 });
            warp.set(dst, &value, mask);
        }
        Op::Logic {
            op,
            dst,
            src: [a, b],
        } => {
            let value = combine(op, warp.cond(a), warp.cond(b));
            warp.set_pred(dst, value, mask);
        }
        Op::SetPred { dst, src } => {
            let value = warp.cond(src);
            warp.set_pred(dst, value, mask);
        }
        _ => {}
    }
}

fn moves(warp: &mut Warp, op: &Op, mask: u32) {
    match *op {
        Op::Select {
            dst,
            src: [a, b],
            cond,
        } => {
            let cond = warp.cond(cond);
            let (a, b) = (warp.reg(a), warp.reg(b));
            let value = std::array::from_fn(|lane| {
                if cond >> lane & 1 == 1 {
                    a[lane]
                } else {
                    b[lane]
                }
            });
            warp.set(dst, &value, mask);
        }
        Op::Pack { dst, src, bits } => {
            let part = u64::MAX >> (64 - bits);
            let mut value = [0; 32];
            for (i, reg) in src.as_slice().iter().enumerate() {
                let reg = warp.reg(*reg);
                for (out, lane) in value.iter_mut().zip(reg) {
                    *out |= (lane & part) << (i as u32 * bits);
                }
            }
            warp.set(dst, &value, mask);
        }
        Op::Unpack { dst, src, bits } => {
            let part = u64::MAX >> (64 - bits);
            let src = *warp.reg(src);
            for (i, reg) in dst.as_slice().iter().enumerate() {
                let value = src.map(|lane| lane >> (i as u32 * bits) & part);
                warp.set(*reg, &value, mask);
            }
        }
        _ => {}
    }
}

fn add_carry(warp: &mut Warp, carry: &Carry, mask: u32) {
    let bits = carry.ty.bytes() as u32 * 8;
    let part = u128::MAX >> (128 - bits);
    let [a, b, c] = carry.src.map(|reg| *warp.reg(reg));
    let mut out = [0; 32];
    for lane in lanes(mask) {
        let [a, b, c] = [a[lane], b[lane], c[lane]].map(|x| u128::from(x) & part);
        let carried = u128::from(carry.reads && warp.carry >> lane & 1 == 1);
        // Signed products differ from unsigned ones only above the low half.
        let sign = |x: u128| ((x as i128) << (128 - bits) >> (128 - bits)) as u128;
        let product = if carry.ty.is_signed() {
            sign(a).wrapping_mul(sign(b))
        } else {
            a.wrapping_mul(b)
        };
        let sum = match carry.op {
            CarryOp::Add => a + b + carried,
            // The flag means a borrow.
            CarryOp::Sub => a.wrapping_sub(b).wrapping_sub(carried),
            CarryOp::MadLo => (product & part) + c + carried,
            CarryOp::MadHi => (product >> bits & part) + c + carried,
        };
        out[lane] = (sum & part) as u64;
        if carry.writes {
            let flag = u32::from(sum >> bits & 1 == 1) << lane;
            warp.carry = warp.carry & !(1 << lane) | flag;
        }
    }
    warp.set(carry.dst, &out, mask);
}
