//! API keys.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use super::state::AppState;

/// The one path that answers without a key: load balancers ask it, and it says nothing else.
const OPEN_PATH: &str = "/health";

/// The keys that open the server; none at all leaves it open.
///
/// Only digests are kept, and all of them are compared in full: the time an answer takes tells
/// neither the length nor the first letters of a key.
#[derive(Debug, Default, Clone)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// Digests of the keys; an empty list leaves the server open.
    pub fn new(keys: &[String]) -> Self {
        ApiKeys(keys.iter().map(|key| digest(key.as_bytes())).collect())
    }

    /// Whether clients must present a key.
    pub fn required(&self) -> bool {
        !self.0.is_empty()
    }

    fn accepts(&self, key: &[u8]) -> bool {
        let given = digest(key);
        let mut found = subtle::Choice::from(0);
        for key in &self.0 {
            found |= key.ct_eq(&given);
        }
        found.into()
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Lets a request pass if no key is required, or with one of the keys as bearer token.
pub(crate) async fn require_key(
    State(app): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    if !app.api_keys.required() || request.uri().path() == OPEN_PATH {
        return next.run(request).await;
    }
    let key = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
    match key {
        Some(key) if app.api_keys.accepts(key) => next.run(request).await,
        Some(_) => unauthorized("the API key is not one of this server's"),
        None => unauthorized("an API key is required: Authorization: Bearer KEY"),
    }
}

fn unauthorized(message: &str) -> Response {
    ApiError::new(StatusCode::UNAUTHORIZED, message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_keys_opens_and_nothing_else() {
        let keys = ApiKeys::new(&["one".to_owned(), "two".to_owned()]);
        assert!(keys.required() && keys.accepts(b"one") && keys.accepts(b"two"));
        assert!(!keys.accepts(b"") && !keys.accepts(b"on") && !keys.accepts(b"onetwo"));
        assert!(!ApiKeys::new(&[]).required());
    }
}
