//! What clients do: send requests, and give them up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pageloom_engine::RequestId;

use super::{
    alone::max_tokens,
    arrivals::Abort,
    drive::Drive,
    order::{Rank, work},
    refusal::{Refusal, reasons},
    script::Line,
    transcript::Transcript,
};

/// A request that was taken, and what came of it so far.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    pub(crate) id: RequestId,
    pub(crate) line: &'a Line,
    pub(crate) transcript: Transcript,
    /// Its client gave it up, and it had not ended as far as was known.
    pub(crate) aborted: bool,
    pub(super) abort: Option<Abort>,
    pub(super) rank: Rank,
    pub(super) work: usize,
    pub(super) arrived: (Duration, usize),
    /// Number of steps when its end was read.
    pub(super) ended: Option<usize>,
}

impl Client<'_> {
    pub(super) fn is_alive(&self) -> bool {
        !self.aborted && self.ended.is_none()
    }
}

/// A request that is still to come.
pub(crate) struct Coming<'a> {
    pub(super) at: Duration,
    pub(super) in_flight: bool,
    pub(super) abort: Option<Abort>,
    pub(super) line: &'a Line,
}

impl<'a> Drive<'a> {
    /// Sends requests once more, to an engine that has nothing left but its cache.
    pub(super) fn revisit(&mut self) {
        let at = self.clock.now();
        let coming = self.scenario.revisits.iter().filter_map(|&number| {
            let line = self.clients.get(number)?.line;
            Some(Coming {
                at,
                in_flight: false,
                abort: None,
                line,
            })
        });
        self.coming.extend(coming);
    }

    pub(super) fn take_arrivals(&mut self, comes: impl Fn(&Coming<'_>) -> bool) -> Result<()> {
        let now = self.clock.now();
        while self.coming.front().is_some_and(|c| c.at <= now && comes(c)) {
            let coming = self.coming.pop_front().expect("just seen");
            self.send(coming)?;
        }
        Ok(())
    }

    fn send(&mut self, coming: Coming<'a>) -> Result<()> {
        let (scenario, now) = (self.scenario, self.clock.now());
        let request = &coming.line.request;
        let scheduler = self.engine.scheduler();
        let (num_seqs, before) = (request.num_seqs(), scheduler.stats());
        let queue = scheduler.check_queue(num_seqs, num_seqs * request.prompt.len());
        let mut reasons = reasons(scenario, request);
        if reasons.is_empty() && queue.is_err() {
            reasons.push(Refusal::QueueFull);
        }
        let id = match self.engine.add(request.clone(), now) {
            Ok(id) => id,
            Err(error) => {
                let refusal = Refusal::from(&error);
                ensure!(
                    reasons.contains(&refusal),
                    "{request:?} was refused with {refusal:?} ({error}), where {reasons:?} would do"
                );
                let after = self.engine.scheduler().stats();
                ensure!(before == after, "a refusal changed {before:?} to {after:?}");
                self.totals.count_refusal(refusal);
                return Ok(());
            }
        };
        ensure!(
            reasons.is_empty(),
            "{request:?} was taken in spite of {reasons:?}"
        );
        let most = max_tokens(&scenario.config, request).ok();
        let most = most.context("what is taken can be finished")?;
        let arrival = self.clients.len();
        self.by_id.insert(id, arrival);
        let rank = Rank::new(&scenario.config, request, arrival, now);
        self.reigns.note_arrival(rank);
        self.clients.push(Client {
            id,
            line: coming.line,
            transcript: Transcript::default(),
            aborted: false,
            abort: coming.abort,
            rank,
            work: work(request, most),
            arrived: (now, self.num_steps),
            ended: None,
        });
        if self.trace {
            eprintln!("{id:?} is request {arrival}");
        }
        if coming.abort == Some(Abort::AtOnce) {
            self.give_up(arrival)?;
        }
        Ok(())
    }

    pub(super) fn give_up_in_time(&mut self) -> Result<()> {
        let now = self.clock.now();
        if !self.aborted_all && self.scenario.abort_all_at.is_some_and(|at| at <= now) {
            self.aborted_all = true;
            self.engine.abort_all(now);
            for client in self.clients.iter_mut().filter(|c| c.is_alive()) {
                client.aborted = true;
            }
        }
        self.give_up_where(|client, _| {
            matches!(client.abort, Some(Abort::After(time)) if client.arrived.0 + time <= now)
        })
    }

    pub(super) fn give_up_where(
        &mut self,
        wants: impl Fn(&Client<'_>, usize) -> bool,
    ) -> Result<()> {
        for at in 0..self.clients.len() {
            let client = &self.clients[at];
            if client.is_alive() && wants(client, self.num_steps) {
                self.give_up(at)?;
            }
        }
        Ok(())
    }

    fn give_up(&mut self, at: usize) -> Result<()> {
        let (id, now) = (self.clients[at].id, self.clock.now());
        self.clients[at].abort = None;
        if self.engine.abort(id, now) {
            self.clients[at].aborted = true;
        }
        ensure!(!self.engine.abort(id, now), "{id:?} was aborted twice");
        Ok(())
    }
}
