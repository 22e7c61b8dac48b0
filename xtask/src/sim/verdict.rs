//! Whether every request got what it gets alone, and where not, why.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use pageloom_engine::{FinishReason, MAX_SPECULATIVE_TOKENS};

use super::{
    alone::Expected,
    clients::Client,
    compare::{Deviation, compare},
    scenario::Scenario,
    watch::Seen,
};

/// Compares each client's transcript with the one of its request alone.
///
/// # Errors
/// The first difference that neither its abort nor an injected fault explains.
pub(crate) fn check(scenario: &Scenario, clients: &[Client<'_>], seen: &Seen) -> Result<()> {
    let mut failures = Failures::default();
    for (number, client) in clients.iter().enumerate() {
        let request = &client.line.request;
        let expected = client.line.expected.as_ref().context("it was taken")?;
        let context = || format!("request {number}, {request:?}");
        let deviations = compare(&client.transcript, request, expected).with_context(context)?;
        ensure!(
            client.aborted || !deviations.contains(&Deviation::Abort),
            "request {number} ended as if aborted"
        );
        let hidden = deviations.contains(&Deviation::Hidden);
        let failed = !seen.failed.is_empty() || seen.num_failed_rows > 0;
        ensure!(
            !hidden || client.aborted || failed,
            "request {number} got others than the best, and nothing happened to it"
        );
        if deviations.contains(&Deviation::Failure) {
            failures.note(number, client, expected);
        }
        check_hits(scenario, clients, number).with_context(context)?;
    }
    failures.explain(seen)
}

/// Requests that failed and do not alone.
#[derive(Default)]
struct Failures {
    /// By the step that failed.
    by_step: BTreeMap<u64, BTreeSet<usize>>,
    by_row: BTreeSet<usize>,
}

impl Failures {
    fn note(&mut self, number: usize, client: &Client<'_>, expected: &Expected) {
        let alone = expected.transcript.outcomes.values();
        let alone = alone.chain(&expected.candidates);
        for outcome in client.transcript.outcomes.values() {
            let Some(FinishReason::Error(message)) = &outcome.finish else {
                continue;
            };
            // It fails alone, too; where the best are returned, perhaps as another of them.
            if alone.clone().any(|other| other.finish == outcome.finish) {
                continue;
            }
            let step = message.rsplit_once("injected at step ");
            match step.and_then(|(_, step)| step.parse().ok()) {
                Some(step) => self.by_step.entry(step).or_default().insert(number),
                None => self.by_row.insert(number),
            };
        }
    }

    /// A failed step ends the sequences it had, unless it left transfers undone for the second
    /// time; a failed row ends one request at most.
    fn explain(&self, seen: &Seen) -> Result<()> {
        for (step, requests) in &self.by_step {
            let failed = seen.failed.iter().filter(|failed| failed.step == *step);
            let num_seqs: usize = failed.clone().map(|failed| failed.num_seqs).sum();
            let all = failed.clone().any(|failed| failed.owed);
            ensure!(
                all || requests.len() <= num_seqs,
                "requests {requests:?} failed with step {step}, which had {num_seqs} sequences"
            );
        }
        ensure!(
            self.by_row.len() <= seen.num_failed_rows,
            "requests {:?} failed, where {} rows did",
            self.by_row,
            seen.num_failed_rows
        );
        Ok(())
    }
}

/// What was found in the cache is no more than some request of the same salt left there. The
/// output cannot tell: the contents are the same whoever computed them.
fn check_hits(scenario: &Scenario, clients: &[Client<'_>], number: usize) -> Result<()> {
    let client = &clients[number];
    let (request, size) = (&client.line.request, scenario.config.block_size);
    let is_computed = request.prompt_logprobs.is_some() && request.prompt.len() > 1;
    let mut most = 0;
    if scenario.config.enable_prefix_caching && !is_computed {
        let others = clients.iter().enumerate().filter(|&(other, c)| {
            other != number && c.line.request.cache_salt == request.cache_salt
        });
        let common = others.flat_map(|(_, other)| common(client, other));
        let prefixes = scenario.config.shared_prefixes.iter();
        let prefixes = prefixes.filter(|_| request.cache_salt.is_none());
        let shared = prefixes.map(|prefix| num_common(&request.prompt, prefix));
        most = common.chain(shared).max().unwrap_or(0);
        most = most.min(request.prompt.len() - 1);
    }
    let found = client.transcript.num_cached_tokens;
    ensure!(
        found <= most / size * size && found.is_multiple_of(size),
        "{found} tokens were found in the cache, where {most} can be"
    );
    Ok(())
}

/// Tokens that the prompt of one has in common with each sequence of the other.
///
/// A beam search computes sequences that it does not return, and so does `best_of`: of the former
/// no more is known than that they are as long as they may be.
fn common(client: &Client<'_>, other: &Client<'_>) -> Vec<usize> {
    let (request, expected) = (&other.line.request, other.line.expected.as_ref());
    let prompt = &client.line.request.prompt;
    let num_common_prompt = num_common(prompt, &request.prompt);
    if num_common_prompt < request.prompt.len() {
        return vec![num_common_prompt];
    }
    if request.beams.is_some() {
        return vec![prompt.len()];
    }
    let outcomes = expected.into_iter().flat_map(|expected| {
        let returned = expected.transcript.outcomes.values();
        returned.chain(&expected.candidates)
    });
    let rest = &prompt[num_common_prompt..];
    let common = outcomes.map(|outcome| {
        let output = outcome.tokens.iter().map(|token| token.id);
        let num_common = num_common_prompt + num_common(rest, &output.collect::<Vec<_>>());
        // With drafts tokens may be computed past a stop string, in the step that drew it.
        let whole = num_common == request.prompt.len() + outcome.tokens.len();
        match whole && !request.stop.is_empty() {
            true => prompt.len().min(num_common + MAX_SPECULATIVE_TOKENS),
            false => num_common,
        }
    });
    common.collect()
}

fn num_common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
