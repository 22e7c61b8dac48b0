//! How far answers are from the references: log-probabilities of real texts, and chats.
//!
//! Pageloom is asked over HTTP, as a client would, so that a mode is exactly what its flags make it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Setup;
use super::peers::{Engine, OpenVinoLine};
use super::server::Server;

/// Most candidates a position that the API gives.
const TOP: usize = 20;

/// The recorded answers of the same weights in f32.
#[derive(Deserialize)]
pub(super) struct References {
    greedy: Vec<GreedyRow>,
    score: Vec<ScoreRow>,
}

#[derive(Deserialize)]
struct GreedyRow {
    kind: String,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct ScoreRow {
    ids: Vec<u32>,
    /// Of `ids[1..]`.
    logprob: Vec<f64>,
    top5_ids: Vec<Vec<u32>>,
    top5_logprob: Vec<Vec<f64>>,
}

impl References {
    /// # Errors
    /// If the file cannot be read or its rows contradict themselves.
    pub(super) fn read(path: &Path) -> anyhow::Result<References> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let references: References = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} holds no references", path.display()))?;
        for (index, row) in references.score.iter().enumerate() {
            let lens = [row.ids.len().saturating_sub(1), row.logprob.len()];
            ensure!(
                lens[0] == lens[1]
                    && row.top5_ids.len() >= lens[1]
                    && row
                        .top5_ids
                        .iter()
                        .map(Vec::len)
                        .eq(row.top5_logprob.iter().map(Vec::len))
                    && row.top5_ids.iter().all(|ids| !ids.is_empty()),
                "{}: score row {index} contradicts itself",
                path.display()
            );
        }
        Ok(references)
    }
}

/// How an engine's answers compare with the references.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub(super) struct Accuracy {
    num_positions: usize,
    /// Sum of |difference of log-probability| of the texts' own tokens.
    difference: f64,
    /// Positions at which the likeliest token is the same, if they are known.
    num_best_equal: Option<usize>,
    /// Sum over positions and the five listed tokens of p (log p - log q), if q is known.
    divergence: Option<f64>,
    /// Listed tokens that were not among the candidates: the last candidate's stands for them.
    num_unlisted: usize,
    num_chats: usize,
    num_same_sentences: usize,
    /// First sentences that differ: ours, theirs.
    differing: Vec<(String, String)>,
}

impl Accuracy {
    /// Mean of |difference of log-probability|.
    pub(super) fn mean_difference(&self) -> f64 {
        self.difference / self.num_positions as f64
    }

    /// Share of positions.
    pub(super) fn best_equal(&self) -> Option<f64> {
        Some(self.num_best_equal? as f64 / self.num_positions as f64)
    }

    /// Mean over positions.
    pub(super) fn mean_divergence(&self) -> Option<f64> {
        Some(self.divergence? / self.num_positions as f64)
    }

    pub(super) fn all_sentences_same(&self) -> bool {
        self.num_same_sentences == self.num_chats
    }

    /// Cells of a table: difference, best equal, divergence, sentences.
    pub(super) fn cells(&self) -> [String; 4] {
        let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        [
            format!("{:.4}", self.mean_difference()),
            or_dash(
                self.best_equal()
                    .map(|share| format!("{:.2} %", 100.0 * share)),
            ),
            or_dash(self.mean_divergence().map(|mean| format!("{mean:.1e}"))),
            format!("{} of {}", self.num_same_sentences, self.num_chats),
        ]
    }

    /// What the numbers leave out.
    pub(super) fn remarks(&self) -> Vec<String> {
        let differs = |(expected, found): &(String, String)| {
            format!("first sentence {found:?} where the reference has {expected:?}")
        };
        let mut remarks: Vec<String> = self.differing.iter().map(differs).collect();
        if self.num_unlisted > 0 {
            remarks.push(format!(
                "{} listed tokens were not among the {TOP} likeliest",
                self.num_unlisted
            ));
        }
        remarks
    }

    fn add_chat(&mut self, expected: &str, found: &str) {
        let (expected, found) = (first_sentence(expected), first_sentence(found));
        self.num_chats += 1;
        if expected == found {
            self.num_same_sentences += 1;
        } else {
            self.differing.push((expected.to_owned(), found.to_owned()));
        }
    }
}

/// Up to the first mark that ends a sentence, or the first line.
fn first_sentence(text: &str) -> &str {
    let text = text.trim_start();
    let bytes = text.as_bytes();
    let ends = |(i, c): (usize, char)| match c {
        '\n' => Some(i),
        '.' | '!' | '?' => {
            let next = bytes.get(i + 1);
            next.is_none_or(u8::is_ascii_whitespace).then_some(i + 1)
        }
        _ => None,
    };
    let end = text.char_indices().find_map(ends).unwrap_or(text.len());
    text[..end].trim_end()
}

/// Log-probabilities of the candidates of a position, by token.
type Position = BTreeMap<u32, Candidate>;

#[derive(Deserialize)]
struct Candidate {
    logprob: f64,
    rank: u32,
}

