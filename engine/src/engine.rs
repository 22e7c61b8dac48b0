//! The synchronous core: requests in, steps, events out.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use pageloom_block_manager::BlockManager;
use pageloom_model_runner::{Batch, SamplingParams, TokenId};
use pageloom_scheduler::{Admission, NewSequence, Scheduler, SeqEvent, SeqId, SeqResult};

use crate::{
    EngineConfig, EngineError, EngineStats, Executor, FinishReason, Ngram, Proposer, Request,
    RequestError, RequestEvent, RequestId,
    beam::Beams,
    limits::{Limits, num_queued_tokens},
    ranking::Ranking,
    search::Search,
    sequence::{SequenceState, Shared},
    stats::SequenceTimes,
    text::{StopStrings, Tokenizer},
};

/// Failed steps in a row after which the executor counts as broken.
pub(crate) const MAX_FAILED_STEPS: usize = 3;

/// Serves requests step by step, on the caller's clock and thread.
///
/// See the [crate page](crate) for an example. [`AsyncEngine`](crate::AsyncEngine) runs one on a
/// thread of its own.
pub struct Engine {
    pub(crate) limits: Arc<Limits>,
    pub(crate) executor: Box<dyn Executor + Send>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) scheduler: Scheduler,
    pub(crate) requests: HashMap<RequestId, RequestState>,
    /// By [`SeqId::index`].
    pub(crate) states: Vec<Option<SequenceState>>,
    pub(crate) events: VecDeque<(RequestId, RequestEvent)>,
    pub(crate) stats: EngineStats,
    /// The step handed to the executor.
    pub(crate) in_flight: bool,
    /// Its number and how many rows its output must have.
    pub(crate) expected: (u64, usize),
    pub(crate) num_failed_steps_in_row: usize,
    /// The transfers of a step that could not be submitted, to be done before any other step.
    pub(crate) owed: Batch,
    /// Buffers kept from step to step.
    pub(crate) batch: Batch,
    pub(crate) results: Vec<SeqResult>,
    pub(crate) seq_events: Vec<SeqEvent>,
    /// Makes drafts for what is decoded, if anything does.
    pub(crate) proposer: Option<Box<dyn Proposer + Send>>,
    /// Requests whose beam search draws in the step.
    pub(crate) searched: Vec<RequestId>,
    next_request: u64,
    /// When the step in flight was handed to the executor.
    pub(crate) step_began: Duration,
}

/// What the engine knows of a request besides its sequences.
pub(crate) struct RequestState {
    /// How many sequences are returned.
    pub(crate) n: usize,
    pub(crate) answer: Answer,
    /// Sequences whose last delta is to come; not counted for a beam search.
    pub(crate) num_open: usize,
    /// Sequences that the scheduler knows and that have not ended; beams in their order.
    pub(crate) alive: Vec<SeqId>,
    /// The others, until the first has computed the prompt: it is forked when its first token is
    /// drawn, and theirs with it.
    pub(crate) to_fork: Vec<SequenceState>,
    pub(crate) prompt_sent: bool,
    pub(crate) wants_prompt_logprobs: bool,
}

/// How the news of a request's sequences become its answer.
pub(crate) enum Answer {
    /// They are.
    AsItComes,
    /// The best sequences, when all have ended.
    Ranked(Ranking),
    /// The best that a beam search finds, when it is over.
    Searched(Box<Search>),
    /// Nobody hears of it: it computes the shared prefix of this number.
    SharedPrefix(usize),
}

