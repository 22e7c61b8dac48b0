//! What a client saw of its request.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use pageloom_engine::{FinishReason, GeneratedToken, RequestEvent};
use pageloom_model_runner::TokenLogprobs;

/// All that became of one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<GeneratedToken>,
    pub(crate) text: String,
    pub(crate) finish: Option<FinishReason>,
    /// What it was ranked by, if it was.
    pub(crate) score: Option<f64>,
}

/// All that became of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Transcript {
    /// Of the event that says that the prompt is computed.
    pub(crate) prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    pub(crate) num_cached_tokens: usize,
    /// By index of the sequence.
    pub(crate) outcomes: BTreeMap<usize, Outcome>,
    pub(crate) num_events: usize,
}

impl Transcript {
    /// Takes the next event.
    ///
    /// # Errors
    /// If events come in an order they must not come in.
    pub(crate) fn take(&mut self, event: RequestEvent) -> Result<()> {
        self.num_events += 1;
        match event {
            RequestEvent::Prompt {
                num_cached_tokens,
                logprobs,
            } => {
                ensure!(self.num_events == 1, "the prompt's event is not the first");
                self.prompt_logprobs = Some(logprobs);
                self.num_cached_tokens = num_cached_tokens;
            }
            RequestEvent::Output(delta) => {
                let outcome = self.outcomes.entry(delta.index).or_default();
                ensure!(
                    outcome.finish.is_none(),
                    "sequence {} goes on after its end",
                    delta.index
                );
                ensure!(
                    delta.tokens.is_empty() || self.prompt_logprobs.is_some(),
                    "a token came before the prompt was computed"
                );
                outcome.tokens.extend(delta.tokens);
                outcome.text.push_str(&delta.text);
                outcome.finish = delta.finish;
                outcome.score = delta.score;
            }
        }
        Ok(())
    }

    pub(crate) fn is_finished(&self, n: usize) -> bool {
        self.outcomes.len() == n && self.outcomes.values().all(|o| o.finish.is_some())
    }
}

impl Outcome {
    /// Whether it ended with such a reason.
    pub(crate) fn ended(&self, with: fn(&FinishReason) -> bool) -> bool {
        self.finish.as_ref().is_some_and(with)
    }
}
