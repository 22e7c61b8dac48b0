//! Plays a trace through the real engine.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pageloom_engine::scheduler::{Admission, Applicant, SeqId};
use pageloom_engine::text::Tokenizer;
use pageloom_engine::{Engine, EngineConfig, ModelExecutor, Request, RequestEvent, RequestId};
use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, SamplingParams, TokenId,
    WeightDtype,
};
use serde::{Deserialize, Serialize};

use crate::bench::lengths::SplitMix;
use crate::bench::paper::account::{Slots, Usage};
use crate::bench::paper::machine::Machine;
use crate::bench::paper::system::{Setup, System};
use crate::bench::paper::systems;
use crate::bench::paper::trace::{Arrival, Lengths};

/// What is played, where.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) model: &'a Path,
    pub(super) weights: WeightDtype,
    pub(super) machine: Machine,
    /// Its name.
    pub(super) system: &'a str,
    pub(super) trace: &'a [Arrival],
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Served {
    /// Mean of (end - arrival) / output tokens over all requests, seconds.
    pub(super) latency_s: f64,
    /// Of the pool's slots, from when a quarter of all requests had ended until three quarters had:
    /// tokens, reserved, internal, the rest.
    pub(super) percent: [f64; 4],
    /// Requests at once, then.
    pub(super) batch_size: f64,
    /// Requests a second, then: tokens drawn over the mean output.
    pub(super) rate: f64,
    /// Milliseconds of a step, then.
    pub(super) step_ms: f64,
    /// What was computed again, of all tokens computed.
    pub(super) recomputed_percent: f64,
}

/// Plays the whole trace, until its last request has ended. Time is measured, and passes at once while
/// there is nothing to do.
///
/// # Errors
/// A model that cannot be loaded, or a request that the engine refuses or does not answer in full.
pub(super) fn serve(run: Run<'_>) -> anyhow::Result<Served> {
    let mut session = Session::new(run)?;
    while session.step()? {}
    session.served()
}

/// Of the tokens that all prompts begin with.
const SHARED_SEED: u64 = 1 << 32;

/// Requests let in and not ended, by their first sequence.
type Running = Arc<Mutex<BTreeMap<SeqId, Lengths>>>;

fn lock(running: &Running) -> MutexGuard<'_, BTreeMap<SeqId, Lengths>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rule of admission that writes down who was let in.
#[derive(Debug)]
struct Recorded {
    rule: Option<Box<dyn Admission>>,
    running: Running,
}

impl Admission for Recorded {
    fn begin_step(&mut self, num_requests: usize) {
        if let Some(rule) = &mut self.rule {
            rule.begin_step(num_requests);
        }
    }

    fn admit(&mut self, applicant: &Applicant) -> bool {
        let admitted = (self.rule.as_mut()).is_none_or(|rule| rule.admit(applicant));
        if admitted {
            let lengths = Lengths {
                prompt: applicant.num_prompt_tokens,
                output: applicant.max_tokens,
            };
            lock(&self.running).insert(applicant.id, lengths);
        }
        admitted
    }

    fn leave(&mut self, id: SeqId) {
        lock(&self.running).remove(&id);
        if let Some(rule) = &mut self.rule {
            rule.leave(id);
        }
    }
}

struct Session<'a> {
    run: Run<'a>,
    system: &'static dyn System,
    engine: Engine,
    running: Running,
    random: SplitMix,
    began: Instant,
    /// Idle time that was not waited for.
    skipped: Duration,
    num_arrived: usize,
    /// Requests not answered yet, and how many of their tokens came.
    open: HashMap<RequestId, (usize, usize)>,
    /// Sum of normalised latencies, seconds a token.
    latencies_s: f64,
    usage: Usage,
    /// Tokens drawn in the time that `usage` counts, and its steps.
    num_drawn: u64,
    num_steps: u32,
}

