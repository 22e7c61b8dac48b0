//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use pageloom_engine::{GeneratedToken, OutputDelta, RequestEvent};
use pageloom_model_runner::{TokenId, TokenLogprobs};
use serde::Serialize;

use super::body::JsonBody;
use super::error::ApiError;
use super::fields::{take_count, take_logprobs};
use super::logprobs::{CompletionLogprobs, PromptLogprobs, prompt_logprobs};
use super::object::Object;
use super::outputs::{Ending, Outputs, Usage};
use super::params::{CommonParams, Limits};
use super::prompt::{Prompt, read_prompts};
use super::state::AppState;
use super::stream::{self, Chunks, SseText};

/// Most sequences generated for a request, over all of its prompts.
pub const MAX_CHOICES: usize = 1024;
/// Tokens generated when the client names no `max_tokens`.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A checked request.
#[derive(Debug)]
struct CompletionRequest {
    common: CommonParams,
    prompts: Vec<Prompt>,
    echo: bool,
    logprobs: Option<usize>,
}

/// A prompt as the engine gets it, with what an answer may repeat of it.
struct ReadyPrompt {
    tokens: Vec<TokenId>,
    /// Text to echo; empty unless `echo`.
    text: String,
}

impl CompletionRequest {
    fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut object = Object::parse(body)?;
        let logprobs = take_logprobs(&mut object, "logprobs")?;
        let max_tokens = take_count(&mut object, "max_tokens")?;
        let echo = object.take("echo")?.unwrap_or(false);
        let common = CommonParams::take(&mut object, limits, logprobs, max_tokens)?;
        object.take_inert("suffix", "", |text| text == "\"\"")?;
        let prompts = match object.take_raw("prompt") {
            Some(value) => read_prompts(value)?,
            None => return Err(ApiError::invalid("prompt", "prompt is missing")),
        };
        object.finish()?;
        if common.max_tokens == Some(0) && !echo {
            return Err(ApiError::invalid(
                "max_tokens",
                "max_tokens must be at least 1 unless echo is true, got 0",
            ));
        }
        let (num, field) = (
            common.sequences.num_generated(),
            common.sequences.count_field(),
        );
        if prompts.len() * num > MAX_CHOICES {
            return Err(ApiError::invalid(
                field,
                format!(
                    "{} prompts with {field} = {num} ask for more than {MAX_CHOICES} completions",
                    prompts.len(),
                ),
            ));
        }
        Ok(CompletionRequest {
            common,
            prompts,
            echo,
            logprobs,
        })
    }

    /// Alternatives wanted for each prompt token, for `echo` or on their own account.
    fn prompt_scores(&self) -> Option<usize> {
        let echoed = if self.echo { self.logprobs } else { None };
        echoed.max(self.common.prompt_logprobs)
    }
}

