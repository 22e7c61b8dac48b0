//! The binary as a user starts it, on a model small enough for any machine.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-runner/tests/models/smollm2")
}

fn pageloom(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pageloom"));
    command.args(args).env_remove("PAGELOOM_API_KEY");
    command
}

/// Runs a command on the tiny model.
fn run(args: &[&str]) -> Output {
    let model = tiny_model();
    let mut command = pageloom(args);
    command.args(["--model", model.to_str().unwrap(), "--threads", "1"]);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard error of a command that must fail as a command, not as a crash.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output.stderr)
}

/// A `pageloom serve` that is up.
struct Server {
    child: Child,
    address: String,
    out: BufReader<std::process::ChildStdout>,
    /// What it printed before its address.
    banner: String,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let model = tiny_model();
        let mut child = pageloom(&["serve", "--port", "0", "--threads", "1"])
            .args(["--model", model.to_str().unwrap()])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut server = Server {
            child,
            address: String::new(),
            out,
            banner: String::new(),
        };
        while server.address.is_empty() {
            let mut line = String::new();
            let read = server.out.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended: {}", server.banner);
            match line.trim().split_once("http://") {
                Some((_, address)) => server.address = address.to_owned(),
                None => server.banner.push_str(&line),
            }
        }
        server
    }

    /// Sends a request and returns the connection, on which the answer comes.
    fn request(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        socket
    }

    fn answer(&self, method: &str, path: &str, body: &str) -> String {
        let mut answer = String::new();
        self.request(method, path, body)
            .read_to_string(&mut answer)
            .unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn serve_says_what_it_serves_and_answers() {
    let server = Server::start(&[
        "--kv-cache-memory-bytes",
        "1M",
        "--served-model-name",
        "small",
        "--swap-space",
        "0.001953125",
    ]);
    for part in [
        "smollm2",
        "weights",
        "KV cache",
        "blocks of 16 tokens, swap space 2.0 MiB = ",
        "256 tokens",
        "at once",
    ] {
        assert!(
            server.banner.contains(part),
            "{part} is not in {}",
            server.banner
        );
    }
    assert!(
        server
            .answer("GET", "/health", "")
            .starts_with("HTTP/1.1 200")
    );
    let body = r#"{"model": "small", "prompt": "hi", "max_tokens": 4, "temperature": 0}"#;
    let answer = server.answer("POST", "/v1/completions", body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(r#""model":"small""#), "{answer}");
}

#[test]
fn sigterm_finishes_what_runs_and_then_exits() {
    let mut server = Server::start(&[]);
    let body = r#"{"prompt": "hi", "max_tokens": 200, "ignore_eos": true, "stream": true}"#;
    let mut socket = BufReader::new(server.request("POST", "/v1/completions", body));
    let mut answer = String::new();
    while !answer.contains("data: ") {
        assert!(socket.read_line(&mut answer).unwrap() > 0, "{answer}");
    }
    server.signal("TERM");
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#""finish_reason":"length""#), "{answer}");
    assert!(answer.contains("data: [DONE]"), "{answer}");
    assert!(server.child.wait().unwrap().success());
    let mut rest = String::new();
    server.out.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("stopping"), "{rest}");
    assert!(TcpStream::connect(&server.address).is_err());
}

#[test]
fn a_port_in_use_is_one_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let message = failure(&run(&["serve", "--port", &port]));
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(
        message.contains(&port) && message.contains("in use"),
        "{message}"
    );
}

#[test]
fn generate_prints_text_or_one_json_object() {
    let args = [
        "generate",
        "--prompt",
        "hi",
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        "--ignore-eos",
    ];
    let plain = run(&args);
    assert!(plain.status.success(), "{plain:?}");
    let json = run(&[&args[..], &["--json"]].concat());
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(report["finish_reason"], "length");
    assert!(report["timing"]["first_token_s"].as_f64().unwrap() > 0.0);
    assert_eq!(
        text(&plain.stdout),
        format!("{}\n", report["text"].as_str().unwrap())
    );
    // The chat template makes another prompt of it.
    let chat = run(&[&args[..], &["--json", "--chat", "--system", "be brief"]].concat());
    let chat: Value = serde_json::from_slice(&chat.stdout).unwrap();
    let len = |report: &Value| report["prompt_token_ids"].as_array().unwrap().len();
    assert!(len(&chat) > len(&report));
}

/// Numbers and texts of what `generate` printed: each text stands below `[number]`.
fn listed(output: &Output) -> Vec<(String, String)> {
    assert!(output.status.success(), "{output:?}");
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text(&output.stdout).lines() {
        if line.starts_with(&format!("[{}]", all.len() + 1)) {
            all.push((line.to_owned(), String::new()));
        } else {
            let (_, text) = all.last_mut().expect("a number comes first");
            text.push_str(line);
            text.push('\n');
        }
    }
    all
}

#[test]
fn generate_prints_several_sequences_with_the_best_first() {
    let ask = ["generate", "--prompt", "hi", "--max-tokens", "12"];
    for (flags, num_choices, is_ranked) in [
        (&["--n", "3", "--seed", "1"][..], 3, false),
        (&["--n", "2", "--best-of", "4", "--seed", "1"], 2, true),
        (
            &["--n", "3", "--beam-search", "--temperature", "0"],
            3,
            true,
        ),
        (
            &[
                "--beam-search",
                "--best-of",
                "4",
                "--length-penalty",
                "-0.5",
                "--early-stopping",
                "never",
            ],
            1,
            true,
        ),
        // Longer than all together have room for: cut to what there is.
        (
            &["--n", "5", "--seed", "1", "--max-tokens", "100000"],
            5,
            false,
        ),
    ] {
        let args = [&ask[..3], flags, &ask[3..]].concat();
        let args = if flags.contains(&"--max-tokens") {
            [&ask[..3], flags].concat()
        } else {
            args
        };
        let output = run(&[&args[..], &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let choices = report["choices"].as_array().unwrap();
        assert_eq!(choices.len(), num_choices, "{flags:?}");
        for field in ["text", "token_ids", "finish_reason", "score"] {
            assert_eq!(report[field], choices[0][field], "{flags:?}");
        }
        let scores: Vec<f64> = choices.iter().filter_map(|c| c["score"].as_f64()).collect();
        assert_eq!(scores.len(), if is_ranked { num_choices } else { 0 });
        assert!(scores.is_sorted_by(|a, b| a >= b), "{flags:?}: {scores:?}");
        assert!(report["timing"]["first_token_s"].as_f64().unwrap() > 0.0);
        let printed = listed(&run(&args));
        assert_eq!(printed.len(), num_choices);
        for ((head, text), choice) in printed.iter().zip(choices) {
            let score = choice["score"]
                .as_f64()
                .map(|score| format!(" score {score:.4}"));
            assert!(
                head.ends_with(&score.unwrap_or_else(|| "]".to_owned())),
                "{head}"
            );
            let expected: String = choice["text"].as_str().unwrap().lines().collect();
            assert_eq!(text.lines().collect::<String>(), expected, "{flags:?}");
        }
    }
    // One that is not ranked is at the top of the object and in the list.
    let one = run(&[&ask[..], &["--json"]].concat());
    let one: Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!(one["choices"].as_array().unwrap().len(), 1);
    assert_eq!(one["choices"][0]["text"], one["text"]);
}

#[test]
fn bench_prints_a_line_for_each_batch_size() {
    let sizes = [
        "--batch-sizes",
        "1,3",
        "--prompt-len",
        "20",
        "--output-len",
        "5",
    ];
    let output = run(&[&["bench"], &sizes[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 2, "{lines}");
    for (line, size) in lines.lines().zip(["1", "3"]) {
        assert!(
            line.starts_with(&format!("RES B={size} prefill ")),
            "{line}"
        );
        assert_eq!(line.matches(" tok/s").count(), 3, "{line}");
    }
    let json = run(&[&["bench", "--json"], &sizes[..]].concat());
    let first: Value = serde_json::from_str(text(&json.stdout).lines().next().unwrap()).unwrap();
    assert!(first["decode"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_cannot_be_done_is_an_error_that_says_why() {
    for (args, part) in [
        (&["serve", "--device", "cuda"][..], "CUDA"),
        (
            &["serve", "--port", "0", "--max-model-len", "100000"],
            "256",
        ),
        (
            &["serve", "--port", "0", "--kv-cache-memory-bytes", "1K"],
            "--kv-cache-memory-bytes",
        ),
        (
            &["serve", "--port", "0", "--kv-cache-memory-bytes", "900T"],
            "available",
        ),
        (
            &["serve", "--port", "0", "--swap-space", "900000"],
            "--swap-space of 900000.00 GiB is more than",
        ),
        (
            &["generate", "--prompt", "a", "--swap-space", "1e-9"],
            "--swap-space of 1 B is less than one block",
        ),
        (
            &["serve", "--port", "0", "--max-num-seqs", "0"],
            "--max-num-seqs",
        ),
        (
            &["serve", "--port", "0", "--chat-template", "/no/such/file"],
            "/no/such/file",
        ),
        (&["generate", "--prompt", ""], "prompt"),
        (
            &["generate", "--prompt", "a", "--temperature", "9"],
            "temperature",
        ),
        (
            &["generate", "--prompt", "a", "--temperature", "NaN"],
            "temperature",
        ),
        (&["generate", "--prompt", "a", "--n", "0"], "--n 0"),
        (
            &["generate", "--prompt", "a", "--n", "1000000000"],
            "--n 1000000000: must be between 1 and 128",
        ),
        (
            &["generate", "--prompt", "a", "--n", "3", "--best-of", "2"],
            "--best-of 2: must be between --n (3)",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--best-of",
                "17",
                "--beam-search",
            ],
            "--best-of 17: must be at most 16",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--n",
                "2",
                "--temperature",
                "0",
            ],
            "--n 2: all would be equal",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--beam-search",
                "--temperature",
                "0.5",
            ],
            "--temperature 0.5",
        ),
        (
            &["generate", "--prompt", "a", "--beam-search", "--top-k", "5"],
            "top_k",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--beam-search",
                "--length-penalty",
                "NaN",
            ],
            "length_penalty",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--n",
                "4",
                "--max-num-seqs",
                "3",
            ],
            "--n 4: --max-num-seqs",
        ),
        (
            &[
                "generate",
                "--prompt",
                "a",
                "--n",
                "8",
                "--max-tokens",
                "200",
                "--kv-cache-memory-bytes",
                "64K",
            ],
            "--max-tokens",
        ),
        (&["bench", "--batch-sizes", "0"], "--batch-sizes"),
        (&["bench", "--output-len", "1"], "--output-len"),
    ] {
        let message = failure(&run(args));
        assert!(
            message.starts_with("error: ") && message.contains(part),
            "{args:?}: {message}"
        );
        assert!(!message.contains("panicked"), "{args:?}: {message}");
    }
    for space in ["-1", "NaN", "inf", "4GiB"] {
        let output = run(&["generate", "--prompt", "a", "--swap-space", space]);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{space}: {message}");
        assert!(message.contains("--swap-space"), "{space}: {message}");
        assert!(message.contains("GiB"), "{space}: {message}");
    }
    for args in [["--length-penalty", "2"], ["--early-stopping", "true"]] {
        let output = run(&[&["generate", "--prompt", "a"], &args[..]].concat());
        let message = text(&output.stderr);
        assert!(
            !output.status.success() && message.contains("--beam-search"),
            "{message}"
        );
    }
    for model in ["/no/such/model.gguf", "nonsense", "a/b/c"] {
        let output = pageloom(&["generate", "--prompt", "a", "--model", model])
            .output()
            .unwrap();
        assert!(failure(&output).contains(model));
    }
}
