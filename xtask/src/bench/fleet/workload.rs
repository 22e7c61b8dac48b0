//! Requests of real services, as many as a fleet of any size gets.

use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Context, ensure};
use flate2::read::GzDecoder;
use pageloom_scheduler::TokenId;
use serde::{Deserialize, Serialize};

use super::machine::CONTEXT_LEN;
use crate::bench::lengths::SplitMix;
use crate::bench::paper::trace::{committed, read_trace};

/// Tokens that an id of the Mooncake trace stands for.
pub(crate) const ID_LEN: usize = 512;

/// Which service's requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Data {
    AzureConversation,
    AzureCode,
    Mooncake,
}

pub(crate) const ALL: [Data; 3] = [Data::Mooncake, Data::AzureConversation, Data::AzureCode];

impl Data {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Data::AzureConversation => "Azure, conversations",
            Data::AzureCode => "Azure, code",
            Data::Mooncake => "Mooncake, conversations",
        }
    }

    /// Of files.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Data::AzureConversation => "azure-conv",
            Data::AzureCode => "azure-code",
            Data::Mooncake => "mooncake",
        }
    }

    /// What 99 % of requests should have their first token in, seconds: longer where prompts are.
    pub(crate) fn target_s(self) -> f64 {
        match self {
            Data::AzureConversation => 1.0,
            Data::AzureCode => 2.0,
            Data::Mooncake => 10.0,
        }
    }

    /// Least seconds of a run: where there is something to find, the caches are to fill.
    pub(crate) fn least_s(self) -> f64 {
        match self {
            Data::AzureConversation | Data::AzureCode => 30.0,
            Data::Mooncake => 240.0,
        }
    }

    /// Requests a second for each replica: so many that they wait for each other, but no queue grows.
    pub(crate) fn load(self) -> f64 {
        match self {
            Data::AzureConversation => 5.0,
            Data::AzureCode => 3.0,
            Data::Mooncake => 0.5,
        }
    }
}

/// A request of the trace.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    at_s: f64,
    prompt: usize,
    output: usize,
    /// Of its blocks of 512 tokens: the same id is the same text after the same beginning. None in the
    /// Azure traces, whose texts are not told.
    ids: Vec<u32>,
}

/// A service's requests.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) data: Data,
    rows: Vec<Row>,
    /// Seconds that the trace takes.
    span_s: f64,
    /// Requests left out because they are longer than the model's context.
    pub(crate) num_too_long: usize,
}

/// A request of a fleet: a row of a copy of the trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Request {
    pub(crate) at_s: f64,
    row: u32,
    copy: u32,
}

/// How much is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    /// Requests a second, of the whole fleet.
    pub(crate) rate: f64,
    pub(crate) duration_s: f64,
}

#[derive(Deserialize)]
struct Line {
    t_ms: u64,
    r#in: usize,
    out: usize,
    h: Vec<u32>,
}

impl Workload {
    /// Reads it from `benches/data`.
    ///
    /// # Errors
    /// A file that cannot be read, with the line.
    pub(crate) fn load(data: Data) -> anyhow::Result<Self> {
        let rows = match data {
            Data::AzureConversation => azure("azure_llm_2023_conv.csv.gz")?,
            Data::AzureCode => azure("azure_llm_2023_code.csv.gz")?,
            Data::Mooncake => {
                let path = committed("mooncake_conversation.jsonl.gz");
                let file = File::open(&path);
                let read = file
                    .map_err(anyhow::Error::from)
                    .and_then(|file| mooncake(BufReader::new(GzDecoder::new(file))));
                read.with_context(|| format!("cannot read {}", path.display()))?
            }
        };
        Self::new(data, rows)
    }