/// Answers `POST /v1/completions`.
///
/// # Errors
/// 4xx naming a field, 503 when full, 500 when the engine fails.
pub(super) async fn completions(
    State(app): State<Arc<AppState>>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let request = CompletionRequest::parse(&body, &app.limits)?;
    drop(body);
    let model = app.model_name(request.common.model.as_deref())?.to_owned();
    let prompts = ready_prompts(&app, &request).await?;
    let seed = app.seeds.next();
    let requests = prompts
        .iter()
        .zip(0u64..)
        .map(|(prompt, i)| {
            let mut engine_request = request.common.request(
                prompt.tokens.clone(),
                &app.limits,
                seed.wrapping_add(i << 32),
                Some(DEFAULT_MAX_TOKENS),
            )?;
            engine_request.prompt_logprobs = request.prompt_scores();
            Ok(engine_request)
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    let outputs = Outputs::submit(&app.engine, requests, "prompt").await?;
    let answer = Answer::new(app, model, request, prompts);
    if answer.request.common.stream {
        Ok(stream::respond(outputs, answer))
    } else {
        answer.collect(outputs).await
    }
}

async fn ready_prompts(
    app: &AppState,
    request: &CompletionRequest,
) -> Result<Vec<ReadyPrompt>, ApiError> {
    let common = &request.common;
    let add_special = common.add_special_tokens.unwrap_or(true);
    let mut ready = Vec::with_capacity(request.prompts.len());
    for prompt in &request.prompts {
        let tokens = match prompt {
            Prompt::Text(text) => app.encode(text.clone(), add_special, "prompt").await?,
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        let num_tokens = tokens.len();
        let tokens = common.fit_prompt(tokens, &app.limits, "prompt")?;
        let text = match prompt {
            _ if !request.echo => String::new(),
            Prompt::Text(text) if tokens.len() == num_tokens => text.clone(),
            _ => app.decode(&tokens, common.skip_special_tokens)?,
        };
        ready.push(ReadyPrompt { tokens, text });
    }
    Ok(ready)
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<&'a Usage>>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    #[serde(flatten)]
    ending: Ending,
    /// What it was ranked by.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Vec<PromptLogprobs>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

/// Turns the engine's events into choices, streamed or collected.
struct Answer {
    app: Arc<AppState>,
    id: String,
    created: u64,
    model: String,
    request: CompletionRequest,
    prompts: Vec<ReadyPrompt>,
    /// Characters of each choice's tokens so far, for `text_offset`.
    offsets: Vec<usize>,
    usage: Usage,
}

impl Answer {
    fn new(
        app: Arc<AppState>,
        model: String,
        request: CompletionRequest,
        prompts: Vec<ReadyPrompt>,
    ) -> Self {
        let num_prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        Answer {
            id: app.response_id("cmpl", request.common.request_id.as_deref()),
            created: app.now_unix(),
            offsets: vec![0; prompts.len() * request.common.sequences.n],
            usage: Usage::of_prompts(num_prompt_tokens),
            app,
            model,
            request,
            prompts,
        }
    }

    /// The choices as they stand after an event: what it adds to each of them.
    fn pieces(&mut self, prompt: usize, event: RequestEvent) -> Result<Vec<Choice>, ApiError> {
        match event {
            RequestEvent::Prompt { logprobs, .. } => {
                let n = self.request.common.sequences.n;
                (prompt * n..(prompt + 1) * n)
                    .map(|index| self.echo(index, prompt, &logprobs))
                    .collect()
            }
            RequestEvent::Output(delta) => Ok(vec![self.piece(prompt, delta)?]),
        }
    }

    fn echo(
        &mut self,
        index: usize,
        prompt: usize,
        scores: &[Option<TokenLogprobs>],
    ) -> Result<Choice, ApiError> {
        let common = &self.request.common;
        let tokens = &self.prompts[prompt].tokens;
        let mut choice = Choice {
            index,
            text: self.prompts[prompt].text.clone(),
            logprobs: None,
            ending: Ending::of(None)?,
            score: None,
            prompt_logprobs: common
                .prompt_logprobs
                .map(|top| prompt_logprobs(&self.app.tokenizer, tokens, scores, top)),
            prompt_token_ids: common.return_token_ids.then(|| tokens.clone()),
            token_ids: None,
        };
        if let (true, Some(num_top)) = (self.request.echo, self.request.logprobs) {
            let mut list = CompletionLogprobs::default();
            let mut offset = 0;
            for (i, &id) in tokens.iter().enumerate() {
                let score = scores.get(i).and_then(Option::as_ref);
                offset = list.push(&self.app.tokenizer, id, score, num_top, offset);
            }
            self.offsets[index] = offset;
            choice.logprobs = Some(list);
        }
        Ok(choice)
    }

    fn piece(&mut self, prompt: usize, delta: OutputDelta) -> Result<Choice, ApiError> {
        let index = prompt * self.request.common.sequences.n + delta.index;
        Ok(Choice {
            index,
            text: delta.text,
            logprobs: self.request.logprobs.map(|num_top| {
                let mut list = CompletionLogprobs::default();
                for GeneratedToken { id, logprobs } in &delta.tokens {
                    let offset = &mut self.offsets[index];
                    let tokenizer = &self.app.tokenizer;
                    *offset = list.push(tokenizer, *id, logprobs.as_ref(), num_top, *offset);
                }
                list
            }),
            ending: Ending::of(delta.finish)?,
            score: delta.score,
            prompt_logprobs: None,
            prompt_token_ids: None,
            token_ids: self
                .request
                .common
                .return_token_ids
                .then(|| delta.tokens.iter().map(|token| token.id).collect()),
        })
    }

    fn completion<'a>(
        &'a self,
        choices: Vec<Choice>,
        usage: Option<Option<&'a Usage>>,
    ) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            choices,
            usage,
        }
    }

    async fn collect(mut self, mut outputs: Outputs) -> Result<Response, ApiError> {
        let mut choices: Vec<Option<Choice>> = Vec::new();
        choices.resize_with(self.offsets.len(), || None);
        while let Some(event) = outputs.next().await {
            let (prompt, event) = event?;
            self.usage.count(&event);
            for piece in self.pieces(prompt, event)? {
                match &mut choices[piece.index] {
                    Some(choice) => choice.append(piece),
                    empty => *empty = Some(piece),
                }
            }
        }
        let choices = choices.into_iter().flatten().collect();
        let completion = self.completion(choices, Some(Some(&self.usage)));
        Ok(axum::Json(completion).into_response())
    }
}

impl Choice {
    fn append(&mut self, piece: Choice) {
        self.text.push_str(&piece.text);
        if let Some(new) = piece.logprobs {
            let all = self.logprobs.get_or_insert_default();
            all.text_offset.extend(new.text_offset);
            all.token_logprobs.extend(new.token_logprobs);
            all.tokens.extend(new.tokens);
            all.top_logprobs.extend(new.top_logprobs);
        }
        if let Some(ids) = piece.token_ids {
            self.token_ids.get_or_insert_default().extend(ids);
        }
        self.ending = piece.ending;
        self.score = piece.score;
    }

    /// Whether a stream would learn nothing from this piece.
    fn is_empty(&self) -> bool {
        self.text.is_empty()
            && self.logprobs.as_ref().is_none_or(|l| l.tokens.is_empty())
            && self.prompt_token_ids.is_none()
            && self.token_ids.as_ref().is_none_or(Vec::is_empty)
            && self.ending.finish_reason.is_none()
    }
}

impl Chunks for Answer {
    fn event(
        &mut self,
        prompt: usize,
        event: RequestEvent,
        out: &mut SseText,
    ) -> Result<(), ApiError> {
        self.usage.count(&event);
        // With include_usage every chunk has the field, and all but the last have it empty.
        let usage = self.request.common.include_usage.then_some(None);
        for piece in self.pieces(prompt, event)? {
            if !piece.is_empty() {
                out.push(&self.completion(vec![piece], usage));
            }
        }
        Ok(())
    }

    fn end(&mut self, out: &mut SseText) {
        if self.request.common.include_usage {
            out.push(&self.completion(Vec::new(), Some(Some(&self.usage))));
        }
    }
}
