//! Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use pageloom_engine::RequestEvent;
use serde::Serialize;

use super::error::ApiError;
use super::outputs::Outputs;

/// How long a stream stays silent before a comment shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Turns events into the chunks of one endpoint.
pub(super) trait Chunks: Send + 'static {
    /// Appends the chunks for an event of prompt number `prompt`.
    ///
    /// # Errors
    /// The error that ends the stream.
    fn event(
        &mut self,
        prompt: usize,
        event: RequestEvent,
        out: &mut SseText,
    ) -> Result<(), ApiError>;

    /// Appends what comes after the last event, before `[DONE]`.
    fn end(&mut self, out: &mut SseText);
}

/// Text of one or more events.
#[derive(Debug, Default)]
pub(super) struct SseText(String);

impl SseText {
    /// Appends an event with a JSON value.
    pub(super) fn push(&mut self, chunk: &impl Serialize) {
        let json = serde_json::to_string(chunk).expect("chunks have string keys only");
        self.push_line(&json);
    }

    fn push_line(&mut self, data: &str) {
        self.0.push_str("data: ");
        self.0.push_str(data);
        self.0.push_str("\n\n");
    }
}

/// The response that sends chunks as the outputs arrive.
///
/// When the client leaves, the body is dropped and the outputs with it, which aborts them.
pub(super) fn respond(outputs: Outputs, chunks: impl Chunks) -> Response {
    let events = stream::unfold(Some((outputs, chunks)), |state| async move {
        let (mut outputs, mut chunks) = state?;
        let mut text = SseText::default();
        let mut more = true;
        // An event may have nothing to say; a chunk of a body must not be empty.
        while more && text.0.is_empty() {
            more = advance(&mut outputs, &mut chunks, &mut text).await;
        }
        if !more {
            text.push_line("[DONE]");
        }
        Some((
            Ok::<_, Infallible>(Bytes::from(text.0)),
            more.then_some((outputs, chunks)),
        ))
    });
    (
        [
            (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
            (header::CACHE_CONTROL, "no-cache"),
        ],
        Body::from_stream(events),
    )
        .into_response()
}

/// Waits for one event and writes it down; returns whether more can follow.
async fn advance(outputs: &mut Outputs, chunks: &mut impl Chunks, text: &mut SseText) -> bool {
    let event = match tokio::time::timeout(KEEP_ALIVE, outputs.next()).await {
        Err(_) => {
            text.0.push_str(": still working\n\n");
            return true;
        }
        Ok(None) => {
            chunks.end(text);
            return false;
        }
        Ok(Some(event)) => event,
    };
    let outcome = event.and_then(|(prompt, event)| chunks.event(prompt, event, text));
    if let Err(error) = &outcome {
        text.push_line(&error.to_json());
    }
    outcome.is_ok()
}
