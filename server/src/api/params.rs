//! The fields that completions and chat completions share.

use pageloom_engine::Request;
use pageloom_model_runner::{SamplingParams, TokenId};

use super::error::ApiError;
use super::fields::{
    take_inert, take_label, take_logprobs, take_sampling, take_stop, take_stream, take_truncation,
};
use super::object::Object;
use super::sequences::Sequences;

/// What the server knows about the model when it judges a request.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tokens of prompt and output together.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Sequences that run at once; a request may not have more than this of one prompt.
    pub max_num_seqs: usize,
}

/// The fields that both kinds of completions share, checked.
#[derive(Debug, Clone)]
pub(super) struct CommonParams {
    /// Name of the model the client expects.
    pub model: Option<String>,
    /// Sequences per prompt, and how they are found.
    pub sequences: Sequences,
    /// Most tokens to generate; `None` if the client left it open.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn; the seed is filled in when it is absent here.
    pub sampling: SamplingParams,
    /// The request's own seed.
    pub seed: Option<u64>,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Whether the stop string is part of the text.
    pub include_stop_str_in_output: bool,
    /// Go on past the end of text.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Answer in pieces, as they come.
    pub stream: bool,
    /// End a stream with the usage.
    pub include_usage: bool,
    /// Alternatives per prompt token.
    pub prompt_logprobs: Option<usize>,
    /// Class of urgency, lower first; the engine refuses any but 0 unless it schedules by priority.
    pub priority: i32,
    /// Keeps cached blocks apart from those of other salts.
    pub cache_salt: Option<String>,
    /// Keep only this many of the prompt's last tokens.
    pub truncate_prompt_tokens: Option<usize>,
    /// Add the tokeniser's special tokens to the prompt.
    pub add_special_tokens: Option<bool>,
    /// Return token ids along with the text.
    pub return_token_ids: bool,
    /// The client's own part of the response's id.
    pub request_id: Option<String>,
}

