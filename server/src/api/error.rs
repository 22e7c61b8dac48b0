//! Refusals in the form OpenAI's clients read.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Longest piece of a client's own input that an error repeats, in characters.
const MAX_ECHO_CHARS: usize = 120;

/// A request that is not answered, or an answer that broke off.
///
/// Its body is `{"error": {"message", "type", "param", "code"}}`, as JSON of its own or as a
/// `data:` event of a stream that had already begun.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What is wrong, for a person.
    pub message: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    /// Seconds after which it is worth trying again.
    pub retry_after_s: Option<u32>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: u16,
}

impl ApiError {
    /// An error with a status, without a field.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
            param: None,
            retry_after_s: None,
        }
    }

    /// 400: `param` has a wrong type or value.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.into()),
            ..ApiError::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// 400: `param` would change the answer and this server cannot honour it.
    pub fn unsupported(param: &str, hint: &str) -> Self {
        let shown = shorten(param);
        let hint = if hint.is_empty() {
            String::new()
        } else {
            format!(": {hint}")
        };
        ApiError::invalid(shown.clone(), format!("{shown} is not supported{hint}"))
    }

    /// 404 for a path or a model.
    pub fn not_found(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// 503: full or going down; the client may come back after `retry_after_s`.
    pub fn unavailable(message: impl Into<String>, retry_after_s: u32) -> Self {
        ApiError {
            retry_after_s: Some(retry_after_s),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// 500: nothing the client did.
    pub fn internal(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The error as one line of JSON.
    pub fn to_json(&self) -> String {
        let body = Body {
            error: Detail {
                message: &self.message,
                r#type: self.kind(),
                param: self.param.as_deref(),
                code: self.status.as_u16(),
            },
        };
        serde_json::to_string(&body).expect("strings and numbers always serialise")
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "AuthenticationError",
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowedError",
            StatusCode::REQUEST_TIMEOUT => "RequestTimeoutError",
            StatusCode::PAYLOAD_TOO_LARGE => "PayloadTooLargeError",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "UnsupportedMediaTypeError",
            StatusCode::UNPROCESSABLE_ENTITY => "UnprocessableEntityError",
            StatusCode::TOO_MANY_REQUESTS => "RateLimitError",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
            status if status.is_client_error() => "BadRequestError",
            _ => "InternalServerError",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (
            self.status,
            [(header::CONTENT_TYPE, "application/json")],
            self.to_json(),
        )
            .into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A client's own text cut to a length that fits an error message.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_ECHO_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_openai_form() {
        let json: serde_json::Value =
            serde_json::from_str(&ApiError::invalid("n", "n must be above 0").to_json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": {
                "message": "n must be above 0", "type": "BadRequestError", "param": "n", "code": 400
            }})
        );
    }

    #[test]
    fn an_unknown_name_is_not_repeated_at_length() {
        let error = ApiError::unsupported(&"é".repeat(1_000_000), "");
        assert!(error.message.len() < 1000);
        assert!(error.param.unwrap().ends_with("..."));
    }
}