impl<'a> Session<'a> {
    fn new(run: Run<'a>) -> anyhow::Result<Self> {
        let system = systems::named(run.system)?;
        let setup = system.setup(&run.machine);
        let config = config_of(&setup);
        let checkpoint = Checkpoint::open(run.model)?;
        let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint)?);
        let cache = RunnerConfig {
            block_size: config.block_size,
            num_blocks: config.num_blocks,
            num_host_blocks: config.num_host_blocks,
            kv_dtype: match setup.int8_pages {
                true => KvDtype::Int8,
                false => KvDtype::Bf16,
            },
        };
        let options = LoadOptions {
            dtype: run.weights,
            ..LoadOptions::default()
        };
        let model = Model::load(&checkpoint, options)?;
        let executor = ModelExecutor::new(CpuRunner::new(model, cache)?);
        let mut engine = Engine::new(config, Box::new(executor), tokenizer)?;
        warm_up(&mut engine)?;
        let running = Running::default();
        engine.set_admission(Box::new(Recorded {
            rule: setup.admission,
            running: Arc::clone(&running),
        }));
        Ok(Session {
            run,
            system,
            engine,
            running,
            random: SplitMix(0),
            began: Instant::now(),
            skipped: Duration::ZERO,
            num_arrived: 0,
            open: HashMap::new(),
            latencies_s: 0.0,
            usage: Usage::default(),
            num_drawn: 0,
            num_steps: 0,
        })
    }

    fn now(&self) -> Duration {
        self.began.elapsed() + self.skipped
    }

    /// False at the end.
    fn step(&mut self) -> anyhow::Result<bool> {
        self.arrive()?;
        let before = self.now();
        if !self.engine.begin_step(before)? {
            let Some(next) = self.run.trace.get(self.num_arrived) else {
                ensure!(self.open.is_empty(), "requests were never answered");
                return Ok(false);
            };
            let due = Duration::from_secs_f64(next.at_s);
            self.skipped += due.saturating_sub(before);
            return Ok(true);
        }
        let (slots, num_seqs) = self.slots();
        let (began, skipped) = (self.began, self.skipped);
        self.engine.end_step(|| began.elapsed() + skipped);
        let num_drawn = self.take_events()?;
        // First the pool must fill, and in the end too few are left to fill it.
        let (num_ended, all) = (self.num_arrived - self.open.len(), self.run.trace.len());
        if (all..=3 * all).contains(&(4 * num_ended)) {
            let seconds = (self.now() - before).as_secs_f64();
            self.usage.add(seconds, slots, num_seqs);
            self.num_drawn += num_drawn;
            self.num_steps += 1;
        }
        Ok(true)
    }

    fn arrive(&mut self) -> anyhow::Result<()> {
        while let Some(arrival) = self.run.trace.get(self.num_arrived)
            && arrival.at_s <= self.now().as_secs_f64()
        {
            let vocab_size = self.engine.tokenizer().vocab_size() as u64;
            let mut shared = SplitMix(SHARED_SEED);
            let random = &mut self.random;
            let draw = |at| {
                let random = match at < arrival.shared as usize {
                    true => &mut shared,
                    false => &mut *random,
                };
                (random.next() % vocab_size) as TokenId
            };
            let prompt = (0..arrival.lengths.prompt).map(draw).collect();
            let request = request(prompt, arrival.lengths.output);
            let at = Duration::from_secs_f64(arrival.at_s);
            let id = self
                .engine
                .add(request, at)
                .with_context(|| format!("request {} of the trace", self.num_arrived + 1))?;
            self.open.insert(id, (self.num_arrived, 0));
            self.num_arrived += 1;
        }
        Ok(())
    }

    /// What the step's sequences have, and how many there are.
    fn slots(&self) -> (Slots, usize) {
        let Some(plan) = self.engine.scheduler().plan() else {
            return (Slots::default(), 0);
        };
        let running = lock(&self.running);
        let of = |id| {
            running
                .get(&id)
                .copied()
                .expect("who is planned was let in")
        };
        let slots = Slots::of(plan, self.system, &self.run.machine, of);
        (slots, plan.seqs.len())
    }

    /// Returns how many tokens were drawn.
    fn take_events(&mut self) -> anyhow::Result<u64> {
        let now_s = self.now().as_secs_f64();
        let mut num_drawn = 0;
        for (id, event) in self.engine.drain_events() {
            let RequestEvent::Output(delta) = event else {
                continue;
            };
            let Some((number, num_tokens)) = self.open.get_mut(&id) else {
                continue;
            };
            num_drawn += delta.tokens.len() as u64;
            *num_tokens += delta.tokens.len();
            if let Some(finish) = delta.finish {
                let arrival = &self.run.trace[*number];
                let output = arrival.lengths.output;
                ensure!(
                    *num_tokens == output,
                    "request {} ended after {num_tokens} of {output} tokens: {finish:?}",
                    *number + 1
                );
                self.latencies_s += (now_s - arrival.at_s) / output as f64;
                self.open.remove(&id);
            }
        }
        Ok(num_drawn)
    }

    fn served(self) -> anyhow::Result<Served> {
        let num_requests = self.run.trace.len().max(1) as f64;
        let outputs = self.run.trace.iter().map(|arrival| arrival.lengths.output);
        let mean_output = outputs.sum::<usize>() as f64 / num_requests;
        let stats = self.engine.scheduler().stats();
        // Of very few requests none may end in a step between the first and the last.
        ensure!(self.num_steps > 0, "the trace is too short");
        let computed = stats.num_computed_tokens.max(1) as f64;
        Ok(Served {
            latency_s: self.latencies_s / num_requests,
            percent: self.usage.percent(self.run.machine.num_slots),
            batch_size: self.usage.batch_size(),
            rate: self.num_drawn as f64 / mean_output / self.usage.time_s,
            step_ms: 1e3 * self.usage.time_s / f64::from(self.num_steps),
            recomputed_percent: 100.0 * stats.num_recomputed_tokens as f64 / computed,
        })
    }
}

/// Pages and threads are touched before anything is measured.
fn warm_up(engine: &mut Engine) -> anyhow::Result<()> {
    for _ in 0..4 {
        engine.add(request(vec![1; 64], 16), Duration::ZERO)?;
    }
    while engine.step(Duration::ZERO)? {}
    engine.drain_events().for_each(drop);
    Ok(())
}

/// As long as the trace says, whatever the model says.
fn request(prompt: Vec<TokenId>, num_output_tokens: usize) -> Request {
    Request {
        max_tokens: Some(num_output_tokens),
        sampling: SamplingParams::greedy(),
        ignore_eos: true,
        ..Request::new(prompt)
    }
}

/// The engine's form of a system.
fn config_of(setup: &Setup) -> EngineConfig {
    let (scheduler, blocks) = (&setup.scheduler, &setup.blocks);
    EngineConfig {
        block_size: blocks.block_size,
        num_blocks: blocks.num_blocks,
        num_host_blocks: blocks.num_host_blocks,
        max_model_len: scheduler.max_model_len,
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        max_num_queued_requests: scheduler.max_num_queued_requests,
        max_num_queued_tokens: scheduler.max_num_queued_tokens,
        enable_prefix_caching: blocks.prefix_caching,
        preemption_mode: scheduler.preemption_mode,
        watermark: scheduler.watermark,
        learn_headroom: scheduler.learn_headroom,
        ..EngineConfig::default()
    }
}
