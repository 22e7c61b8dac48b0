//! Single fields of a request: read, checked against their ranges, bounded in size.

use pageloom_model_runner::{InvalidParam, MAX_LOGPROBS, SamplingParams, TokenId};
use serde_json::value::RawValue;

use super::error::{ApiError, shorten};
use super::object::{Object, read, read_list};
use super::params::Limits;

/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 32;
/// Longest stop string, in bytes: so much text may be held back while it could still match.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most entries of `logit_bias` and of `stop_token_ids`.
pub const MAX_BIASED_TOKENS: usize = 1024;
/// Longest `cache_salt`, `request_id` or `user`, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

impl From<InvalidParam> for ApiError {
    fn from(error: InvalidParam) -> Self {
        ApiError::invalid(error.field, error.to_string())
    }
}

pub(super) fn take_sampling(
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
pub(super) fn take_count(object: &mut Object<'_>, name: &str) -> Result<Option<usize>, ApiError> {
    object.take::<usize>(name)
}

/// Takes a number of alternatives, at most [`MAX_LOGPROBS`].
pub(super) fn take_logprobs(
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

pub(super) fn take_stop(object: &mut Object<'_>) -> Result<Vec<String>, ApiError> {
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

pub(super) fn take_stream(object: &mut Object<'_>) -> Result<(bool, bool), ApiError> {
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

pub(super) fn take_label(object: &mut Object<'_>, name: &str) -> Result<Option<String>, ApiError> {
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

pub(super) fn take_truncation(
    object: &mut Object<'_>,
    limits: &Limits,
) -> Result<Option<usize>, ApiError> {
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
pub(super) fn take_inert(object: &mut Object<'_>) -> Result<(), ApiError> {
    for name in HARMLESS {
        let _ = object.take_raw(name);
    }
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
pub(super) fn is_empty_list(text: &str) -> bool {
    text.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inside| inside.trim().is_empty())
}

fn is_text_format(text: &str) -> bool {
    Object::parse_text(text, "response_format").is_ok_and(|mut format| {
        format.take::<String>("type") == Ok(Some("text".to_owned())) && format.finish().is_ok()
    })
}
