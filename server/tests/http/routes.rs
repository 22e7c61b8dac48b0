//! Everything that is not a completion: keys, paths, bodies, the small endpoints.

use axum::body::Body;
use axum::http::Request;
use pageloom::api::routes;
use serde_json::{Value, json};

use crate::support::{Server, Setup, post};

fn request(method: &str, path: &str) -> axum::http::request::Builder {
    // A route's pattern as a path that it matches.
    let path = path.replace("{*name}", "org/tiny");
    Request::builder().method(method).uri(path)
}

#[tokio::test]
async fn no_route_but_health_answers_without_the_key() {
    let server = Server::with(Setup {
        api_keys: vec!["secret".to_owned(), "other".to_owned()],
        ..Setup::default()
    });
    let paths: Vec<(&str, &str)> = routes()
        .into_iter()
        .chain([("GET", "/"), ("GET", "/docs"), ("PUT", "/health/")])
        .collect();
    assert!(paths.len() >= 12);
    for (method, path) in paths {
        for key in [
            None,
            Some("Bearer wrong"),
            Some("Bearer "),
            Some("secret"),
            Some("Basic secret"),
            Some("Bearer secre"),
        ] {
            let mut builder = request(method, path);
            if let Some(key) = key {
                builder = builder.header("authorization", key);
            }
            let answer = server.send(builder.body(Body::from("{}")).unwrap()).await;
            if path == "/health" {
                assert_eq!(answer.status, 200);
            } else {
                assert_eq!(answer.error().0, 401, "{method} {path} with {key:?}");
                assert_eq!(answer.headers["www-authenticate"], "Bearer");
            }
        }
        for key in ["Bearer secret", "bearer other"] {
            let builder = request(method, path).header("authorization", key);
            let answer = server.send(builder.body(Body::from("{}")).unwrap()).await;
            assert_ne!(answer.status, 401, "{method} {path} with {key}");
        }
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_in_form() {
    let server = Server::new();
    for path in [
        "/",
        "/v1",
        "/v1/embeddings",
        "/v2/completions",
        "/v1/completions/",
        "/%00",
        "/v1/../metrics",
    ] {
        assert_eq!(server.get(path).await.error().0, 404, "{path}");
    }
    for (method, path) in [
        ("GET", "/v1/completions"),
        ("POST", "/metrics"),
        ("DELETE", "/v1/models"),
        ("BREW", "/version"),
    ] {
        let answer = server
            .send(request(method, path).body(Body::empty()).unwrap())
            .await;
        assert_eq!(answer.error().0, 405, "{method} {path}");
        assert!(answer.headers.contains_key("allow"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_and_not_kept() {
    let server = Server::with(Setup {
        max_body_bytes: 1000,
        ..Setup::default()
    });
    let body = |bytes: usize| json!({"prompt": "a", "max_tokens": 1, "user": "x".repeat(bytes)});
    server.post("/v1/completions", body(900)).await.ok();
    for bytes in [1000, 10_000_000] {
        for path in [
            "/v1/completions",
            "/v1/chat/completions",
            "/tokenize",
            "/detokenize",
        ] {
            assert_eq!(server.post(path, body(bytes)).await.error().0, 413);
        }
    }
    // The same without a length announced: a stream of chunks.
    let chunk = || Ok::<_, std::io::Error>("x".repeat(600));
    let chunks = futures_util::stream::iter([chunk(), chunk()]);
    let endless = post("/tokenize", "").map(|_| Body::from_stream(chunks));
    assert_eq!(server.send(endless).await.error().0, 413);
    server.post("/v1/completions", body(900)).await.ok();
}

#[tokio::test]
async fn a_body_must_say_that_it_is_json() {
    let server = Server::new();
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonx"),
    ] {
        let mut builder = Request::post("/v1/completions");
        if let Some(kind) = kind {
            builder = builder.header("content-type", kind);
        }
        let request = builder.body(Body::from(r#"{"prompt": "a"}"#)).unwrap();
        assert_eq!(server.send(request).await.error().0, 415, "{kind:?}");
    }
    let request = Request::post("/v1/completions")
        .header("content-type", "Application/JSON; charset=utf-8")
        .body(Body::from(r#"{"prompt": "a"}"#))
        .unwrap();
    server.send(request).await.ok();
}

#[tokio::test]
async fn models_are_listed_under_every_name() {
    let server = Server::new();
    let list = server.get("/v1/models").await.ok();
    let names: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(names, [&json!("tiny"), &json!("org/tiny")]);
    assert_eq!(list["data"][0]["max_model_len"], 512);
    assert_eq!(
        server.get("/v1/models/org/tiny").await.ok()["id"],
        "org/tiny"
    );
    assert_eq!(server.get("/v1/models/other").await.error().0, 404);
    assert_eq!(
        server.get("/version").await.ok()["version"],
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn text_survives_tokenize_and_detokenize() {
    let server = Server::new();
    for text in ["hello world", "héllo ✓ 你好 🙂", " leading", ""] {
        let body = json!({"prompt": text, "add_special_tokens": false, "return_token_strs": true});
        let tokens = server.post("/tokenize", body).await.ok();
        assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
        assert_eq!(
            tokens["token_strs"].as_array().unwrap().len(),
            tokens["count"]
        );
        assert_eq!(tokens["max_model_len"], 512);
        let back = json!({"tokens": tokens["tokens"]});
        assert_eq!(server.post("/detokenize", back).await.ok()["prompt"], text);
    }
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 1}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "x": 1}), "x"),
        ("/tokenize", json!({"prompt": "a", "model": "no"}), "model"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [1_000_000]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
    ] {
        assert_eq!(
            server.post(path, body).await.error().1.as_deref(),
            Some(param)
        );
    }
}

/// Names and labels of all series, without their values.
async fn series(server: &Server) -> Vec<String> {
    let text = server.get("/metrics").await.text;
    let mut names: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn metrics_have_the_names_dashboards_read() {
    let server = Server::new();
    let answer = server.get("/metrics").await;
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("application/openmetrics-text"));
    assert!(answer.text.ends_with("# EOF\n"));
    let body = json!({"prompt": "a", "max_tokens": 5, "ignore_eos": true});
    server.post("/v1/completions", body).await.ok();
    server.until_idle().await;
    let text = server.get("/metrics").await.text;
    let labels = r#"model_name="tiny",engine="0""#;
    for line in [
        format!("vllm:generation_tokens_total{{{labels}}} 5"),
        format!("vllm:num_requests_running{{{labels}}} 0"),
        format!("vllm:num_requests_waiting{{{labels}}} 0"),
        format!("vllm:time_to_first_token_seconds_count{{{labels}}} 1"),
    ] {
        assert!(
            text.lines().any(|l| l == line || l == format!("{line}.0")),
            "{line} is not in\n{text}"
        );
    }
    for name in [
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:request_success_total",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_sum",
        "vllm:request_queue_time_seconds_bucket",
        "vllm:request_prefill_time_seconds_bucket",
        "vllm:request_decode_time_seconds_bucket",
        "vllm:iteration_tokens_total_bucket",
        "vllm:cache_config_info",
    ] {
        assert!(
            text.lines().any(|l| l.starts_with(&format!("{name}{{"))),
            "{name} is not in\n{text}"
        );
    }
    let finished = text
        .lines()
        .find(|l| l.contains(r#"finished_reason="length""#))
        .unwrap();
    assert!(finished.ends_with(" 1"), "{finished}");
}

#[tokio::test]
async fn no_request_adds_a_series_to_the_metrics() {
    let server = Server::new();
    let before = series(&server).await;
    assert!(before.len() > 50);
    for i in 0..50 {
        let method = format!("M{i}");
        server
            .send(
                request(&method, &format!("/p{i}"))
                    .body(Body::empty())
                    .unwrap(),
            )
            .await;
        server
            .send(request(&method, "/v1/models").body(Body::empty()).unwrap())
            .await;
        server.get(&format!("/v1/models/m{i}?q={i}")).await;
        let body = json!({"prompt": "a", "max_tokens": 1, "user": format!("u{i}"), "cache_salt": format!("s{i}"), "request_id": format!("r{i}")});
        server.post("/v1/completions", body).await.ok();
        server
            .post(
                "/v1/completions",
                json!({"prompt": "a", "model": format!("m{i}")}),
            )
            .await;
    }
    assert_eq!(series(&server).await, before);
}
