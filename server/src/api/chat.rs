//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use pageloom_engine::text::{ChatMessage, RenderOptions};
use pageloom_engine::{OutputDelta, RequestEvent};
use pageloom_model_runner::TokenId;
use serde::Serialize;

use super::body::JsonBody;
use super::error::ApiError;
use super::fields::{is_empty_list, take_count, take_logprobs};
use super::logprobs::{ChatLogprobs, PromptLogprobs, prompt_logprobs};
use super::messages::{take_messages, take_render_options};
use super::object::Object;
use super::outputs::{Ending, Outputs, Usage};
use super::params::{CommonParams, Limits};
use super::state::AppState;
use super::stream::{self, Chunks, SseText};

/// A checked request.
#[derive(Debug)]
struct ChatRequest {
    common: CommonParams,
    messages: Vec<ChatMessage>,
    render: RenderOptions,
    logprobs: bool,
}

impl ChatRequest {
    fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut object = Object::parse(body)?;
        let logprobs = object.take("logprobs")?.unwrap_or(false);
        let top = take_logprobs(&mut object, "top_logprobs")?;
        if top.is_some_and(|top| top > 0) && !logprobs {
            return Err(ApiError::invalid(
                "top_logprobs",
                "top_logprobs may only be given when logprobs is true",
            ));
        }
        let num_top = logprobs.then_some(top.unwrap_or(0));
        let max_tokens = take_max_tokens(&mut object)?;
        let common = CommonParams::take(&mut object, limits, num_top, max_tokens)?;
        take_inert(&mut object)?;
        let request = ChatRequest {
            common,
            messages: take_messages(&mut object)?,
            render: take_render_options(&mut object)?,
            logprobs,
        };
        object.finish()?;
        Ok(request)
    }
}

fn take_max_tokens(object: &mut Object<'_>) -> Result<Option<usize>, ApiError> {
    let old = take_count(object, "max_tokens")?;
    let new = take_count(object, "max_completion_tokens")?;
    for (name, value) in [("max_tokens", old), ("max_completion_tokens", new)] {
        if value == Some(0) {
            return Err(ApiError::invalid(
                name,
                format!("{name} must be at least 1, got 0"),
            ));
        }
    }
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::invalid(
            "max_tokens",
            format!("max_tokens ({old}) and max_completion_tokens ({new}) contradict each other"),
        )),
        (old, new) => Ok(new.or(old)),
    }
}

/// Takes what only chats have and what changes nothing.
fn take_inert(object: &mut Object<'_>) -> Result<(), ApiError> {
    object.take_inert("tools", "only an empty list is accepted", is_empty_list)?;
    object.take_inert("functions", "only an empty list is accepted", is_empty_list)?;
    // Without tools, leaving the choice to the model is the same as none.
    let no_tool = |text: &str| matches!(text, "\"none\"" | "\"auto\"");
    object.take_inert("tool_choice", "there are no tools to choose from", no_tool)?;
    object.take_inert("function_call", "there are no functions to call", no_tool)?;
    object.take_inert("echo", "only false is accepted", |text| text == "false")?;
    object.take_inert("modalities", "only [\"text\"] is accepted", |text| {
        serde_json::from_str::<Vec<&str>>(text).is_ok_and(|list| list == ["text"])
    })
}

/// Answers `POST /v1/chat/completions`.
///
/// # Errors
/// 4xx naming a field, 503 when full, 500 when the engine fails.
pub(super) async fn chat_completions(
    State(app): State<Arc<AppState>>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let request = ChatRequest::parse(&body, &app.limits)?;
    drop(body);
    let common = &request.common;
    let model = app.model_name(common.model.as_deref())?.to_owned();
    let text = app.render(&request.messages, &request.render)?;
    let add_special = common.add_special_tokens.unwrap_or(false);
    let tokens = app.encode(text, add_special, "messages").await?;
    let prompt = common.fit_prompt(tokens, &app.limits, "messages")?;
    let engine_request = common.request(prompt.clone(), &app.limits, app.seeds.next(), None)?;
    let outputs = Outputs::submit(&app.engine, vec![engine_request], "messages").await?;
    let answer = Answer {
        id: app.response_id("chatcmpl", common.request_id.as_deref()),
        created: app.now_unix(),
        usage: Usage::of_prompts(prompt.len()),
        app,
        model,
        prompt,
        request,
    };
    if answer.request.common.stream {
        Ok(stream::respond(outputs, answer))
    } else {
        answer.collect(outputs).await
    }
}

/// A response or, with [`Delta`] for its choices, a chunk of one.
#[derive(Serialize)]
struct Completion<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<&'a Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<PromptLogprobs>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    #[serde(flatten)]
    ending: Ending,
    /// What it was ranked by.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

