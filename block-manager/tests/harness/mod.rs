//! An engine in miniature that drives the block manager with a stream of operations.
//!
//! Beside the manager it keeps a naive model of it, which every answer is compared with, and a
//! shadow memory: each slot holds a fingerprint of its namespace and of all tokens up to its own.
//! Steps are planned, sealed, run and completed apart from each other, in order, up to three in
//! flight; a step's copies are applied in shuffled order and every slot a step reads is checked.

mod device;
mod model;

use std::collections::VecDeque;

use device::{Device, Step, Work};
use model::Model;
use pageloom_block_manager::{
    BlockCopy, BlockId, BlockManager, Config, Namespace, StepId, TableId, TokenId,
};

/// One move of the engine. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A request with one of a few prompts that share prefixes.
    Open { family: u8, len: u8, ns: u8 },
    /// The same without looking for cached blocks.
    OpenEmpty { family: u8, len: u8, ns: u8 },
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
    /// Ends a sequence, wherever it stands.
    Release { seq: u8 },
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
    /// Endpoints are let go as soon as a copy is ordered instead of when its step completes.
    EndpointsUnpinned,
    /// The slots of a shared or published tail are written where it is, beside the copy.
    WrittenInPlace,
    /// Every request is put into the same namespace.
    NamespaceIgnored,
}

/// How the engine under test is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Commit when a step is sealed (the next step is planned while it runs) or when it has run.
    pub(crate) commit_early: bool,
    /// Seed of the order in which copies are applied.
    pub(crate) shuffle_seed: u64,
    pub(crate) fault: Fault,
}

struct Seq {
    id: TableId,
    ns: Namespace,
    /// Committed tokens.
    tokens: Vec<TokenId>,
    /// Tokens of the prompt not yet computed.
    prompt: VecDeque<TokenId>,
    /// Planned for the step being put together.
    planned: Vec<TokenId>,
    /// Sealed, not committed.
    in_flight: bool,
}

