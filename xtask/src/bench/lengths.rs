//! Lengths of requests: from a file, or drawn from the paper's.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::csv::{cells, lines, read_text};

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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

/// Names of the columns; those of traces are taken as well.
const COLUMNS: [[&str; 2]; 2] = [
    ["prompt_len", "prompt_tokens"],
    ["output_len", "output_tokens"],
];

/// Reads a CSV, plain or gzip. A first line without any number names the columns, among which are
/// `prompt_len` and `output_len`; without it there are these two.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Request>> {
    let text = read_text(path)?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<Vec<Request>> {
    let mut requests = Vec::new();
    let (mut places, mut num_columns) = ([0, 1], 2);
    for (i, (number, line)) in lines(text)?.into_iter().enumerate() {
        let at = || format!("line {number}");
        let cells = cells(line).with_context(at)?;
        if i == 0 && !cells.iter().any(|cell| cell.parse::<f64>().is_ok()) {
            (places, num_columns) = (named(&cells).with_context(at)?, cells.len());
            continue;
        }
        ensure!(
            cells.len() == num_columns,
            "line {number}: {line:?} has {} columns, not {num_columns}",
            cells.len()
        );
        let [prompt, output] = places.map(|place| cells[place].as_ref());
        requests.push(request(prompt, output).with_context(at)?);
    }
    ensure!(
        !requests.is_empty(),
        "line 1: no rows of prompt_len,output_len"
    );
    Ok(requests)
}

/// The places of [`COLUMNS`].
fn named(header: &[impl AsRef<str>]) -> anyhow::Result<[usize; 2]> {
    let mut places = [0, 0];
    for (place, names) in places.iter_mut().zip(COLUMNS) {
        let found = header
            .iter()
            .position(|cell| names.contains(&cell.as_ref()));
        *place = found.with_context(|| format!("no column {}", names.join(" or ")))?;
    }
    Ok(places)
}

fn request(prompt: &str, output: &str) -> anyhow::Result<Request> {
    let length = |text: &str| -> anyhow::Result<usize> {
        let length: i64 = text
            .parse()
            .with_context(|| format!("{text:?} is no number of tokens"))?;
        ensure!(
            (1..=MAX_LEN as i64).contains(&length),
            "{length} tokens; a length is from 1 to {MAX_LEN}"
        );
        Ok(length as usize)
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
        assert_eq!(parse("3,4\r\n5,6").unwrap(), parsed);
        let trace = "arrival_s,output_tokens,prompt_tokens\n0.5,4,3\n0.5,6,5\n";
        assert_eq!(parse(trace).unwrap(), parsed);
        for (text, reason) in [
            ("", "no rows"),
            ("1,2\nx,3", "line 2"),
            ("1,2\n0,3", "line 2"),
            ("1,2\n7", "line 2"),
            ("1,2\n7,8,9", "line 2"),
            // A first line with a number is no header.
            ("-5,2\n1,2", "line 1"),
            ("prompt,output,3\n1,2", "line 1"),
            ("arrival_s,prompt_len\n1,2", "no column output_len"),
            ("1,2\n1,99999999999", "line 2"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
