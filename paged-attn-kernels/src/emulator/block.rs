//! Runs the warps of a block: each until its lanes wait, then the next one.
//!
//! Within a warp the lanes that stand at the lowest position go on together until another group
//! of lanes stands lower, so that lanes that parted at a branch meet again behind it.

use super::exec::{Flow, Machine, lanes};
use super::fault::{Cause, Fault, Location};
use super::inst::{Barrier, BarrierKind, BoolOp, Op};
use super::warp::{Place, Warp};

/// Instructions after which other lanes, or other warps, have their turn.
const SLICE: u64 = 1 << 16;
/// Instructions of warps after which a block is taken to be endless.
const LIMIT: u64 = 1 << 32;

/// A block under way.
pub(crate) struct Block<'b, 'a> {
    pub(crate) machine: &'b mut Machine<'a>,
    pub(crate) warps: &'b mut [Warp],
    pub(crate) place: Place,
}

impl Block<'_, '_> {
    /// Runs the block to its end.
    pub(crate) fn run(&mut self) -> Result<(), Fault> {
        self.machine.shared.reset();
        self.machine.arrivals = [0; 16];
        for warp in self.warps.iter_mut() {
            warp.start(self.machine.entry, &self.place);
        }
        let start = self.machine.stats.warp_instructions;
        loop {
            let mut progress = false;
            for index in 0..self.warps.len() {
                while self.warps[index].running != 0 {
                    progress = true;
                    if self.run_warp(index)? {
                        break;
                    }
                }
            }
            progress |= self.release()?;
            if self.warps.iter().all(|warp| warp.alive == 0) {
                return Ok(());
            }
            let instructions = self.machine.stats.warp_instructions - start;
            if !progress {
                let waiting = self
                    .warps
                    .iter()
                    .map(|w| w.alive.count_ones() as usize)
                    .sum();
                return Err(Fault::Deadlock {
                    at: self.some_thread(),
                    waiting,
                });
            }
            if instructions > LIMIT {
                return Err(Fault::Endless {
                    at: self.some_thread(),
                    instructions,
                });
            }
        }
    }

