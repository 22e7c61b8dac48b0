//! Runs a scenario: the real engine on virtual time, its clients, and a look at it after each half
//! of a step.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pageloom_engine::{Engine, RequestId, SimClock, SimConfig, SimExecutor};

use crate::simulated::tokenizer;

use super::{
    arrivals::{Abort, Arrival},
    checks,
    clients::{Client, Coming},
    guesses::Guesser,
    order::{First, Reigns, most_steps, most_steps_of_all},
    scenario::Scenario,
    script::{Line, lines},
    show,
    totals::Totals,
    transcript::Transcript,
    verdict,
    watch::{Seen, Watch},
};

/// What a scenario came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) totals: Totals,
    pub(crate) transcripts: Vec<Transcript>,
}

/// Runs a scenario to its end; with `trace` writes down each step.
///
/// # Errors
/// The first thing that is not as it must be.
pub(crate) fn run(scenario: &Scenario, trace: bool) -> Result<Report> {
    let lines = lines(scenario)?;
    let mut drive = Drive::new(scenario, &lines, trace)?;
    drive.run()?;
    verdict::check(scenario, &drive.clients, &drive.seen.lock().expect("idle"))?;
    checks::idle(&drive.engine, &drive.clients)?;
    checks::held(scenario, &drive.engine)?;
    drive.check_waits()?;
    let mut totals = drive.totals.clone();
    let seen = drive.seen.lock().expect("idle");
    totals.count_engine(&drive.engine, &seen);
    drive.clients.iter().for_each(|c| totals.count_client(c));
    let transcripts = drive.clients.into_iter().map(|c| c.transcript).collect();
    Ok(Report {
        totals,
        transcripts,
    })
}

/// A simulation under way.
pub(crate) struct Drive<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) engine: Engine,
    pub(super) clock: SimClock,
    seen: Arc<Mutex<Seen>>,
    pub(super) coming: VecDeque<Coming<'a>>,
    pub(super) clients: Vec<Client<'a>>,
    pub(super) by_id: HashMap<RequestId, usize>,
    pub(super) revisited: bool,
    pub(super) aborted_all: bool,
    pub(super) num_steps: usize,
    /// Tokens of all shared prefixes: no less than the steps that they take.
    num_prefix_tokens: usize,
    /// Every event is read, so who is alive is known.
    pub(super) up_to_date: bool,
    pub(super) reigns: Reigns,
    pub(super) totals: Totals,
    pub(super) trace: bool,
}

