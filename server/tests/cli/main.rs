//! The binary as a user starts it, on a model small enough for any machine.
#![cfg(unix)]

mod errors;
mod generate;
mod pinning;
mod shared_prefix;

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
