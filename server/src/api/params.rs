//! The fields that completions and chat completions share.

use pageloom_engine::Request;
use pageloom_model_runner::{InvalidParam, MAX_LOGPROBS, SamplingParams, TokenId};
use serde_json::value::RawValue;

use super::error::{ApiError, shorten};
use super::object::{Object, read, read_list};

/// Most sequences one prompt may ask for.
pub const MAX_N: usize = 128;
/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 32;
/// Longest stop string, in bytes: so much text may be held back while it could still match.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most entries of `logit_bias` and of `stop_token_ids`.
pub const MAX_BIASED_TOKENS: usize = 1024;
/// Longest `cache_salt`, `request_id` or `user`, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

/// What the server knows about the model when it judges a request.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tokens of prompt and output together.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Sequences that run at once; a request may not ask for more than this of one prompt.
    pub max_num_seqs: usize,
}

/// The fields that both kinds of completions share, checked.
#[derive(Debug, Clone)]
pub(super) struct CommonParams {
    /// Name of the model the client expects.
    pub model: Option<String>,
    /// Sequences per prompt.
    pub n: usize,
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
        let n = take_n(object, limits, &sampling)?;
        let (stream, include_usage) = take_stream(object)?;
        let params = CommonParams {
            model,
            n,
            max_tokens,
            seed,
            stop: take_stop(object)?,
            include_stop_str_in_output: object.take("include_stop_str_in_output")?.unwrap_or(false),
            ignore_eos: object.take("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: object.take("skip_special_tokens")?.unwrap_or(true),
            stream,
            include_usage,
            prompt_logprobs: take_logprobs(object, "prompt_logprobs")?,
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
        request.n = self.n;
        request.max_tokens = max_tokens;
        request.sampling = self.sampling.clone();
        request.sampling.seed = self.seed.unwrap_or(default_seed);
        request.stop = self.stop.clone();
        request.include_stop_in_output = self.include_stop_str_in_output;
        request.ignore_eos = self.ignore_eos;
        request.skip_special_tokens = self.skip_special_tokens;
        request.prompt_logprobs = self.prompt_logprobs;
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

impl From<InvalidParam> for ApiError {
    fn from(error: InvalidParam) -> Self {
        ApiError::invalid(error.field, error.to_string())
    }
}

fn take_sampling(
    object: &mut Object<'_>,
    limits: &Limits,
    logprobs: Option<usize>,
) -> Result<(SamplingParams, Option<u64>), ApiError> {
    let default = SamplingParams::default();
    let seed = object.take_raw("seed").map(read_seed).transpose()?;
    let sampling = SamplingParams {
        temperature: object.take("temperature")?.unwrap_or(default.temperature),
        top_k: take_top_k(object)?,
        top_p: object.take("top_p")?.unwrap_or(default.top_p),
        min_p: object.take("min_p")?.unwrap_or(default.min_p),
        presence_penalty: object.take("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: object.take("frequency_penalty")?.unwrap_or(0.0),
        repetition_penalty: object.take("repetition_penalty")?.unwrap_or(1.0),
        logit_bias: take_logit_bias(object)?,
        allowed_token_ids: take_allowed(object, limits)?,
        seed: 0,
        stop_token_ids: object
            .take_list("stop_token_ids", MAX_BIASED_TOKENS)?
            .unwrap_or_default(),
        min_tokens: take_count(object, "min_tokens")?.unwrap_or(0),
        logprobs,
    };
    sampling.validate(limits.vocab_size)?;
    if sampling.min_tokens > limits.max_model_len {
        return Err(ApiError::invalid(
            "min_tokens",
            format!(
                "min_tokens must be at most {}, got {}",
                limits.max_model_len, sampling.min_tokens
            ),
        ));
    }
    Ok((sampling, seed))
}

fn take_allowed(object: &mut Object<'_>, limits: &Limits) -> Result<Vec<TokenId>, ApiError> {
    let allowed = object.take_list("allowed_token_ids", limits.vocab_size)?;
    // The sampler reads an empty list as no limit; a client that sends one means the opposite.
    if allowed.as_ref().is_some_and(Vec::is_empty) {
        return Err(ApiError::invalid(
            "allowed_token_ids",
            "allowed_token_ids must have at least one token id",
        ));
    }
    Ok(allowed.unwrap_or_default())
}

/// Takes a non-negative whole number that fits a `usize`.
pub(crate) fn take_count(object: &mut Object<'_>, name: &str) -> Result<Option<usize>, ApiError> {
    object.take::<usize>(name)
}

/// Takes a number of alternatives, at most [`MAX_LOGPROBS`].
pub(crate) fn take_logprobs(
    object: &mut Object<'_>,
    name: &str,
) -> Result<Option<usize>, ApiError> {
    let value = object.take::<usize>(name)?;
    match value {
        Some(value) if value > MAX_LOGPROBS => Err(ApiError::invalid(
            object.path(name),
            format!("{name} must be at most {MAX_LOGPROBS}, got {value}"),
        )),
        value => Ok(value),
    }
}

fn read_seed(value: &RawValue) -> Result<u64, ApiError> {
    // Clients send signed and unsigned 64-bit seeds; either way all 64 bits count.
    match read::<i64>(value, "seed") {
        Ok(seed) => Ok(seed as u64),
        Err(_) => read::<u64>(value, "seed"),
    }
}

fn take_top_k(object: &mut Object<'_>) -> Result<u32, ApiError> {
    match object.take::<i64>("top_k")? {
        // -1 and 0 both mean off, as clients of other servers send them.
        None | Some(-1) => Ok(0),
        Some(k) => u32::try_from(k).map_err(|_| {
            ApiError::invalid(
                "top_k",
                format!("top_k must be -1 or between 0 and {}, got {k}", u32::MAX),
            )
        }),
    }
}

fn take_n(
    object: &mut Object<'_>,
    limits: &Limits,
    sampling: &SamplingParams,
) -> Result<usize, ApiError> {
    let n = take_count(object, "n")?.unwrap_or(1);
    let most = MAX_N.min(limits.max_num_seqs);
    if n == 0 || n > most {
        return Err(ApiError::invalid(
            "n",
            format!("n must be between 1 and {most}, got {n}"),
        ));
    }
    if n > 1 && sampling.temperature == 0.0 {
        return Err(ApiError::invalid(
            "n",
            format!("n must be 1 when temperature is 0 (all answers would be equal), got {n}"),
        ));
    }
    if let Some(best_of) = take_count(object, "best_of")?
        && best_of != n
    {
        return Err(ApiError::unsupported(
            "best_of",
            &format!("only the value of n ({n}) is accepted, got {best_of}"),
        ));
    }
    Ok(n)
}

fn take_stop(object: &mut Object<'_>) -> Result<Vec<String>, ApiError> {
    let Some(value) = object.take_raw("stop") else {
        return Ok(Vec::new());
    };
    let stop = if value.get().starts_with('"') {
        vec![read(value, "stop")?]
    } else if value.get().starts_with('[') {
        read_list::<String>(value, "stop", MAX_STOP_STRINGS)?
    } else {
        return Err(ApiError::invalid(
            "stop",
            format!(
                "stop must be a string or a list of strings, got {}",
                shorten(value.get())
            ),
        ));
    };
    let bad = stop
        .iter()
        .find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES);
    match bad {
        Some(bad) => Err(ApiError::invalid(
            "stop",
            format!(
                "a stop string must have 1 to {MAX_STOP_BYTES} bytes, got {}",
                bad.len()
            ),
        )),
        None => Ok(stop),
    }
}

fn take_stream(object: &mut Object<'_>) -> Result<(bool, bool), ApiError> {
    let stream = object.take("stream")?.unwrap_or(false);
    let Some(value) = object.take_raw("stream_options") else {
        return Ok((stream, false));
    };
    let mut options = Object::parse_text(value.get(), "stream_options")?;
    let include_usage = options.take("include_usage")?.unwrap_or(false);
    options.take_inert("continuous_usage_stats", "", |text| text == "false")?;
    options.take_inert("include_obfuscation", "", |text| text == "false")?;
    options.finish()?;
    if !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "stream_options may only be given when stream is true",
        ));
    }
    Ok((stream, include_usage))
}

