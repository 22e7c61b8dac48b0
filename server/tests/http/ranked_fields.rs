//! The fields of ranked requests: accepted where they have an effect, refused by name elsewhere.

use serde_json::{Value, json};

use crate::ranked::valid;
use crate::support::{CHAT, COMPLETIONS, Server, Setup, choices, with};

#[tokio::test]
async fn fields_of_ranked_requests_are_accepted_where_they_have_an_effect() {
    let server = Server::new();
    for (extra, num_choices) in [
        (json!({"best_of": 4}), 1),
        (json!({"best_of": 4, "n": 3}), 3),
        (json!({"best_of": 2, "n": 2, "stream": false}), 2),
        (json!({"best_of": 32}), 1),
        (json!({"use_beam_search": true}), 1),
        (json!({"use_beam_search": true, "n": 16}), 16),
        (
            json!({"use_beam_search": true, "n": 2, "temperature": 0}),
            2,
        ),
        (
            json!({"use_beam_search": true, "n": 2, "temperature": 1}),
            2,
        ),
        (
            json!({"use_beam_search": true, "n": 2, "best_of": 5, "length_penalty": -1.5}),
            2,
        ),
        (
            json!({"use_beam_search": true, "n": 3, "early_stopping": true}),
            3,
        ),
        (
            json!({"use_beam_search": true, "n": 3, "early_stopping": "never", "length_penalty": 2}),
            3,
        ),
        (
            json!({"use_beam_search": true, "n": 2, "stop": ["a"], "repetition_penalty": 1.2}),
            2,
        ),
        (
            json!({"use_beam_search": true, "n": 2, "allowed_token_ids": [40, 41]}),
            2,
        ),
    ] {
        for path in [COMPLETIONS, CHAT] {
            let answer = server.post(path, with(valid(path), &extra)).await.ok();
            assert_eq!(choices(&answer).len(), num_choices, "{path} {extra}");
            let is_ranked = extra["use_beam_search"] == true || extra["n"] != extra["best_of"];
            let scored = choices(&answer).iter().filter(|c| c["score"].is_number());
            assert_eq!(
                scored.count(),
                if is_ranked { num_choices } else { 0 },
                "{extra}"
            );
        }
    }
    server.until_idle().await;
}

#[tokio::test]
async fn fields_that_do_not_go_with_a_ranked_request_are_refused_by_name() {
    let server = Server::new();
    let beams = |field: &str, value: Value| {
        let mut body = json!({"use_beam_search": true, "n": 2});
        body[field] = value;
        body
    };
    let cases = [
        ("best_of", json!({"n": 3, "best_of": 2})),
        ("best_of", json!({"best_of": 0})),
        ("best_of", json!({"best_of": 33})),
        ("best_of", json!({"best_of": u64::MAX})),
        ("best_of", json!({"best_of": "2"})),
        ("best_of", json!({"best_of": 2, "stream": true})),
        ("best_of", json!({"best_of": 2, "temperature": 0})),
        (
            "best_of",
            json!({"best_of": 3, "n": 2, "use_beam_search": true, "stream": true}),
        ),
        ("best_of", beams("best_of", json!(17))),
        ("best_of", beams("best_of", json!(1))),
        ("n", beams("n", json!(17))),
        ("n", json!({"n": 2, "temperature": 0})),
        ("use_beam_search", json!({"use_beam_search": "true"})),
        ("use_beam_search", json!({"use_beam_search": {}})),
        ("length_penalty", json!({"length_penalty": 0})),
        (
            "length_penalty",
            json!({"length_penalty": 2, "best_of": 3, "use_beam_search": false}),
        ),
        ("length_penalty", beams("length_penalty", json!(10.5))),
        ("length_penalty", beams("length_penalty", json!(-11))),
        ("length_penalty", beams("length_penalty", json!(1e39))),
        ("length_penalty", beams("length_penalty", json!([1]))),
        ("early_stopping", json!({"early_stopping": true})),
        ("early_stopping", json!({"early_stopping": "never"})),
        ("early_stopping", beams("early_stopping", json!("always"))),
        ("early_stopping", beams("early_stopping", json!(0))),
        ("temperature", beams("temperature", json!(0.7))),
        ("top_p", beams("top_p", json!(0.9))),
        ("top_k", beams("top_k", json!(5))),
        ("min_p", beams("min_p", json!(0.1))),
        (
            "stop_token_ids",
            beams("stop_token_ids", json!((0..65).collect::<Vec<u32>>())),
        ),
        (
            "allowed_token_ids",
            beams("allowed_token_ids", json!([40, 40])),
        ),
    ];
    for path in [COMPLETIONS, CHAT] {
        for (field, extra) in &cases {
            let answer = server.post(path, with(valid(path), extra)).await;
            let (status, param, message) = answer.error();
            assert_eq!(status, 400, "{path} {extra}: {message}");
            assert_eq!(
                param.as_deref(),
                Some(*field),
                "{path} {extra:.80}: {message}"
            );
            assert!(message.contains(field), "{message}");
        }
        server.post(path, valid(path)).await.ok();
    }
    let stats = server.stats();
    assert_eq!(stats.finished.length, 2, "only the valid ones ran");
    server.until_idle().await;
}

#[tokio::test]
async fn prompts_times_generated_sequences_are_bounded() {
    let server = Server::new();
    let prompts = vec!["a"; 33];
    for (extra, field) in [
        (json!({"n": 32}), "n"),
        (json!({"best_of": 32}), "best_of"),
        (
            json!({"prompt": vec!["a"; 65], "best_of": 16, "use_beam_search": true}),
            "best_of",
        ),
    ] {
        let body = with(json!({"prompt": prompts, "max_tokens": 1}), &extra);
        let (status, param, message) = server.post(COMPLETIONS, body).await.error();
        assert_eq!(
            (status, param.as_deref()),
            (400, Some(field)),
            "{extra}: {message}"
        );
        assert!(message.contains("1024"), "{message}");
    }
}

#[tokio::test]
async fn sequences_that_the_cache_can_never_hold_together_are_refused_at_once() {
    let mut setup = Setup::default();
    setup.engine.num_blocks = 40;
    let server = Server::with(setup);
    let body = json!({"prompt": "a b c", "max_tokens": 100, "best_of": 8});
    let (status, param, message) = server.post(COMPLETIONS, &body).await.error();
    assert_eq!((status, param.as_deref()), (400, Some("max_tokens")));
    assert!(message.contains("40"), "{message}");
    for extra in [json!({"best_of": 2}), json!({"max_tokens": 20})] {
        server
            .post(COMPLETIONS, with(body.clone(), &extra))
            .await
            .ok();
    }
    server.until_idle().await;
}
