//! Who is first, and that nobody waits for ever.
//!
//! # The bound
//!
//! Requests have an order that is known when they arrive: that of arrival, or with priorities that
//! of `arrival + ageing * priority`. Take, at any step, the first `f` of those alive. The scheduler
//! promises about it:
//!
//! 1. *It is in every step.* Running, it is planned before all others, or the decodes of the others
//!    leave it a token of the budget, which is no less than the seats. Waiting, it is let in by
//!    that very step: what runs is behind it in the order, so with priorities it makes way, and
//!    without them nothing is behind a waiting request.
//! 2. *It is never preempted*, since preemption takes the last, and the door let nothing in that
//!    does not fit into the pool alone.
//!
//! So while `f` is first each step that does not fail computes one of its tokens at least, and no
//! token is computed twice: even if everything is to be computed again, it ends within
//! `work(f) = num_seqs * (prompt + max_tokens)` steps. Call that its reign. A reign ends with the end of
//! the request, or with the arrival of one that is before it, and each of those happens once for a
//! request. From when `r` arrives until it ends, each step belongs to the reign of `r` or of one
//! before it. Hence
//!
//! - `r` is done within `sum(work(q)) + sum(work(reign cut short by q)) + failed steps`, both over
//!   the requests `q` that are before `r` in the order, and `r`;
//! - all are done within `sum(work(q)) + number of requests * largest work + failed steps`.
//!
//! [`Reigns`] checks the two promises and the length of every reign, from which the rest follows,
//! and the two bounds themselves with what the reigns came to.

use std::time::Duration;

use anyhow::{Result, ensure};
use pageloom_engine::{Engine, EngineConfig, Request, SchedulingPolicy, scheduler::SeqId};

/// Place in the order, the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    due: i128,
    arrival: usize,
}

impl Rank {
    /// The rank of the `arrival`-th request taken in, at time `now`.
    pub(crate) fn new(
        config: &EngineConfig,
        request: &Request,
        arrival: usize,
        now: Duration,
    ) -> Self {
        let due = match config.scheduling_policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority { ageing } => {
                let later = ageing.as_micros() as i128 * i128::from(request.priority);
                now.as_micros() as i128 + later
            }
        };
        Rank { due, arrival }
    }
}

/// Steps that a request may take while it is first.
pub(crate) fn work(request: &Request, max_tokens: usize) -> usize {
    request.num_seqs() * (request.prompt.len() + max_tokens)
}

/// Most steps, but for failed ones, from when a request arrives until it ends: those of the
/// requests up to it in the order, and of the reigns that they may have cut short. `others` are the
/// rank and work of the requests that were alive meanwhile, it among them.
pub(crate) fn most_steps(rank: Rank, others: impl Iterator<Item = (Rank, usize)> + Clone) -> usize {
    let up_to = others.filter(|(other, _)| *other <= rank);
    let longest = up_to.clone().map(|(_, work)| work).max().unwrap_or(0);
    let late = up_to
        .clone()
        .filter(|(other, _)| other.arrival > rank.arrival);
    let works: usize = up_to.map(|(_, work)| work).sum();
    // Those that came before it cut each other short only before it came, or not at all.
    works + late.count() * longest
}

/// Most steps, but for failed ones, in which requests with so much work are all done.
pub(crate) fn most_steps_of_all(works: impl Iterator<Item = usize> + Clone) -> usize {
    let longest = works.clone().max().unwrap_or(0);
    works.clone().sum::<usize>() + works.count() * longest
}

/// Who was first, step by step.
#[derive(Debug, Default)]
pub(crate) struct Reigns {
    /// Who is first and for how many steps.
    current: Option<(Rank, usize)>,
}

/// What is to be known of the first of the requests alive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct First<'a> {
    pub(crate) rank: Rank,
    pub(crate) request: &'a Request,
    pub(crate) work: usize,
}

impl Reigns {
    /// Notes that a request of this rank arrived, which may cut a reign short.
    pub(crate) fn note_arrival(&mut self, rank: Rank) {
        self.current.take_if(|(first, _)| rank < *first);
    }

    /// Looks whether the step in flight has something for the first, and whether that reigns for
    /// too long.
    ///
    /// # Errors
    /// If it waits.
    pub(crate) fn check(&mut self, engine: &Engine, first: First<'_>) -> Result<()> {
        let scheduler = engine.scheduler();
        let Some(plan) = scheduler.plan() else {
            return Ok(());
        };
        // Ids of the engine's sequences are its own affair, but they begin with their prompt.
        let tokens = |id: SeqId| scheduler.tokens(id).unwrap_or_default();
        let is_of_first = |id| tokens(id).starts_with(&first.request.prompt);
        // A prefix to be shared came before all requests.
        let prefixes = &engine.config().shared_prefixes;
        let is_prefix = |id| prefixes.iter().any(|prefix| prefix == tokens(id));
        let mut ids = plan.seqs.iter().map(|planned| planned.id);
        if ids.clone().any(is_prefix) {
            return Ok(());
        }
        ensure!(
            ids.any(is_of_first),
            "step {} has nothing for the first in the order, {:?}",
            plan.step.0,
            first.rank
        );
        let num_steps = match &mut self.current {
            Some((rank, num_steps)) if *rank == first.rank => {
                *num_steps += 1;
                *num_steps
            }
            current => {
                *current = Some((first.rank, 1));
                1
            }
        };
        ensure!(
            num_steps <= first.work,
            "the first in the order, {:?}, did not end in {} steps",
            first.rank,
            first.work
        );
        Ok(())
    }
}