fn take_logit_bias(object: &mut Object<'_>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(value) = object.take_raw("logit_bias") else {
        return Ok(Vec::new());
    };
    let entries = Object::parse_text(value.get(), "logit_bias")?.into_entries();
    if entries.len() > MAX_BIASED_TOKENS {
        return Err(ApiError::invalid(
            "logit_bias",
            format!(
                "logit_bias must have at most {MAX_BIASED_TOKENS} entries, got {}",
                entries.len()
            ),
        ));
    }
    entries
        .into_iter()
        .map(|(key, bias)| {
            let id = key.parse().map_err(|_| {
                ApiError::invalid(
                    "logit_bias",
                    format!("logit_bias: {:?} is no token id", shorten(&key)),
                )
            })?;
            Ok((id, read(bias, "logit_bias")?))
        })
        .collect()
}

fn take_label(object: &mut Object<'_>, name: &str) -> Result<Option<String>, ApiError> {
    let label: Option<String> = object.take(name)?;
    match label {
        Some(label)
            if label.is_empty()
                || label.len() > MAX_LABEL_BYTES
                || label.chars().any(char::is_control) =>
        {
            Err(ApiError::invalid(
                name,
                format!("{name} must have 1 to {MAX_LABEL_BYTES} bytes and no control characters"),
            ))
        }
        label => Ok(label),
    }
}

