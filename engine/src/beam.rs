//! Beam search: which continuations become beams, what was found, and when it is over.
//!
//! The rules are those of Hugging Face transformers (`GenerationMixin._beam_search`, 5.23), so that
//! the same model gives the same sequences with the same scores.

use std::cmp::Ordering;

use pageloom_model_runner::{Candidate, RowOutput, TokenId};

use crate::{BeamSearch, EarlyStopping, FinishReason, GeneratedToken, OutputDelta};

/// Most beams of a request.
pub const MAX_BEAMS: usize = 16;

/// The state of one search.
///
/// ```text
///  beams   the sequences that are computed, best first      width at most
///    │ each brings its likeliest continuations
///    ▼
///  all of them by score ──┬── go on: the best width ──────> beams of the next step
///                         └── end, and among the best width ──> found, best width stay
/// ```
pub(crate) struct Beams {
    width: usize,
    rules: BeamSearch,
    max_tokens: usize,
    /// Continuations of a step that are looked at: enough for `width` that do not end by a token.
    num_looked_at: usize,
    num_generated: usize,
    /// Every token that was ever in a beam, with the way back to the prompt.
    tree: Vec<Node>,
    beams: Vec<Beam>,
    found: Vec<Found>,
}

struct Node {
    parent: Option<usize>,
    /// One, with its log-probabilities.
    tokens: Vec<GeneratedToken>,
    text: String,
}

#[derive(Debug, Clone, Copy)]
struct Beam {
    /// `None`: the prompt.
    node: Option<usize>,
    /// Sum of its tokens' log-probabilities.
    score: f64,
}

struct Found {
    node: usize,
    /// Penalised for its length.
    score: f64,
    finish: FinishReason,
}

/// A beam of the next step.
pub(crate) struct Survivor<S> {
    /// Which of the beams it continues, and with what.
    pub(crate) parent: usize,
    pub(crate) token: TokenId,
    /// What the caller made of it.
    pub(crate) state: S,
}

/// A continuation of a beam, with its score.
struct Continuation {
    parent: usize,
    candidate: Candidate,
    score: f64,
}

impl Beams {
    /// `num_stop_tokens`: how many tokens end a sequence.
    pub(crate) fn new(
        width: usize,
        rules: BeamSearch,
        max_tokens: usize,
        num_stop_tokens: usize,
    ) -> Self {
        Beams {
            width,
            rules,
            max_tokens,
            num_looked_at: width * (1 + num_stop_tokens).max(2),
            num_generated: 0,
            tree: Vec::new(),
            beams: vec![Beam {
                node: None,
                score: 0.0,
            }],
            found: Vec::new(),
        }
    }

    /// Candidates that each beam must bring to a step.
    pub(crate) fn num_candidates(&self) -> usize {
        self.num_looked_at
    }

    /// Takes in what the beams, in their order, could continue with. Returns those that go on,
    /// best first, or `None` if the search is over.
    ///
    /// `extend(beam, token)` continues the text of a beam; its delta has the token, and says whether
    /// that ends the beam.
    pub(crate) fn advance<S>(
        &mut self,
        rows: Vec<RowOutput>,
        mut extend: impl FnMut(usize, GeneratedToken) -> (S, OutputDelta),
    ) -> Option<Vec<Survivor<S>>> {
        let continuations = self.best_continuations(rows);
        self.num_generated += 1;
        let mut survivors = Vec::with_capacity(self.width);
        let mut beams = Vec::with_capacity(self.width);
        for (place, continuation) in continuations.into_iter().enumerate() {
            if place >= self.width && survivors.len() == self.width {
                break;
            }
            let Continuation {
                parent,
                candidate,
                score,
            } = continuation;
            let token = candidate.token;
            let generated = GeneratedToken {
                id: token,
                logprobs: candidate.logprobs,
            };
            let (state, delta) = extend(parent, generated);
            let node = Node {
                parent: self.beams[parent].node,
                tokens: delta.tokens,
                text: delta.text,
            };
            match delta.finish {
                Some(finish) if place < self.width => {
                    let score = self.penalised(score, self.num_generated);
                    let node = self.plant(node);
                    self.found.push(Found {
                        node,
                        score,
                        finish,
                    });
                }
                // One that ends must be among the best to count.
                Some(_) => {}
                None if survivors.len() < self.width => {
                    let node = Some(self.plant(node));
                    beams.push(Beam { node, score });
                    survivors.push(Survivor {
                        parent,
                        token,
                        state,
                    });
                }
                None => {}
            }
        }
        self.found.sort_by(|a, b| descending(a.score, b.score));
        self.found.truncate(self.width);
        self.beams = beams;
        (!self.is_over()).then_some(survivors)
    }

    /// All continuations that are looked at, best first. Ties go to the better beam.
    fn best_continuations(&self, rows: Vec<RowOutput>) -> Vec<Continuation> {
        let beams = self.beams.iter().zip(rows).enumerate();
        let mut all: Vec<_> = beams
            .flat_map(|(parent, (beam, row))| {
                let continuation = move |candidate: Candidate| Continuation {
                    parent,
                    score: beam.score + f64::from(candidate.score),
                    candidate,
                };
                row.candidates.into_iter().map(continuation)
            })
            .collect();
        // Stable: of equal ones the first stays first.
        all.sort_by(|a, b| descending(a.score, b.score));
        all.truncate(self.num_looked_at);
        all
    }

    fn plant(&mut self, node: Node) -> usize {
        self.tree.push(node);
        self.tree.len() - 1
    }

    /// The score of a sequence of so many tokens.
    fn penalised(&self, score: f64, num_tokens: usize) -> f64 {
        score / (num_tokens as f64).powf(f64::from(self.rules.length_penalty))
    }

    fn is_over(&self) -> bool {
        let Some(best) = self.beams.first() else {
            return true;
        };
        if self.found.len() < self.width {
            return false;
        }
        let length = match self.rules.early_stopping {
            EarlyStopping::Immediately => return true,
            EarlyStopping::Never if self.rules.length_penalty > 0.0 => self.max_tokens,
            EarlyStopping::Heuristic | EarlyStopping::Never => self.num_generated,
        };
        let worst = self.found.last().expect("as many as the search is wide");
        self.penalised(best.score, length) <= worst.score
    }

    /// The `n` best sequences found, the best first; fewer if there are no more.
    pub(crate) fn best(&self, n: usize) -> Vec<OutputDelta> {
        let best = self.found.iter().take(n).enumerate();
        best.map(|(index, found)| {
            let mut path = Vec::with_capacity(self.num_generated);
            let mut at = Some(found.node);
            while let Some(node) = at.map(|node| &self.tree[node]) {
                path.push(node);
                at = node.parent;
            }
            path.reverse();
            OutputDelta {
                index,
                text: path.iter().map(|node| node.text.as_str()).collect(),
                tokens: path.iter().flat_map(|node| node.tokens.clone()).collect(),
                finish: Some(found.finish.clone()),
                score: Some(found.score),
            }
        })
        .collect()
    }
}

/// Scores are never not-a-number: sums of finite numbers.
fn descending(a: f64, b: f64) -> Ordering {
    b.total_cmp(&a)
}
