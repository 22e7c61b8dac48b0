//! `/v1/chat/completions`: shapes, streams, messages.

use serde_json::{Value, json};

use crate::support::{Server, Setup, joined};

const PATH: &str = "/v1/chat/completions";

fn body() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "seed": 5, "ignore_eos": true})
}

#[tokio::test]
async fn an_answer_is_a_message() {
    let server = Server::new();
    let answer = server.post(PATH, body()).await.ok();
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!(
        (&choice["finish_reason"], &choice["logprobs"]),
        (&json!("length"), &Value::Null)
    );
    assert_eq!(answer["usage"]["completion_tokens"], 20);
    // The prompt is what the template makes of the messages.
    let messages = json!({"messages": body()["messages"]});
    let tokens = server.post("/tokenize", messages).await.ok();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens["count"]);
    server.until_idle().await;
}

#[tokio::test]
async fn the_same_conversation_again_is_cached_streamed_or_not() {
    let server = Server::new();
    let mut request = body();
    request["messages"][0]["content"] = json!("a long question ".repeat(8));
    let cached = |usage: &Value| {
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        (cached.unwrap(), usage["prompt_tokens"].as_u64().unwrap())
    };
    let (first, len) = cached(&server.post(PATH, &request).await.ok()["usage"]);
    assert_eq!(first, 0);
    // Whole blocks of 16, and at least one token is computed.
    let again = ((len - 1) / 16 * 16, len);
    assert!(again.0 >= 32, "{len}");
    assert_eq!(
        cached(&server.post(PATH, &request).await.ok()["usage"]),
        again
    );
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let chunks = server.post(PATH, &request).await.chunks();
    assert_eq!(cached(&chunks.last().unwrap()["usage"]), again);
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let server = Server::new();
    let mut request = body();
    request["n"] = json!(2);
    request["logprobs"] = json!(true);
    request["top_logprobs"] = json!(2);
    let whole = server.post(PATH, &request).await.ok();
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let mut chunks = server.post(PATH, &request).await.chunks();
    let last = chunks.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][key], whole["usage"][key]);
    }
    assert!(
        chunks
            .iter()
            .all(|c| c["object"] == "chat.completion.chunk" && c["usage"].is_null())
    );
    for choice in whole["choices"].as_array().unwrap() {
        let index = choice["index"].as_u64().unwrap() as usize;
        let mine: Vec<&Value> = chunks
            .iter()
            .flat_map(|c| c["choices"].as_array().unwrap())
            .filter(|c| c["index"] == index)
            .collect();
        assert_eq!(
            mine[0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        assert!(mine[1..].iter().all(|c| c["delta"].get("role").is_none()));
        let text = joined(&chunks, index, |c| &c["delta"]["content"]);
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
        let (end, rest) = mine.split_last().unwrap();
        assert_eq!(end["finish_reason"], choice["finish_reason"]);
        assert!(rest.iter().all(|c| c["finish_reason"].is_null()));
        let scores: Vec<Value> = mine
            .iter()
            .flat_map(|c| {
                c["logprobs"]["content"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
            })
            .collect();
        assert_eq!(scores, *choice["logprobs"]["content"].as_array().unwrap());
    }
}

#[tokio::test]
async fn log_probabilities_have_bytes_and_alternatives() {
    let server = Server::new();
    let mut request = body();
    request["logprobs"] = json!(true);
    request["top_logprobs"] = json!(3);
    let answer = server.post(PATH, &request).await.ok();
    let scores = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(scores.len(), 20);
    for score in scores {
        assert_eq!(score["top_logprobs"].as_array().unwrap().len(), 3);
        for entry in score["top_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .chain([score])
        {
            assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
            assert!(entry["token"].is_string() && entry["bytes"].is_array());
        }
    }
    request.as_object_mut().unwrap().remove("top_logprobs");
    let answer = server.post(PATH, &request).await.ok();
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["top_logprobs"], json!([]));
}

#[tokio::test]
async fn parts_of_text_are_joined_and_the_last_message_can_be_continued() {
    let server = Server::new();
    let count = async |request: Value| {
        let answer = server.post(PATH, &request).await.ok();
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let mut parts = body();
    parts["messages"][0]["content"] =
        json!([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]);
    assert_eq!(count(parts).await, count(body()).await);
    let mut ended = body();
    ended["messages"] =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]);
    let mut open = ended.clone();
    open["continue_final_message"] = json!(true);
    assert!(count(open.clone()).await < count(ended).await);
    open["add_generation_prompt"] = json!(true);
    let (status, param, _) = server.post(PATH, &open).await.error();
    assert_eq!(
        (status, param.as_deref()),
        (400, Some("continue_final_message"))
    );
}

#[tokio::test]
async fn without_max_tokens_an_answer_may_fill_the_context() {
    let server = Server::new();
    let mut request = body();
    request.as_object_mut().unwrap().remove("max_tokens");
    let usage = server.post(PATH, &request).await.ok()["usage"].take();
    assert_eq!(usage["total_tokens"], 512);
    request["max_completion_tokens"] = json!(3);
    let usage = server.post(PATH, &request).await.ok()["usage"].take();
    assert_eq!(usage["completion_tokens"], 3);
}

#[tokio::test]
async fn a_model_without_a_template_says_so() {
    let server = Server::with(Setup {
        template: false,
        ..Setup::default()
    });
    let (status, param, message) = server.post(PATH, body()).await.error();
    assert_eq!((status, param.as_deref()), (400, Some("messages")));
    assert!(message.contains("--chat-template"), "{message}");
}
