//! Requests and when they arrive.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use super::random::Mt19937;
use crate::bench::csv::{cells, lines, read_text};

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) prompt: usize,
    pub(crate) output: usize,
}

impl Lengths {
    pub(crate) fn total(self) -> usize {
        self.prompt + self.output
    }
}

/// A request of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// Seconds since the trace began.
    pub(crate) at_s: f64,
    pub(crate) lengths: Lengths,
    /// The text it is part of: requests have a beginning in common if they have this.
    pub(crate) text: u32,
    /// Where in that text its prompt begins.
    pub(crate) offset: u32,
    /// Tokens before that text, the same for all requests: a part of the prompt's.
    pub(crate) shared: u32,
}

/// What the artifact draws arrivals in, seconds.
const QUANTUM_S: f64 = 0.01;
/// Longest request, in tokens, that a file may have.
const MAX_LEN: usize = 1 << 20;
/// Longest trace, in seconds, that can be played: far later, the times of steps would be lost in rounding.
pub(crate) const MAX_TIME_S: f64 = 1e9;

/// When requests arrive and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Requests a second, on average.
    pub(crate) rate: f64,
    pub(crate) duration_s: f64,
    pub(crate) seed: u32,
}

/// Times of arrival as the paper's artifact draws them: in each 10 ms a number from
/// `RandomState(seed).poisson(rate * 0.01)`, all at the beginning of those.
pub(crate) fn poisson(load: Load) -> Vec<f64> {
    let mut random = Mt19937::numpy(load.seed);
    let num_quanta = (load.duration_s / QUANTUM_S).round() as usize;
    let mut times = Vec::with_capacity((load.rate * load.duration_s * 1.1) as usize);
    for quantum in 0..num_quanta {
        let count = random.poisson(load.rate * QUANTUM_S);
        times.extend(core::iter::repeat_n(quantum as f64 * QUANTUM_S, count));
    }
    times
}

/// The artifact's trace: Poisson arrivals of the first requests of `lengths` in the order of
/// Python's `random.seed(seed); random.shuffle(requests)`. If there are fewer lengths than
/// arrivals they are taken again from the first on. Every request has a text of its own.
pub(crate) fn artifact(lengths: &[Lengths], load: Load) -> Vec<Arrival> {
    let times = poisson(load);
    let mut drawn: Vec<Lengths> = lengths.iter().copied().cycle().take(times.len()).collect();
    Mt19937::python(load.seed.into()).shuffle(&mut drawn);
    let requests = times.iter().zip(drawn).zip(0..);
    let arrival = |((&at_s, lengths), text)| Arrival {
        at_s,
        lengths,
        text,
        offset: 0,
        shared: 0,
    };
    requests.map(arrival).collect()
}

/// A file of `benches/data`.
pub(crate) fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../benches/data")
        .join(name)
}

/// Reads the lengths in a CSV file, plain or gzip, whose first line names the columns.
///
/// # Errors
/// Names the file, and the line of what is missing, no number, negative or too long.
pub(crate) fn read_lengths(path: &Path, columns: [&str; 2]) -> anyhow::Result<Vec<Lengths>> {
    let rows = read_csv(path, &columns)?;
    Ok(rows.into_iter().map(|(lengths, _)| lengths).collect())
}

/// Reads a trace with `arrival_s`, `prompt_tokens` and `output_tokens`.
///
/// # Errors
/// As [`read_lengths`]; and a time that is none, or before the one of the line before.
pub(crate) fn read_trace(path: &Path) -> anyhow::Result<Vec<Arrival>> {
    let rows = read_csv(path, &["prompt_tokens", "output_tokens", "arrival_s"])?;
    let arrival = |((lengths, at_s), text)| Arrival {
        at_s,
        lengths,
        text,
        offset: 0,
        shared: 0,
    };
    Ok(rows.into_iter().zip(0..).map(arrival).collect())
}

/// Lengths, and the time of a third column if one is asked for.
fn read_csv(path: &Path, columns: &[&str]) -> anyhow::Result<Vec<(Lengths, f64)>> {
    let text = read_text(path)?;
    parse(&text, columns).with_context(|| path.display().to_string())
}