    fn new(data: Data, mut rows: Vec<Row>) -> anyhow::Result<Self> {
        let num_read = rows.len();
        rows.retain(|row| row.prompt + row.output <= CONTEXT_LEN);
        let span_s = rows.last().map_or(0.0, |last| last.at_s);
        ensure!(span_s > 0.0, "all requests come at once");
        Ok(Self {
            data,
            num_too_long: num_read - rows.len(),
            rows,
            span_s,
        })
    }

    /// Tokens of output of a request, on average.
    pub(crate) fn mean_output(&self) -> f64 {
        let sum: usize = self.rows.iter().map(|row| row.output).sum();
        sum as f64 / self.rows.len() as f64
    }

    pub(crate) fn span_s(&self) -> f64 {
        self.span_s
    }

    /// As many copies of the trace as the rate needs, each of other texts but for the first block that
    /// all of Mooncake's requests share, and each begun elsewhere, so that they do not peak together.
    /// Of what is too much, whole conversations are left out: the times within one stay as they were.
    pub(crate) fn requests(&self, amount: Amount) -> Vec<Request> {
        let wanted = amount.rate * self.span_s / self.rows.len() as f64;
        let num_copies = wanted.ceil().max(1.0) as u32;
        let share = wanted / f64::from(num_copies);
        let mut requests = Vec::new();
        for copy in 0..num_copies {
            let shift_s = self.span_s * f64::from(copy) / f64::from(num_copies);
            for (row, number) in self.rows.iter().zip(0..) {
                let at_s = (row.at_s - shift_s).rem_euclid(self.span_s);
                let conversation = row.ids.get(1).copied().unwrap_or(u32::MAX - number);
                let seed = (u64::from(copy) << 32) | u64::from(conversation);
                if at_s < amount.duration_s && SplitMix(seed).uniform() < share {
                    requests.push(Request {
                        at_s,
                        row: number,
                        copy,
                    });
                }
            }
        }
        let place = |request: &Request| (request.copy, request.row);
        requests.sort_by(|a, b| a.at_s.total_cmp(&b.at_s).then(place(a).cmp(&place(b))));
        requests
    }

    pub(crate) fn output(&self, request: Request) -> usize {
        self.rows[request.row as usize].output
    }

    /// Names of the blocks of 512 tokens of a request, each with all before it.
    pub(crate) fn prefixes(&self, request: Request, into: &mut Vec<u64>) {
        into.clear();
        let ids = &self.rows[request.row as usize].ids;
        into.extend(ids.iter().map(|&id| name(id, request.copy)));
    }

    /// The tokens of its prompt: the same for the same block, others for others in all likelihood.
    pub(crate) fn prompt(&self, request: Request) -> Vec<TokenId> {
        let row = &self.rows[request.row as usize];
        let mut tokens = Vec::with_capacity(row.prompt);
        if row.ids.is_empty() {
            // Bit 63 is in no name.
            let text = (1 << 63) | (u64::from(request.copy) << 32) | u64::from(request.row);
            extend(&mut tokens, text, row.prompt);
        }
        for &id in &row.ids {
            let left = row.prompt - tokens.len();
            extend(&mut tokens, name(id, request.copy), left.min(ID_LEN));
        }
        tokens
    }
}

/// Of a block in a copy of the trace. All requests have the first in common.
fn name(id: u32, copy: u32) -> u64 {
    match id {
        0 => 0,
        _ => (u64::from(copy) << 32) | u64::from(id),
    }
}

fn extend(tokens: &mut Vec<TokenId>, text: u64, num_tokens: usize) {
    let first = SplitMix(text).next() as u32;
    let token = |at: u32| (first.wrapping_add(at)).wrapping_mul(0x9e37_79b1) >> 1;
    tokens.extend((0..num_tokens as u32).map(token));
}

fn azure(name: &str) -> anyhow::Result<Vec<Row>> {
    let trace = read_trace(&committed(name))?;
    let row = |arrival: crate::bench::paper::trace::Arrival| Row {
        at_s: arrival.at_s,
        prompt: arrival.lengths.prompt.max(1),
        output: arrival.lengths.output.max(1),
        ids: Vec::new(),
    };
    Ok(trace.into_iter().map(row).collect())
}

