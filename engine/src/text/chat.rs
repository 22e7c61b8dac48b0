use std::path::Path;

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use pageloom_model_runner::Checkpoint;
use serde::Serialize;
use serde_json::Map;

use super::template;
use super::tokenizer::{read_bounded, special_text, tokenizer_config};
use super::{TextError, Tokenizer};

/// Largest `chat_template.jinja` that is read; real ones have some 20 KB.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// Variables of a template that arguments may not replace.
const RESERVED: [&str; 9] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "continue_final_message",
];

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// Text of the turn.
    pub content: String,
    /// Name of the participant; absent from the template's view if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What to render beside the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// More variables for the template, as in `enable_thinking`.
    pub kwargs: Map<String, serde_json::Value>,
}

/// A model's chat template: turns a conversation into the text the model was trained on.
///
/// Templates run in the environment Hugging Face's have: Jinja with `trim_blocks`,
/// `lstrip_blocks`, `raise_exception`, `strftime_now` (in UTC), Python's string and dictionary
/// methods. They come from the model or from the operator, never from a client. A template that
/// does not end, or whose output does not, is an error.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template that comes with a model: `tokenizer.chat_template` of a GGUF file;
    /// `chat_template.jinja` or the `chat_template` of `tokenizer_config.json` of a folder.
    /// `None` if the model brings none: a base model.
    ///
    /// # Errors
    /// [`TextError`] if there is one that cannot be read or parsed.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ChatTemplate>, TextError> {
        let (source, tokens) = match (checkpoint.gguf(), checkpoint.folder()) {
            (Some(gguf), _) => (
                gguf.str("tokenizer.chat_template")?.map(str::to_owned),
                None,
            ),
            (None, Some(folder)) => folder_template(folder)?,
            (None, None) => (None, None),
        };
        let Some(source) = source else {
            return Ok(None);
        };
        let of_tokenizer = SpecialTokens::of(tokenizer);
        let tokens = tokens.unwrap_or_default();
        let bos = tokens.bos.or(of_tokenizer.bos).unwrap_or_default();
        let eos = tokens.eos.or(of_tokenizer.eos).unwrap_or_default();
        ChatTemplate::from_source(source, bos, eos).map(Some)
    }

    /// A template the operator names, for a model with this tokenizer.
    ///
    /// # Errors
    /// [`TextError`] if the file cannot be read or parsed.
    pub fn from_file(path: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate, TextError> {
        let tokens = SpecialTokens::of(tokenizer);
        let (bos, eos) = (
            tokens.bos.unwrap_or_default(),
            tokens.eos.unwrap_or_default(),
        );
        ChatTemplate::from_source(read_template(path)?, bos, eos)
    }

    /// Compiles a template; `bos_token` and `eos_token` are texts it may use.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`].
    pub fn from_source(
        source: String,
        bos_token: String,
        eos_token: String,
    ) -> Result<ChatTemplate, TextError> {
        let environment = template::environment(source)?;
        Ok(ChatTemplate {
            environment,
            bos_token,
            eos_token,
        })
    }

    /// Writes the conversation as the model expects it.
    ///
    /// # Errors
    /// [`TextError::TemplateRaised`] if the template refuses the conversation;
    /// [`TextError::TemplateFailed`], [`TextError::TemplateTooLong`] if it does not get through;
    /// [`TextError::ReservedKwarg`], [`TextError::ContinueFinalMessage`] for impossible options.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: &RenderOptions,
    ) -> Result<String, TextError> {
        if let Some(name) = RESERVED
            .iter()
            .find(|name| options.kwargs.contains_key(**name))
        {
            return Err(TextError::ReservedKwarg {
                name: (*name).to_owned(),
            });
        }
        let last = final_message(messages, options)?;
        let add_generation_prompt = options.add_generation_prompt;
        let variables = [
            ("messages", Value::from(Serde(messages))),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("bos_token", self.bos_token.as_str().into()),
            ("eos_token", self.eos_token.as_str().into()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        let kwargs = options.kwargs.iter();
        let kwargs = kwargs.map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        let mut text = template::render(&self.environment, variables.into_iter().chain(kwargs))?;
        if let Some(last) = last {
            cut_after(&mut text, last)?;
        }
        Ok(text)
    }
}

/// The message to continue, if that was asked for.
fn final_message<'a>(
    messages: &'a [ChatMessage],
    options: &RenderOptions,
) -> Result<Option<&'a str>, TextError> {
    if !options.continue_final_message {
        return Ok(None);
    }
    let reason = match messages.last() {
        _ if options.add_generation_prompt => "it excludes add_generation_prompt",
        None => "there is no message",
        Some(last) if last.content.trim().is_empty() => "the last message is empty",
        Some(last) => return Ok(Some(&last.content)),
    };
    Err(TextError::ContinueFinalMessage { reason })
}

