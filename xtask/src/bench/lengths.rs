//! Lengths of requests: from a file, or drawn from the paper's.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) prompt: usize,
    pub(crate) output: usize,
}

/// Longest request the sweep takes, in tokens: what the block manager is sized for.
const MAX_LEN: usize = 1 << 20;

/// The lengths published with the paper's artifact; see `benches/data/README.md`.
const SHAREGPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../benches/data/sharegpt_lengths.csv.gz"
);

/// The paper leaves out what is longer than its models' context.
pub(crate) const CONTEXT: usize = 2048;

/// The paper's ShareGPT requests: those that fit the context, in the file's order.
pub(crate) fn sharegpt() -> anyhow::Result<Vec<Request>> {
    let mut requests = read(Path::new(SHAREGPT))?;
    requests.retain(|request| request.prompt + request.output <= CONTEXT);
    Ok(requests)
}

/// Draws requests from those of [`sharegpt`].
pub(crate) fn draw(num_requests: usize, seed: u64) -> anyhow::Result<Vec<Request>> {
    let all = sharegpt()?;
    let mut random = SplitMix(seed);
    let pick = |_| all[(random.next() % all.len() as u64) as usize];
    Ok((0..num_requests).map(pick).collect())
}

/// Reads `prompt_len,output_len` rows, gzip if the name says so; a first line that is not numbers
/// is a header.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Request>> {
    let unreadable = || format!("cannot read lengths from {}", path.display());
    let file = File::open(path).with_context(unreadable)?;
    let mut text = String::new();
    match path.extension() {
        Some(gz) if gz == "gz" => GzDecoder::new(file).read_to_string(&mut text),
        _ => BufReader::new(file).read_to_string(&mut text),
    }
    .with_context(unreadable)?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_is_the_papers() {
        let requests = sharegpt().unwrap();
        let mean = |f: fn(&Request) -> usize| {
            requests.iter().map(f).sum::<usize>() as f64 / requests.len() as f64
        };
        // Figure 11.
        assert_eq!(requests.len(), 79_731);
        assert!((mean(|r| r.prompt) - 161.31).abs() < 0.005);
        assert!((mean(|r| r.output) - 337.99).abs() < 0.005);
        assert_eq!(draw(100, 1).unwrap()[..10], draw(10, 1).unwrap());
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