#[derive(Serialize)]
struct Delta {
    index: usize,
    delta: DeltaMessage,
    logprobs: Option<ChatLogprobs>,
    #[serde(flatten)]
    ending: Ending,
    /// What it was ranked by.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
struct DeltaMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// Turns the engine's events into choices, streamed or collected.
struct Answer {
    app: Arc<AppState>,
    id: String,
    created: u64,
    model: String,
    prompt: Vec<TokenId>,
    request: ChatRequest,
    usage: Usage,
}

impl Answer {
    fn completion<'a, T>(
        &'a self,
        object: &'static str,
        choices: Vec<T>,
        usage: Option<Option<&'a Usage>>,
    ) -> Completion<'a, T> {
        Completion {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
            prompt_logprobs: None,
            prompt_token_ids: None,
        }
    }

    fn logprobs(&self, delta: &OutputDelta) -> Option<ChatLogprobs> {
        self.request.logprobs.then(|| {
            let mut list = ChatLogprobs::default();
            list.extend(&self.app.tokenizer, &delta.tokens);
            list
        })
    }

    fn token_ids(&self, delta: &OutputDelta) -> Option<Vec<TokenId>> {
        let wanted = self.request.common.return_token_ids;
        wanted.then(|| delta.tokens.iter().map(|token| token.id).collect())
    }

    fn empty_choice(&self, index: usize) -> Result<Choice, ApiError> {
        Ok(Choice {
            index,
            message: Message {
                role: "assistant",
                content: String::new(),
            },
            logprobs: self.request.logprobs.then(ChatLogprobs::default),
            ending: Ending::of(None)?,
            score: None,
            token_ids: self.request.common.return_token_ids.then(Vec::new),
        })
    }

    async fn collect(mut self, mut outputs: Outputs) -> Result<Response, ApiError> {
        let mut choices = (0..self.request.common.sequences.n)
            .map(|index| self.empty_choice(index))
            .collect::<Result<Vec<_>, _>>()?;
        let mut prompt_scores = None;
        while let Some(event) = outputs.next().await {
            let (_, event) = event?;
            self.usage.count(&event);
            match event {
                RequestEvent::Prompt { logprobs, .. } => {
                    prompt_scores = self.request.common.prompt_logprobs.map(|num_top| {
                        prompt_logprobs(&self.app.tokenizer, &self.prompt, &logprobs, num_top)
                    });
                }
                RequestEvent::Output(delta) => {
                    let choice = &mut choices[delta.index];
                    choice.message.content.push_str(&delta.text);
                    if let Some(list) = &mut choice.logprobs {
                        list.extend(&self.app.tokenizer, &delta.tokens);
                    }
                    if let Some(ids) = &mut choice.token_ids {
                        ids.extend(delta.tokens.iter().map(|token| token.id));
                    }
                    choice.ending = Ending::of(delta.finish)?;
                    choice.score = delta.score;
                }
            }
        }
        let mut completion = self.completion("chat.completion", choices, Some(Some(&self.usage)));
        completion.prompt_logprobs = prompt_scores;
        if self.request.common.return_token_ids {
            completion.prompt_token_ids = Some(&self.prompt);
        }
        Ok(axum::Json(completion).into_response())
    }

    fn push_chunk(&self, choices: Vec<Delta>, usage: Option<Option<&Usage>>, out: &mut SseText) {
        out.push(&self.completion("chat.completion.chunk", choices, usage));
    }

    /// The first chunk of every choice: who is speaking.
    fn push_roles(&self, usage: Option<Option<&Usage>>, out: &mut SseText) -> Result<(), ApiError> {
        for index in 0..self.request.common.sequences.n {
            let first = Delta {
                index,
                delta: DeltaMessage {
                    role: Some("assistant"),
                    content: Some(String::new()),
                },
                logprobs: None,
                ending: Ending::of(None)?,
                score: None,
                token_ids: None,
            };
            let mut chunk = self.completion("chat.completion.chunk", vec![first], usage);
            if self.request.common.return_token_ids && index == 0 {
                chunk.prompt_token_ids = Some(&self.prompt);
            }
            out.push(&chunk);
        }
        Ok(())
    }
}

impl Chunks for Answer {
    fn event(
        &mut self,
        _prompt: usize,
        event: RequestEvent,
        out: &mut SseText,
    ) -> Result<(), ApiError> {
        self.usage.count(&event);
        // With include_usage every chunk has the field, and all but the last have it empty.
        let usage = self.request.common.include_usage.then_some(None);
        let delta = match event {
            RequestEvent::Prompt { .. } => return self.push_roles(usage, out),
            RequestEvent::Output(delta) => delta,
        };
        let logprobs = self.logprobs(&delta);
        let token_ids = self.token_ids(&delta);
        let ending = Ending::of(delta.finish)?;
        let has_tokens = logprobs.as_ref().is_some_and(|l| !l.content.is_empty())
            || token_ids.as_ref().is_some_and(|ids| !ids.is_empty());
        if delta.text.is_empty() && !has_tokens && ending.finish_reason.is_none() {
            return Ok(());
        }
        let choice = Delta {
            index: delta.index,
            delta: DeltaMessage {
                role: None,
                content: (!delta.text.is_empty()).then_some(delta.text),
            },
            logprobs,
            ending,
            score: delta.score,
            token_ids,
        };
        self.push_chunk(vec![choice], usage, out);
        Ok(())
    }

    fn end(&mut self, out: &mut SseText) {
        if self.request.common.include_usage {
            self.push_chunk(Vec::new(), Some(Some(&self.usage)), out);
        }
    }
}
