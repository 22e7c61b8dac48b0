//! Plays a trace through the project's scheduler and block manager on virtual time.
//!
//! There is no engine, no tokenizer and no model: a plan's time comes from
//! [`cost`](super::cost), its tokens from the trace.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pageloom_scheduler::{
    BlockManager, NewSequence, Scheduler, SeqEvent, SeqId, SeqResult, StepTimes, TokenId,
};

use super::account::{Outcome, Slots, Usage, Window};
use super::cost::{StepCost, Work};
use super::machine::Machine;
use super::random::Mt19937;
use super::system::{Setup, System};
use super::trace::{Arrival, Lengths};

/// Requests that arrive before this are played, but their latencies are not counted; seconds.
pub(crate) const WARM_UP_S: f64 = 60.0;

/// Most tokens of prompts that wait or run at once: what they take in memory.
const MAX_TOKENS_HELD: usize = 1 << 26;

/// What is played.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) system: &'a dyn System,
    pub(crate) machine: &'a Machine,
    pub(crate) trace: &'a [Arrival],
    /// When memory and batch sizes are counted.
    pub(crate) window: Window,
}

/// Plays the whole trace, until its last request has ended.
///
/// # Errors
/// A request that the system could never serve.
pub(crate) fn replay(run: Run<'_>) -> anyhow::Result<Outcome> {
    let mut replay = Replay::new(run)?;
    while replay.step()? {}
    Ok(replay.outcome())
}

struct Replay<'a> {
    run: Run<'a>,
    scheduler: Scheduler,
    cost: StepCost,
    /// What is computed is found again, so tokens matter.
    has_tokens: bool,
    batch: Option<Batch>,
    beams: Option<Beams>,
    /// Tokens that forks have copied since the last step, in systems that share nothing.
    num_copied: usize,
    now_s: f64,
    /// Requests of the trace that have arrived.
    num_arrived: usize,
    /// Tokens of the prompts that have arrived and are not answered.
    tokens_held: usize,
    /// The request of each sequence, by the sequence's index.
    requests: Vec<u32>,
    /// Sequences of each request that have not ended.
    num_left: Vec<u32>,
    latencies: Vec<f64>,
    usage: Usage,
    results: Vec<SeqResult>,
    events: Vec<SeqEvent>,
}

/// Requests computed at the length of the longest, and answered together.
#[derive(Default)]
struct Batch {
    num_seqs: usize,
    longest_prompt: usize,
    /// Tokens drawn.
    num_drawn: usize,
    ended: Vec<u32>,
}

/// Requests whose sequences are beams.
struct Beams {
    /// In a step of so many, a beam gives way.
    renewal: f64,
    random: Mt19937,
    of_requests: Vec<Vec<SeqId>>,
}

impl<'a> Replay<'a> {
    fn new(run: Run<'a>) -> anyhow::Result<Self> {
        let Setup {
            scheduler: config,
            blocks,
            admission,
            padded,
            context_price,
            int8_pages: _,
        } = run.system.setup(run.machine);
        let has_tokens = blocks.prefix_caching;
        let cost = run.machine.cost();
        let mut scheduler = Scheduler::new(config, BlockManager::new(blocks)?)?;
        if let Some(admission) = admission {
            scheduler.set_admission(admission);
        }
        Ok(Replay {
            scheduler,
            cost: StepCost {
                context: cost.context * context_price,
                ..cost
            },
            has_tokens,
            batch: padded.then(Batch::default),
            beams: run.machine.renewal.map(|renewal| Beams {
                renewal,
                random: Mt19937::numpy(0),
                of_requests: vec![Vec::new(); run.trace.len()],
            }),
            num_copied: 0,
            now_s: 0.0,
            num_arrived: 0,
            tokens_held: 0,
            requests: Vec::new(),
            num_left: vec![0; run.trace.len()],
            latencies: Vec::with_capacity(run.trace.len()),
            usage: Usage::default(),
            results: Vec::new(),
            events: Vec::new(),
            run,
        })
    }