impl CommonParams {
    /// Takes the shared fields out of `object`.
    ///
    /// `logprobs`: alternatives per generated token. `max_tokens`: as the endpoint names it.
    ///
    /// # Errors
    /// 400 naming the first field of a wrong type or value.
    pub(super) fn take(
        object: &mut Object<'_>,
        limits: &Limits,
        logprobs: Option<usize>,
        max_tokens: Option<usize>,
    ) -> Result<Self, ApiError> {
        let model = object.take("model")?;
        let (sampling, seed) = take_sampling(object, limits, logprobs)?;
        let (stream, include_usage) = take_stream(object)?;
        let sequences = Sequences::take(object, limits, &sampling, stream)?;
        let params = CommonParams {
            model,
            sequences,
            max_tokens,
            seed,
            stop: take_stop(object)?,
            include_stop_str_in_output: object.take("include_stop_str_in_output")?.unwrap_or(false),
            ignore_eos: object.take("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: object.take("skip_special_tokens")?.unwrap_or(true),
            stream,
            include_usage,
            prompt_logprobs: take_logprobs(object, "prompt_logprobs")?,
            priority: object.take("priority")?.unwrap_or(0),
            cache_salt: take_label(object, "cache_salt")?,
            truncate_prompt_tokens: take_truncation(object, limits)?,
            add_special_tokens: object.take("add_special_tokens")?,
            return_token_ids: object.take("return_token_ids")?.unwrap_or(false),
            request_id: take_label(object, "request_id")?,
            sampling,
        };
        take_inert(object)?;
        if params.stream && params.prompt_logprobs.is_some() {
            return Err(ApiError::invalid(
                "prompt_logprobs",
                "prompt_logprobs cannot be streamed: set stream to false",
            ));
        }
        if let Some(max_tokens) = max_tokens
            && params.sampling.min_tokens > max_tokens
        {
            return Err(ApiError::invalid(
                "min_tokens",
                format!(
                    "min_tokens must be at most max_tokens ({max_tokens}), got {}",
                    params.sampling.min_tokens
                ),
            ));
        }
        Ok(params)
    }

    /// The engine's request for one prompt.
    ///
    /// `default_seed` is used when the client gave none; `default_max_tokens` likewise, cut to what
    /// the context leaves.
    ///
    /// # Errors
    /// 400 if prompt and `max_tokens` do not fit the context together.
    pub(super) fn request(
        &self,
        prompt: Vec<TokenId>,
        limits: &Limits,
        default_seed: u64,
        default_max_tokens: Option<usize>,
    ) -> Result<Request, ApiError> {
        let room = limits.max_model_len.saturating_sub(prompt.len());
        let max_tokens = match self.max_tokens {
            // The engine says what is wrong with a prompt that leaves no room.
            None if room == 0 => None,
            Some(asked) if asked > room => {
                return Err(ApiError::invalid(
                    "max_tokens",
                    format!(
                        "max_tokens is {asked}, but the context is {} tokens and the prompt takes {}",
                        limits.max_model_len,
                        prompt.len()
                    ),
                ));
            }
            Some(asked) => Some(asked),
            None => default_max_tokens.map(|default| default.min(room)),
        };
        let mut request = Request::new(prompt);
        request.n = self.sequences.n;
        request.best_of = self.sequences.best_of;
        request.beams = self.sequences.beams;
        request.max_tokens = max_tokens;
        request.sampling = self.sampling.clone();
        request.sampling.seed = self.seed.unwrap_or(default_seed);
        request.stop = self.stop.clone();
        request.include_stop_in_output = self.include_stop_str_in_output;
        request.ignore_eos = self.ignore_eos;
        request.skip_special_tokens = self.skip_special_tokens;
        request.prompt_logprobs = self.prompt_logprobs;
        request.priority = self.priority;
        request.cache_salt = self.cache_salt.clone();
        Ok(request)
    }

    /// Checks a prompt's length and drops what `truncate_prompt_tokens` asks to drop.
    ///
    /// # Errors
    /// 400 naming `param` if the prompt is empty, too long or not of this vocabulary.
    pub(super) fn fit_prompt(
        &self,
        mut prompt: Vec<TokenId>,
        limits: &Limits,
        param: &str,
    ) -> Result<Vec<TokenId>, ApiError> {
        if let Some(keep) = self.truncate_prompt_tokens
            && prompt.len() > keep
        {
            prompt.drain(..prompt.len() - keep);
        }
        if prompt.is_empty() {
            return Err(ApiError::invalid(
                param,
                format!("{param} must have at least one token"),
            ));
        }
        if prompt.len() > limits.max_model_len {
            return Err(ApiError::invalid(
                param,
                format!(
                    "{param} is {} tokens long, but the context of this model is {} tokens",
                    prompt.len(),
                    limits.max_model_len
                ),
            ));
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= limits.vocab_size) {
            return Err(ApiError::invalid(
                param,
                format!(
                    "{param} has the token id {id}, but the vocabulary has {} tokens",
                    limits.vocab_size
                ),
            ));
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use pageloom_engine::{BeamSearch, EarlyStopping};

    use super::*;

    fn limits() -> Limits {
        Limits {
            max_model_len: 100,
            vocab_size: 50,
            max_num_seqs: 8,
        }
    }

    fn parse(body: &str) -> Result<CommonParams, ApiError> {
        let mut object = Object::parse(body.as_bytes())?;
        let params = CommonParams::take(&mut object, &limits(), None, Some(10))?;
        object.finish()?;
        Ok(params)
    }

    #[test]
    fn values_that_change_nothing_are_accepted() {
        let body = r#"{"use_beam_search": false, "priority": 0, "best_of": 2, "n": 2, "bad_words": [ ],
            "response_format": {"type": "text"}, "length_penalty": 1.0, "user": "u", "metadata": {"a": 1},
            "top_k": -1, "seed": -1, "structured_outputs": null, "never_heard_of": null}"#;
        let params = parse(body).unwrap();
        assert_eq!(params.sequences.n, 2);
        assert_eq!(params.seed, Some(u64::MAX));
    }

    #[test]
    fn what_is_refused_is_named() {
        for (body, param) in [
            (r#"{"n": 9}"#, "n"),
            (r#"{"n": 1000000000000}"#, "n"),
            (r#"{"best_of": 9}"#, "best_of"),
            (r#"{"best_of": 3, "stream": true}"#, "best_of"),
            (r#"{"temperature": -0.1}"#, "temperature"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"temperature": 1e39}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"seed": 1.5}"#, "seed"),
            (r#"{"seed": 18446744073709551616}"#, "seed"),
            (r#"{"stop": ""}"#, "stop"),
            (r#"{"stop": 3}"#, "stop"),
            (r#"{"stop": [1]}"#, "stop"),
            (r#"{"logit_bias": {"50": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"1": 101}}"#, "logit_bias"),
            (r#"{"logit_bias": []}"#, "logit_bias"),
            (r#"{"allowed_token_ids": []}"#, "allowed_token_ids"),
            (r#"{"allowed_token_ids": [-1]}"#, "allowed_token_ids"),
            (r#"{"min_tokens": 11}"#, "min_tokens"),
            (r#"{"stream_options": {}}"#, "stream_options"),
            (
                r#"{"stream": true, "stream_options": {"x": 1}}"#,
                "stream_options.x",
            ),
            (r#"{"cache_salt": ""}"#, "cache_salt"),
            (r#"{"bad_words": ["a"]}"#, "bad_words"),
            (
                r#"{"response_format": {"type": "json_object"}}"#,
                "response_format",
            ),
            (r#"{"priority": 1.5}"#, "priority"),
            (r#"{"early_stopping": true}"#, "early_stopping"),
            (
                r#"{"structured_outputs": {"regex": "a"}}"#,
                "structured_outputs",
            ),
            (r#"{"guided_regex": "a"}"#, "guided_regex"),
        ] {
            let error = parse(body).expect_err(body);
            assert_eq!(
                error.param.as_deref(),
                Some(param),
                "{body}: {}",
                error.message
            );
            assert!(error.status.is_client_error());
        }
    }

    #[test]
    fn the_engine_is_asked_for_what_the_client_asked_for() {
        let body = r#"{"n": 2, "best_of": 5, "use_beam_search": true, "length_penalty": 0.5,
            "early_stopping": "never"}"#;
        let request = parse(body).unwrap();
        let request = request.request(vec![1], &limits(), 7, None).unwrap();
        assert_eq!((request.n, request.best_of), (2, Some(5)));
        let beams = BeamSearch {
            length_penalty: 0.5,
            early_stopping: EarlyStopping::Never,
        };
        assert_eq!(request.beams, Some(beams));
    }

    #[test]
    fn an_output_that_cannot_fit_is_refused_and_a_default_is_cut() {
        let params = parse(r#"{"max_tokens": null}"#).unwrap();
        let request =
            |params: &CommonParams, len| params.request(vec![1; len], &limits(), 7, Some(16));
        assert_eq!(request(&params, 90).unwrap().max_tokens, Some(10));
        let error = request(&params, 91).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("max_tokens"));
        let open = CommonParams {
            max_tokens: None,
            ..params
        };
        assert_eq!(request(&open, 91).unwrap().max_tokens, Some(9));
        assert_eq!(request(&open, 91).unwrap().sampling.seed, 7);
    }
}