fn mooncake(lines: impl BufRead) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for (line, number) in lines.lines().zip(1..) {
        let place = || format!("line {number}");
        let line = line.map_err(anyhow::Error::from);
        let line: Line = line
            .and_then(|line| Ok(serde_json::from_str(&line)?))
            .with_context(place)?;
        ensure!(!line.h.is_empty(), "line {number}: no blocks");
        let at_s = line.t_ms as f64 / 1e3;
        let before = rows.last().map_or(0.0, |row| row.at_s);
        ensure!(at_s >= before, "line {number}: before the one before");
        rows.push(Row {
            at_s,
            // One prompt is a few tokens longer than its blocks.
            prompt: line.r#in.clamp(1, line.h.len() * ID_LEN),
            output: line.out.max(1),
            ids: line.h,
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Row> {
        mooncake(text.as_bytes()).unwrap()
    }

    const TEXT: &str = "{\"t_ms\":0,\"in\":700,\"out\":0,\"h\":[0,1]}\n\
         {\"t_ms\":500,\"in\":1030,\"out\":2,\"h\":[0,1,2]}\n\
         {\"t_ms\":2000,\"in\":600,\"out\":2,\"h\":[0,3]}\n";

    #[test]
    fn the_same_ids_are_the_same_tokens() {
        let workload = Workload::new(Data::Mooncake, rows(TEXT)).unwrap();
        let request = |row, copy| Request {
            at_s: 0.0,
            row,
            copy,
        };
        let prompts = [(0, 0), (1, 0), (2, 0), (1, 1)];
        let [a, b, c, other] = prompts.map(|(row, copy)| workload.prompt(request(row, copy)));
        assert_eq!([a.len(), b.len(), c.len()], [700, 1030, 600]);
        assert_eq!(a[..], b[..700]);
        assert_eq!(a[..512], c[..512]);
        assert_ne!(a[512], c[512]);
        assert_eq!(b[..512], other[..512]);
        assert_ne!(b[512], other[512]);
        assert_eq!(workload.output(request(0, 0)), 1);
    }

    #[test]
    fn conversations_are_kept_whole_and_their_times_apart() {
        let workload = Workload::load(Data::Mooncake).unwrap();
        let amount = |rate| Amount {
            rate,
            duration_s: workload.span_s(),
        };
        let all = workload.requests(amount(f64::MIN_POSITIVE));
        assert!(all.is_empty());
        for rate in [0.75, 6.0] {
            let requests = workload.requests(amount(rate));
            let expected = rate * workload.span_s();
            let off = requests.len() as f64 / expected - 1.0;
            assert!(off.abs() < 0.05, "{off}");
            assert!(requests.is_sorted_by(|a, b| a.at_s <= b.at_s));
            let first = |r: &Request| (r.copy, workload.rows[r.row as usize].ids.get(1).copied());
            let one = requests
                .iter()
                .find(|r| first(r).1 == first(r).1)
                .map(first);
            let (copy, id) = one.unwrap();
            let kept = requests.iter().filter(|r| first(r) == (copy, id)).count();
            let of_trace = workload
                .rows
                .iter()
                .filter(|row| row.ids.get(1).copied() == id);
            assert_eq!(kept, of_trace.count());
        }
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, reason) in [
            ("{}", "line 1"),
            (
                "{\"t_ms\":0,\"in\":1,\"out\":1,\"h\":[]}",
                "line 1: no blocks",
            ),
            (
                "{\"t_ms\":9,\"in\":1,\"out\":1,\"h\":[1]}\n{\"t_ms\":0,\"in\":1,\"out\":1,\"h\":[1]}",
                "line 2: before",
            ),
        ] {
            let error = format!("{:#}", mooncake(text.as_bytes()).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