    /// Plays a step, or the time until the next arrival if there is nothing to compute. False at
    /// the end.
    fn step(&mut self) -> anyhow::Result<bool> {
        self.arrive()?;
        let Some(plan) = self.scheduler.schedule() else {
            let Some(next) = self.run.trace.get(self.num_arrived) else {
                if self.scheduler.has_work() {
                    bail!("{} plans nothing though work waits", self.run.system.name());
                }
                let unanswered = self.num_left.iter().filter(|&&left| left > 0).count();
                ensure!(unanswered == 0, "{unanswered} requests were never answered");
                return Ok(false);
            };
            let idle = self.run.window.overlap(self.now_s, next.at_s);
            self.usage.add(idle, Slots::default(), 0);
            self.now_s = next.at_s;
            return Ok(true);
        };
        let step = plan.step;
        let mut work = Work::of(plan, self.run.machine.block_size);
        work.copied += core::mem::take(&mut self.num_copied);
        if let Some(batch) = &mut self.batch {
            let longest = || plan.seqs.iter().map(|s| s.positions.end).max();
            batch.pad(&mut work, longest);
        }
        let (swap_ms, compute_ms) = (self.cost.swap_ms(&work), self.cost.compute_ms(&work));
        let until_s = self.now_s + (swap_ms + compute_ms) / 1e3;
        let run = &self.run;
        let counted_s = run.window.overlap(self.now_s, until_s);
        if counted_s > 0.0 {
            let lengths = |id: SeqId| run.trace[self.requests[id.index()] as usize].lengths;
            let slots = Slots::of(plan, run.system, run.machine, lengths);
            let num_requests = plan.seqs.len() / run.machine.num_seqs;
            self.usage.add(counted_s, slots, num_requests);
        }
        self.results.clear();
        for planned in &plan.seqs {
            let of = |id: SeqId| &self.run.trace[self.requests[id.index()] as usize];
            self.results.push(match (planned.sample, self.has_tokens) {
                (false, _) => SeqResult::Computed,
                (true, false) => SeqResult::Token(0),
                (true, true) => SeqResult::Token(token(of(planned.id), planned.positions.end)),
            });
        }
        if counted_s > 0.0 {
            // With the step's slots, before anything ends.
            let blocks = self.scheduler.block_manager().stats().device;
            let (physical, logical) = (blocks.num_referenced, blocks.num_references);
            self.usage.add_blocks(counted_s, physical, logical);
        }
        self.now_s = until_s;
        self.scheduler.update(step, &self.results, &mut self.events);
        let time = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        self.scheduler.observe(StepTimes {
            swap: time(swap_ms),
            compute: time(compute_ms),
        });
        self.take_events();
        Ok(true)
    }

    /// Adds what has arrived by now.
    fn arrive(&mut self) -> anyhow::Result<()> {
        while let Some(arrival) = self.run.trace.get(self.num_arrived)
            && arrival.at_s <= self.now_s
        {
            let Lengths { prompt, output } = arrival.lengths;
            self.tokens_held += prompt;
            ensure!(
                self.tokens_held <= MAX_TOKENS_HELD,
                "at {} s, request {} of the trace: {} cannot keep up, and no more may wait",
                arrival.at_s,
                self.num_arrived + 1,
                self.run.system.name()
            );
            let prompt = match self.has_tokens {
                true => (0..prompt).map(|at| token(arrival, at)).collect(),
                false => vec![0; prompt],
            };
            let new = NewSequence {
                prompt,
                max_tokens: output,
                num_seqs: self.run.machine.num_seqs,
                lockstep: self.beams.is_some(),
                ..NewSequence::default()
            };
            let id = self
                .scheduler
                .add(new, Duration::from_secs_f64(arrival.at_s))
                .with_context(|| format!("request {} of the trace", self.num_arrived + 1))?;
            self.num_left[self.num_arrived] = 1;
            self.name(id, self.num_arrived as u32);
            self.num_arrived += 1;
        }
        Ok(())
    }

    fn name(&mut self, id: SeqId, request: u32) {
        if self.requests.len() <= id.index() {
            self.requests.resize(id.index() + 1, 0);
        }
        self.requests[id.index()] = request;
    }

    fn take_events(&mut self) {
        let events = core::mem::take(&mut self.events);
        // Before any fork takes the index of what has ended.
        for &event in &events {
            if let SeqEvent::Ended { id, .. } = event {
                let request = self.requests[id.index()];
                self.num_left[request as usize] -= 1;
                if self.num_left[request as usize] == 0 {
                    self.end(request);
                }
            }
        }
        for &event in &events {
            match event {
                SeqEvent::PromptComputed { id, .. } => self.fork(id),
                SeqEvent::Token { id, .. } => self.renew(id),
                SeqEvent::Ended { .. } => {}
            }
        }
        self.events = events;
        if let Some(batch) = &mut self.batch
            && self.scheduler.stats().num_running == 0
        {
            let ended = core::mem::take(batch).ended;
            for request in ended {
                self.answer(request);
            }
        }
    }

