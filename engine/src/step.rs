//! One step of the engine: plan, execute, take in.

use std::{iter, time::Duration};

use pageloom_model_runner::{Batch, RowError, RowOutput, StepOutput, TokenId};
use pageloom_scheduler::{PlannedSeq, SeqResult, StepTimes};

use crate::{
    Engine, EngineError, ExecutorError, FinishReason, batch, executor::guarded,
    sequence::SequenceState,
};

impl Engine {
    /// Plans, computes and takes in one step, all at time `now`. Returns false if there was
    /// nothing to do.
    ///
    /// A step that fails ends the sequences that were part of it with [`FinishReason::Error`];
    /// all others go on, and so does the engine. The same holds when the executor panics.
    ///
    /// If the step could not even be submitted, the blocks it was to move are moved by the next
    /// call, before anything else: others rely on them. If that fails too, every request ends
    /// with [`FinishReason::Error`], and the call after the next request tries again.
    ///
    /// # Errors
    /// [`EngineError::Stalled`], a bug.
    pub fn step(&mut self, now: Duration) -> Result<bool, EngineError> {
        if !self.begin_step(now)? {
            return Ok(false);
        }
        self.end_step(|| now);
        Ok(true)
    }

    /// The first half of [`step`](Self::step): hands a step to the executor. Between the halves
    /// requests may be added and aborted. Returns false if there was nothing to do.
    ///
    /// # Errors
    /// [`EngineError::Stalled`], a bug.
    ///
    /// # Panics
    /// If a step was begun and not ended.
    pub fn begin_step(&mut self, now: Duration) -> Result<bool, EngineError> {
        assert!(!self.in_flight, "a step was begun and not ended");
        if !self.scheduler.has_work() {
            return Ok(false);
        }
        if self.owed.has_transfers()
            && let Err(error) = self.do_owed_transfers()
        {
            self.count_failed_step();
            self.end_all(&FinishReason::Error(error.to_string()), now);
            return Ok(true);
        }
        if let Some(proposer) = &mut self.proposer {
            let states = &self.states;
            self.scheduler.propose(|id, tokens, drafts| {
                proposer.propose(tokens, drafts);
                let state = states[id.index()].as_ref();
                drafts.truncate(state.map_or(0, |state| state.draft_limit.most()));
            });
        }
        let Some(plan) = self.scheduler.schedule() else {
            let stats = self.scheduler.stats();
            return Err(EngineError::Stalled {
                num_waiting: stats.num_waiting,
                num_running: stats.num_running,
            });
        };
        self.stats.observe_step(plan.num_tokens);
        for planned in &plan.seqs {
            let state = self.states[planned.id.index()].as_mut();
            let state = state.expect("a planned sequence is alive");
            self.stats.observe_first_step(&mut state.times, now);
        }
        let plan = self.scheduler.plan().expect("just planned");
        let mut batch = std::mem::take(&mut self.batch);
        let requests = &self.requests;
        batch::fill(&mut batch, plan, &self.scheduler, &self.states, |id| {
            requests.get(&id).map_or(&[], |request| &request.to_fork)
        });
        self.step_began = now;
        self.expected = (batch.step, batch.outputs.len());
        self.in_flight = true;
        if let Err(error) = guarded(|| self.executor.submit(batch)) {
            let plan = self.scheduler.plan().expect("a step is in flight");
            batch::fill_transfers(&mut self.owed, plan);
            self.fail_step(&error, now);
        }
        Ok(true)
    }

    /// Does the transfers of a step that could not be submitted.
    ///
    /// Later steps rely on them, and so may a later one's transfers: nothing is planned before
    /// they are done, so that never more than one step's are owed, and the order is kept.
    fn do_owed_transfers(&mut self) -> Result<(), ExecutorError> {
        self.expected = (self.owed.step, 0);
        let batch = self.owed.clone();
        guarded(|| self.executor.submit(batch))?;
        // Done, whatever comes: the executor's contract.
        self.owed.clear();
        guarded(|| self.executor.wait())
            .and_then(|done| self.checked(done))
            .map(drop)
    }

    /// The second half: waits for the executor and takes in what it computed. `now` is asked for
    /// the time once the executor is done.
    pub fn end_step(&mut self, now: impl FnOnce() -> Duration) {
        if !self.in_flight {
            // It could not be submitted and was ended there.
            return;
        }
        let waited = guarded(|| self.executor.wait()).and_then(|done| self.checked(done));
        match waited {
            Ok(output) => self.take_step(output, now()),
            Err(error) => self.fail_step(&error, now()),
        }
    }

    /// Keeps the batch's buffers and looks whether the output is that of the step in flight.
    fn checked(&mut self, done: (Batch, StepOutput)) -> Result<StepOutput, ExecutorError> {
        let (batch, output) = done;
        self.batch = batch;
        let (step, num_rows) = self.expected;
        if output.step == step && output.rows.len() == num_rows {
            return Ok(output);
        }
        Err(ExecutorError::WrongOutput {
            step,
            num_rows,
            got_step: output.step,
            got_rows: output.rows.len(),
        })
    }

