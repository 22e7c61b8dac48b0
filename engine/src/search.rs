//! The sequences of a beam search: the scheduler's forks and ends, as the search wants them.

use std::time::Duration;

use pageloom_model_runner::RowOutput;
use pageloom_scheduler::{SeqId, SeqResult};

use crate::{
    Engine, FinishReason, OutputDelta, RequestId,
    beam::{Beams, Survivor},
    engine::{Answer, RequestState},
    sequence::SequenceState,
};

/// A request's beam search.
pub(crate) struct Search {
    beams: Beams,
    next: Next,
}

/// What the step in flight came to for the search, until the scheduler has taken it in.
enum Next {
    /// Nothing yet.
    Unknown,
    GoOn(Vec<Survivor<SequenceState>>),
    Over,
}

impl Search {
    pub(crate) fn new(beams: Beams) -> Self {
        Search {
            beams,
            next: Next::Unknown,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.next, Next::Over)
    }
}

impl Engine {
    /// Has a search choose among what its beams could continue with, and tells the scheduler with
    /// what each goes on. If a beam failed, all fail.
    pub(crate) fn advance_search(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let beams = request.alive.clone();
        let rows = beams.iter().map(|&beam| {
            let state = self.states[beam.index()].as_mut();
            state.expect("a beam is alive").drawn.pop_front()
        });
        let results = match rows.collect::<Option<Vec<_>>>() {
            Some(rows) => self.choose_survivors(id, rows),
            None => self.fail_beams(&beams),
        };
        let plan = self.scheduler.plan().expect("a step is in flight");
        for (planned, result) in plan.seqs.iter().zip(&mut self.results) {
            if let Some(beam) = beams.iter().position(|&seq| seq == planned.id) {
                *result = results[beam];
            }
        }
    }

    /// A beam goes on with the first of its continuations that do, and is forked for the others
    /// once the scheduler knows. Which token one has that does not go on does not matter.
    fn choose_survivors(&mut self, id: RequestId, rows: Vec<RowOutput>) -> Vec<SeqResult> {
        let mut next: Vec<_> = rows.iter().map(|row| SeqResult::Token(row.token)).collect();
        let Some(RequestState {
            answer: Answer::Searched(search),
            alive,
            ..
        }) = self.requests.get_mut(&id)
        else {
            return next;
        };
        let states = &self.states;
        let survivors = search.beams.advance(rows, |beam, token| {
            let state = states[alive[beam].index()].as_ref();
            let mut state = state.expect("a beam is alive").to_beam();
            let delta = state.take_token(&self.tokenizer, token);
            (state, delta)
        });
        // From behind, so that the first of a beam's is what stays.
        for survivor in survivors.iter().flatten().rev() {
            next[survivor.parent] = SeqResult::Token(survivor.token);
        }
        search.next = survivors.map_or(Next::Over, Next::GoOn);
        next
    }

    fn fail_beams(&mut self, beams: &[SeqId]) -> Vec<SeqResult> {
        let failure_of = |beam: &SeqId| self.states[beam.index()].as_ref()?.failure.clone();
        let failure = beams.iter().find_map(failure_of);
        let failure = failure.unwrap_or_else(|| "a beam was not computed".to_owned());
        for &beam in beams {
            let state = self.state(beam).expect("a beam is alive");
            state.failure = Some(failure.clone());
        }
        vec![SeqResult::Failed; beams.len()]
    }

    /// Forks what survives, then lets go of the beams that nothing survives of: in this order, so
    /// that no block they share is free in between. Returns the states of all survivors.
    pub(crate) fn fork_survivors(&mut self, searched: &[RequestId]) -> Vec<SequenceState> {
        let mut states = Vec::new();
        for id in searched {
            let Some(RequestState {
                answer: Answer::Searched(search),
                alive,
                ..
            }) = self.requests.get_mut(id)
            else {
                continue;
            };
            let Next::GoOn(survivors) = &mut search.next else {
                continue;
            };
            let survivors = std::mem::take(survivors);
            search.next = Next::Unknown;
            let parents = std::mem::take(alive);
            let mut goes_on = vec![false; parents.len()];
            for mut survivor in survivors {
                let parent = parents[survivor.parent];
                survivor.state.id = match std::mem::replace(&mut goes_on[survivor.parent], true) {
                    false => parent,
                    true => (self.scheduler.fork(parent, survivor.token))
                        .expect("a beam that goes on has not ended"),
                };
                alive.push(survivor.state.id);
                states.push(survivor.state);
            }
            for (parent, goes_on) in parents.into_iter().zip(goes_on) {
                if !goes_on {
                    self.drop_sequence(parent);
                }
            }
        }
        states
    }

    /// Files the state of a beam of the next step.
    pub(crate) fn keep_beam(&mut self, mut beam: SequenceState, now: Duration) {
        self.stats.observe_token(&mut beam.times, now);
        self.keep(beam);
    }

    pub(crate) fn end_search_if_over(&mut self, id: RequestId, now: Duration) {
        let Some(&RequestState {
            answer: Answer::Searched(ref search),
            n,
            ..
        }) = self.requests.get(&id)
        else {
            return;
        };
        if !search.is_over() {
            return;
        }
        let mut found = search.beams.best(n);
        let num_found = found.len();
        found.extend((num_found..n).map(|index| {
            let message =
                format!("the beam search found only {num_found} sequences, {n} were asked for");
            nothing(index, FinishReason::Error(message))
        }));
        self.close_search(id, found, true, now);
    }

    /// Ends a search that is not over; nothing it has is worth telling.
    pub(crate) fn break_off_search(&mut self, id: RequestId, reason: &FinishReason, now: Duration) {
        let n = self.requests.get(&id).map_or(0, |request| request.n);
        let deltas = (0..n).map(|index| nothing(index, reason.clone()));
        self.close_search(id, deltas.collect(), false, now);
    }

    fn close_search(
        &mut self,
        id: RequestId,
        deltas: Vec<OutputDelta>,
        has_drawn: bool,
        now: Duration,
    ) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let mut times = None;
        for seq in request.alive.clone() {
            if let Some(state) = self.drop_sequence(seq) {
                times.get_or_insert(state.times);
            }
        }
        let mut times = times.expect("a search has a beam");
        if has_drawn {
            self.stats.observe_token(&mut times, now);
        }
        for delta in deltas {
            let reason = delta.finish.as_ref().expect("the last delta says why");
            self.stats.observe_end(&times, reason, now);
            self.emit(id, delta);
        }
        self.requests.remove(&id);
    }
}

fn nothing(index: usize, reason: FinishReason) -> OutputDelta {
    OutputDelta {
        index,
        finish: Some(reason),
        ..OutputDelta::default()
    }
}
