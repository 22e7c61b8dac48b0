//! What a request may ask for, checked before anything is allocated for it.

use std::hash::{DefaultHasher, Hash, Hasher};

use pageloom_block_manager::Namespace;
use pageloom_model_runner::{MAX_LOGPROBS, SamplingParams};

use pageloom_scheduler::{SchedulingPolicy, blocks_at_longest};

use crate::{BeamSearch, EngineConfig, Request, RequestError, beam::MAX_BEAMS};

/// Most stop strings of a request. Each of its `n` sequences matches them for itself.
pub const MAX_STOP_STRINGS: usize = 32;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most entries of `logit_bias`, `allowed_token_ids` and `stop_token_ids`, of each. Each of the
/// `n` sequences has its own.
pub const MAX_TOKEN_LIST: usize = 16_384;
/// Most `stop_token_ids` of a beam search: each makes every step look at more candidates.
pub const MAX_BEAM_STOP_TOKENS: usize = 64;
/// Largest `length_penalty` of a beam search, either way.
pub const MAX_LENGTH_PENALTY: f32 = 10.0;

/// The bounds on a request; immutable, so that any thread can check.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    config: EngineConfig,
    vocab_size: usize,
    /// Blocks that a request may need: all but the resident ones.
    num_blocks: usize,
}

impl Limits {
    pub(crate) fn new(config: EngineConfig, vocab_size: usize) -> Self {
        let num_blocks = config.num_blocks - config.num_resident_blocks();
        Limits {
            config,
            vocab_size,
            num_blocks,
        }
    }

    pub(crate) fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Checks every field and returns the tokens the request may generate at most.
    pub(crate) fn check(&self, request: &Request) -> Result<usize, RequestError> {
        if request.prompt.is_empty() {
            return Err(RequestError::invalid(
                "prompt",
                "must have at least one token",
            ));
        }
        self.check_num_seqs(request)?;
        if request.priority != 0 && self.config.scheduling_policy == SchedulingPolicy::Fcfs {
            return Err(RequestError::invalid(
                "priority",
                format!(
                    "must be 0 where requests are served first come, first served, got {}",
                    request.priority
                ),
            ));
        }
        let max_tokens = self.check_length(request)?;
        self.check_tokens(request)?;
        check_lists(&request.sampling)?;
        request.sampling.validate(self.vocab_size)?;
        let min_tokens = request.sampling.min_tokens;
        if min_tokens > max_tokens {
            return Err(RequestError::invalid(
                "min_tokens",
                format!("must be at most max_tokens, {max_tokens} here, got {min_tokens}"),
            ));
        }
        if let Some(top) = request.prompt_logprobs
            && top > MAX_LOGPROBS
        {
            return Err(RequestError::invalid(
                "prompt_logprobs",
                format!("must be at most {MAX_LOGPROBS}, got {top}"),
            ));
        }
        check_stop(&request.stop)?;
        if let Some(beams) = &request.beams {
            check_beams(request, beams)?;
        }
        Ok(max_tokens)
    }

    fn check_num_seqs(&self, request: &Request) -> Result<(), RequestError> {
        let max_n = self.config.max_n.min(self.config.max_num_seqs);
        let (n, num_seqs) = (request.n, request.num_seqs());
        if n == 0 || n > max_n {
            return Err(RequestError::invalid(
                "n",
                format!("must be between 1 and {max_n}, got {n}"),
            ));
        }
        if num_seqs < n || num_seqs > max_n {
            return Err(RequestError::invalid(
                "best_of",
                format!("must be between n, {n} here, and {max_n}, got {num_seqs}"),
            ));
        }
        Ok(())
    }

    /// The namespace of a salt: secret enough that nobody can make two salts meet.
    pub(crate) fn namespace(&self, cache_salt: Option<&str>) -> Namespace {
        let Some(salt) = cache_salt else {
            return Namespace(0);
        };
        let mut hasher = DefaultHasher::new();
        (self.config.hash_seed, salt).hash(&mut hasher);
        // Number 0 is that of requests without a salt.
        Namespace(hasher.finish() | 1)
    }

    fn check_length(&self, request: &Request) -> Result<usize, RequestError> {
        let max_model_len = self.config.max_model_len;
        let num_prompt_tokens = request.prompt.len();
        let too_long = RequestError::PromptTooLong {
            num_prompt_tokens,
            max_model_len,
        };
        let Some(room) = max_model_len.checked_sub(num_prompt_tokens) else {
            return Err(too_long);
        };
        // The last token is drawn but never computed, so it needs no slot.
        let fits = (self.most_slots(request) + 1).saturating_sub(num_prompt_tokens);
        let max_tokens = match request.max_tokens {
            None | Some(1..) if room == 0 => return Err(too_long),
            Some(max_tokens) if max_tokens > room => {
                return Err(RequestError::invalid(
                    "max_tokens",
                    format!(
                        "must be at most {room}, since the prompt has {num_prompt_tokens} of the \
                         context's {max_model_len} tokens, got {max_tokens}"
                    ),
                ));
            }
            Some(max_tokens) => max_tokens,
            // To the end of the context, or of what the cache can hold; at least one, and
            // whether that fits is the next question.
            None => room.min(fits).max(1),
        };
        let longest = num_prompt_tokens + max_tokens - usize::from(max_tokens > 0);
        let (block_size, num_blocks) = (self.config.block_size, self.num_blocks);
        let needed_blocks =
            blocks_at_longest(num_prompt_tokens, longest, request.num_seqs(), block_size);
        if needed_blocks > num_blocks {
            return Err(RequestError::NeverFits {
                needed_blocks,
                num_blocks,
            });
        }
        Ok(max_tokens)
    }

