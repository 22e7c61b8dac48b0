//! The HTTP side: routes, request parsing, answers.
//!
//! A handler parses and validates a body, hands requests to the engine and turns its events into
//! JSON, collected or streamed. It holds no state of its own: dropping it aborts what it started.

mod auth;
mod body;
mod chat;
mod completions;
mod error;
mod fields;
mod logprobs;
mod messages;
mod metrics;
mod models;
mod object;
mod outputs;
mod params;
mod prompt;
mod sequences;
mod state;
mod stream;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{MethodRouter, get, post};

pub use auth::ApiKeys;
pub use completions::MAX_CHOICES;
pub use error::ApiError;
pub use fields::{MAX_BIASED_TOKENS, MAX_LABEL_BYTES, MAX_STOP_BYTES, MAX_STOP_STRINGS};
pub use messages::{MAX_MESSAGES, read_conversation};
pub use metrics::CacheInfo;
pub use params::Limits;
pub use prompt::MAX_PROMPTS;
pub use sequences::MAX_N;
pub use state::{AppState, Seeds, now_unix};

type Route = (&'static str, &'static str, MethodRouter<Arc<AppState>>);

fn table() -> [Route; 9] {
    [
        ("POST", "/v1/completions", post(completions::completions)),
        ("POST", "/v1/chat/completions", post(chat::chat_completions)),
        ("GET", "/v1/models", get(models::list_models)),
        ("GET", "/v1/models/{*name}", get(models::get_model)),
        ("POST", "/tokenize", post(tokenize::tokenize)),
        ("POST", "/detokenize", post(tokenize::detokenize)),
        ("GET", "/health", get(models::health)),
        ("GET", "/metrics", get(metrics::metrics)),
        ("GET", "/version", get(models::version)),
    ]
}

/// Method and path of every route, for those who must visit them all.
pub fn routes() -> Vec<(&'static str, &'static str)> {
    let name = |(method, path, _): Route| (method, path);
    table().into_iter().map(name).collect()
}

/// The server's routes over a state.
pub fn router(app: Arc<AppState>) -> Router {
    table()
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| {
            router.route(path, handler)
        })
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        // Outermost, so that not even the existence of a path shows without a key.
        .layer(middleware::from_fn_with_state(
            Arc::clone(&app),
            auth::require_key,
        ))
        .with_state(app)
}

async fn no_route() -> ApiError {
    ApiError::not_found("there is no such endpoint")
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this endpoint does not have that method",
    )
}