    /// Adds the other samples of a prompt. One that ends with its first token has none.
    fn fork(&mut self, id: SeqId) {
        let request = self.requests[id.index()];
        let mut all = vec![id];
        for sample in 1..self.run.machine.num_seqs {
            if let Some(child) = self.fork_one(id, sample as TokenId) {
                self.num_left[request as usize] += 1;
                all.push(child);
            }
        }
        if let Some(beams) = &mut self.beams {
            beams.of_requests[request as usize] = all;
        }
    }

    fn fork_one(&mut self, parent: SeqId, last: TokenId) -> Option<SeqId> {
        let child = self.scheduler.fork(parent, last)?;
        let request = self.requests[parent.index()];
        self.name(child, request);
        let lengths = self.run.trace[request as usize].lengths;
        if self
            .run
            .system
            .reserved(self.run.machine, lengths)
            .is_some()
        {
            let tokens = self.scheduler.tokens(parent);
            self.num_copied += tokens.map_or(0, <[_]>::len);
        }
        Some(child)
    }

    /// Once a step for each request, at its first beam: now and then one beam gives way to a fork of
    /// another.
    fn renew(&mut self, id: SeqId) {
        let Some(beams) = &mut self.beams else { return };
        // If its index names another by now, it is not that one's first beam.
        let request = self.requests[id.index()] as usize;
        let all = &beams.of_requests[request];
        let is_first = all.first() == Some(&id) && all.len() > 1;
        if !is_first || beams.random.uniform() >= beams.renewal {
            return;
        }
        let num_beams = all.len() as u32;
        let loser = beams.random.below(num_beams);
        let winner = (loser + 1 + beams.random.below(num_beams - 1)) % num_beams;
        let (loser, winner) = (loser as usize, winner as usize);
        let (lost, parent) = (all[loser], all[winner]);
        // None of them is left if this was their last token.
        if let Some(child) = self.fork_one(parent, request as TokenId) {
            self.scheduler.finish(lost);
            if let Some(beams) = &mut self.beams {
                beams.of_requests[request][loser] = child;
            }
        }
    }

    fn end(&mut self, request: u32) {
        match &mut self.batch {
            Some(batch) => batch.ended.push(request),
            None => self.answer(request),
        }
    }

    fn answer(&mut self, request: u32) {
        let arrival = &self.run.trace[request as usize];
        self.tokens_held -= arrival.lengths.prompt;
        if arrival.at_s >= WARM_UP_S {
            let latency = (self.now_s - arrival.at_s) / arrival.lengths.output as f64;
            self.latencies.push(latency);
        }
    }

    fn outcome(self) -> Outcome {
        Outcome {
            num_requests: self.num_arrived,
            usage: self.usage,
            stats: self.scheduler.stats(),
            ..Outcome::default()
        }
        .with_latencies(self.latencies)
    }
}

impl Batch {
    /// Makes a step's work that of the whole batch at its longest. `longest` gives the most tokens
    /// of the sequences planned, if there are any.
    fn pad(&mut self, work: &mut Work, longest: impl FnOnce() -> Option<usize>) {
        if self.num_seqs == 0 {
            self.num_seqs = work.seqs;
            self.longest_prompt = longest().unwrap_or(0);
            work.tokens = work.seqs * self.longest_prompt;
        } else {
            work.tokens = self.num_seqs;
            work.context = self.num_seqs * (self.longest_prompt + self.num_drawn);
        }
        work.seqs = self.num_seqs;
        self.num_drawn += 1;
    }
}

/// The token at a position of a request: the same at the same place of the same text, and in
/// another text another, in all likelihood.
fn token(arrival: &Arrival, at: usize) -> TokenId {
    let text = match at < arrival.shared as usize {
        true => u32::MAX,
        false => arrival.text,
    };
    let place = (u64::from(text) << 32) | (u64::from(arrival.offset) + at as u64);
    let mixed = place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) as u32 >> 1
}
