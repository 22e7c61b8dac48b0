//! From what a step came to, to the events of its requests.

use std::time::Duration;

use pageloom_model_runner::RowOutput;
use pageloom_scheduler::{EndReason, SeqEvent, SeqId, StepId};

use crate::{
    Engine, FinishReason, GeneratedToken, OutputDelta, RequestEvent, RequestId, engine::Answer,
    sequence::SequenceState,
};

impl Engine {
    /// Reports `self.results` to the scheduler and turns its events into the request's.
    pub(crate) fn report(&mut self, step: StepId, now: Duration) {
        let mut events = std::mem::take(&mut self.seq_events);
        self.scheduler.update(step, &self.results, &mut events);
        // Before any of them leaves; but kept only after, since what leaves has the same places.
        let mut forks = Vec::new();
        for event in &events {
            if let SeqEvent::Token { id, .. } = *event {
                self.fork(id, &mut forks);
            }
        }
        let searched = std::mem::take(&mut self.searched);
        let beams = self.fork_survivors(&searched);
        for event in events.drain(..) {
            match event {
                SeqEvent::PromptComputed {
                    id,
                    num_cached_tokens,
                } => self.prompt_computed(id, num_cached_tokens),
                SeqEvent::Token { id, .. } => self.token_drawn(id, now),
                SeqEvent::Ended { id, reason } => self.ended(id, reason, now),
            }
        }
        self.seq_events = events;
        for &id in &searched {
            self.end_search_if_over(id, now);
        }
        for fork in forks {
            self.fork_drawn(fork, now);
        }
        for beam in beams {
            self.keep_beam(beam, now);
        }
        self.searched = searched;
        self.searched.clear();
    }

    fn prompt_computed(&mut self, id: SeqId, num_cached_tokens: usize) {
        let Some(state) = self.state(id) else {
            return;
        };
        let num_prompt_tokens = state.num_prompt_tokens;
        let scores = std::mem::take(&mut state.prompt_scores);
        let request_id = state.request;
        self.stats.num_prompt_tokens += num_prompt_tokens as u64;
        let Some(request) = self.requests.get_mut(&request_id) else {
            return;
        };
        if std::mem::replace(&mut request.prompt_sent, true) {
            return;
        }
        if let Answer::SharedPrefix(_) = request.answer {
            return;
        }
        let logprobs = match request.wants_prompt_logprobs {
            true => [None]
                .into_iter()
                .chain(scores.into_iter().map(Some))
                .collect(),
            false => Vec::new(),
        };
        let event = RequestEvent::Prompt {
            num_cached_tokens,
            logprobs,
        };
        self.events.push_back((request_id, event));
    }

    /// Forks the first sequence of a request, which has drawn its first token, into all.
    fn fork(&mut self, id: SeqId, forks: &mut Vec<SequenceState>) {
        let state = self.states[id.index()].as_ref();
        let Some(state) = state.filter(|state| state.id == id) else {
            return;
        };
        let Some(request) = self.requests.get_mut(&state.request) else {
            return;
        };
        for mut fork in request.to_fork.drain(..) {
            fork.times = state.times.clone();
            let token = fork.drawn.front().map(|row| row.token);
            // `None` where the first has all its tokens already, and then so has the fork.
            fork.id = match token.and_then(|token| self.scheduler.fork(id, token)) {
                Some(child) => {
                    request.alive.push(child);
                    child
                }
                None => id,
            };
            forks.push(fork);
        }
    }

    /// The first token of a fork, which goes on if the scheduler knows it.
    fn fork_drawn(&mut self, mut fork: SequenceState, now: Duration) {
        if let Some(failure) = fork.failure.take() {
            self.end_state(fork, FinishReason::Error(failure), now);
        } else if self.scheduler.tokens(fork.id).is_some() {
            let id = fork.id;
            self.keep(fork);
            self.token_drawn(id, now);
        } else {
            let delta = self.take_drawn(&mut fork, now);
            self.close(&fork, delta, now);
        }
    }

