//! Whether what a client saw is what it must see.

use anyhow::{Context, Result, bail, ensure};
use pageloom_engine::{FinishReason, Request, text::Detokenizer};

use crate::simulated::tokenizer;

use super::{
    alone::{Expected, mean_logprob},
    transcript::{Outcome, Transcript},
};

/// How a sequence ended otherwise than alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deviation {
    Abort,
    Failure,
    /// One that is not returned did, so that others are the best.
    Hidden,
}

/// Compares what came with what comes alone: the same, or its beginning where it was aborted or a
/// step failed. Returns those deviations.
///
/// # Errors
/// The first difference.
pub(crate) fn compare(
    got: &Transcript,
    request: &Request,
    expected: &Expected,
) -> Result<Vec<Deviation>> {
    ensure!(
        got.is_finished(request.n),
        "not all {} sequences finished: {got:?}",
        request.n
    );
    let alone = &expected.transcript;
    let mut deviations = Vec::new();
    for (index, outcome) in &got.outcomes {
        let whole = &alone.outcomes[index];
        if outcome == whole {
            continue;
        }
        let deviation = match expected.candidates.as_slice() {
            [] => beginning(outcome, request, whole),
            candidates => one_of(outcome, request, candidates),
        };
        deviations.push(
            deviation
                .with_context(|| format!("sequence {index} got {outcome:?}, alone {whole:?}"))?,
        );
    }
    match &got.prompt_logprobs {
        None => ensure!(
            !deviations.is_empty() || alone.prompt_logprobs.is_none(),
            "the prompt's event never came"
        ),
        logprobs => ensure!(
            *logprobs == alone.prompt_logprobs,
            "prompt_logprobs are {logprobs:?}, alone {:?}",
            alone.prompt_logprobs
        ),
    }
    Ok(deviations)
}

/// Checks that an outcome is a whole one, cut short: the first of its tokens, with all their text.
fn beginning(outcome: &Outcome, request: &Request, whole: &Outcome) -> Result<Deviation> {
    let deviation = match outcome.finish {
        Some(FinishReason::Abort) => Deviation::Abort,
        Some(FinishReason::Error(_)) => Deviation::Failure,
        _ => bail!("it is not the same"),
    };
    ensure!(
        whole.tokens.starts_with(&outcome.tokens),
        "its tokens are not the first of those"
    );
    let tokenizer = tokenizer();
    let mut detokenizer = Detokenizer::new(request.skip_special_tokens);
    let tokens = outcome.tokens.iter();
    let mut text: String = tokens.map(|t| detokenizer.push(&tokenizer, t.id)).collect();
    text.push_str(&detokenizer.flush(&tokenizer));
    ensure!(outcome.text == text, "its tokens' text is {text:?}");
    Ok(deviation)
}

/// Checks that an outcome is one of those it was to be the best of, or the beginning of one.
fn one_of(outcome: &Outcome, request: &Request, candidates: &[Outcome]) -> Result<Deviation> {
    let asked = request.sampling.logprobs.is_some();
    let as_returned = |mut candidate: Outcome| {
        candidate.score = mean_logprob(&candidate.tokens);
        if !asked {
            candidate.tokens.iter_mut().for_each(|t| t.logprobs = None);
        }
        candidate
    };
    let num_tokens = outcome.tokens.len();
    for candidate in candidates {
        if as_returned(candidate.clone()) == *outcome {
            return Ok(Deviation::Hidden);
        }
        let mut cut = candidate.clone();
        cut.tokens.truncate(num_tokens);
        let cut = as_returned(cut);
        if cut.score == outcome.score
            && let Ok(deviation) = beginning(outcome, request, &cut)
        {
            return Ok(deviation);
        }
    }
    bail!("it is none of {candidates:?}")
}
