//! Lengths of requests: from a file, or drawn from a distribution.

use std::path::Path;

use anyhow::{Context, bail, ensure};

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) prompt: usize,
    pub(crate) output: usize,
}

/// Longest request the sweep takes, in tokens: what the block manager is sized for.
const MAX_LEN: usize = 1 << 20;

/// Means of the paper's ShareGPT trace (Kwon et al. 2023, figure 11): 161.31 and 337.99 tokens.
/// The trace itself is not shipped.
const SHAREGPT_MEANS: (f64, f64) = (161.31, 337.99);

/// Standard deviation of the logarithm of both lengths. Conversations are long-tailed; 1 puts the
/// 95th percentile at 3.1 times the mean.
const LOG_SIGMA: f64 = 1.0;

/// Longest drawn length: the model of the paper's experiments has a context of 2048.
const DRAWN_MAX: f64 = 1024.0;

/// Draws requests from log-normal distributions whose means, before the cut at 1024 tokens, are
/// ShareGPT's.
pub(crate) fn draw(num_requests: usize, seed: u64) -> Vec<Request> {
    let mut random = SplitMix(seed);
    (0..num_requests)
        .map(|_| Request {
            prompt: log_normal(&mut random, SHAREGPT_MEANS.0),
            output: log_normal(&mut random, SHAREGPT_MEANS.1),
        })
        .collect()
}

fn log_normal(random: &mut SplitMix, mean: f64) -> usize {
    // Mean of exp(N(mu, sigma^2)) is exp(mu + sigma^2 / 2).
    let mu = mean.ln() - LOG_SIGMA * LOG_SIGMA / 2.0;
    let length = (mu + LOG_SIGMA * random.normal()).exp();
    length.round().clamp(1.0, DRAWN_MAX) as usize
}

/// Reads `prompt_len,output_len` rows; a first line that is not numbers is a header.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Request>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read lengths from {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Request>> {
    let mut requests = Vec::new();
    for (i, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        match parse_line(line) {
            Ok(request) => requests.push(request),
            Err(_) if i == 0 => {}
            Err(error) => return Err(error.context(format!("line {}: {line:?}", i + 1))),
        }
    }
    if requests.is_empty() {
        bail!("no rows of prompt_len,output_len");
    }
    Ok(requests)
}

fn parse_line(line: &str) -> anyhow::Result<Request> {
    let (prompt, output) = line
        .split_once(',')
        .context("expected prompt_len,output_len")?;
    let length = |text: &str| -> anyhow::Result<usize> {
        let length = text.trim().parse()?;
        ensure!(
            (1..=MAX_LEN).contains(&length),
            "a length must be from 1 to {MAX_LEN}"
        );
        Ok(length)
    };
    Ok(Request {
        prompt: length(prompt)?,
        output: length(output)?,
    })
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for drawing lengths and shuffling blocks.
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1, never 0.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_lengths_have_about_the_means_of_the_trace() {
        let requests = draw(100_000, 1);
        let mean = |f: fn(&Request) -> usize| {
            requests.iter().map(f).sum::<usize>() as f64 / requests.len() as f64
        };
        // The cut takes 2 % of the prompts' tokens and 11 % of the outputs'.
        assert!((mean(|r| r.prompt) - 158.0).abs() < 3.0);
        assert!((mean(|r| r.output) - 301.0).abs() < 5.0);
        assert_eq!(requests[..10], draw(10, 1));
    }

    #[test]
    fn rows_are_read_and_wrong_ones_named() {
        let row = |prompt, output| Request { prompt, output };
        let parsed = parse("prompt_len,output_len\n3, 4\n\n5,6\n").unwrap();
        assert_eq!(parsed, [row(3, 4), row(5, 6)]);
        for (text, reason) in [
            ("", "no rows"),
            ("1,2\nx,3", "line 2"),
            ("1,2\n0,3", "line 2"),
            ("1,2\n7", "line 2"),
            ("1,2\n1,99999999999", "line 2"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