/// A digest of what a trace holds.
pub(crate) fn digest(trace: &[Arrival]) -> String {
    let mut digest = Sha256::new();
    for arrival in trace {
        digest.update(arrival.at_s.to_bits().to_le_bytes());
        for length in [arrival.lengths.prompt, arrival.lengths.output] {
            digest.update((length as u64).to_le_bytes());
        }
    }
    let digest = digest.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(text: &str, columns: &[&str]) -> anyhow::Result<Vec<(Lengths, f64)>> {
    let lines = lines(text)?;
    let Some((&(number, header), lines)) = lines.split_first() else {
        anyhow::bail!("line 1: the file is empty");
    };
    let in_header = || format!("line {number}");
    let names = cells(header).with_context(in_header)?;
    let place = |column: &&str| {
        let found = names.iter().position(|name| name == column);
        found.with_context(|| format!("line {number}: no column {column:?} among {names:?}"))
    };
    let places: Vec<usize> = columns.iter().map(place).collect::<Result<_, _>>()?;
    let mut rows = Vec::with_capacity(lines.len());
    let mut before = 0.0;
    for &(number, line) in lines {
        let row = parse_row(line, &places, before).with_context(|| format!("line {number}"))?;
        before = row.1;
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "line {number}: no rows below the header");
    Ok(rows)
}

fn parse_row(line: &str, places: &[usize], before: f64) -> anyhow::Result<(Lengths, f64)> {
    let cells = cells(line)?;
    let cell = |place: usize| {
        let found = cells.get(place).map(AsRef::as_ref);
        found.with_context(|| format!("{line:?} has {} columns", cells.len()))
    };
    let length = |place: usize| -> anyhow::Result<usize> {
        let text: &str = cell(place)?;
        let length: i64 = text
            .parse()
            .with_context(|| format!("{text:?} is no number of tokens"))?;
        ensure!(
            (0..=MAX_LEN as i64).contains(&length),
            "{length} tokens; a length is from 0 to {MAX_LEN}"
        );
        Ok(length as usize)
    };
    let lengths = Lengths {
        prompt: length(places[0])?,
        output: length(places[1])?,
    };
    let Some(&place) = places.get(2) else {
        return Ok((lengths, 0.0));
    };
    let text: &str = cell(place)?;
    let at_s: f64 = text
        .parse()
        .with_context(|| format!("{text:?} is no time in seconds"))?;
    ensure!(
        (0.0..=MAX_TIME_S).contains(&at_s),
        "{text:?} is no time from 0 to {MAX_TIME_S} s"
    );
    ensure!(
        at_s >= before,
        "time {at_s} s is before {before} s, of the request before"
    );
    Ok((lengths, at_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_is_the_artifacts() {
        let columns = ["prompt_len", "output_len"];
        let mut lengths = read_lengths(&committed("sharegpt_lengths.csv.gz"), columns).unwrap();
        lengths.retain(|request| request.total() < 2048);
        let load = Load {
            rate: 2.0,
            duration_s: 3600.0,
            seed: 0,
        };
        let trace = artifact(&lengths, load);
        // Computed with numpy's and Python's generators.
        let quanta = [52, 148, 208, 283, 417, 421, 441, 444];
        let times: Vec<f64> = trace[..8].iter().map(|a| a.at_s).collect();
        assert_eq!(times, quanta.map(|quantum| f64::from(quantum) * QUANTUM_S));
        assert_eq!(trace.len(), 7280);
        let pair = |a: &Arrival| (a.lengths.prompt, a.lengths.output);
        let first: Vec<_> = trace[..4].iter().map(pair).collect();
        assert_eq!(first, [(17, 19), (18, 289), (694, 149), (23, 321)]);
        let last: Vec<_> = trace[7278..].iter().map(pair).collect();
        assert_eq!(last, [(7, 7), (15, 21)]);
    }

    #[test]
    fn columns_are_found_by_name() {
        let text = "arrival_s,prompt_tokens,output_tokens\n0.5, 3,4\n\n0.5,5,6\n";
        let rows = parse(text, &["prompt_tokens", "output_tokens", "arrival_s"]).unwrap();
        let lengths = |prompt, output| Lengths { prompt, output };
        let expected = [(lengths(3, 4), 0.5), (lengths(5, 6), 0.5)];
        assert_eq!(rows, expected);
        // As a spreadsheet writes it.
        let text = "\u{feff}\"prompt_tokens\",\"id\",\"output_tokens\",\"arrival_s\"\r\n\
            \"3\",\"a, b\",\"4\",\"0.5\"\r\n5,c,6,0.5\r\n";
        let rows = parse(text, &["prompt_tokens", "output_tokens", "arrival_s"]).unwrap();
        assert_eq!(rows, expected);
    }

    #[test]
    fn bad_traces_are_refused_with_their_line() {
        let columns = ["prompt_tokens", "output_tokens", "arrival_s"];
        let header = "prompt_tokens,output_tokens,arrival_s\n";
        for (text, reasons) in [
            ("", ["line 1", "empty"]),
            (
                "prompt_tokens,arrival_s\n1,2\n",
                ["line 1", "output_tokens"],
            ),
            (header, ["line 1", "no rows"]),
            (&format!("{header}1,2,0\n1,-2,0\n"), ["line 3", "-2 tokens"]),
            (
                &format!("{header}1,2,0\n\n1,x,0\n"),
                ["line 4", "no number"],
            ),
            (&format!("{header}1,2\n"), ["line 2", "2 columns"]),
            (
                &format!("{header}1,2,1\n1,2,0.5\n"),
                ["line 3", "before 1 s"],
            ),
            (&format!("{header}1,2,NaN\n"), ["line 2", "no time from 0"]),
            (&format!("{header}1,2,-1\n"), ["line 2", "no time from 0"]),
            (
                &format!("{header}1,2,1e300\n"),
                ["line 2", "no time from 0"],
            ),
            (&format!("{header}1,2,now\n"), ["line 2", "no time in"]),
            (&format!("{header}1,\"2,0\n"), ["line 2", "not closed"]),
            (
                &format!("\n{header}1,99999999999999999999,0\n"),
                ["line 3", "no number"],
            ),
            (&format!("{header}1,9999999999,0\n"), ["line 2", "from 0"]),
        ] {
            let error = format!("{:#}", parse(text, &columns).unwrap_err());
            assert!(reasons.iter().all(|r| error.contains(r)), "{error}");
        }
        let error = read_trace(Path::new("/nowhere.csv")).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere.csv"));
    }
}