struct World {
    setup: Setup,
    manager: BlockManager,
    model: Model,
    device: Device,
    seqs: Vec<Seq>,
    sealed: VecDeque<Step>,
    ran: VecDeque<StepId>,
    next_step: u64,
    /// Copies let go before their step was sealed, by [`Fault::EndpointsUnpinned`].
    loose: Vec<BlockCopy>,
    /// Copy-on-write of the step being put together, for [`Fault::WrittenInPlace`].
    replaced: Vec<BlockCopy>,
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
            model: Model::new(config),
            manager,
            seqs: Vec::new(),
            sealed: VecDeque::new(),
            ran: VecDeque::new(),
            next_step: 0,
            loose: Vec::new(),
            replaced: Vec::new(),
            setup,
        })
    }

    fn apply(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Open { family, len, ns } => self.open(family, len, ns, true)?,
            Op::OpenEmpty { family, len, ns } => self.open(family, len, ns, false)?,
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
            Op::Release { seq } => self.release(seq),
            Op::Reset => {
                let (model, real) = (self.model.reset(), self.manager.reset_prefix_cache());
                if self.setup.fault == Fault::None && model != real {
                    return Err(format!("reset dropped {real} blocks instead of {model}"));
                }
            }
        }
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        self.manager.check().map_err(|e| e.to_string())?;
        if self.setup.fault == Fault::None {
            self.model.compare(&self.manager)?;
        }
        Ok(())
    }

    fn pick(&self, seq: u8) -> Option<usize> {
        (!self.seqs.is_empty()).then(|| usize::from(seq) % self.seqs.len())
    }

    fn open(&mut self, family: u8, len: u8, ns: u8, lookup: bool) -> Result<(), String> {
        if self.seqs.len() >= 8 {
            return Ok(());
        }
        let block_size = self.setup.config.block_size;
        // Family f shares its first f blocks with all later families.
        let branch = usize::from(family % 4) * block_size;
        let token = |i: usize| (if i < branch { 0 } else { u32::from(family % 4) }) + i as u32 % 3;
        let prompt: Vec<TokenId> = (0..usize::from(len % 32)).map(token).collect();
        let ns = Namespace(u64::from(ns % 2));
        let given_ns = match self.setup.fault {
            Fault::NamespaceIgnored => Namespace(0),
            _ => ns,
        };
        let query: &[TokenId] = if lookup { &prompt } else { &[] };
        let probe = self.manager.probe(query, given_ns);
        let available = self.manager.num_available_blocks();
        let (id, hit) = self.manager.open(query, given_ns);
        if hit != probe.num_tokens || hit > prompt.len().saturating_sub(1) {
            return Err(format!("opened with {hit} tokens, probe was {probe:?}"));
        }
        if available - self.manager.num_available_blocks() != probe.num_available_blocks {
            return Err(format!("opening took other blocks than {probe:?} said"));
        }
        if self.setup.fault == Fault::None {
            self.model.open(id, query, ns);
        }
        self.seqs.push(Seq {
            id,
            ns,
            tokens: prompt[..hit].to_vec(),
            prompt: prompt[hit..].iter().copied().collect(),
            planned: Vec::new(),
            in_flight: false,
        });
        Ok(())
    }

    fn plan(&mut self, seq: u8, num_tokens: u8, token: u8) -> Result<(), String> {
        let Some(at) = self.pick(seq) else {
            return Ok(());
        };
        let seq = &mut self.seqs[at];
        if seq.in_flight {
            return Ok(());
        }
        let mut num_tokens = usize::from(num_tokens % 12);
        if !seq.prompt.is_empty() {
            num_tokens = num_tokens.min(seq.prompt.len());
        }
        let needed = self.manager.blocks_needed(seq.id, num_tokens);
        let before = self.manager.blocks(seq.id).to_vec();
        let result = self.manager.reserve(seq.id, num_tokens);
        if let Err(error) = result
            && (error.needed != needed || error.available >= needed)
        {
            return Err(format!("{error:?}, {needed} needed"));
        }
        if self.setup.fault == Fault::None && self.model.reserve(seq.id, num_tokens) != result {
            return Err(format!("reserve gave {result:?}, unlike the model"));
        }
        if result.is_err() {
            return Ok(());
        }
        let after = self.manager.blocks(seq.id);
        if let Some(place) = (0..before.len()).find(|&i| before[i] != after[i]) {
            let (src, dst) = (before[place], after[place]);
            self.replaced.push(BlockCopy { src, dst });
        }
        let mut tokens: Vec<TokenId> = seq.prompt.iter().copied().take(num_tokens).collect();
        while tokens.len() < num_tokens {
            tokens.push(u32::from(token) % 3);
        }
        seq.planned = tokens;
        if self.setup.fault == Fault::EndpointsUnpinned {
            let step = StepId(u64::MAX);
            self.loose.extend(self.manager.seal(step).copies);
            self.manager.complete(step);
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), String> {
        if self.sealed.len() + self.ran.len() >= 3 {
            return Ok(());
        }
        let id = StepId(self.next_step);
        self.next_step += 1;
        let mut copies = self.manager.seal(id).copies;
        copies.append(&mut self.loose);
        let replaced = std::mem::take(&mut self.replaced);
        let mut works = Vec::new();
        for seq in self.seqs.iter_mut().filter(|seq| !seq.planned.is_empty()) {
            let start = seq.tokens.len();
            let tokens: Vec<TokenId> = [&seq.tokens[..], &seq.planned].concat();
            let mut blocks = self.manager.blocks(seq.id).to_vec();
            let block_size = self.setup.config.block_size;
            if self.setup.fault == Fault::None {
                let written = start / block_size..tokens.len().div_ceil(block_size);
                let shared = |block: &&BlockId| !self.model.is_writable(block.index());
                if let Some(block) = blocks[written].iter().find(shared) {
                    return Err(format!("block {block} is to be written while shared"));
                }
            }
            if self.setup.fault == Fault::WrittenInPlace {
                for copy in &replaced {
                    let written = blocks.iter_mut().filter(|block| **block == copy.dst);
                    written.for_each(|block| *block = copy.src);
                }
            }
            works.push(Work {
                seq: seq.id,
                ns: seq.ns,
                blocks,
                tokens,
                start,
            });
            seq.in_flight = true;
        }
        if self.setup.fault == Fault::None {
            self.model.seal(id);
        }
        self.sealed.push_back(Step { id, copies, works });
        if self.setup.commit_early {
            for at in 0..self.seqs.len() {
                self.commit(at);
            }
        }
        self.seqs.iter_mut().for_each(|seq| {
            if !self.setup.commit_early && seq.in_flight {
                return;
            }
            seq.planned.clear();
        });
        Ok(())
    }

    /// Commits what the sequence's last step computed, unless a fork or a cut took it back.
    fn commit(&mut self, at: usize) {
        let seq = &mut self.seqs[at];
        if !std::mem::take(&mut seq.in_flight) {
            return;
        }
        let tokens = std::mem::take(&mut seq.planned);
        self.manager.commit(seq.id, &tokens);
        if self.setup.fault == Fault::None {
            self.model.commit(seq.id, &tokens);
        }
        seq.prompt.drain(..tokens.len().min(seq.prompt.len()));
        seq.tokens.extend(tokens);
    }

    fn run_step(&mut self) -> Result<(), String> {
        let Some(step) = self.sealed.pop_front() else {
            return Ok(());
        };
        self.device.run(&step)?;
        if !self.setup.commit_early {
            for work in &step.works {
                let at = self.seqs.iter().position(|seq| seq.id == work.seq);
                if let Some(at) = at {
                    self.commit(at);
                }
            }
        }
        self.ran.push_back(step.id);
        if self.sealed.is_empty() && self.replaced.is_empty() {
            // Nothing is on its way: every committed slot of every table can be read.
            self.read_all()?;
        }
        Ok(())
    }

    fn read_all(&self) -> Result<(), String> {
        let read = |seq: &Seq| {
            self.device
                .read(seq.ns, &seq.tokens, self.manager.blocks(seq.id))
        };
        self.seqs.iter().try_for_each(read)
    }

    fn complete(&mut self) {
        if let Some(step) = self.ran.pop_front() {
            self.manager.complete(step);
            if self.setup.fault == Fault::None {
                self.model.complete(step);
            }
        }
    }

    /// What was planned or computed for the sequence and not committed is void.
    fn forget_plan(&mut self, at: usize) {
        self.seqs[at].planned.clear();
        self.seqs[at].in_flight = false;
    }

    fn fork(&mut self, seq: u8) {
        let Some(at) = self.pick(seq).filter(|_| self.seqs.len() < 8) else {
            return;
        };
        let parent = &self.seqs[at];
        let id = self.manager.fork(parent.id);
        if self.setup.fault == Fault::None {
            self.model.fork(parent.id, id);
        }
        let child = Seq {
            id,
            ns: parent.ns,
            tokens: parent.tokens.clone(),
            prompt: parent.prompt.clone(),
            planned: Vec::new(),
            in_flight: false,
        };
        if !parent
            .tokens
            .len()
            .is_multiple_of(self.setup.config.block_size)
        {
            self.forget_plan(at);
        }
        self.seqs.push(child);
    }

    fn truncate(&mut self, seq: u8, keep: u8) {
        let Some(at) = self.pick(seq) else {
            return;
        };
        let seq = &mut self.seqs[at];
        let keep = usize::from(keep) % (seq.tokens.len() + 1);
        self.manager.truncate(seq.id, keep);
        if self.setup.fault == Fault::None {
            self.model.truncate(seq.id, keep);
        }
        let cut = seq.tokens.split_off(keep);
        if !seq.prompt.is_empty() {
            cut.into_iter()
                .rev()
                .for_each(|token| seq.prompt.push_front(token));
        }
        self.forget_plan(at);
    }

    fn release(&mut self, seq: u8) {
        if let Some(at) = self.pick(seq) {
            let seq = self.seqs.swap_remove(at);
            self.manager.release(seq.id);
            if self.setup.fault == Fault::None {
                self.model.release(seq.id);
            }
        }
    }

    /// Runs what is under way, reads every sequence whole, and ends it: nothing may stay held.
    fn finish(mut self) -> Result<(), String> {
        while !self.sealed.is_empty() || !self.ran.is_empty() {
            self.run_step()?;
            self.complete();
            self.check()?;
        }
        self.apply(&Op::Seal)?;
        self.apply(&Op::Run)?;
        self.apply(&Op::Complete)?;
        self.read_all()?;
        while !self.seqs.is_empty() {
            self.apply(&Op::Release { seq: 0 })?;
        }
        let stats = self.manager.stats();
        if stats.num_referenced + stats.num_pinned != 0 {
            return Err(format!("idle, and yet {stats:?}"));
        }
        Ok(())
    }
}
