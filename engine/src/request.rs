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
    /// Number of sequences returned, at least 1.
    pub n: usize,
    /// Number of sequences generated from the prompt, of which the `n` best are returned, at
    /// least `n`; with [`beams`](Self::beams) the width of the search. `None`: `n`.
    ///
    /// The best are those with the highest log-probability a token, or with beams the highest
    /// score. What is ranked is returned when all of it is there, and not as it comes.
    pub best_of: Option<usize>,
    /// Searches for likely sequences instead of drawing them.
    pub beams: Option<BeamSearch>,
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
            best_of: None,
            beams: None,
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

    /// Sequences that are generated: [`best_of`](Self::best_of), or `n`.
    #[must_use]
    pub fn num_seqs(&self) -> usize {
        self.best_of.unwrap_or(self.n)
    }
}

/// How a beam search ranks what it finds, and when it ends; as in Hugging Face transformers, whose
/// defaults these are.
///
/// In each step the most likely continuations of all beams together, `width` of them, become the
/// next beams. One that ends (by a stop token, a stop string or its length) while among the
/// `width` best is kept as finished; the `width` best finished stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSearch {
    /// A finished sequence's score is the sum of its tokens' log-probabilities divided by their
    /// number to this power: above 0 favours long ones.
    pub length_penalty: f32,
    /// When the search ends, if nothing else ends it.
    pub early_stopping: EarlyStopping,
}

impl Default for BeamSearch {
    fn default() -> Self {
        BeamSearch {
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
        }
    }
}

/// When a beam search with `width` finished sequences ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When the best beam, at its present length, scores no better than the worst finished
    /// sequence (`false` in transformers).
    #[default]
    Heuristic,
    /// At once (`true` in transformers).
    Immediately,
    /// When no continuation of the best beam could score better than the worst finished sequence
    /// (`"never"` in transformers).
    Never,
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
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// What the sequence was ranked by, on its last delta, if it was: natural logarithms of
    /// probability, per token or as [`BeamSearch::length_penalty`] says. Index 0 has the highest.
    pub score: Option<f64>,
}

impl OutputDelta {
    /// Adds later news of the same sequence.
    pub(crate) fn append(&mut self, later: OutputDelta) {
        self.text.push_str(&later.text);
        self.tokens.extend(later.tokens);
        self.finish = later.finish;
        self.score = later.score;
    }
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
