//! Request bodies: JSON by content type, bounded in size and in time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;

use super::error::ApiError;
use super::state::AppState;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a body that is too large is read and thrown away, and for how long, so that the
/// client is done sending and reads the answer instead of finding the connection reset.
const DISCARD_BYTES: u64 = 256 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// A body of type `application/json`, not yet parsed.
pub(super) struct JsonBody(pub Bytes);

impl FromRequest<Arc<AppState>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<AppState>) -> Result<Self, ApiError> {
        let limit = app.max_body_bytes;
        // A page in a browser may send any other type here without asking first.
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| {
                let kind = value.split(';').next().unwrap_or_default().trim();
                kind.eq_ignore_ascii_case("application/json")
            });
        let mut body = request.into_body();
        if !is_json {
            discard(&mut body, 0).await;
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the content-type must be application/json",
            ));
        }
        match tokio::time::timeout(BODY_TIMEOUT, collect(&mut body, limit)).await {
            Ok(bytes) => bytes.map(JsonBody),
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body took longer than {} s", BODY_TIMEOUT.as_secs()),
            )),
        }
    }
}

async fn collect(body: &mut Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("the body broke off: {error}"),
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            let read = bytes.len() + data.len();
            drop(bytes);
            discard(body, read as u64).await;
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {limit} bytes"),
            ));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Bytes::from(bytes))
}

async fn discard(body: &mut Body, mut read: u64) {
    let rest = async {
        while read < DISCARD_BYTES {
            match body.frame().await {
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
                _ => break,
            }
        }
    };
    // Whether the client finished sending or not, it gets its answer now.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}
