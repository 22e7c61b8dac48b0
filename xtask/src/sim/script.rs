//! From a scenario to the requests as they are sent, each with what it must get.

use anyhow::{Context, Result};
use pageloom_engine::{EngineConfig, Request};

use super::{
    alone::{Alone, Expected, max_tokens},
    arrivals::{Arrival, Spoil},
    prompts::prompt,
    refusal::reasons,
    scenario::Scenario,
};

/// A request and what it gets alone; `None` if it must be refused.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) request: Request,
    pub(crate) expected: Option<Expected>,
}

/// The requests of `scenario`, in order of arrival.
///
/// # Errors
/// If a request cannot even be simulated alone.
pub(crate) fn lines(scenario: &Scenario) -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    for (number, arrival) in scenario.arrivals.iter().enumerate() {
        let request = request(scenario, arrival, &lines);
        let alone = Alone::new(&scenario.executor);
        let may_run = reasons(scenario, &request).is_empty();
        let most = max_tokens(&scenario.config, &request).ok();
        let expected = most
            .filter(|_| may_run)
            .map(|most| alone.run(&request, most))
            .transpose()
            .with_context(|| format!("request {number} alone"))?;
        lines.push(Line { request, expected });
    }
    Ok(lines)
}

fn request(scenario: &Scenario, arrival: &Arrival, before: &[Line]) -> Request {
    let context = scenario.config.max_model_len;
    let mut request = arrival.request.clone();
    request.prompt = prompt(&arrival.prompt, before, context);
    let room = context.saturating_sub(request.prompt.len());
    if room == 0 {
        request.max_tokens = Some(0);
    }
    request.max_tokens = request.max_tokens.map(|most| most.min(room));
    if arrival.fits {
        shorten(&scenario.config, &mut request);
    }
    let most = request.max_tokens.unwrap_or(1);
    request.sampling.min_tokens = request.sampling.min_tokens.min(most);
    if let Some(spoil) = arrival.spoil {
        spoil.apply(&mut request, scenario);
    }
    request
}

/// Takes `max_tokens` back to what the cache can hold, if it can hold the prompt and one token.
fn shorten(config: &EngineConfig, request: &mut Request) {
    let open = Request {
        max_tokens: None,
        ..request.clone()
    };
    if let Ok(most) = max_tokens(config, &open) {
        request.max_tokens = request.max_tokens.map(|tokens| tokens.min(most));
    }
}

impl Spoil {
    fn apply(self, request: &mut Request, scenario: &Scenario) {
        let config = &scenario.config;
        match self {
            Spoil::EmptyPrompt => request.prompt.clear(),
            Spoil::LongPrompt => request.prompt.resize(config.max_model_len + 1, 5),
            Spoil::UnknownToken => request.prompt[0] = scenario.executor.vocab_size as u32,
            Spoil::NoSequences => request.n = 0,
            Spoil::ManySequences => request.n = config.max_n.min(config.max_num_seqs) + 1,
            Spoil::BestOf => request.best_of = Some(request.n - 1),
            Spoil::BeamTopK => {
                request.beams.get_or_insert_default();
                request.sampling.top_k = 1;
            }
            Spoil::LengthPenalty => {
                request.beams.get_or_insert_default().length_penalty = 11.0;
            }
            Spoil::Priority => request.priority = 3,
            Spoil::MaxTokens => request.max_tokens = Some(config.max_model_len),
            Spoil::MinTokens => request.sampling.min_tokens = config.max_model_len + 1,
            Spoil::Temperature => request.sampling.temperature = -1.0,
            Spoil::Logprobs => request.sampling.logprobs = Some(21),
            Spoil::PromptLogprobs => request.prompt_logprobs = Some(21),
            Spoil::EmptyStop => request.stop.push(String::new()),
        }
    }
}
