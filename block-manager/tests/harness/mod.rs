//! An engine in miniature that drives the block manager with a stream of operations.
//!
//! Beside the manager it keeps a naive model of it, which every answer is compared with; a
//! follower that knows what is cached from the events alone; and a shadow memory of both tiers:
//! each slot holds a fingerprint of its namespace and of all tokens up to its own. Steps are
//! planned, sealed, run and completed apart from each other, in order, up to three in flight;
//! the transfers of each kind are done in shuffled order and every slot a step reads is checked.

mod device;
mod follower;
mod model;
mod requests;
mod steps;
mod swaps;

use std::collections::VecDeque;

use device::{Device, Step};
use follower::Follower;
use model::Model;
use pageloom_block_manager::{
    BlockId, BlockManager, BlockOps, Config, Namespace, StepId, TableId, TokenId,
};

/// One move of the engine. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A request with one of a few prompts that share prefixes.
    Open { family: u8, len: u8, ns: u8 },
    /// The same without looking for cached blocks.
    OpenEmpty { family: u8, len: u8, ns: u8 },
    /// The same if all of it and some tokens more fit and some blocks stay; planned at once.
    Admit {
        family: u8,
        len: u8,
        ns: u8,
        keep: u8,
        extra: u8,
    },
    /// Plans the next tokens of a sequence: reserves their slots.
    Plan { seq: u8, num_tokens: u8, token: u8 },
    /// Seals what was planned as a step.
    Seal,
    /// Runs the oldest sealed step.
    Run,
    /// Completes the oldest step that ran.
    Complete,
    /// Forks a sequence.
    Fork { seq: u8 },
    /// Cuts a sequence.
    Truncate { seq: u8, keep: u8 },
    /// Lets the blocks of a sequence before a position go.
    ReleaseBefore { seq: u8, position: u8 },
    /// Ends a sequence, wherever it stands.
    Release { seq: u8 },
    /// Swaps out a sequence and some after it.
    SwapOut { seq: u8, others: u8 },
    /// Swaps in a sequence and some after it if some blocks stay.
    SwapIn { seq: u8, others: u8, keep: u8 },
    /// Drops cached blocks.
    Reset,
}

/// What the harness does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The executor forgets the copies.
    CopiesSkipped,
    /// The executor does the copies after it wrote the step's slots.
    CopiesLate,
    /// The executor does the copies before the swaps.
    CopiesFirst,
    /// The endpoints of copies are let go as soon as ordered instead of when the step completes.
    CopiesUnpinned,
    /// The executor forgets the swaps, of both directions.
    SwapsSkipped,
    /// The executor swaps in before it swaps out.
    SwapInsFirst,
    /// The endpoints of swaps are let go as soon as ordered instead of when the step completes.
    SwapsUnpinned,
    /// The sequences of a group are swapped out one by one.
    SwappedApart,
    /// What is written after a shared tail is written there too, not only in the copy.
    SharedTailWritten,
    /// What is written after the cut of a published block is written there too, not only in
    /// the copy.
    PublishedTailWritten,
    /// Every request is put into the same namespace.
    NamespaceIgnored,
}

/// How the engine under test is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Commit when a step is sealed (the next step is planned while it runs) or when it has run.
    pub(crate) commit_early: bool,
    /// Seed of the order in which transfers are done.
    pub(crate) shuffle_seed: u64,
    pub(crate) fault: Fault,
}

#[derive(Clone)]
struct Seq {
    id: TableId,
    ns: Namespace,
    /// Committed tokens.
    tokens: Vec<TokenId>,
    /// Blocks released from its head.
    num_passed: usize,
    /// Tokens of the prompt not yet computed.
    prompt: VecDeque<TokenId>,
    /// Planned for the step being put together.
    planned: Vec<TokenId>,
    /// Sealed, not committed.
    in_flight: bool,
    /// Swapped out, by which swap and from which blocks.
    left: Option<(u64, Vec<BlockId>)>,
}

/// A block that was copied because it was to be written.
struct Replaced {
    src: BlockId,
    dst: BlockId,
    /// Nobody else held it: it was copied because it is published.
    is_published: bool,
}

struct World {
    setup: Setup,
    manager: BlockManager,
    /// Not there when something is done wrong, which the shadow memory must notice alone.
    model: Option<Model>,
    follower: Follower,
    device: Device,
    seqs: Vec<Seq>,
    sealed: VecDeque<Step>,
    ran: VecDeque<StepId>,
    next_step: u64,
    next_swap: u64,
    /// Transfers let go before their step was sealed, by a fault.
    loose: BlockOps,
    /// Copy-on-write of the step being put together.
    replaced: Vec<Replaced>,
    /// Blocks of the device that transfers were to fill when the last step was sealed.
    num_filled: u64,
}

