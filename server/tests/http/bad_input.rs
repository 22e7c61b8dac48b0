//! Whatever a client sends: 4xx in OpenAI's form that names the field, and the next request works.

use serde_json::{Value, json};

use crate::support::Server;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn valid(path: &str) -> Value {
    match path {
        COMPLETIONS => json!({"prompt": "a b", "max_tokens": 3}),
        _ => json!({"messages": [{"role": "user", "content": "a b"}], "max_tokens": 3}),
    }
}

async fn still_serves(server: &Server, after: &str) {
    let answer = server.post(COMPLETIONS, valid(COMPLETIONS)).await;
    assert_eq!(
        answer.ok()["usage"]["completion_tokens"],
        3,
        "after {after}"
    );
}

/// Fields of both endpoints with values that are refused, and the field the error names.
fn table() -> Vec<(&'static str, Value)> {
    let long = "x".repeat(5000);
    let no_such_token = json!([1_000_000]);
    vec![
        ("temperature", json!(-1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("1")),
        ("temperature", json!(true)),
        ("temperature", json!([])),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_p", json!({})),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("top_k", json!(1u64 << 40)),
        ("min_p", json!(-0.1)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(3)),
        ("presence_penalty", json!("0")),
        ("frequency_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(-1)),
        ("repetition_penalty", json!(1e300)),
        ("length_penalty", json!(2)),
        ("length_penalty", json!("long")),
        ("early_stopping", json!(true)),
        ("early_stopping", json!("soon")),
        ("n", json!(0)),
        ("n", json!(-1)),
        ("n", json!(1000)),
        ("n", json!(4_000_000_000u64)),
        ("n", json!(u64::MAX)),
        ("n", json!("2")),
        ("best_of", json!(0)),
        ("best_of", json!(-1)),
        ("best_of", json!("2")),
        ("best_of", json!(1_000_000_000)),
        ("best_of", json!(u64::MAX)),
        ("seed", json!("7")),
        ("seed", json!(0.5)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(513)),
        ("max_tokens", json!(u64::MAX)),
        ("max_tokens", json!("3")),
        ("min_tokens", json!(-1)),
        ("min_tokens", json!(4)),
        ("min_tokens", json!(u64::MAX)),
        ("stop", json!("")),
        ("stop", json!([""])),
        ("stop", json!(1)),
        ("stop", json!([["a"]])),
        ("stop", json!(long)),
        ("stop", json!(vec!["a"; 1000])),
        ("stop_token_ids", no_such_token.clone()),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", json!("a")),
        ("stop_token_ids", json!(vec![1; 5000])),
        ("allowed_token_ids", no_such_token),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!({})),
        ("logit_bias", json!({"1000000": 1})),
        ("logit_bias", json!({"one": 1})),
        ("logit_bias", json!({"1": 1000})),
        ("logit_bias", json!({"1": "1"})),
        ("logit_bias", json!([1])),
        ("prompt_logprobs", json!(21)),
        ("prompt_logprobs", json!(-1)),
        ("truncate_prompt_tokens", json!(0)),
        ("truncate_prompt_tokens", json!(1_000_000)),
        ("truncate_prompt_tokens", json!(-2)),
        ("stream", json!("yes")),
        ("stream", json!(1)),
        ("stream_options", json!({"include_usage": true})),
        ("stream_options", json!("usage")),
        ("cache_salt", json!("")),
        ("cache_salt", json!(5)),
        ("cache_salt", json!(long)),
        ("request_id", json!(long)),
        ("request_id", json!("a\nb")),
        ("ignore_eos", json!(1)),
        ("skip_special_tokens", json!("no")),
        ("add_special_tokens", json!(0)),
        ("include_stop_str_in_output", json!("x")),
        ("return_token_ids", json!("x")),
        ("priority", json!(1)),
        ("use_beam_search", json!("yes")),
        ("use_beam_search", json!(1)),
        ("bad_words", json!(["a"])),
        ("response_format", json!({"type": "json_object"})),
        ("structured_outputs", json!({"json": {}})),
        ("model", json!(7)),
        ("no_such_field", json!(1)),
        ("guided_json", json!({})),
        ("lora_request", json!({})),
    ]
}

#[tokio::test]
async fn a_field_with_a_bad_value_is_refused_by_name_and_harms_nobody() {
    let server = Server::new();
    for path in [COMPLETIONS, CHAT] {
        for (field, value) in table() {
            let mut body = valid(path);
            body[field] = value.clone();
            let answer = server.post(path, &body).await;
            let (status, param, message) = answer.error();
            let shown = value.to_string();
            let what = format!("{path} {field} = {:.60}: {message}", shown);
            assert!((400..500).contains(&status), "{what}");
            let named = param.unwrap_or_else(|| panic!("no field is named: {what}"));
            assert_eq!(named, field, "{what}");
            assert!(message.contains(field), "{what}");
            still_serves(&server, &what).await;
        }
    }
    server.until_idle().await;
}

#[tokio::test]
async fn fields_of_one_endpoint_are_refused_by_name() {
    let server = Server::new();
    let cases = [
        (COMPLETIONS, "logprobs", json!(true)),
        (COMPLETIONS, "logprobs", json!(21)),
        (COMPLETIONS, "suffix", json!("end")),
        (COMPLETIONS, "echo", json!("yes")),
        (COMPLETIONS, "messages", json!([])),
        (COMPLETIONS, "prompt", json!([])),
        (COMPLETIONS, "prompt", json!(null)),
        (COMPLETIONS, "prompt", json!(1)),
        (COMPLETIONS, "prompt", json!({"a": 1})),
        (COMPLETIONS, "prompt", json!([[]])),
        (COMPLETIONS, "prompt", json!([1, -1])),
        (COMPLETIONS, "prompt", json!([1_000_000])),
        (COMPLETIONS, "prompt", json!([1, "a"])),
        (COMPLETIONS, "prompt", json!(vec![1; 1000])),
        (COMPLETIONS, "prompt", json!(vec!["a"; 5000])),
        (CHAT, "logprobs", json!(5)),
        (CHAT, "top_logprobs", json!(2)),
        (CHAT, "top_logprobs", json!(-1)),
        (CHAT, "max_completion_tokens", json!(0)),
        (CHAT, "tools", json!([{"type": "function"}])),
        (CHAT, "tool_choice", json!("required")),
        (CHAT, "functions", json!([{}])),
        (CHAT, "echo", json!(true)),
        (CHAT, "modalities", json!(["audio"])),
        (CHAT, "reasoning_effort", json!("high")),
        (CHAT, "chat_template", json!("{{ 1 }}")),
        (CHAT, "chat_template_kwargs", json!({"messages": []})),
        (CHAT, "chat_template_kwargs", json!(3)),
        (CHAT, "add_generation_prompt", json!("x")),
        (CHAT, "messages", json!([])),
        (CHAT, "messages", json!(null)),
        (CHAT, "messages", json!("hi")),
        (
            CHAT,
            "messages",
            json!([{"role": "user", "content": "x ".repeat(2000)}]),
        ),
    ];
    for (path, field, value) in cases {
        let mut body = valid(path);
        body[field] = value;
        let (status, param, message) = server.post(path, &body).await.error();
        assert!((400..500).contains(&status), "{path} {field}: {message}");
        assert_eq!(param.as_deref(), Some(field), "{path}: {message}");
    }
    let both = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "max_completion_tokens": 2});
    assert_eq!(
        server.post(CHAT, both).await.error().1.as_deref(),
        Some("max_tokens")
    );
    still_serves(&server, "the table").await;
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let server = Server::new();
    let not_a_number = r#"{"prompt": "a", "temperature": NaN}"#;
    let deep = format!(
        r#"{{"prompt": {}1{}}}"#,
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    for (body, param) in [
        ("", None),
        ("hello", None),
        ("[1]", None),
        ("null", None),
        (r#"{"prompt": "a""#, None),
        (r#"{"prompt": "a"} {"#, None),
        (not_a_number, Some("temperature")),
        (deep.as_str(), Some("prompt")),
        (r#"{"prompt": "\ud800"}"#, Some("prompt")),
    ] {
        for path in [COMPLETIONS, CHAT, "/tokenize", "/detokenize"] {
            let (status, got, message) = server.post(path, body).await.error();
            assert_eq!(status, 400, "{path} {body:.60}: {message}");
            if path == COMPLETIONS {
                assert_eq!(got.as_deref(), param, "{body:.60}: {message}");
            }
        }
    }
    still_serves(&server, "the bodies").await;
}

#[tokio::test]
async fn a_model_that_is_not_served_is_not_found() {
    let server = Server::new();
    for path in [COMPLETIONS, CHAT] {
        let mut body = valid(path);
        body["model"] = json!("gpt-5");
        let (status, param, message) = server.post(path, &body).await.error();
        assert_eq!((status, param.as_deref()), (404, Some("model")));
        assert!(
            message.contains("gpt-5") && message.contains("tiny"),
            "{message}"
        );
        body["model"] = json!("org/tiny");
        assert_eq!(server.post(path, &body).await.ok()["model"], "org/tiny");
    }
}

#[tokio::test]
async fn values_that_change_nothing_are_accepted() {
    let server = Server::new();
    let inert = json!({
        "best_of": 1, "use_beam_search": false, "length_penalty": 1.0, "early_stopping": false, "priority": 0, "bad_words": [],
        "response_format": {"type": "text"}, "user": "u", "metadata": {"k": "v"}, "store": true,
        "service_tier": "auto", "logit_bias": {}, "stop": [], "stop_token_ids": [], "suffix": null,
        "structured_outputs": null, "stream_options": null, "top_k": -1, "seed": -5, "logit_processors": null
    });
    for path in [COMPLETIONS, CHAT] {
        let mut body = valid(path);
        for (name, value) in inert.as_object().unwrap() {
            body[name] = value.clone();
        }
        server.post(path, &body).await.ok();
    }
    let mut body = valid(CHAT);
    body["tools"] = json!([]);
    body["tool_choice"] = json!("none");
    body["parallel_tool_calls"] = json!(true);
    server.post(CHAT, &body).await.ok();
}