    /// Most tokens that each of the request's sequences can have in the cache.
    fn most_slots(&self, request: &Request) -> usize {
        let (block_size, num_blocks) = (self.config.block_size, self.num_blocks);
        let most_blocks = match request.num_seqs() {
            1 => num_blocks,
            // As in `blocks_at_longest`, the other way round.
            n => {
                let shared = request.prompt.len() / block_size;
                (num_blocks.saturating_sub(shared) / n + shared).saturating_sub(1)
            }
        };
        most_blocks * block_size
    }

    fn check_tokens(&self, request: &Request) -> Result<(), RequestError> {
        let vocab_size = self.vocab_size;
        match request.prompt.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(RequestError::invalid(
                "prompt",
                format!("must have token ids below {vocab_size}, got {id}"),
            )),
        }
    }
}

/// What a beam search cannot do. A temperature of 1, the default, is as good as 0.
fn check_beams(request: &Request, beams: &BeamSearch) -> Result<(), RequestError> {
    let width = request.num_seqs();
    let field = if request.best_of.is_some() {
        "best_of"
    } else {
        "n"
    };
    let sampling = &request.sampling;
    let fields = [
        (
            width <= MAX_BEAMS,
            field,
            format!("must be at most {MAX_BEAMS} with use_beam_search, got {width}"),
        ),
        (
            sampling.temperature == 0.0 || sampling.temperature == 1.0,
            "temperature",
            format!(
                "must be 0 or 1 with use_beam_search, got {}",
                sampling.temperature
            ),
        ),
        (
            sampling.top_p == 1.0,
            "top_p",
            format!("must be 1 with use_beam_search, got {}", sampling.top_p),
        ),
        (
            sampling.top_k == 0,
            "top_k",
            format!("must be off with use_beam_search, got {}", sampling.top_k),
        ),
        (
            sampling.min_p == 0.0,
            "min_p",
            format!("must be 0 with use_beam_search, got {}", sampling.min_p),
        ),
        (
            sampling.stop_token_ids.len() <= MAX_BEAM_STOP_TOKENS,
            "stop_token_ids",
            format!(
                "must have at most {MAX_BEAM_STOP_TOKENS} entries with use_beam_search, got {}",
                sampling.stop_token_ids.len()
            ),
        ),
        (
            (-MAX_LENGTH_PENALTY..=MAX_LENGTH_PENALTY).contains(&beams.length_penalty),
            "length_penalty",
            format!(
                "must be between -{MAX_LENGTH_PENALTY} and {MAX_LENGTH_PENALTY}, got {}",
                beams.length_penalty
            ),
        ),
    ];
    match fields.into_iter().find(|(holds, ..)| !holds) {
        None => Ok(()),
        Some((_, field, reason)) => Err(RequestError::invalid(field, reason)),
    }
}

/// Prompt tokens of all sequences of a request, as the queue caps count them.
pub(crate) fn num_queued_tokens(request: &Request) -> Result<usize, RequestError> {
    let num_seqs = request.num_seqs();
    let num_tokens = request.prompt.len().checked_mul(num_seqs);
    num_tokens.ok_or_else(|| RequestError::invalid("n", format!("is too large: {num_seqs}")))
}

fn check_lists(params: &SamplingParams) -> Result<(), RequestError> {
    let lists = [
        ("logit_bias", params.logit_bias.len()),
        ("allowed_token_ids", params.allowed_token_ids.len()),
        ("stop_token_ids", params.stop_token_ids.len()),
    ];
    match lists.into_iter().find(|&(_, len)| len > MAX_TOKEN_LIST) {
        None => Ok(()),
        Some((field, len)) => Err(RequestError::invalid(
            field,
            format!("must have at most {MAX_TOKEN_LIST} entries, got {len}"),
        )),
    }
}

fn check_stop(stop: &[String]) -> Result<(), RequestError> {
    if stop.len() > MAX_STOP_STRINGS {
        return Err(RequestError::invalid(
            "stop",
            format!(
                "must have at most {MAX_STOP_STRINGS} strings, got {}",
                stop.len()
            ),
        ));
    }
    for string in stop {
        if string.is_empty() {
            return Err(RequestError::invalid(
                "stop",
                "must not contain an empty string",
            ));
        }
        if string.len() > MAX_STOP_BYTES {
            return Err(RequestError::invalid(
                "stop",
                format!(
                    "must have strings of at most {MAX_STOP_BYTES} bytes, got {}",
                    string.len()
                ),
            ));
        }
    }
    Ok(())
}