fn take_truncation(object: &mut Object<'_>, limits: &Limits) -> Result<Option<usize>, ApiError> {
    match object.take::<i64>("truncate_prompt_tokens")? {
        None => Ok(None),
        // As much as the context holds, with one token left to generate.
        Some(-1) => Ok(Some(limits.max_model_len.saturating_sub(1).max(1))),
        Some(keep) => match usize::try_from(keep) {
            Ok(keep) if keep >= 1 && keep <= limits.max_model_len => Ok(Some(keep)),
            _ => Err(ApiError::invalid(
                "truncate_prompt_tokens",
                format!(
                    "truncate_prompt_tokens must be -1 or between 1 and {}, got {keep}",
                    limits.max_model_len
                ),
            )),
        },
    }
}

/// Fields accepted with any value, because none changes the answer.
const HARMLESS: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

/// Takes the fields whose only accepted values change nothing.
fn take_inert(object: &mut Object<'_>) -> Result<(), ApiError> {
    for name in HARMLESS {
        let _ = object.take_raw(name);
    }
    let off = |text: &str| text == "false";
    object.take_inert("use_beam_search", "only false is accepted", off)?;
    let one = |text: &str| text.parse() == Ok(1.0);
    object.take_inert(
        "length_penalty",
        "it ranks beams, and only 1 is accepted",
        one,
    )?;
    let zero = |text: &str| text == "0";
    object.take_inert(
        "priority",
        "requests are served in order of arrival, and only 0 is accepted",
        zero,
    )?;
    object.take_inert("bad_words", "only an empty list is accepted", is_empty_list)?;
    object.take_inert(
        "response_format",
        "only {\"type\": \"text\"} is accepted",
        is_text_format,
    )?;
    object.take_inert("structured_outputs", "", |_| false)?;
    let on = |text: &str| text == "true";
    object.take_inert("spaces_between_special_tokens", "only true is accepted", on)
}

/// Whether a field's text is a list without entries.
pub(crate) fn is_empty_list(text: &str) -> bool {
    text.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inside| inside.trim().is_empty())
}

fn is_text_format(text: &str) -> bool {
    Object::parse_text(text, "response_format").is_ok_and(|mut format| {
        format.take::<String>("type") == Ok(Some("text".to_owned())) && format.finish().is_ok()
    })
}

#[cfg(test)]
mod tests {
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
        assert_eq!(params.n, 2);
        assert_eq!(params.seed, Some(u64::MAX));
    }

    #[test]
    fn what_is_refused_is_named() {
        for (body, param) in [
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 9}"#, "n"),
            (r#"{"n": 2, "temperature": 0}"#, "n"),
            (r#"{"n": 1000000000000}"#, "n"),
            (r#"{"best_of": 3}"#, "best_of"),
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
            (r#"{"priority": 1}"#, "priority"),
            (r#"{"use_beam_search": true}"#, "use_beam_search"),
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
