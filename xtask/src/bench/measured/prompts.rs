//! Real prompts from a file.

use std::path::Path;

use anyhow::{Context, ensure};
use pageloom_engine::text::Tokenizer;
use pageloom_model_runner::TokenId;
use serde::Deserialize;

use crate::bench::csv::read_text;

/// What a prompt file has on each line.
#[derive(Deserialize)]
struct Line {
    instruction: String,
    #[serde(default)]
    input: String,
    /// The answer, if its tokens are not counted.
    output: Option<String>,
    output_tokens: Option<usize>,
}

/// A prompt, and how long each of its answers is made.
pub(super) struct Task {
    pub(super) prompt: Vec<TokenId>,
    pub(super) num_output_tokens: usize,
}

/// Reads at most `most` tasks of at most `context` tokens, evenly from the whole file: a line of
/// JSON each, which may be gzip.
///
/// # Errors
/// Names the file, and the line that is no such JSON or without an answer.
pub(super) fn read_tasks(
    path: &Path,
    tokenizer: &Tokenizer,
    (most, context): (usize, usize),
) -> anyhow::Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for line in read_lines(path)? {
        let task = task(line, tokenizer)?;
        if task.fits(context) {
            tasks.push(task);
        }
    }
    ensure!(
        !tasks.is_empty(),
        "{} has no prompts that fit {context} tokens",
        path.display()
    );
    let stride = tasks.len().div_ceil(most.max(1));
    Ok(tasks.into_iter().step_by(stride).collect())
}

fn read_lines(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = read_text(path)?;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let at = || format!("{}, line {number}", path.display());
        let line: Line = serde_json::from_str(line).with_context(at)?;
        let has_answer = line.output_tokens.is_some() || line.output.is_some();
        ensure!(has_answer, "{}: neither `output_tokens` nor `output`", at());
        lines.push(line);
    }
    Ok(lines)
}

fn task(line: Line, tokenizer: &Tokenizer) -> anyhow::Result<Task> {
    let text = match line.input.as_str() {
        "" => line.instruction,
        input => format!("{}\n{input}", line.instruction),
    };
    let num_output_tokens = match line.output_tokens {
        Some(num_tokens) => num_tokens,
        None => tokenizer
            .encode(&line.output.unwrap_or_default(), false)?
            .len(),
    };
    Ok(Task {
        prompt: tokenizer.encode(&text, false)?,
        num_output_tokens,
    })
}

impl Task {
    fn fits(&self, context: usize) -> bool {
        let num_tokens = self.prompt.len().saturating_add(self.num_output_tokens);
        !self.prompt.is_empty() && self.num_output_tokens > 0 && num_tokens <= context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Vec<Line>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("prompts.jsonl");
        std::fs::write(&path, text)?;
        read_lines(&path)
    }

    #[test]
    fn lines_have_an_answer_or_its_length() {
        let text = "{\"instruction\": \"Sing.\", \"output\": \"La.\"}\n\n\
            {\"instruction\": \"Add.\", \"input\": \"1, 2\", \"output_tokens\": 7, \"source\": \"x\"}";
        let lines = read(text).unwrap();
        assert_eq!(lines[0].output.as_deref(), Some("La."));
        assert_eq!(
            (lines[1].input.as_str(), lines[1].output_tokens),
            ("1, 2", Some(7))
        );
    }

    #[test]
    fn bad_lines_are_refused_by_number() {
        let good = "{\"instruction\": \"Sing.\", \"output\": \"La.\"}\n";
        for (bad, why) in [
            ("{\"instruction\": \"Sing.\"}", "output_tokens"),
            ("{\"input\": \"La.\"}", "instruction"),
            ("{\"instruction\": \"Sing.\", \"output_tokens\": -1}", "-1"),
        ] {
            let error = format!("{:#}", read(&format!("{good}{bad}")).err().unwrap());
            assert!(error.contains("line 2") && error.contains(why), "{error}");
        }
    }
}