/// Asks a Pageloom with these flags.
///
/// # Errors
/// If it cannot be started or does not answer.
pub(super) fn of_pageloom(
    setup: &Setup,
    flags: &[String],
    references: &References,
) -> anyhow::Result<Accuracy> {
    let server = Server::start(setup, flags)?;
    let mut accuracy = Accuracy {
        num_best_equal: Some(0),
        divergence: Some(0.0),
        ..Accuracy::default()
    };
    for row in references.greedy.iter().filter(|row| row.kind == "chat") {
        let body = json!({
            "prompt": row.prompt_ids,
            "max_tokens": row.output_ids.len(),
            "temperature": 0,
        });
        let answer = server.post("/v1/completions", &body)?;
        let text = answer["choices"][0]["text"].as_str();
        accuracy.add_chat(&row.text, text.context("an answer without text")?);
    }
    for row in &references.score {
        let body = json!({
            "prompt": row.ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": TOP,
        });
        let mut answer = server.post("/v1/completions", &body)?;
        add_scores(
            &mut accuracy,
            row,
            answer["choices"][0]["prompt_logprobs"].take(),
        )?;
    }
    Ok(accuracy)
}

fn add_scores(accuracy: &mut Accuracy, row: &ScoreRow, scores: Value) -> anyhow::Result<()> {
    let positions: Vec<Option<Position>> =
        serde_json::from_value(scores).context("prompt_logprobs of another shape")?;
    ensure!(
        positions.len() == row.ids.len(),
        "{} positions for {} tokens",
        positions.len(),
        row.ids.len()
    );
    for (at, expected) in row.logprob.iter().enumerate() {
        let found = positions[at + 1].as_ref();
        let found = found.context("a position without candidates")?;
        let own = found
            .get(&row.ids[at + 1])
            .context("a token without its own score")?;
        accuracy.num_positions += 1;
        accuracy.difference += (own.logprob - expected).abs();
        let best = found.iter().find(|(_, candidate)| candidate.rank == 1);
        let is_best = best.is_some_and(|(id, _)| *id == row.top5_ids[at][0]);
        accuracy.num_best_equal = accuracy.num_best_equal.map(|n| n + usize::from(is_best));
        let last = found.values().map(|candidate| candidate.logprob);
        let last = last.fold(f64::INFINITY, f64::min);
        for (id, log_p) in row.top5_ids[at].iter().zip(&row.top5_logprob[at]) {
            let listed = found.get(id);
            accuracy.num_unlisted += usize::from(listed.is_none());
            let log_q = listed.map_or(last, |candidate| candidate.logprob);
            accuracy.divergence = accuracy
                .divergence
                .map(|sum| sum + log_p.exp() * (log_p - log_q));
        }
    }
    Ok(())
}

/// Asks a peer that can tell: OpenVINO, of the texts' own tokens. `None` if it cannot.
pub(super) fn of_peer(
    setup: &Setup,
    engine: &Engine,
    references: &References,
) -> Option<anyhow::Result<Accuracy>> {
    let lines = match engine.answer_references(setup)? {
        Ok(lines) => lines,
        Err(error) => return Some(Err(error)),
    };
    let mut accuracy = Accuracy::default();
    for line in &lines {
        match OpenVinoLine::parse(line) {
            Some(OpenVinoLine::Score { index, logprob }) => {
                let Some(row) = references.score.get(index) else {
                    continue;
                };
                for (found, expected) in logprob.iter().zip(&row.logprob) {
                    accuracy.num_positions += 1;
                    accuracy.difference += (found - expected).abs();
                }
            }
            Some(OpenVinoLine::Chat { index, text }) => {
                if let Some(row) = references.greedy.get(index) {
                    accuracy.add_chat(&row.text, &text);
                }
            }
            _ => {}
        }
    }
    let expected: usize = references.score.iter().map(|row| row.logprob.len()).sum();
    Some(match accuracy.num_positions == expected {
        true => Ok(accuracy),
        false => Err(anyhow::anyhow!(
            "it scored {} positions of {expected}",
            accuracy.num_positions
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_ends_at_its_mark_not_inside_a_number() {
        assert_eq!(first_sentence("It is 3.14. Or not."), "It is 3.14.");
        assert_eq!(first_sentence("\nA list:\n1. one"), "A list:");
        assert_eq!(first_sentence("No end"), "No end");
        assert_eq!(first_sentence(""), "");
    }

    #[test]
    fn equal_answers_have_no_difference_and_others_have_the_right_one() {
        let row = ScoreRow {
            ids: vec![3, 4],
            logprob: vec![-0.5],
            top5_ids: vec![vec![4, 5]],
            top5_logprob: vec![vec![-0.5, -1.5]],
        };
        let scores = |own: f64, other: f64| {
            let rank = |first: bool| if first { 1 } else { 2 };
            json!([null, {
                "4": {"logprob": own, "rank": rank(own > other), "decoded_token": "a"},
                "5": {"logprob": other, "rank": rank(other > own), "decoded_token": "b"},
            }])
        };
        let compare = |own, other| {
            let mut accuracy = Accuracy {
                num_best_equal: Some(0),
                divergence: Some(0.0),
                ..Accuracy::default()
            };
            add_scores(&mut accuracy, &row, scores(own, other)).unwrap();
            accuracy
        };
        let equal = compare(-0.5, -1.5);
        assert_eq!(
            (equal.mean_difference(), equal.best_equal()),
            (0.0, Some(1.0))
        );
        assert_eq!(equal.mean_divergence(), Some(0.0));
        let other = compare(-1.0, -0.9);
        assert_eq!(
            (other.mean_difference(), other.best_equal()),
            (0.5, Some(0.0))
        );
        let divergence = (-0.5f64).exp() * 0.5 + (-1.5f64).exp() * -0.6;
        assert!((other.mean_divergence().unwrap() - divergence).abs() < 1e-12);
    }
}
