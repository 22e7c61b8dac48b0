//! One machine of a fleet: the project's scheduler and block manager on virtual time.

use std::time::Duration;

use anyhow::{Context, ensure};
use pageloom_scheduler::{
    BlockManager, NewSequence, Scheduler, SchedulerStats, SeqEvent, SeqResult, StepId, StepTimes,
    TokenId,
};

use super::machine::{self, BLOCK_SIZE, COST};
use super::router::Load;
use crate::bench::paper::cost::Work;

/// Seconds to the first token, of a request that had it.
pub(crate) type Waits = Vec<f64>;

/// A machine, advanced to the times at which something happens to it.
///
/// ```text
///  add ─> [waiting] ── a step ends ─> schedule ─> the next ends later ─> ... ─> idle
/// ```
pub(crate) struct Replica {
    scheduler: Scheduler,
    /// The step under way, if one is.
    step: Option<StepId>,
    /// When it ends, seconds; infinite if there is none.
    ends_s: f64,
    /// Seconds that it copies, and that it computes.
    swap_s: f64,
    compute_s: f64,
    /// Requests by the index of their sequence.
    requests: Vec<Request>,
    results: Vec<SeqResult>,
    events: Vec<SeqEvent>,
    pub(crate) figures: Figures,
}

/// A request that has not ended.
#[derive(Debug, Clone, Copy, Default)]
struct Request {
    at_s: f64,
    /// Unlike that of any other request of the replica.
    number: u32,
    num_prompt: usize,
    num_drawn: usize,
}

/// What is known of a replica from outside.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) load: Load,
    /// Time that steps took.
    pub(crate) busy_s: f64,
    pub(crate) num_drawn: usize,
    num_requests: u32,
}

impl Replica {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let blocks = BlockManager::new(machine::blocks())?;
        Ok(Self {
            scheduler: Scheduler::new(machine::scheduler(), blocks)?,
            step: None,
            ends_s: f64::INFINITY,
            swap_s: 0.0,
            compute_s: 0.0,
            requests: Vec::new(),
            results: Vec::new(),
            events: Vec::new(),
            figures: Figures::default(),
        })
    }

    /// When the step under way ends, seconds; infinite if there is none.
    pub(crate) fn ends_s(&self) -> f64 {
        self.ends_s
    }

    pub(crate) fn stats(&self) -> SchedulerStats {
        self.scheduler.stats()
    }

    /// A request arrives; it may be computed in the next step.
    ///
    /// # Errors
    /// If it can never be served.
    pub(crate) fn add(
        &mut self,
        at_s: f64,
        prompt: Vec<TokenId>,
        output: usize,
    ) -> anyhow::Result<()> {
        let num_prompt = prompt.len();
        let new = NewSequence {
            prompt,
            max_tokens: output,
            ..NewSequence::default()
        };
        let id = self
            .scheduler
            .add(new, Duration::from_secs_f64(at_s))
            .with_context(|| format!("a prompt of {num_prompt} tokens"))?;
        if self.requests.len() <= id.index() {
            self.requests.resize(id.index() + 1, Request::default());
        }
        self.requests[id.index()] = Request {
            at_s,
            number: self.figures.num_requests,
            num_prompt,
            num_drawn: 0,
        };
        self.figures.num_requests += 1;
        self.figures.load.in_flight += num_prompt;
        self.figures.load.waiting += num_prompt;
        if self.step.is_none() {
            self.begin_step(at_s)?;
        }
        Ok(())
    }

    /// Ends all steps that end by then, and begins those that follow; `waits` are added to.
    ///
    /// # Errors
    /// If nothing is planned though requests wait.
    pub(crate) fn advance(&mut self, to_s: f64, waits: &mut Waits) -> anyhow::Result<()> {
        while self.ends_s <= to_s {
            let now_s = self.ends_s;
            if let Some(step) = self.step.take() {
                self.end_step(step, waits);
            }
            self.begin_step(now_s)?;
        }
        Ok(())
    }

    fn begin_step(&mut self, now_s: f64) -> anyhow::Result<()> {
        self.ends_s = f64::INFINITY;
        let Some(plan) = self.scheduler.schedule() else {
            ensure!(
                !self.scheduler.has_work(),
                "nothing is planned though requests wait"
            );
            return Ok(());
        };
        self.step = Some(plan.step);
        self.results.clear();
        for planned in &plan.seqs {
            let number = self.requests[planned.id.index()].number;
            self.results.push(match planned.sample {
                true => SeqResult::Token(drawn(number, planned.positions.end)),
                false => SeqResult::Computed,
            });
        }
        let work = Work::of(plan, BLOCK_SIZE);
        (self.swap_s, self.compute_s) = (COST.swap_ms(&work) / 1e3, COST.compute_ms(&work) / 1e3);
        self.figures.busy_s += self.swap_s + self.compute_s;
        self.ends_s = now_s + self.swap_s + self.compute_s;
        Ok(())
    }

    fn end_step(&mut self, step: StepId, waits: &mut Waits) {
        self.scheduler.update(step, &self.results, &mut self.events);
        self.scheduler.observe(StepTimes {
            swap: Duration::from_secs_f64(self.swap_s),
            compute: Duration::from_secs_f64(self.compute_s),
        });
        for &event in &self.events {
            match event {
                SeqEvent::PromptComputed { .. } => {}
                SeqEvent::Token { id, .. } => {
                    let request = &mut self.requests[id.index()];
                    if request.num_drawn == 0 {
                        waits.push(self.ends_s - request.at_s);
                        self.figures.load.waiting -= request.num_prompt;
                    }
                    request.num_drawn += 1;
                    self.figures.num_drawn += 1;
                    self.figures.load.in_flight += 1;
                }
                SeqEvent::Ended { id, .. } => {
                    let Request {
                        num_prompt,
                        num_drawn,
                        ..
                    } = self.requests[id.index()];
                    self.figures.load.in_flight -= num_prompt + num_drawn;
                }
            }
        }
    }
}