impl<'a> Drive<'a> {
    fn new(scenario: &'a Scenario, lines: &'a [Line], trace: bool) -> Result<Self> {
        let (config, spec) = (&scenario.config, &scenario.executor);
        let sim = SimExecutor::new(SimConfig {
            block_size: config.block_size,
            num_blocks: config.num_blocks,
            num_host_blocks: config.num_host_blocks,
            vocab_size: spec.vocab_size,
            token_time: spec.token_time,
            swap_time: spec.swap_time,
            faults: spec.faults.clone(),
            poison_token: spec.poison_token,
            ..SimConfig::default()
        });
        let clock = sim.clock();
        let (watch, seen) = Watch::new(sim, config, spec.poison_token);
        let mut engine = Engine::new(config.clone(), Box::new(watch), tokenizer())?;
        if let Some(guesses) = scenario.guesses {
            let guesser = Guesser::new(guesses, lines, spec.vocab_size);
            engine.set_proposer(Box::new(guesser));
        }
        let mut at = Duration::ZERO;
        let coming = |(arrival, line): (&Arrival, &'a Line)| {
            at += arrival.gap;
            Coming {
                at,
                in_flight: arrival.in_flight,
                abort: arrival.abort,
                line,
            }
        };
        Ok(Drive {
            coming: scenario.arrivals.iter().zip(lines).map(coming).collect(),
            scenario,
            engine,
            clock,
            seen,
            clients: Vec::new(),
            by_id: HashMap::new(),
            revisited: false,
            aborted_all: false,
            num_steps: 0,
            num_prefix_tokens: config.shared_prefixes.iter().map(Vec::len).sum(),
            up_to_date: true,
            reigns: Reigns::default(),
            totals: Totals::default(),
            trace,
        })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            let idle = !self.engine.has_work();
            self.take_arrivals(|coming| idle || !coming.in_flight)?;
            self.give_up_in_time()?;
            if self.engine.has_work() {
                self.step()
                    .with_context(|| format!("in the driver's step {}", self.num_steps))?;
                continue;
            }
            self.read_events()?;
            if let Some(next) = self.coming.front() {
                let wait = next.at.saturating_sub(self.clock.now());
                self.clock.advance(wait);
            } else if !self.revisited {
                self.revisited = true;
                self.revisit();
            } else {
                return Ok(());
            }
        }
    }

    fn step(&mut self) -> Result<()> {
        self.begin_step()?;
        self.take_arrivals(|_| true)?;
        self.give_up_where(|client, num_steps| {
            matches!(client.abort, Some(Abort::InStep(n)) if client.arrived.1 + n <= num_steps)
        })?;
        checks::blocks(&self.engine)?;
        let planned = checks::planned_ids(&self.engine);
        let clock = self.clock.clone();
        self.engine.end_step(|| clock.now());
        checks::blocks(&self.engine)?;
        checks::tables(&self.engine, &planned)?;
        if let Some(wrong) = self.seen.lock().expect("not in a step").wrong.take() {
            bail!("{wrong}");
        }
        self.num_steps += 1;
        self.up_to_date = false;
        let works = self.clients.iter().map(|client| client.work);
        let most = self.num_prefix_tokens + most_steps_of_all(works) + self.num_failed_steps();
        ensure!(self.num_steps <= most, "not done in {most} steps");
        if self.num_steps.is_multiple_of(self.scenario.drain_every) {
            self.read_events()?;
        }
        Ok(())
    }

    fn begin_step(&mut self) -> Result<()> {
        let first = self.up_to_date.then(|| self.first()).flatten();
        ensure!(
            self.engine.begin_step(self.clock.now())?,
            "there is work, and no step"
        );
        checks::blocks(&self.engine)?;
        if self.trace {
            eprintln!("{}", show::step(&self.engine));
        }
        checks::plan(&self.engine)?;
        if let Some(first) = first {
            let client = &self.clients[first];
            let first = First {
                rank: client.rank,
                request: &client.line.request,
                work: client.work,
            };
            self.reigns.check(&self.engine, first)?;
        }
        Ok(())
    }

    fn num_failed_steps(&self) -> usize {
        self.seen.lock().expect("not in a step").failed.len()
    }

    /// The first in the order of those alive.
    fn first(&self) -> Option<usize> {
        let alive = (0..self.clients.len()).filter(|&at| self.clients[at].is_alive());
        alive.min_by_key(|&at| self.clients[at].rank)
    }

    fn read_events(&mut self) -> Result<()> {
        for (id, event) in self.engine.drain_events() {
            let client = self.by_id.get(&id).map(|&at| &mut self.clients[at]);
            let client = client.with_context(|| format!("an event of {id:?}, not taken in"))?;
            client.transcript.take(event)?;
            if client.transcript.is_finished(client.line.request.n) {
                client.ended = Some(self.num_steps);
            }
        }
        self.up_to_date = true;
        self.give_up_where(|client, _| {
            matches!(client.abort, Some(Abort::AfterEvents(n)) if client.transcript.num_events >= n)
        })
    }

    /// Nobody waited longer than the bound says; see [`order`](super::order).
    fn check_waits(&self) -> Result<()> {
        // An end is seen when it is read.
        let prefixes = self.num_prefix_tokens;
        let late = self.scenario.drain_every + self.num_failed_steps() + prefixes;
        for client in &self.clients {
            let ended = client.ended.context("it did not end")?;
            let arrived = client.arrived.1;
            let others = self
                .clients
                .iter()
                .filter(|other| other.ended >= Some(arrived));
            let most = most_steps(client.rank, others.map(|other| (other.rank, other.work)));
            let waited = ended - arrived;
            ensure!(
                waited <= most + late,
                "{:?} was done after {waited} steps; there was work for {most} before it",
                client.id
            );
        }
        Ok(())
    }
}
