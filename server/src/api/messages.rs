//! The conversation of a chat request.

use pageloom_engine::text::{ChatMessage, RenderOptions};
use serde_json::value::RawValue;

use super::error::{ApiError, shorten};
use super::fields::is_empty_list;
use super::object::{Object, read, read_list};

/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 4096;
/// Most parts of one message's content.
const MAX_PARTS: usize = 1024;
/// Longest role or name, in bytes.
const MAX_ROLE_BYTES: usize = 64;

/// Names a template is given by the server; a client's `chat_template_kwargs` may not replace them.
const RESERVED_KWARGS: [&str; 7] = [
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "chat_template",
    "tools",
];

/// Takes `messages`.
///
/// # Errors
/// 400 naming the message and its field.
pub(crate) fn take_messages(object: &mut Object<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let messages: Vec<&RawValue> = object
        .take_list("messages", MAX_MESSAGES)?
        .ok_or_else(|| ApiError::invalid("messages", "messages is missing"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "messages must have at least one message",
        ));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| read_message(message.get(), &format!("messages[{i}]")))
        .collect()
}

/// Reads `{"messages": [...]}`, what a conversation is made of and nothing else.
///
/// # Errors
/// As for a request that has it.
pub fn read_conversation(text: &[u8]) -> Result<Vec<ChatMessage>, ApiError> {
    let mut object = Object::parse(text)?;
    let messages = take_messages(&mut object)?;
    object.finish()?;
    Ok(messages)
}

fn read_message(text: &str, path: &str) -> Result<ChatMessage, ApiError> {
    let mut message = Object::parse_text(text, path)?;
    let role: String = message.take("role")?.ok_or_else(|| {
        ApiError::invalid(message.path("role"), format!("{path}: role is missing"))
    })?;
    let name: Option<String> = message.take("name")?;
    for (field, value) in [("role", Some(&role)), ("name", name.as_ref())] {
        if let Some(value) = value
            && (value.is_empty() || value.len() > MAX_ROLE_BYTES)
        {
            return Err(ApiError::invalid(
                message.path(field),
                format!("{path}: {field} must have 1 to {MAX_ROLE_BYTES} bytes"),
            ));
        }
    }
    let content_path = message.path("content");
    let content = match message.take_raw("content") {
        Some(content) => read_content(content, &content_path)?,
        None => {
            return Err(ApiError::invalid(
                content_path,
                format!("{path}: content is missing"),
            ));
        }
    };
    message.take_inert("tool_calls", "tools are not supported", is_empty_list)?;
    message.finish()?;
    Ok(ChatMessage {
        // What newer OpenAI models call developer, templates of open models call system.
        role: if role == "developer" {
            "system".to_owned()
        } else {
            role
        },
        content,
        name,
    })
}

/// Reads a string, or parts of type `text`, which are joined.
fn read_content(content: &RawValue, path: &str) -> Result<String, ApiError> {
    let text = content.get();
    if text.starts_with('"') {
        return read(content, path);
    }
    if !text.starts_with('[') {
        return Err(ApiError::invalid(
            path,
            format!(
                "{path} must be a string or a list of parts, got {}",
                shorten(text)
            ),
        ));
    }
    let mut whole = String::new();
    for part in read_list::<&RawValue>(content, path, MAX_PARTS)? {
        let mut part = Object::parse_text(part.get(), path)?;
        let kind: Option<String> = part.take("type")?;
        match kind.as_deref() {
            Some("text") => {}
            other => {
                return Err(ApiError::invalid(
                    path,
                    format!(
                        "{path}: only parts of type text are supported, got {}",
                        shorten(other.unwrap_or("none"))
                    ),
                ));
            }
        }
        let text: Option<String> = part.take("text")?;
        part.finish()?;
        match text {
            Some(text) => whole.push_str(&text),
            None => {
                return Err(ApiError::invalid(
                    path,
                    format!("{path}: a part of type text has no text"),
                ));
            }
        }
    }
    Ok(whole)
}

/// Takes what steers the template.
///
/// # Errors
/// 400 naming the field.
pub(crate) fn take_render_options(object: &mut Object<'_>) -> Result<RenderOptions, ApiError> {
    let continue_final_message = object.take("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = object.take("add_generation_prompt")?;
    if continue_final_message && add_generation_prompt == Some(true) {
        return Err(ApiError::invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt exclude each other",
        ));
    }
    let kwargs: serde_json::Map<String, serde_json::Value> =
        object.take("chat_template_kwargs")?.unwrap_or_default();
    if let Some(name) = RESERVED_KWARGS
        .iter()
        .find(|name| kwargs.contains_key(**name))
    {
        return Err(ApiError::invalid(
            "chat_template_kwargs",
            format!("chat_template_kwargs may not set {name}"),
        ));
    }
    Ok(RenderOptions {
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        kwargs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(json: &str) -> Result<Vec<ChatMessage>, ApiError> {
        take_messages(&mut Object::parse(json.as_bytes())?)
    }

    #[test]
    fn content_is_text_or_parts_of_text() {
        let json = r#"{"messages": [{"role": "developer", "content": "a"},
            {"role": "user", "name": "bo", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}]}"#;
        let messages = messages(json).unwrap();
        assert_eq!(
            (messages[0].role.as_str(), messages[0].content.as_str()),
            ("system", "a")
        );
        assert_eq!(
            (messages[1].content.as_str(), messages[1].name.as_deref()),
            ("bc", Some("bo"))
        );
    }

    #[test]
    fn a_bad_message_is_named() {
        for (body, param) in [
            (r#"{}"#, "messages"),
            (r#"{"messages": []}"#, "messages"),
            (r#"{"messages": "hi"}"#, "messages"),
            (r#"{"messages": [3]}"#, "messages[0]"),
            (r#"{"messages": [{"role": "user"}]}"#, "messages[0].content"),
            (r#"{"messages": [{"content": "a"}]}"#, "messages[0].role"),
            (
                r#"{"messages": [{"role": 1, "content": "a"}]}"#,
                "messages[0].role",
            ),
            (
                r#"{"messages": [{"role": "user", "content": 7}]}"#,
                "messages[0].content",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}"#,
                "messages[0].content",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}"#,
                "messages[0].tool_calls",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "a", "x": 1}]}"#,
                "messages[0].x",
            ),
        ] {
            let error = messages(body).expect_err(body);
            assert_eq!(
                error.param.as_deref(),
                Some(param),
                "{body}: {}",
                error.message
            );
        }
    }

    #[test]
    fn a_client_cannot_replace_what_the_template_is_given() {
        let body = r#"{"chat_template_kwargs": {"bos_token": "x"}}"#;
        let error = take_render_options(&mut Object::parse(body.as_bytes()).unwrap()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("chat_template_kwargs"));
    }
}