    fn token_drawn(&mut self, id: SeqId, now: Duration) {
        // The token of a beam is one of many, and dealt with elsewhere.
        let draws = |state: &mut SequenceState| state.num_candidates == 0;
        if !self.state(id).is_some_and(draws) {
            return;
        }
        let mut state = self.states[id.index()].take().expect("it was there");
        let delta = self.take_drawn(&mut state, now);
        if delta.finish.is_some() {
            self.scheduler.finish(id);
            self.close(&state, delta, now);
        } else {
            let request = state.request;
            self.keep(state);
            self.emit(request, delta);
        }
    }

    fn take_drawn(&mut self, state: &mut SequenceState, now: Duration) -> OutputDelta {
        let RowOutput {
            token, logprobs, ..
        } = state.drawn.pop_front().expect("a token was drawn");
        self.stats.observe_token(&mut state.times, now);
        state.take_token(
            &self.tokenizer,
            GeneratedToken {
                id: token,
                logprobs,
            },
        )
    }

    /// The scheduler ended a sequence; the engine may have known before.
    fn ended(&mut self, id: SeqId, reason: EndReason, now: Duration) {
        let Some(state) = self.state(id) else {
            return;
        };
        let reason = match reason {
            EndReason::Length => FinishReason::Length,
            EndReason::Failed => FinishReason::Error(
                (state.failure.take()).unwrap_or_else(|| "the step failed".to_owned()),
            ),
        };
        let request_id = state.request;
        let Some(request) = self.requests.get(&request_id) else {
            return;
        };
        match &request.answer {
            // It knows that this is the end.
            Answer::Searched(search) if search.is_over() => {}
            Answer::Searched(_) => self.end_request(request_id, &reason, now),
            Answer::SharedPrefix(index) => {
                if reason == FinishReason::Length {
                    // Its blocks are not referenced any more, and not evicted yet.
                    let prefix = &self.limits.config().shared_prefixes[*index];
                    self.scheduler.hold(prefix, self.limits.namespace(None));
                }
                self.end_sequence(id, reason, now);
            }
            // The others were to be its forks.
            _ if !request.to_fork.is_empty() => self.end_request(request_id, &reason, now),
            _ => self.end_sequence(id, reason, now),
        }
    }

    /// Tells the client, now or when its answer can be ranked.
    pub(crate) fn emit(&mut self, id: RequestId, delta: OutputDelta) {
        let request = self.requests.get_mut(&id).expect("a request is known");
        let event = |delta| (id, RequestEvent::Output(delta));
        match &mut request.answer {
            Answer::AsItComes | Answer::Searched(_) => self.events.push_back(event(delta)),
            Answer::Ranked(ranking) => {
                let best = ranking.take(delta, request.n).unwrap_or_default();
                self.events.extend(best.into_iter().map(event));
            }
            Answer::SharedPrefix(_) => {}
        }
    }

    /// Ends a sequence that the scheduler does not know any more with its last delta, and forgets
    /// its request with the last one.
    pub(crate) fn close(&mut self, state: &SequenceState, delta: OutputDelta, now: Duration) {
        let request = self.requests.get(&state.request).expect("known");
        if !matches!(request.answer, Answer::SharedPrefix(_)) {
            let reason = delta.finish.as_ref().expect("the last delta says why");
            self.stats.observe_end(&state.times, reason, now);
        }
        self.emit(state.request, delta);
        // One that failed before it was forked has the id of the first, which may go on.
        let goes_on = self.scheduler.tokens(state.id).is_some();
        let request = self.requests.get_mut(&state.request).expect("known");
        request.alive.retain(|&seq| seq != state.id || goes_on);
        request.num_open -= 1;
        if request.num_open == 0 {
            self.requests.remove(&state.request);
        }
    }
}