impl Engine {
    /// Makes an idle engine. `executor` must have a cache of `config.num_blocks` blocks
    /// and a host tier of `config.num_host_blocks`.
    ///
    /// # Errors
    /// Those of [`EngineConfig::validate`], and [`EngineError::SharedPrefix`].
    pub fn new(
        config: EngineConfig,
        executor: Box<dyn Executor + Send>,
        tokenizer: Arc<Tokenizer>,
    ) -> Result<Self, EngineError> {
        config.validate()?;
        let blocks = BlockManager::new(config.blocks())?;
        let scheduler = Scheduler::new(config.scheduler(), blocks)?;
        let mut stats = EngineStats::new();
        stats.refresh(&scheduler);
        let proposer = config.speculative.map(|bounds| {
            let proposer: Box<dyn Proposer + Send> = Box::new(Ngram::new(bounds));
            proposer
        });
        let num_shared_prefixes = config.shared_prefixes.len();
        let mut engine = Engine {
            limits: Arc::new(Limits::new(config, executor.vocab_size())),
            executor,
            tokenizer,
            scheduler,
            requests: HashMap::new(),
            states: Vec::new(),
            events: VecDeque::new(),
            stats,
            in_flight: false,
            expected: (0, 0),
            num_failed_steps_in_row: 0,
            owed: Batch::default(),
            batch: Batch::default(),
            results: Vec::new(),
            seq_events: Vec::new(),
            proposer,
            searched: Vec::new(),
            next_request: 0,
            step_began: Duration::ZERO,
        };
        for index in 0..num_shared_prefixes {
            let prefix = engine.config().shared_prefixes[index].clone();
            let request = Request {
                max_tokens: Some(0),
                sampling: SamplingParams::greedy(),
                ..Request::new(prefix)
            };
            let added = engine.add(request, Duration::ZERO);
            let id = added.map_err(|reason| EngineError::SharedPrefix { index, reason })?;
            let state = engine.requests.get_mut(&id).expect("just added");
            state.answer = Answer::SharedPrefix(index);
        }
        Ok(engine)
    }

    /// Takes a request in: all its sequences or none. Nothing is allocated for a request that
    /// is refused.
    ///
    /// `now` is the time of arrival on the clock that [`step`](Self::step) is given.
    ///
    /// # Errors
    /// [`RequestError`] names the field that is not accepted, or says that there is no room.
    pub fn add(&mut self, request: Request, now: Duration) -> Result<RequestId, RequestError> {
        let max_tokens = self.limits.check(&request)?;
        let num_seqs = request.num_seqs();
        let num_tokens = num_queued_tokens(&request)?;
        self.scheduler.check_queue(num_seqs, num_tokens)?;
        let id = RequestId(self.next_request);
        let eos_ids = self.tokenizer.eos_ids();
        // Beams are forked as they come.
        let num_params = if request.beams.is_some() { 1 } else { num_seqs };
        let params: Vec<_> = (0..num_params)
            .map(|index| sequence_params(&request, index, eos_ids))
            .collect();
        let (answer, num_candidates) = answer_to(&request, max_tokens, &params[0]);
        let shared = Shared {
            num_candidates,
            own_stop_tokens: request.sampling.stop_token_ids.as_slice().into(),
            max_tokens,
            times: SequenceTimes::new(now),
            stop_strings: StopStrings::new(request.stop.clone(), request.include_stop_in_output),
        };
        let seq = self.scheduler.add(
            NewSequence {
                prompt: request.prompt.clone(),
                max_tokens,
                namespace: self.limits.namespace(request.cache_salt.as_deref()),
                score_prompt: request.prompt_logprobs.is_some(),
                num_seqs,
                lockstep: request.beams.is_some(),
                priority: request.priority,
            },
            now,
        )?;
        let new_state =
            |(index, params)| SequenceState::new(seq, (id, index), &request, params, &shared);
        let mut states = params.into_iter().enumerate().map(new_state);
        let first = states.next().expect("at least one sequence");
        let to_fork = states.collect();
        self.keep(first);
        let state = RequestState {
            n: request.n,
            answer,
            num_open: num_seqs,
            alive: vec![seq],
            to_fork,
            prompt_sent: false,
            wants_prompt_logprobs: request.prompt_logprobs.is_some(),
        };
        self.requests.insert(id, state);
        self.next_request += 1;
        Ok(id)
    }

    /// Ends a request at any moment. Its unfinished sequences get a last event with
    /// [`FinishReason::Abort`]; their blocks are free within a step. Returns whether it was
    /// alive.
    pub fn abort(&mut self, id: RequestId, now: Duration) -> bool {
        let alive = self.requests.contains_key(&id);
        self.end_request(id, &FinishReason::Abort, now);
        alive
    }

    /// Aborts every request.
    pub fn abort_all(&mut self, now: Duration) {
        self.end_all(&FinishReason::Abort, now);
    }

    /// Has drafts made by `proposer` from now on, in place of what
    /// [`EngineConfig::speculative`] says. No output depends on it.
    pub fn set_proposer(&mut self, proposer: Box<dyn Proposer + Send>) {
        self.proposer = Some(proposer);
    }

    /// Asks `admission` about every request before it begins, besides what blocks, seats and the
    /// budget allow. For an engine without requests.
    ///
    /// A rule that refuses a request for ever stalls the engine once nothing else runs.
    ///
    /// # Panics
    /// If any request is unfinished, a prefix of [`EngineConfig::shared_prefixes`] included: the
    /// rule was not asked about it.
    pub fn set_admission(&mut self, admission: Box<dyn Admission>) {
        self.scheduler.set_admission(admission);
    }

