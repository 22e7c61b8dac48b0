//! Which requests must be refused, and with which words.

use pageloom_engine::{Request, RequestError, SchedulingPolicy};

use super::{alone::max_tokens, scenario::Scenario};

/// Why a request is refused: the error's kind, with the field it must name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Field(&'static str),
    PromptTooLong,
    NeverFits,
    QueueFull,
    Other,
}

impl From<&RequestError> for Refusal {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::InvalidParam { field, .. } => Refusal::Field(field),
            RequestError::PromptTooLong { .. } => Refusal::PromptTooLong,
            RequestError::NeverFits { .. } => Refusal::NeverFits,
            RequestError::QueueFull { .. } => Refusal::QueueFull,
            _ => Refusal::Other,
        }
    }
}

/// Every reason there is to refuse `request`, but for a full queue. It must be refused with one of
/// them, and taken if there is none.
pub(crate) fn reasons(scenario: &Scenario, request: &Request) -> Vec<Refusal> {
    let (config, params) = (&scenario.config, &request.sampling);
    let vocab_size = scenario.executor.vocab_size as u32;
    let most_n = config.max_n.min(config.max_num_seqs);
    let fcfs = config.scheduling_policy == SchedulingPolicy::Fcfs;
    let mut reasons = Vec::new();
    let mut refuse_if = |refused: bool, field| {
        if refused {
            reasons.push(Refusal::Field(field));
        }
    };
    let is_unknown = |&token: &u32| token >= vocab_size;
    refuse_if(
        request.prompt.is_empty() || request.prompt.iter().any(is_unknown),
        "prompt",
    );
    refuse_if(request.n == 0 || request.n > most_n, "n");
    let num_seqs = request.num_seqs();
    refuse_if(num_seqs < request.n || num_seqs > most_n, "best_of");
    if let Some(rules) = request.beams {
        refuse_if(params.top_k != 0, "top_k");
        refuse_if(rules.length_penalty.abs() > 10.0, "length_penalty");
    }
    refuse_if(request.priority != 0 && fcfs, "priority");
    refuse_if(params.temperature < 0.0, "temperature");
    refuse_if(params.logprobs.is_some_and(|top| top > 20), "logprobs");
    refuse_if(
        request.prompt_logprobs.is_some_and(|top| top > 20),
        "prompt_logprobs",
    );
    refuse_if(request.stop.iter().any(String::is_empty), "stop");
    match max_tokens(config, request) {
        Ok(most) => refuse_if(params.min_tokens > most, "min_tokens"),
        Err(refusal) => reasons.push(refusal),
    }
    reasons
}