/// Removes what the template wrote after the last message's text. Templates may have trimmed it:
/// then the text ends where the trimmed message does.
fn cut_after(text: &mut String, message: &str) -> Result<(), TextError> {
    let reason = "the template leaves the last message out";
    let at = text
        .rfind(message.trim())
        .ok_or(TextError::ContinueFinalMessage { reason })?;
    let untrimmed = message.trim_start();
    let kept = if text[at..].starts_with(untrimmed) {
        untrimmed
    } else {
        message.trim()
    };
    text.truncate(at + kept.len());
    Ok(())
}

/// Texts of the tokens templates put at the begin and the end.
#[derive(Debug, Default)]
struct SpecialTokens {
    bos: Option<String>,
    eos: Option<String>,
}

impl SpecialTokens {
    fn of(tokenizer: &Tokenizer) -> SpecialTokens {
        let text = |id| tokenizer.token_text(id);
        SpecialTokens {
            bos: tokenizer.bos().map(text),
            eos: tokenizer.eos_ids().first().copied().map(text),
        }
    }
}

fn folder_template(folder: &Path) -> Result<(Option<String>, Option<SpecialTokens>), TextError> {
    let settings = tokenizer_config(folder)?;
    let tokens = settings.as_ref().map(|settings| {
        let text = |key| special_text(settings, key).map(str::to_owned);
        SpecialTokens {
            bos: text("bos_token"),
            eos: text("eos_token"),
        }
    });
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        return Ok((Some(read_template(&file)?), tokens));
    }
    let source = match settings
        .as_ref()
        .and_then(|settings| settings.get("chat_template"))
    {
        Some(serde_json::Value::String(source)) => Some(source.clone()),
        // Several by name; the one called `default` is for plain conversations.
        Some(serde_json::Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(serde_json::Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    };
    Ok((source, tokens))
}

fn read_template(path: &Path) -> Result<String, TextError> {
    let bytes = read_bounded(path, MAX_TEMPLATE_BYTES)?;
    let not_utf8 = |error: std::string::FromUtf8Error| TextError::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    String::from_utf8(bytes).map_err(not_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(
        source: &str,
        messages: &[(&str, &str)],
        options: &RenderOptions,
    ) -> Result<String, TextError> {
        let template =
            ChatTemplate::from_source(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?;
        let message = |(role, content): &(&str, &str)| ChatMessage {
            role: (*role).to_owned(),
            content: (*content).to_owned(),
            name: None,
        };
        template.render(&messages.iter().map(message).collect::<Vec<_>>(), options)
    }

    fn plain(source: &str) -> Result<String, TextError> {
        render(source, &[("user", "hi")], &RenderOptions::default())
    }

    #[test]
    fn blocks_leave_no_lines_and_no_indentation() {
        let source = "{% for m in messages %}\n    {% if true %}\n[{{ m.role }}]{{ m['content'] }}\n    {% endif %}\n{% endfor %}\nend";
        assert_eq!(plain(source).unwrap(), "[user]hi\nend");
    }

    #[test]
    fn python_spellings_work() {
        for (source, expected) in [
            ("{{ ' a '.strip() + 'B'.lower() }}", "ab"),
            ("{{ messages[-1].content.split('i')[0] }}", "h"),
            ("{{ messages[0].get('name', 'nobody') }}", "nobody"),
            (
                "{% if messages[0].content is string and tools is none %}y{% endif %}",
                "y",
            ),
            (
                "{{ none }} {{ true }} {{ 1 }} {{ 0.5 }} {{ missing }}|",
                "None True 1 0.5 |",
            ),
            (
                "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = 5 %}{% endfor %}{{ ns.n }}",
                "5",
            ),
            (
                "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "01",
            ),
            (
                "{{ bos_token }}{% generation %}x{% endgeneration -%}  {{ eos_token }}",
                "<s>x</s>",
            ),
            ("{{ {'a': [1, 'é<&']} | tojson }}", r#"{"a": [1, "é<&"]}"#),
            ("{{ {'a': 1} | tojson(indent=2) }}", "{\n  \"a\": 1\n}"),
            ("{{ strftime_now('%Y') | length }}", "4"),
        ] {
            assert_eq!(plain(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn a_template_that_refuses_is_told_from_one_that_fails() {
        let refused = plain("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(
            matches!(refused, TextError::TemplateRaised { message } if message == "roles must alternate")
        );
        let failed = plain("{{ messages.nothing.here }}").unwrap_err();
        assert!(
            matches!(failed, TextError::TemplateFailed { .. }),
            "{failed}"
        );
        let syntax = plain("{% if %}").unwrap_err();
        assert!(
            matches!(syntax, TextError::TemplateSyntax { .. }),
            "{syntax}"
        );
        assert!(matches!(
            plain("{{ strftime_now('%Q%') }}"),
            Err(TextError::TemplateFailed { .. })
        ));
    }

    #[test]
    fn templates_that_do_not_end_are_errors() {
        let turning =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(matches!(
            plain(turning),
            Err(TextError::TemplateFailed { .. })
        ));
        let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(matches!(
            plain(recursive),
            Err(TextError::TemplateFailed { .. })
        ));
        let writing = "{% set x = 'y' * 100000 %}{% for a in range(9999) %}{{ x }}{% endfor %}";
        assert!(matches!(
            plain(writing),
            Err(TextError::TemplateTooLong { .. })
        ));
    }

    #[test]
    fn a_template_reads_no_files() {
        assert!(plain("{% include '/etc/passwd' %}").is_err());
        assert!(plain("{% import '/etc/passwd' as x %}").is_err());
    }

    const CHATML: &str = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content.strip() + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

    #[test]
    fn the_last_message_can_be_continued() {
        let messages = [("user", "the end"), ("assistant", " I say the end ")];
        let mut options = RenderOptions {
            continue_final_message: true,
            ..Default::default()
        };
        let text = render(CHATML, &messages, &options).unwrap();
        assert_eq!(text, "<|user|>the end<|end|><|assistant|>I say the end");
        options.add_generation_prompt = true;
        assert!(render(CHATML, &messages, &options).is_err());
        options = RenderOptions {
            continue_final_message: true,
            ..Default::default()
        };
        assert!(render(CHATML, &[], &options).is_err());
        assert!(render("nothing", &messages, &options).is_err());
    }

    #[test]
    fn arguments_reach_the_template_but_replace_nothing() {
        let kwargs = |name: &str| RenderOptions {
            kwargs: Map::from_iter([(name.to_owned(), serde_json::Value::Bool(false))]),
            ..Default::default()
        };
        let source = "{% if thinking is defined and not thinking %}off{% endif %}";
        assert_eq!(render(source, &[], &kwargs("thinking")).unwrap(), "off");
        for name in RESERVED {
            let error = render(source, &[], &kwargs(name)).unwrap_err();
            assert!(error.to_string().contains(name));
        }
    }
}