/// Runs `ops` and says what went wrong first.
pub(crate) fn run(setup: Setup, ops: &[Op]) -> Result<(), String> {
    let mut world = World::new(setup)?;
    for (i, op) in ops.iter().enumerate() {
        world
            .apply(op)
            .map_err(|e| format!("op {i}, {op:?}: {e}"))?;
    }
    world.finish()
}

impl World {
    fn new(setup: Setup) -> Result<Self, String> {
        let config = setup.config.clone();
        let manager = BlockManager::new(config.clone()).map_err(|e| e.to_string())?;
        Ok(Self {
            device: Device::new(&setup),
            model: (setup.fault == Fault::None).then(|| Model::new(config)),
            follower: Follower::default(),
            manager,
            seqs: Vec::new(),
            sealed: VecDeque::new(),
            ran: VecDeque::new(),
            next_step: 0,
            next_swap: 0,
            loose: BlockOps::default(),
            replaced: Vec::new(),
            num_filled: 0,
            setup,
        })
    }

    fn apply(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Open { family, len, ns } => self.open(family, len, ns, true)?,
            Op::OpenEmpty { family, len, ns } => self.open(family, len, ns, false)?,
            Op::Admit {
                family,
                len,
                ns,
                keep,
                extra,
            } => self.admit([family, len, ns], keep, extra)?,
            Op::Plan {
                seq,
                num_tokens,
                token,
            } => self.plan(seq, num_tokens, token)?,
            Op::Seal => self.seal()?,
            Op::Run => self.run_step()?,
            Op::Complete => self.complete(),
            Op::Fork { seq } => self.fork(seq),
            Op::Truncate { seq, keep } => self.truncate(seq, keep),
            Op::ReleaseBefore { seq, position } => self.release_before(seq, position)?,
            Op::Release { seq } => self.release(seq),
            Op::SwapOut { seq, others } => self.swap_out(seq, others)?,
            Op::SwapIn { seq, others, keep } => self.swap_in(seq, others, keep)?,
            Op::Reset => self.reset()?,
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), String> {
        self.manager.check().map_err(|e| e.to_string())?;
        self.follower.follow(&mut self.manager)?;
        if let Some(model) = &self.model {
            model.compare(&self.manager)?;
            if self.setup.config.events {
                self.follower.compare(model)?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), String> {
        let real = self.manager.reset_prefix_cache();
        match &mut self.model {
            Some(model) => agree("dropped blocks", model.reset(), real),
            None => Ok(()),
        }
    }

    fn pick(&self, seq: u8) -> Option<usize> {
        self.group(seq, 1, |_| true).first().copied()
    }

    /// Up to `most` sequences of which something is true, from `seq` on.
    fn group(&self, seq: u8, most: usize, is_true: impl Fn(&Seq) -> bool) -> Vec<usize> {
        let first = usize::from(seq) % self.seqs.len().max(1);
        let all = (first..self.seqs.len()).chain(0..first);
        let fit = all.filter(|&at| is_true(&self.seqs[at]));
        fit.take(most).collect()
    }

    /// Blocks that hold committed tokens of a sequence.
    fn num_blocks(&self, seq: &Seq) -> usize {
        seq.tokens.len().div_ceil(self.setup.config.block_size) - seq.num_passed
    }

    /// Runs what is under way, reads every sequence whole, and ends it: nothing may stay held.
    fn finish(mut self) -> Result<(), String> {
        while !self.sealed.is_empty() || !self.ran.is_empty() {
            self.run_step()?;
            self.complete();
            self.check()?;
        }
        self.do_one_step()?;
        while let Some(at) = self.seqs.iter().position(|seq| seq.left.is_none()) {
            self.apply(&Op::Release { seq: at as u8 })?;
        }
        while !self.seqs.is_empty() {
            self.swap_in(0, 0, 0)?;
            if self.seqs[0].left.is_some() {
                return Err("an idle device has no room to swap in".into());
            }
            self.check()?;
            self.do_one_step()?;
            self.apply(&Op::Release { seq: 0 })?;
        }
        let stats = self.manager.stats();
        let held = |tier: &pageloom_block_manager::TierStats| tier.num_referenced + tier.num_pinned;
        if held(&stats.device) + held(&stats.host) != 0 {
            return Err(format!("idle, and yet {stats:?}"));
        }
        Ok(())
    }

    fn do_one_step(&mut self) -> Result<(), String> {
        self.apply(&Op::Seal)?;
        self.apply(&Op::Run)?;
        self.apply(&Op::Complete)?;
        self.read_all()
    }
}

/// Says how the model's answer and the manager's differ.
fn agree<T: PartialEq + std::fmt::Debug>(what: &str, model: T, real: T) -> Result<(), String> {
    if model == real {
        return Ok(());
    }
    Err(format!(
        "{what}: the model says {model:?}, the manager {real:?}"
    ))
}