/// What a request draws at a position: in another request another, in all likelihood.
fn drawn(number: u32, position: usize) -> TokenId {
    (number.wrapping_mul(0x9e37_79b1) ^ position as u32).wrapping_mul(0x85eb_ca6b) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_to_the_first_token_is_that_of_the_steps() {
        let mut replica = Replica::new().unwrap();
        let mut waits = Vec::new();
        replica.add(1.0, (0..256).collect(), 3).unwrap();
        // Comes while the first is computed, and finds one of its blocks.
        let first_s = (9.5 + 0.065 * 256.0 + 0.12) / 1e3;
        replica.add(1.001, (0..200).collect(), 1).unwrap();
        assert!((replica.ends_s() - 1.0 - first_s).abs() < 1e-9);
        let load = |in_flight, waiting| Load { in_flight, waiting };
        assert_eq!(replica.figures.load, load(456, 456));
        replica.advance(f64::MAX, &mut waits).unwrap();
        let second_s = (9.5 + 7.9 + 0.000_092 * (256.0 + 128.0) + 2.0 * 0.12) / 1e3;
        let expected = [first_s, first_s + second_s - 0.001];
        for (wait, expected) in waits.iter().zip(expected) {
            assert!((wait - expected).abs() < 1e-9, "{waits:?} {expected}");
        }
        assert_eq!(waits.len(), 2);
        assert_eq!(replica.figures.load, load(0, 0));
        assert_eq!(replica.figures.num_drawn, 4);
        assert_eq!(replica.stats().num_prefix_hits, 128);
    }

    #[test]
    fn what_can_never_be_served_is_said() {
        let mut replica = Replica::new().unwrap();
        let error = replica.add(0.0, vec![0; machine::CONTEXT_LEN + 1], 1);
        assert!(format!("{:#}", error.unwrap_err()).contains("131073"));
    }
}
