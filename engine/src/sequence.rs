//! One sequence on its way from tokens to text.

use std::{collections::VecDeque, sync::Arc};

use pageloom_model_runner::{RowOutput, SamplingParams, TokenId, TokenLogprobs};
use pageloom_scheduler::SeqId;

use crate::{
    FinishReason, GeneratedToken, OutputDelta, Request, RequestId, StopCause,
    speculative::DraftLimit,
    stats::SequenceTimes,
    text::{Detokenizer, StopStrings, Tokenizer},
};

/// What the engine knows of a sequence besides what the scheduler knows.
pub(crate) struct SequenceState {
    pub(crate) id: SeqId,
    pub(crate) request: RequestId,
    /// Which of the request's sequences.
    pub(crate) index: usize,
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) num_prompt_tokens: usize,
    pub(crate) num_top_prompt_logprobs: usize,
    pub(crate) times: SequenceTimes,
    /// Scores of the prompt as far as they were computed.
    pub(crate) prompt_scores: Vec<TokenLogprobs>,
    /// How many candidates for its next token a step computes; 0 if it draws one.
    pub(crate) num_candidates: usize,
    /// What the step drew for it, until the scheduler has taken the tokens in; one a step, unless
    /// drafts turned out right.
    pub(crate) drawn: VecDeque<RowOutput>,
    /// How many drafts its next step may have.
    pub(crate) draft_limit: DraftLimit,
    /// Why the step failed for it.
    pub(crate) failure: Option<String>,
    max_tokens: usize,
    num_generated: usize,
    /// The stop tokens that the request named itself.
    own_stop_tokens: Arc<[TokenId]>,
    include_stop: bool,
    detokenizer: Detokenizer,
    stop_strings: StopStrings,
}

/// What the sequences of a request have in common.
pub(crate) struct Shared {
    pub(crate) own_stop_tokens: Arc<[TokenId]>,
    pub(crate) max_tokens: usize,
    pub(crate) times: SequenceTimes,
    pub(crate) stop_strings: StopStrings,
    pub(crate) num_candidates: usize,
}

impl SequenceState {
    pub(crate) fn new(
        id: SeqId,
        (request_id, index): (RequestId, usize),
        request: &Request,
        params: SamplingParams,
        shared: &Shared,
    ) -> Self {
        SequenceState {
            id,
            request: request_id,
            index,
            params: Arc::new(params),
            num_prompt_tokens: request.prompt.len(),
            num_top_prompt_logprobs: request.prompt_logprobs.unwrap_or(0),
            times: shared.times.clone(),
            prompt_scores: Vec::new(),
            num_candidates: shared.num_candidates,
            drawn: VecDeque::new(),
            draft_limit: DraftLimit::default(),
            failure: None,
            max_tokens: shared.max_tokens,
            num_generated: 0,
            own_stop_tokens: shared.own_stop_tokens.clone(),
            include_stop: request.include_stop_in_output,
            detokenizer: Detokenizer::new(request.skip_special_tokens),
            stop_strings: shared.stop_strings.clone(),
        }
    }

    /// The state of a beam that continues this one: what a step brought is not part of it.
    pub(crate) fn to_beam(&self) -> Self {
        SequenceState {
            params: self.params.clone(),
            times: self.times.clone(),
            prompt_scores: Vec::new(),
            drawn: VecDeque::new(),
            failure: None,
            own_stop_tokens: self.own_stop_tokens.clone(),
            detokenizer: self.detokenizer.clone(),
            stop_strings: self.stop_strings.clone(),
            ..*self
        }
    }

    /// Takes the token that was drawn. The delta says whether the sequence ended with it.
    pub(crate) fn take_token(
        &mut self,
        tokenizer: &Tokenizer,
        generated: GeneratedToken,
    ) -> OutputDelta {
        self.num_generated += 1;
        let token = generated.id;
        // The sampler bans stop tokens up to min_tokens; stop strings are ours to hold back.
        let may_stop = self.num_generated > self.params.min_tokens;
        let (mut text, mut finish) = if may_stop && self.params.stop_token_ids.contains(&token) {
            (
                self.stop_token_text(tokenizer, token),
                Some(self.stopped_by(token)),
            )
        } else {
            let text = self.detokenizer.push(tokenizer, token);
            self.check_stop_strings(text, may_stop)
        };
        if finish.is_none() && self.num_generated == self.max_tokens {
            let (rest, stopped) = self.flush(tokenizer);
            text.push_str(&rest);
            finish = Some(stopped.unwrap_or(FinishReason::Length));
        }
        self.delta(text, vec![generated], finish)
    }

    /// The last delta of a sequence that ended without another token; what was held back of its
    /// text comes with it.
    pub(crate) fn end(&mut self, tokenizer: &Tokenizer, reason: FinishReason) -> OutputDelta {
        let (text, _) = self.flush(tokenizer);
        self.delta(text, Vec::new(), Some(reason))
    }

    fn delta(
        &self,
        text: String,
        tokens: Vec<GeneratedToken>,
        finish: Option<FinishReason>,
    ) -> OutputDelta {
        OutputDelta {
            index: self.index,
            text,
            tokens,
            finish,
            score: None,
        }
    }

    /// All text still held back, and the stop token's own if it belongs to the output.
    fn stop_token_text(&mut self, tokenizer: &Tokenizer, token: TokenId) -> String {
        let mut text = String::new();
        if self.include_stop {
            text = self.detokenizer.push(tokenizer, token);
        }
        text.push_str(&self.detokenizer.flush(tokenizer));
        let mut held = self.stop_strings.flush();
        held.push_str(&text);
        held
    }

    fn stopped_by(&self, token: TokenId) -> FinishReason {
        let own = self.own_stop_tokens.contains(&token);
        FinishReason::Stop(own.then_some(StopCause::Token(token)))
    }

    fn check_stop_strings(
        &mut self,
        text: String,
        may_stop: bool,
    ) -> (String, Option<FinishReason>) {
        if !may_stop {
            return (text, None);
        }
        let check = self.stop_strings.push(&text);
        let stopped = |stop| FinishReason::Stop(Some(StopCause::String(stop)));
        (check.text, check.stopped.map(stopped))
    }

    /// The end of the text; even the last bytes may complete a stop string.
    fn flush(&mut self, tokenizer: &Tokenizer) -> (String, Option<FinishReason>) {
        let rest = self.detokenizer.flush(tokenizer);
        let may_stop = self.num_generated > self.params.min_tokens;
        let (mut text, stopped) = self.check_stop_strings(rest, may_stop);
        if stopped.is_none() {
            text.push_str(&self.stop_strings.flush());
        }
        (text, stopped)
    }
}
