//! The oracle: what a request gets when there is nothing else, and nothing to go wrong.
//!
//! Each of its sequences is a request of its own in an engine of its own, whose cache is a single
//! block that holds all its tokens. So nothing is paged, shared, copied, found again, swapped,
//! preempted or cut into chunks: no bug of those can be in what is compared with. `best_of` ranks
//! such sequences.
//!
//! A beam search cannot do without forks. It has an engine where each beam is one block, and what
//! it finds is checked: the scores that it claims are computed again from its tokens, given as a
//! prompt.

use std::time::Duration;

use anyhow::{Result, ensure};
use pageloom_engine::{
    BeamSearch, Engine, EngineConfig, FinishReason, GeneratedToken, Request, SimConfig,
    SimExecutor, scheduler::blocks_at_longest,
};
use pageloom_model_runner::SamplingParams;

use crate::simulated::tokenizer;

use super::{
    refusal::Refusal,
    scenario::ExecutorSpec,
    transcript::{Outcome, Transcript},
};

/// What a request gets alone.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) transcript: Transcript,
    /// With `best_of`: all that it ranked, with their log-probabilities.
    pub(crate) candidates: Vec<Outcome>,
}

/// Simulates requests one by one.
pub(crate) struct Alone<'a> {
    executor: &'a ExecutorSpec,
}

impl<'a> Alone<'a> {
    pub(crate) fn new(executor: &'a ExecutorSpec) -> Self {
        Alone { executor }
    }

    /// All that becomes of a request that may generate `max_tokens`.
    ///
    /// # Errors
    /// If the engine refuses it or does not end it, or if a beam search claims wrong scores.
    pub(crate) fn run(&self, request: &Request, max_tokens: usize) -> Result<Expected> {
        let request = Request {
            priority: 0,
            max_tokens: Some(max_tokens),
            ..request.clone()
        };
        if let Some(rules) = request.beams {
            let transcript = self.simulate(&request)?;
            for outcome in transcript.outcomes.values() {
                self.check_score(&request, rules, outcome)?;
            }
            return Ok(Expected {
                transcript,
                candidates: Vec::new(),
            });
        }
        let is_ranked = request.num_seqs() > request.n;
        let singles = (0..request.num_seqs()).map(|index| self.single(&request, index, is_ranked));
        let singles = singles.collect::<Result<Vec<_>>>()?;
        let prompt_logprobs = singles[0].prompt_logprobs.clone();
        let outcomes = singles.into_iter().flat_map(|single| single.outcomes);
        let mut outcomes: Vec<_> = outcomes.map(|(_, outcome)| outcome).collect();
        let mut candidates = Vec::new();
        if is_ranked {
            candidates = outcomes.clone();
            outcomes = best(outcomes, &request);
        }
        let transcript = Transcript {
            prompt_logprobs,
            outcomes: outcomes.into_iter().enumerate().collect(),
            ..Transcript::default()
        };
        Ok(Expected {
            transcript,
            candidates,
        })
    }

    /// One of a request's samples.
    fn single(&self, request: &Request, index: usize, is_ranked: bool) -> Result<Transcript> {
        let mut single = request.clone();
        (single.n, single.best_of) = (1, None);
        let sampling = &mut single.sampling;
        sampling.seed = sampling.seed.wrapping_add(index as u64);
        if is_ranked {
            sampling.logprobs.get_or_insert(0);
        }
        self.simulate(&single)
    }

    /// A request in an engine where each of its sequences is one block.
    fn simulate(&self, request: &Request) -> Result<Transcript> {
        let (num_seqs, max_tokens) = (request.num_seqs(), request.max_tokens.unwrap_or(0));
        let longest = request.prompt.len() + max_tokens;
        // While a beam is copied there are two of it.
        let num_blocks = if num_seqs > 1 { 2 * num_seqs + 1 } else { 1 };
        let config = EngineConfig {
            block_size: longest,
            num_blocks,
            max_model_len: longest,
            max_num_seqs: num_seqs,
            max_num_batched_tokens: longest + num_seqs,
            enable_prefix_caching: false,
            ..EngineConfig::default()
        };
        let sim = SimConfig {
            block_size: longest,
            num_blocks,
            vocab_size: self.executor.vocab_size,
            poison_token: self.executor.poison_token,
            ..SimConfig::default()
        };
        let mut engine = Engine::new(config, Box::new(SimExecutor::new(sim)), tokenizer())?;
        let id = engine.add(request.clone(), Duration::ZERO)?;
        let mut transcript = Transcript::default();
        let mut num_steps = 0;
        while engine.step(Duration::ZERO)? {
            num_steps += 1;
            ensure!(num_steps <= max_tokens.max(1), "a step did not add a token");
        }
        for (of, event) in engine.drain_events() {
            ensure!(of == id, "an event of {of:?}, which is not there");
            transcript.take(event)?;
        }
        ensure!(
            transcript.is_finished(request.n),
            "it did not finish: {transcript:?}"
        );
        Ok(transcript)
    }

