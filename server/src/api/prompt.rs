//! The forms a prompt may have.

use pageloom_model_runner::TokenId;
use serde_json::value::RawValue;

use super::error::{ApiError, shorten};
use super::object::{read, read_list};

/// Most prompts of a request.
pub const MAX_PROMPTS: usize = 1024;
/// A prompt as the client wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// Reads a string, a list of strings, a list of token ids or a list of such lists.
///
/// # Errors
/// 400 naming `prompt`.
pub(super) fn read_prompts(value: &RawValue) -> Result<Vec<Prompt>, ApiError> {
    let text = value.get();
    let wrong = || {
        ApiError::invalid(
            "prompt",
            format!(
                "prompt must be a string, a list of strings, a list of token ids or a list of such \
                 lists, got {}",
                shorten(text)
            ),
        )
    };
    if text.starts_with('"') {
        return Ok(vec![Prompt::Text(read(value, "prompt")?)]);
    }
    let inside = text.strip_prefix('[').ok_or_else(wrong)?.trim_start();
    match inside.chars().next() {
        Some('"') => Ok(read_list(value, "prompt", MAX_PROMPTS)?
            .into_iter()
            .map(Prompt::Text)
            .collect()),
        Some('[') => Ok(read_list(value, "prompt", MAX_PROMPTS)?
            .into_iter()
            .map(Prompt::Tokens)
            .collect()),
        Some(first) if first.is_ascii_digit() || first == '-' => {
            Ok(vec![Prompt::Tokens(read(value, "prompt")?)])
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(json: &str) -> Result<Vec<Prompt>, ApiError> {
        read_prompts(&RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn every_form_of_prompt_is_read() {
        let text = |s: &str| Prompt::Text(s.to_owned());
        assert_eq!(prompts(r#""a""#).unwrap(), [text("a")]);
        assert_eq!(prompts(r#"[ "a", "b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(prompts("[1, 2]").unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(
            prompts("[[1], [2, 3]]").unwrap(),
            [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]
        );
    }

    #[test]
    fn other_forms_of_prompt_are_refused_by_name() {
        for bad in [
            "1",
            "{}",
            "true",
            "[]",
            r#"["a", 1]"#,
            "[1, \"a\"]",
            "[-1]",
            "[1.5]",
            "[[\"a\"]]",
        ] {
            let error = prompts(bad).expect_err(bad);
            assert_eq!(error.param.as_deref(), Some("prompt"), "{bad}");
        }
        let long = format!("[{}\"a\"]", "\"a\",".repeat(MAX_PROMPTS));
        assert!(prompts(&long).is_err());
    }
}