    fn take_step(&mut self, output: StepOutput, now: Duration) {
        self.in_flight = false;
        self.num_failed_steps_in_row = 0;
        let plan = self.scheduler.plan().expect("a step is in flight");
        let step = plan.step;
        self.results.clear();
        let mut rows = output.rows.into_iter();
        let mut outputs = self.batch.outputs.iter().peekable();
        for (planned, &end) in plan.seqs.iter().zip(&self.batch.row_offsets[1..]) {
            // Whoever left meanwhile has rows too.
            let num_rows = iter::from_fn(|| outputs.next_if(|output| output.row < end)).count();
            let mut rows = rows.by_ref().take(num_rows);
            let state = self.states[planned.id.index()].as_mut();
            let state = state.filter(|state| state.id == planned.id);
            let request = state.as_ref().map(|state| state.request);
            if planned.sample && state.as_ref().is_some_and(|s| s.num_candidates > 0) {
                self.searched.extend(request);
            }
            let drafts = self.scheduler.drafts(planned);
            let result = take_rows(planned, drafts, &mut rows, state);
            self.results.push(result);
            let request = request.and_then(|id| self.requests.get_mut(&id));
            let to_fork = request.map_or(&mut [][..], |request| &mut request.to_fork);
            for (state, row) in to_fork.iter_mut().zip(&mut rows) {
                match row {
                    Ok(row) => state.drawn.push_back(row),
                    Err(error) => state.failure = Some(error.to_string()),
                }
            }
            rows.for_each(drop);
        }
        self.searched.dedup();
        for at in 0..self.searched.len() {
            self.advance_search(self.searched[at]);
        }
        let swap = output.transfer_time;
        let time = now.saturating_sub(self.step_began);
        let compute = time.saturating_sub(swap);
        self.stats.step_time += time;
        self.stats.transfer_time += swap;
        self.report(step, now);
        self.scheduler.observe(StepTimes { swap, compute });
    }

    fn count_failed_step(&mut self) {
        self.stats.num_failed_steps += 1;
        self.num_failed_steps_in_row += 1;
    }

    /// Ends every sequence of the step in flight.
    fn fail_step(&mut self, error: &ExecutorError, now: Duration) {
        self.in_flight = false;
        self.count_failed_step();
        let plan = self.scheduler.plan().expect("a step is in flight");
        let step = plan.step;
        self.results.clear();
        for planned in &plan.seqs {
            self.results.push(SeqResult::Failed);
            let state = self.states[planned.id.index()].as_mut();
            if let Some(state) = state.filter(|state| state.id == planned.id) {
                state.failure = Some(error.to_string());
            }
        }
        self.report(step, now);
    }
}

/// The rows of one sequence, in the order the batch asked for them.
fn take_rows(
    planned: &PlannedSeq,
    drafts: &[TokenId],
    rows: &mut impl Iterator<Item = Result<RowOutput, RowError>>,
    mut state: Option<&mut SequenceState>,
) -> SeqResult {
    let mut failure = None;
    for _ in planned.scores.clone() {
        let scored = rows.next().expect("the number of rows was checked");
        match scored {
            Ok(row) => match (row.logprobs, state.as_mut()) {
                (Some(logprobs), Some(state)) => state.prompt_scores.push(logprobs),
                (Some(_), None) => {}
                (None, _) => failure = Some("a score without log-probability".to_owned()),
            },
            Err(error) => failure = Some(error.to_string()),
        }
    }
    let mut result = SeqResult::Computed;
    if planned.sample {
        match take_drawn(drafts, rows, state.as_deref_mut()) {
            Ok(drawn) => {
                result = drawn;
                if let (SeqResult::Tokens { num_accepted, .. }, Some(state)) = (drawn, &mut state) {
                    state.draft_limit.observe(drafts.len(), num_accepted);
                }
            }
            Err(error) => failure = Some(error.to_string()),
        }
    }
    if failure.is_some() {
        result = SeqResult::Failed;
        if let Some(state) = state {
            state.failure = failure;
            // A search asks for this, and must not go on with it.
            state.drawn.clear();
        }
    }
    result
}

/// What the last token's row drew, and those of the drafts that it agrees with: up to the first
/// token that is not the draft in its place, or that ends the text.
fn take_drawn(
    drafts: &[TokenId],
    rows: &mut impl Iterator<Item = Result<RowOutput, RowError>>,
    mut state: Option<&mut SequenceState>,
) -> Result<SeqResult, RowError> {
    let mut num_accepted = 0;
    loop {
        let row = match rows.next().expect("the number of rows was checked") {
            Ok(row) => row,
            Err(error) if num_accepted == 0 => return Err(error),
            // The tokens before it stand, and the next step comes to this place again.
            Err(_) => {
                num_accepted -= 1;
                let token = drafts[num_accepted];
                return Ok(SeqResult::Tokens {
                    num_accepted,
                    token,
                });
            }
        };
        let token = row.token;
        let mut ends = false;
        if let Some(state) = state.as_deref_mut() {
            // Before min_tokens none of these is drawn.
            ends = state.params.stop_token_ids.contains(&token);
            state.drawn.push_back(row);
        }
        if ends || drafts.get(num_accepted) != Some(&token) {
            return Ok(SeqResult::Tokens {
                num_accepted,
                token,
            });
        }
        num_accepted += 1;
    }
}
