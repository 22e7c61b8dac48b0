//! The events of several requests as one stream, and what they say about usage and endings.

use std::future::Future;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pageloom_engine::{
    AsyncEngine, FinishReason, Request, RequestError, RequestEvent, RequestStream, StopCause,
};
use serde::Serialize;

use super::error::ApiError;

/// Seconds after which a refused client may try again.
const RETRY_AFTER_S: u32 = 1;

type Pending = Pin<Box<dyn Future<Output = (usize, RequestStream, Option<RequestEvent>)> + Send>>;

/// The running requests of one HTTP request, one for each of its prompts.
///
/// Dropping it aborts them all: that is how a client that leaves frees its blocks.
pub(super) struct Outputs {
    pending: FuturesUnordered<Pending>,
    /// Sequences that have not ended, for each prompt.
    open: Vec<usize>,
}

impl Outputs {
    /// Hands the requests to the engine, all or none. `param` names the field with the prompt.
    ///
    /// # Errors
    /// 503 if the queue is full or the engine is going down, 400 if a request can never run.
    pub(super) async fn submit(
        engine: &AsyncEngine,
        requests: Vec<Request>,
        param: &str,
    ) -> Result<Self, ApiError> {
        let mut outputs = Outputs {
            pending: FuturesUnordered::new(),
            open: Vec::with_capacity(requests.len()),
        };
        for (prompt, request) in requests.into_iter().enumerate() {
            let n = request.n;
            // An early return drops the streams so far, which aborts their requests.
            let submitted = engine.submit(request).await;
            let stream = submitted.map_err(|error| refusal(error, param))?;
            outputs.open.push(n);
            outputs.pending.push(next_event(prompt, stream));
        }
        Ok(outputs)
    }

    /// The next event with the number of its prompt; `None` once every sequence has ended.
    ///
    /// May be cancelled without losing an event.
    ///
    /// # Errors
    /// 500 if the engine stopped before the sequences ended.
    pub(super) async fn next(&mut self) -> Option<Result<(usize, RequestEvent), ApiError>> {
        let (prompt, stream, event) = self.pending.next().await?;
        let Some(event) = event else {
            return Some(Err(ApiError::internal(
                "the engine stopped before the answer was complete",
            )));
        };
        if let RequestEvent::Output(delta) = &event
            && delta.finish.is_some()
        {
            self.open[prompt] = self.open[prompt].saturating_sub(1);
        }
        if self.open[prompt] > 0 {
            self.pending.push(next_event(prompt, stream));
        }
        Some(Ok((prompt, event)))
    }
}

fn next_event(prompt: usize, mut stream: RequestStream) -> Pending {
    Box::pin(async move {
        let event = stream.next().await;
        (prompt, stream, event)
    })
}

fn refusal(error: RequestError, param: &str) -> ApiError {
    let message = error.to_string();
    match error {
        RequestError::QueueFull { .. } | RequestError::ShuttingDown => {
            ApiError::unavailable(message, RETRY_AFTER_S)
        }
        RequestError::EngineDead => ApiError::internal(message),
        RequestError::InvalidParam { field, .. } if field != "prompt" => {
            ApiError::invalid(field, message)
        }
        RequestError::NeverFits { .. } => ApiError::invalid("max_tokens", message),
        _ => ApiError::invalid(param, message),
    }
}

/// Tokens read and written for a request.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub(super) struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// Tokens of all sequences that are returned.
    pub completion_tokens: usize,
    /// More about the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// Part of [`Usage`].
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub(super) struct PromptTokensDetails {
    /// Prompt tokens whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    /// Usage before anything is generated.
    pub(super) fn of_prompts(num_tokens: usize) -> Self {
        Usage {
            prompt_tokens: num_tokens,
            total_tokens: num_tokens,
            ..Usage::default()
        }
    }

    /// Counts what an event brings.
    pub(super) fn count(&mut self, event: &RequestEvent) {
        match event {
            RequestEvent::Prompt {
                num_cached_tokens, ..
            } => self.prompt_tokens_details.cached_tokens += num_cached_tokens,
            RequestEvent::Output(delta) => {
                self.completion_tokens += delta.tokens.len();
                self.total_tokens = self.prompt_tokens + self.completion_tokens;
            }
        }
    }
}

/// How a sequence ended, as a client reads it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Ending {
    /// `stop` or `length`; `None` while the sequence goes on.
    pub finish_reason: Option<&'static str>,
    /// The stop string or the stop token's id, where it was not the model's own end.
    pub stop_reason: Option<StopReason>,
}

/// What a client's `stop` or `stop_token_ids` matched.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    String(String),
}

impl Ending {
    /// Translates the engine's reason.
    ///
    /// # Errors
    /// 503 if the sequence was aborted (the server is going down), 500 if it failed.
    pub(super) fn of(finish: Option<FinishReason>) -> Result<Self, ApiError> {
        let ending = |finish_reason, stop_reason| {
            Ok(Ending {
                finish_reason,
                stop_reason,
            })
        };
        match finish {
            None => ending(None, None),
            Some(FinishReason::Length) => ending(Some("length"), None),
            Some(FinishReason::Stop(cause)) => ending(
                Some("stop"),
                cause.map(|cause| match cause {
                    StopCause::Token(id) => StopReason::Token(id),
                    StopCause::String(text) => StopReason::String(text),
                }),
            ),
            Some(FinishReason::Abort) => Err(ApiError::unavailable(
                "the answer was cut off because the server is shutting down",
                RETRY_AFTER_S,
            )),
            Some(FinishReason::Error(message)) => Err(ApiError::internal(message)),
        }
    }
}