    /// Runs a warp until no lane can go on, or for a while: whether its time is up.
    fn run_warp(&mut self, index: usize) -> Result<bool, Fault> {
        let warp = &mut self.warps[index];
        let machine = &mut *self.machine;
        let mut budget = 16 * SLICE;
        let mut highest_first = false;
        while warp.running != 0 {
            let Some((mut pc, active, others)) = choose(warp, highest_first) else {
                break;
            };
            let start = machine.stats.warp_instructions;
            let end = start
                + if others.is_some() || highest_first {
                    SLICE
                } else {
                    budget
                };
            let bound = others.unwrap_or(usize::MAX);
            let mut split = false;
            while pc < bound && machine.stats.warp_instructions < end {
                let inst = &machine.entry.code[pc];
                match machine.step(warp, inst, (pc, active)) {
                    Ok(Flow::Next) => pc += 1,
                    Ok(Flow::Jump(to)) => pc = to,
                    Ok(Flow::Split) => {
                        split = true;
                        break;
                    }
                    Err(raised) => return Err(self.fault(index, pc, raised)),
                }
            }
            let spent = machine.stats.warp_instructions - start;
            if !split {
                warp.place(active, pc);
            }
            if warp.gathering != 0 {
                // Lanes that ended may have been the last ones others waited for.
                if let Err(raised) = machine.regather(warp) {
                    return Err(self.fault(index, pc, raised));
                }
            }
            // A group that spins on what lanes further on must do would starve them.
            highest_first = others.is_some() && spent >= SLICE;
            budget = budget.saturating_sub(spent);
            if budget == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets threads go on whose barrier is complete; whether there were any.
    fn release(&mut self) -> Result<bool, Fault> {
        let mut released = false;
        let alive: u32 = self.warps.iter().map(|warp| warp.alive.count_ones()).sum();
        for id in 0..16u32 {
            let mut waiting = 0;
            let mut expected = 0;
            for warp in self.warps.iter() {
                for lane in lanes(warp.at_barrier) {
                    if warp.barriers[lane].0 == id {
                        waiting += 1;
                        expected = warp.barriers[lane].1;
                    }
                }
            }
            if waiting == 0 {
                continue;
            }
            let expected = if expected == 0 { alive } else { expected };
            if waiting + self.machine.arrivals[id as usize] < expected {
                continue;
            }
            self.machine.arrivals[id as usize] = 0;
            self.pass(id)?;
            released = true;
        }
        Ok(released)
    }

    /// Releases the threads that wait at a barrier.
    fn pass(&mut self, id: u32) -> Result<(), Fault> {
        self.machine.stats.barriers += 1;
        self.machine.shared.sync_block();
        let votes = self.votes(id)?;
        let code = &self.machine.entry.code;
        for warp in self.warps.iter_mut() {
            for lane in lanes(warp.at_barrier) {
                if warp.barriers[lane].0 != id {
                    continue;
                }
                let bit = 1 << lane;
                if let Op::Barrier(barrier) = &code[warp.pc[lane]].op {
                    match barrier.kind {
                        BarrierKind::Reduce(op, _, to) => {
                            let value = match op {
                                BoolOp::And => votes.yes == votes.asked,
                                _ => votes.yes > 0,
                            };
                            warp.set_pred(to, if value { u32::MAX } else { 0 }, bit);
                        }
                        BarrierKind::Count(_, to) => {
                            warp.regs[to as usize][lane] = u64::from(votes.yes);
                        }
                        BarrierKind::Sync | BarrierKind::Arrive => {}
                    }
                }
                warp.pc[lane] += 1;
                warp.at_barrier &= !bit;
                warp.running |= bit;
            }
        }
        Ok(())
    }

    /// The predicates of the threads at a barrier, which must stand at one instruction a warp.
    fn votes(&self, id: u32) -> Result<Votes, Fault> {
        let code = &self.machine.entry.code;
        let mut votes = Votes { yes: 0, asked: 0 };
        for (index, warp) in self.warps.iter().enumerate() {
            let mut first = None;
            for lane in lanes(warp.at_barrier) {
                let pc = warp.pc[lane];
                let Op::Barrier(Barrier { kind, aligned, .. }) = code[pc].op else {
                    continue;
                };
                if warp.barriers[lane].0 != id {
                    continue;
                }
                let first = *first.get_or_insert(pc);
                if aligned && first != pc {
                    let lines = [code[first].line, code[pc].line];
                    return Err(self.fault(index, pc, (lane, Cause::BarrierDivergence { lines })));
                }
                if let BarrierKind::Reduce(_, cond, _) | BarrierKind::Count(cond, _) = kind {
                    votes.asked += 1;
                    votes.yes += warp.cond(cond) >> lane & 1;
                }
            }
        }
        Ok(votes)
    }

    fn some_thread(&self) -> Box<Location> {
        let warp = self.warps.iter().find(|warp| warp.alive != 0);
        let (index, lane) = warp.map_or((0, 0), |w| (w.index, w.alive.trailing_zeros() as usize));
        self.location(index, self.warps[index].pc[lane], lane)
    }

    fn location(&self, warp: usize, pc: usize, lane: usize) -> Box<Location> {
        let entry = self.machine.entry;
        Box::new(Location {
            kernel: entry.name.clone(),
            line: entry.code.get(pc).map_or(0, |inst| inst.line),
            block: self.place.index,
            thread: self.place.thread(self.warps[warp].thread(lane)),
        })
    }

    fn fault(&self, warp: usize, pc: usize, (lane, cause): (usize, Cause)) -> Fault {
        Fault::Thread {
            at: self.location(warp, pc, lane),
            cause,
        }
    }
}

struct Votes {
    yes: u32,
    asked: u32,
}

/// The position to go on from, the lanes that stand there, and the next position above it where
/// others stand.
fn choose(warp: &Warp, highest_first: bool) -> Option<(usize, u32, Option<usize>)> {
    let positions = lanes(warp.running).map(|lane| warp.pc[lane]);
    let pc = if highest_first {
        positions.max()
    } else {
        positions.min()
    }?;
    let others = lanes(warp.running)
        .map(|lane| warp.pc[lane])
        .filter(|other| *other > pc)
        .min();
    Some((pc, warp.standing(warp.running, pc), others))
}
