//! What a caller asks of the engine and what it gets back.

use pageloom_model_runner::{SamplingParams, TokenId, TokenLogprobs};

/// Number the engine gives a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request for text.
#[derive(Debug, Clone)]
pub struct Request {
    /// Prompt, already tokenised; at least one token.
    pub prompt: Vec<TokenId>,
    /// Number of sequences generated from the prompt, at least 1.
    pub n: usize,
    /// Most tokens to generate for each sequence; `None`: to the end of the context, or of what
    /// the cache can hold. With 0 only the prompt is computed, for its log-probabilities.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn. Sequence `i` of `n` draws with seed `sampling.seed + i`.
    /// The engine adds the model's end-of-text ids to `stop_token_ids` unless `ignore_eos`.
    pub sampling: SamplingParams,
    /// Generation ends when one of these appears in the text.
    pub stop: Vec<String>,
    /// Whether the stop string or token that ended the text is part of it.
    pub include_stop_in_output: bool,
    /// Go on past the model's end-of-text token.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Log-probabilities of the prompt's own tokens with this many alternatives each.
    pub prompt_logprobs: Option<usize>,
    /// Class of urgency, lower first; 0 unless the engine schedules by priority.
    pub priority: i32,
    /// Requests with different salts never share cached blocks; hashed to a namespace.
    pub cache_salt: Option<String>,
}

impl Request {
    /// A request with the defaults of [`SamplingParams`] and one sequence.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        Request {
            prompt,
            n: 1,
            max_tokens: None,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            include_stop_in_output: false,
            ignore_eos: false,
            skip_special_tokens: true,
            prompt_logprobs: None,
            priority: 0,
            cache_salt: None,
        }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, a stop string or the end of text.
    Stop(Option<StopCause>),
    /// `max_tokens` or the model's context is full.
    Length,
    /// Aborted by the caller.
    Abort,
    /// The step failed for this sequence; the text so far is kept.
    Error(String),
}

/// What ended a sequence, when it was not the model's own end of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// One of the request's stop token ids.
    Token(TokenId),
    /// One of the request's stop strings.
    String(String),
}

/// A token with what was asked about it.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    /// The token.
    pub id: TokenId,
    /// Present when [`SamplingParams::logprobs`] was set.
    pub logprobs: Option<TokenLogprobs>,
}

/// News of one sequence of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputDelta {
    /// Which of the request's `n` sequences.
    pub index: usize,
    /// Text that became certain since the last delta: whole characters, no part of a stop string.
    pub text: String,
    /// Tokens drawn since the last delta, the one that ended the sequence included, though it
    /// has no text unless [`Request::include_stop_in_output`].
    pub tokens: Vec<GeneratedToken>,
    /// Set on the last delta of the sequence.
    pub finish: Option<FinishReason>,
}

/// News of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestEvent {
    /// The prompt is computed. Sent once, before any [`RequestEvent::Output`]; not sent if the
    /// request ends before, by a failure or an abort.
    Prompt {
        /// Prompt tokens taken from the prefix cache.
        num_cached_tokens: usize,
        /// One entry per prompt token, the first of them `None`; empty unless asked for.
        logprobs: Vec<Option<TokenLogprobs>>,
    },
    /// Text or tokens of one sequence.
    Output(OutputDelta),
}