    /// Computes what a beam found once more, as a prompt, and compares the log-probabilities.
    fn check_score(&self, request: &Request, rules: BeamSearch, beam: &Outcome) -> Result<()> {
        let is_found = beam.score.is_some();
        // A prompt's scores do not know of penalties.
        if !is_found || beam.tokens.is_empty() || request.sampling.needs_history() {
            return Ok(());
        }
        let tokens = beam.tokens.iter().map(|token| token.id);
        let again = Request {
            max_tokens: Some(0),
            prompt_logprobs: Some(request.sampling.logprobs.unwrap_or(0)),
            sampling: SamplingParams::greedy(),
            ..Request::new(request.prompt.iter().copied().chain(tokens).collect())
        };
        let scores = self.simulate(&again)?.prompt_logprobs.unwrap_or_default();
        // The first token of all has no score.
        let scores = scores.get(request.prompt.len()..).unwrap_or_default();
        let scores: Vec<_> = scores.iter().flatten().collect();
        ensure!(
            scores.len() == beam.tokens.len(),
            "not every token is scored"
        );
        for (token, &score) in beam.tokens.iter().zip(&scores) {
            let claimed = token.logprobs.as_ref();
            ensure!(
                claimed.is_none_or(|claimed| claimed == score),
                "{token:?} of a beam has {score:?}"
            );
        }
        let sum: f64 = scores.iter().map(|s| f64::from(s.logprob)).sum();
        let score = sum / (scores.len() as f64).powf(f64::from(rules.length_penalty));
        ensure!(beam.score == Some(score), "{beam:?} has the score {score}");
        Ok(())
    }
}

/// The `n` samples with the highest mean log-probability, before those that failed.
fn best(mut outcomes: Vec<Outcome>, request: &Request) -> Vec<Outcome> {
    for outcome in &mut outcomes {
        outcome.score = mean_logprob(&outcome.tokens);
        if request.sampling.logprobs.is_none() {
            outcome.tokens.iter_mut().for_each(|t| t.logprobs = None);
        }
    }
    let rank = |outcome: &Outcome| {
        let failed = outcome.ended(|reason| matches!(reason, FinishReason::Error(_)));
        (failed, outcome.score.unwrap_or(f64::NEG_INFINITY))
    };
    // Stable: of equal ones the first comes first.
    outcomes.sort_by(|a, b| {
        let (a, b) = (rank(a), rank(b));
        a.0.cmp(&b.0).then(b.1.total_cmp(&a.1))
    });
    outcomes.truncate(request.n);
    outcomes
}

/// `None` without tokens.
pub(crate) fn mean_logprob(tokens: &[GeneratedToken]) -> Option<f64> {
    let logprobs = tokens.iter().filter_map(|token| token.logprobs.as_ref());
    let sum: f64 = logprobs.map(|l| f64::from(l.logprob)).sum();
    (!tokens.is_empty()).then(|| sum / tokens.len() as f64)
}

/// Most tokens that a request may generate, by what [`Request::max_tokens`] and the door promise:
/// what it asks for, or else all that the context and the cache can hold.
///
/// # Errors
/// How it is refused if that cannot be.
pub(crate) fn max_tokens(config: &EngineConfig, request: &Request) -> Result<usize, Refusal> {
    let num_prompt = request.prompt.len();
    let Some(room) = config.max_model_len.checked_sub(num_prompt) else {
        return Err(Refusal::PromptTooLong);
    };
    // The last token is drawn but never computed.
    let fits = |most: usize| {
        let num_slots = num_prompt + most - usize::from(most > 0);
        let num_seqs = request.num_seqs().max(1);
        let num_blocks = config.num_blocks - config.num_resident_blocks();
        blocks_at_longest(num_prompt, num_slots, num_seqs, config.block_size) <= num_blocks
    };
    let most = match request.max_tokens {
        None | Some(1..) if room == 0 => return Err(Refusal::PromptTooLong),
        Some(most) if most > room => return Err(Refusal::Field("max_tokens")),
        Some(most) => Some(most).filter(|&most| fits(most)),
        None => (1..=room).rev().find(|&most| fits(most)),
    };
    most.ok_or(Refusal::NeverFits)
}