    /// Whether any request is unfinished.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// Events since the last call, in the order they happened. Whoever steps the engine drains
    /// it: events are kept until then.
    pub fn drain_events(&mut self) -> impl Iterator<Item = (RequestId, RequestEvent)> + '_ {
        self.events.drain(..)
    }

    /// Figures now and so far.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let mut stats = self.stats.clone();
        stats.refresh(&self.scheduler);
        stats
    }

    /// The scheduler, to look at.
    #[must_use]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        self.limits.config()
    }

    /// The tokeniser.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// False once several steps in a row failed as a whole; true again when one succeeds.
    #[must_use]
    pub fn is_executor_healthy(&self) -> bool {
        self.num_failed_steps_in_row < MAX_FAILED_STEPS
    }

    /// Files the state of a sequence that the scheduler knows.
    pub(crate) fn keep(&mut self, state: SequenceState) {
        let index = state.id.index();
        if self.states.len() <= index {
            self.states.resize_with(index + 1, || None);
        }
        self.states[index] = Some(state);
    }

    /// The state of a sequence that has not ended for the engine.
    pub(crate) fn state(&mut self, id: SeqId) -> Option<&mut SequenceState> {
        let state = self.states.get_mut(id.index())?.as_mut()?;
        (state.id == id).then_some(state)
    }

    /// Forgets a sequence, in the scheduler too if it is alive there.
    pub(crate) fn drop_sequence(&mut self, id: SeqId) -> Option<SequenceState> {
        self.scheduler.finish(id);
        self.state(id)?;
        self.states[id.index()].take()
    }

    /// Ends one sequence with a last event that has the text held back so far.
    pub(crate) fn end_sequence(&mut self, id: SeqId, reason: FinishReason, now: Duration) {
        if let Some(state) = self.drop_sequence(id) {
            self.end_state(state, reason, now);
        }
    }

    /// The same for one that the scheduler does not know.
    pub(crate) fn end_state(
        &mut self,
        mut state: SequenceState,
        reason: FinishReason,
        now: Duration,
    ) {
        let delta = state.end(&self.tokenizer, reason);
        self.close(&state, delta, now);
    }

    /// Ends every request, in order of arrival.
    pub(crate) fn end_all(&mut self, reason: &FinishReason, now: Duration) {
        let mut ids: Vec<_> = self.requests.keys().copied().collect();
        ids.sort();
        for id in ids {
            self.end_request(id, reason, now);
        }
    }

    /// Ends all sequences of a request that are left.
    pub(crate) fn end_request(&mut self, id: RequestId, reason: &FinishReason, now: Duration) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if let Answer::Searched(_) = request.answer {
            self.break_off_search(id, reason, now);
            return;
        }
        let to_fork = std::mem::take(&mut request.to_fork);
        for seq in request.alive.clone() {
            self.end_sequence(seq, reason.clone(), now);
        }
        for state in to_fork {
            self.end_state(state, reason.clone(), now);
        }
    }
}

/// How a request is answered, and how many candidates its sequences expand to in a step.
fn answer_to(request: &Request, max_tokens: usize, params: &SamplingParams) -> (Answer, usize) {
    let num_seqs = request.num_seqs();
    match request.beams {
        Some(rules) => {
            let num_stop_tokens = params.stop_token_ids.len();
            let beams = Beams::new(num_seqs, rules, max_tokens, num_stop_tokens);
            let num_candidates = beams.num_candidates();
            (
                Answer::Searched(Box::new(Search::new(beams))),
                num_candidates,
            )
        }
        None if num_seqs > request.n => {
            let keep_logprobs = request.sampling.logprobs.is_some();
            (Answer::Ranked(Ranking::new(num_seqs, keep_logprobs)), 0)
        }
        None => (Answer::AsItComes, 0),
    }
}

/// The parameters of one of a request's sequences.
fn sequence_params(request: &Request, index: usize, eos_ids: &[TokenId]) -> SamplingParams {
    let mut params = request.sampling.clone();
    params.seed = params.seed.wrapping_add(index as u64);
    if request.num_seqs() > request.n && request.beams.is_none() {
        // What they are ranked by.
        params.logprobs.get_or_insert(0);
    }
    if !request.ignore_eos {
        for &eos in eos_ids {
            if !params.stop_token_ids.contains(&eos) {
                params.stop_token_ids.push(eos);
            }
        }
    }
    params
}
