//! A `pageloom serve` of our own, and requests to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::Setup;
use super::child::Running;
use super::peers::Resident;

/// Between two looks whether it answers: bounds what the time to readiness is off by.
const POLL: Duration = Duration::from_millis(5);
/// Longest time from launch to ready.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Longest answer; on one thread a batch of 64 takes a minute.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// A server that answers. It is ended when this is dropped.
pub(super) struct Server {
    running: Running,
    port: u16,
    /// From its launch until it answered.
    pub(super) ready: Duration,
    /// What it printed about itself.
    pub(super) summary: String,
}

impl Server {
    /// Starts a server with these flags and waits until it answers.
    ///
    /// # Errors
    /// If it cannot be started, or ends or hangs before it answers.
    pub(super) fn start(setup: &Setup, flags: &[String]) -> anyhow::Result<Server> {
        let mut command = Command::new(&setup.pageloom);
        let port = free_port()?;
        command.args(["serve", "--port", &port.to_string(), "--model"]);
        command.arg(&setup.model).args(flags);
        if !flags.iter().any(|flag| flag == "--threads") {
            command.args(["--threads", &setup.threads.to_string()]);
        }
        let mut running = Running::start(command)?;
        let ready = loop {
            // Refused until the port is open, then answered once the model is loaded.
            if send(port, "GET", "/health", "").is_ok_and(|(status, _)| status == 200) {
                break running.elapsed();
            }
            running.check()?;
            if running.elapsed() > READY_LIMIT {
                bail!("it did not answer within {} s", READY_LIMIT.as_secs());
            }
            std::thread::sleep(POLL);
        };
        let lines = running.new_lines();
        let summary: Vec<String> = lines.into_iter().map(|line| line.text).collect();
        Ok(Server {
            running,
            port,
            ready,
            summary: summary.join("\n"),
        })
    }

    /// Posts JSON and returns the answer's.
    ///
    /// # Errors
    /// If there is none, or its status is not 200.
    pub(super) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, body) = send(self.port, "POST", path, &body.to_string())?;
        let text = String::from_utf8_lossy(&body);
        ensure!(status == 200, "{path} answered {status}: {text}");
        serde_json::from_slice(&body).with_context(|| format!("{path} answered no JSON: {text}"))
    }

    /// Bytes of the process that are resident.
    ///
    /// # Errors
    /// Where there is no `/proc`.
    pub(super) fn resident(&self) -> anyhow::Result<Resident> {
        let path = format!("/proc/{}/status", self.running.id());
        let status =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            Ok(1024 * kib.with_context(|| format!("{path} has no {name}"))?)
        };
        Ok(Resident {
            all: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            file: field("RssFile:")?,
        })
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("there is no free port")?;
    Ok(listener.local_addr()?.port())
}

/// One request over a connection of its own: the status and the body.
///
/// HTTP/1.0: the answer is as long as the connection.
fn send(port: u16, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    split_answer(&answer)
}

fn split_answer(answer: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.context("the answer has no end of its head")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.split_whitespace().nth(1);
    let status = status.and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no status in {head:?}"))?;
    Ok((status, answer[end + 4..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_split_into_status_and_body() {
        let (status, body) = split_answer(b"HTTP/1.0 200 OK\r\na: b\r\n\r\n{}\r\n\r\n").unwrap();
        assert_eq!((status, body.as_slice()), (200, &b"{}\r\n\r\n"[..]));
        assert!(split_answer(b"HTTP/1.0 200").is_err());
        assert!(split_answer(b"nothing of the kind\r\n\r\n").is_err());
    }
}
