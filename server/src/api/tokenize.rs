//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use pageloom_model_runner::TokenId;
use serde::Serialize;

use super::body::JsonBody;
use super::error::ApiError;
use super::messages::{take_messages, take_render_options};
use super::object::Object;
use super::state::AppState;

#[derive(Serialize)]
struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<TokenId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Text {
    prompt: String,
}

/// Answers `POST /tokenize` for a `prompt`, or for `messages` as the chat template writes them.
///
/// # Errors
/// 4xx naming a field.
pub(super) async fn tokenize(
    State(app): State<Arc<AppState>>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let mut object = Object::parse(&body)?;
    let model: Option<String> = object.take("model")?;
    let prompt: Option<String> = object.take("prompt")?;
    let special: Option<bool> = object.take("add_special_tokens")?;
    let with_strings = object.take("return_token_strs")?.unwrap_or(false);
    let (text, add_special, param) = match prompt {
        Some(prompt) => (prompt, special.unwrap_or(true), "prompt"),
        None => {
            if !object.has("messages") {
                return Err(ApiError::invalid("prompt", "prompt is missing"));
            }
            let messages = take_messages(&mut object)?;
            let options = take_render_options(&mut object)?;
            let text = app.render(&messages, &options)?;
            (text, special.unwrap_or(false), "messages")
        }
    };
    object.finish()?;
    app.model_name(model.as_deref())?;
    let tokens = app.encode(text, add_special, param).await?;
    let answer = Tokens {
        count: tokens.len(),
        max_model_len: app.limits.max_model_len,
        token_strs: with_strings.then(|| {
            let text = |&id| app.tokenizer.token_text(id);
            tokens.iter().map(text).collect()
        }),
        tokens,
    };
    Ok(axum::Json(answer).into_response())
}

/// Answers `POST /detokenize`.
///
/// # Errors
/// 4xx naming a field.
pub(super) async fn detokenize(
    State(app): State<Arc<AppState>>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let mut object = Object::parse(&body)?;
    let model: Option<String> = object.take("model")?;
    let tokens: Vec<TokenId> = object
        .take("tokens")?
        .ok_or_else(|| ApiError::invalid("tokens", "tokens is missing"))?;
    object.finish()?;
    app.model_name(model.as_deref())?;
    let vocab_size = app.limits.vocab_size;
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(ApiError::invalid(
            "tokens",
            format!("tokens has the id {id}, but the vocabulary has {vocab_size} tokens"),
        ));
    }
    let prompt = app.decode(&tokens, false)?;
    Ok(axum::Json(Text { prompt }).into_response())
}
