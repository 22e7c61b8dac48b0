//! Programs that are run: their output, a limit to their time, and their end.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How often a child is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);
/// Lines of standard error that a failure is told with.
const TOLD_LINES: usize = 6;

/// A line of standard output, and when it came, counted from the launch.
pub(super) struct Line {
    pub(super) text: String,
    pub(super) at: Duration,
}

/// A program under way. It is ended when this is dropped.
pub(super) struct Running {
    child: Child,
    name: String,
    started: Instant,
    lines: Receiver<Line>,
    errors: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts a program.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(mut command: Command) -> anyhow::Result<Running> {
        let name = command.get_program().to_string_lossy().into_owned();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let stderr = child.stderr.take().context("standard error is piped")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let at = started.elapsed();
                if send.send(Line { text, at }).is_err() {
                    break;
                }
            }
        });
        // Read to the end, or the program would wait for a reader.
        let errors = std::thread::spawn(move || last_lines(stderr));
        Ok(Running {
            child,
            name,
            started,
            lines,
            errors: Some(errors),
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Lines that have come since the last call.
    pub(super) fn new_lines(&self) -> Vec<Line> {
        self.lines.try_iter().collect()
    }

    /// The reason if it has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait().context("cannot ask for its status")? {
            None => Ok(()),
            Some(status) => {
                let errors = self.errors();
                bail!("{} ended ({status}): {errors}", self.name)
            }
        }
    }

    /// Waits for its end, no longer than `limit` after the launch, and returns what it printed.
    ///
    /// # Errors
    /// If it fails, with the last it said, or takes longer.
    pub(super) fn finish(mut self, limit: Duration) -> anyhow::Result<Vec<Line>> {
        let status = loop {
            if let Some(status) = self.child.try_wait().context("cannot ask for its status")? {
                break status;
            }
            if self.elapsed() > limit {
                bail!("{} took longer than {} s", self.name, limit.as_secs());
            }
            std::thread::sleep(POLL);
        };
        if !status.success() {
            let errors = self.errors();
            bail!("{} failed ({status}): {errors}", self.name);
        }
        Ok(self.lines.iter().collect())
    }

    fn errors(&mut self) -> String {
        let errors = self.errors.take();
        errors.and_then(|thread| thread.join().ok()).map_or_else(
            || "nothing on standard error".to_owned(),
            |text| match text.is_empty() {
                true => "nothing on standard error".to_owned(),
                false => text,
            },
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_lines(stderr: impl Read) -> String {
    let mut last = std::collections::VecDeque::new();
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            continue;
        }
        if last.len() == TOLD_LINES {
            last.pop_front();
        }
        last.push_back(text);
    }
    Vec::from(last).join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command).unwrap()
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_last_words() {
        let failed = shell("echo begun; echo no such model >&2; exit 3").finish(Duration::MAX);
        let message = failed.map(drop).unwrap_err().to_string();
        assert!(
            message.contains("no such model") && message.contains('3'),
            "{message}"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let began = Instant::now();
        let late = shell("exec sleep 60").finish(Duration::from_millis(50));
        assert!(late.is_err() && began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn lines_come_with_their_time_and_in_order() {
        let lines = shell("echo one; echo two").finish(Duration::MAX).unwrap();
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["one", "two"]);
        assert!(lines[0].at <= lines[1].at);
    }
}
