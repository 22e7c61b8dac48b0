//! What the kernels found, as the host wants it.

use thiserror::Error;

use super::params::{RankedToken, RawDraw, RawLogprobs, status};

/// Units in a weight of 1: 2^40, as in `cuda/weights.cuh`.
const UNITS: f64 = (1u64 << 40) as f64;

/// Why no token was drawn from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SampleFault {
    /// A logit is NaN or positive infinity.
    #[error("the logit of token {token} is not a number")]
    NotANumber {
        /// The first such token.
        token: u32,
    },
    /// Every token is masked.
    #[error("no token is allowed")]
    NothingAllowed,
}

/// Log-probabilities of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLogprobs {
    /// The token of interest.
    pub token: u32,
    /// Its natural logarithm of the probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1; ties to the lower id.
    pub rank: u32,
    /// The most likely tokens and their log-probabilities, best first; masked ones never.
    pub top: Vec<(u32, f32)>,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleOutput {
    /// The token of each draw.
    pub tokens: Vec<Result<u32, SampleFault>>,
    /// The log-probabilities that were asked for.
    pub logprobs: Vec<Result<RowLogprobs, SampleFault>>,
}

fn fault(code: u32, token: u32) -> SampleFault {
    match code {
        status::NOT_A_NUMBER => SampleFault::NotANumber { token },
        _ => SampleFault::NothingAllowed,
    }
}

pub(super) fn draw(raw: &RawDraw) -> Result<u32, SampleFault> {
    match raw.status {
        status::OK => Ok(raw.token),
        code => Err(fault(code, raw.token)),
    }
}

/// `top`: what the row has room for; its head is filled.
pub(super) fn logprobs(raw: &RawLogprobs, top: &[RankedToken]) -> Result<RowLogprobs, SampleFault> {
    if raw.status != status::OK {
        return Err(fault(raw.status, raw.token));
    }
    let log_total = f64::from(raw.max) + (raw.total as f64 / UNITS).ln();
    let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
    let top = top.iter().take(raw.num_top as usize);
    Ok(RowLogprobs {
        token: raw.token,
        logprob: logprob(raw.logit),
        rank: raw.rank,
        top: top.map(|t| (t.token, logprob(t.logit))).collect(),
    })
}
