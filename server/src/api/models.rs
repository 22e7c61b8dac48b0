//! `GET /v1/models`, `GET /version`, `GET /health`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::error::ApiError;
use super::state::AppState;

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<&'a str>,
    max_model_len: usize,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

fn model<'a>(app: &'a AppState, id: &'a str) -> Model<'a> {
    Model {
        id,
        object: "model",
        created: app.created,
        owned_by: "pageloom",
        root: &app.names[0],
        parent: None,
        max_model_len: app.limits.max_model_len,
    }
}

/// Answers `GET /v1/models`: every name of the one model.
pub(super) async fn list_models(State(app): State<Arc<AppState>>) -> Response {
    let data = app.names.iter().map(|name| model(&app, name)).collect();
    axum::Json(ModelList {
        object: "list",
        data,
    })
    .into_response()
}

/// Answers `GET /v1/models/{name}`; a name may contain slashes.
///
/// # Errors
/// 404 if the model is another one.
pub(super) async fn get_model(
    State(app): State<Arc<AppState>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name = app.model_name(Some(&name))?;
    Ok(axum::Json(model(&app, name)).into_response())
}

/// Answers `GET /version`.
pub(super) async fn version() -> Response {
    axum::Json(Version {
        version: env!("CARGO_PKG_VERSION"),
    })
    .into_response()
}

/// Answers `GET /health`: 200 while the engine makes progress, 503 otherwise.
pub(super) async fn health(State(app): State<Arc<AppState>>) -> StatusCode {
    if app.engine.is_healthy() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
