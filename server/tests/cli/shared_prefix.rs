//! `--shared-prefix` and `--step-log`.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Server, failure, run};

fn body(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).expect("JSON")
}

fn cached_tokens(answer: &Value) -> u64 {
    let details = &answer["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().expect("a number")
}

/// Blocks of the shared prefixes that are computed.
fn num_resident_blocks(server: &Server) -> f64 {
    let metrics = server.answer("GET", "/metrics", "");
    let mut lines = metrics.lines();
    let resident = lines.find(|line| line.starts_with("pageloom:resident_blocks{"));
    let (_, value) = resident.expect("a gauge").rsplit_once(' ').unwrap();
    value.parse().unwrap()
}

#[test]
fn prompts_and_chats_that_begin_with_a_shared_prefix_find_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = "It was the best of times, it was the worst of times. ".repeat(2);
    let system = json!({"role": "system", "content": "Answer in one word, and be kind about it."});
    fs::write(path("prefix.txt"), &text).unwrap();
    fs::write(path("chat.json"), json!({"messages": [system]}).to_string()).unwrap();
    let mut server = Server::start(&[
        "--shared-prefix",
        &path("prefix.txt"),
        "--shared-prefix",
        &path("chat.json"),
        "--step-log",
        &path("log"),
    ]);
    assert!(
        server.banner.contains("shared prefixes "),
        "{}",
        server.banner
    );
    // Requests are taken before the prefixes are computed.
    let deadline = Instant::now() + Duration::from_secs(60);
    while num_resident_blocks(&server) < 2.0 {
        assert!(Instant::now() < deadline, "prefixes are not computed");
    }
    let request = json!({"prompt": format!("{text}And then"), "max_tokens": 4});
    let answer = body(&server.answer("POST", "/v1/completions", &request.to_string()));
    assert!(cached_tokens(&answer) >= 16, "{answer}");
    let chat = json!({
        "messages": [system, {"role": "user", "content": "How are you?"}],
        "max_tokens": 4,
    });
    let answer = body(&server.answer("POST", "/v1/chat/completions", &chat.to_string()));
    assert!(cached_tokens(&answer) >= 16, "{answer}");
    let num_resident = num_resident_blocks(&server);

    server.signal("TERM");
    assert!(server.child.wait().unwrap().success());
    let log = fs::read_to_string(path("log")).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let steps: Vec<_> = lines
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=lines.len() as u64).collect::<Vec<_>>());
    let sum = |field: &str| {
        lines
            .iter()
            .map(|line| line[field].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(sum("generated_tokens"), 8);
    assert!(sum("prefix_hit_tokens") >= 32);
    assert!(
        lines
            .iter()
            .all(|line| line["time_s"].as_f64().unwrap() > 0.0)
    );
    assert_eq!(
        lines.last().unwrap()["physical_blocks"].as_f64(),
        Some(num_resident)
    );
}

#[test]
fn a_shared_prefix_that_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.txt");
    fs::write(&path, "many words, ".repeat(60)).unwrap();
    let path = path.to_str().unwrap();
    let serve = ["serve", "--port", "0", "--shared-prefix", path];
    let message = failure(&run(&serve));
    assert!(message.contains("shared prefix 0 has"), "{message}");
    fs::write(path, "many words, ".repeat(20)).unwrap();
    let small = [&serve[..], &["--kv-cache-memory-bytes", "20K"]].concat();
    let message = failure(&run(&small));
    assert!(message.contains("--shared-prefix: "), "{message}");
    fs::write(path, [0xff, 0xfe]).unwrap();
    let message = failure(&run(&serve));
    assert!(message.contains("UTF-8"), "{message}");
}
