//! Best of many samples.

use crate::{FinishReason, GeneratedToken, OutputDelta};

/// Keeps the sequences of a request until the last has ended, and then picks the best.
pub(crate) struct Ranking {
    /// Whether the client asked for log-probabilities; the ranking needs them in any case.
    keep_logprobs: bool,
    outputs: Vec<OutputDelta>,
    num_open: usize,
}

impl Ranking {
    pub(crate) fn new(num_seqs: usize, keep_logprobs: bool) -> Self {
        let output = |index| OutputDelta {
            index,
            ..OutputDelta::default()
        };
        Ranking {
            keep_logprobs,
            outputs: (0..num_seqs).map(output).collect(),
            num_open: num_seqs,
        }
    }

    /// Takes in news of a sequence. Once all have ended, the `n` best of them: those with the
    /// highest mean log-probability, before those that failed.
    pub(crate) fn take(&mut self, delta: OutputDelta, n: usize) -> Option<Vec<OutputDelta>> {
        let output = &mut self.outputs[delta.index];
        self.num_open -= usize::from(delta.finish.is_some());
        output.append(delta);
        (self.num_open == 0).then(|| self.best(n))
    }

    fn best(&mut self, n: usize) -> Vec<OutputDelta> {
        for output in &mut self.outputs {
            output.score = mean_logprob(&output.tokens);
            if !self.keep_logprobs {
                output.tokens.iter_mut().for_each(|t| t.logprobs = None);
            }
        }
        let mut ranked = std::mem::take(&mut self.outputs);
        // Stable, so that of equal ones the first comes first.
        ranked.sort_by(|a, b| {
            let by_failure = has_failed(a).cmp(&has_failed(b));
            let score = |output: &OutputDelta| output.score.unwrap_or(f64::NEG_INFINITY);
            by_failure.then(score(b).total_cmp(&score(a)))
        });
        ranked.truncate(n);
        for (index, output) in ranked.iter_mut().enumerate() {
            output.index = index;
        }
        ranked
    }
}

fn has_failed(output: &OutputDelta) -> bool {
    matches!(
        output.finish,
        Some(FinishReason::Abort | FinishReason::Error(_))
    )
}

/// `None` without tokens.
fn mean_logprob(tokens: &[GeneratedToken]) -> Option<f64> {
    let logprobs = tokens.iter().filter_map(|token| token.logprobs.as_ref());
    let sum: f64 = logprobs.map(|l| f64::from(l.logprob)).sum();
    (!tokens.is_empty()).then(|| sum / tokens.len() as f64)
}

#[cfg(test)]
mod tests {
    use pageloom_model_runner::TokenLogprobs;

    use super::*;

    fn delta(index: usize, logprobs: &[f32], finish: Option<FinishReason>) -> OutputDelta {
        let token = |&logprob: &f32| GeneratedToken {
            id: 7,
            logprobs: Some(TokenLogprobs {
                logprob,
                ..TokenLogprobs::default()
            }),
        };
        OutputDelta {
            index,
            text: index.to_string(),
            tokens: logprobs.iter().map(token).collect(),
            finish,
            score: None,
        }
    }

    #[test]
    fn the_likeliest_by_the_token_come_first_and_failures_last() {
        let mut ranking = Ranking::new(4, false);
        let length = || Some(FinishReason::Length);
        assert_eq!(ranking.take(delta(0, &[-3.0], None), 3), None);
        assert_eq!(ranking.take(delta(0, &[-1.0], length()), 3), None);
        // Less likely in all, more likely by the token.
        assert_eq!(ranking.take(delta(1, &[-1.5; 4], length()), 3), None);
        let failed = Some(FinishReason::Error("why".to_owned()));
        assert_eq!(ranking.take(delta(3, &[-0.1], failed), 3), None);
        let best = ranking
            .take(delta(2, &[-9.0], length()), 3)
            .expect("all ended");
        let got: Vec<_> = best.iter().map(|o| (o.index, &*o.text, o.score)).collect();
        assert_eq!(
            got,
            [
                (0, "1", Some(-1.5)),
                (1, "00", Some(-2.0)),
                (2, "2", Some(-9.0))
            ]
        );
        assert!(
            best.iter()
                .flat_map(|o| &o.tokens)
                .all(|t| t.logprobs.is_none())
        );
    }
}
