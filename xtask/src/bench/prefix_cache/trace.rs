//! The prompts of a request trace, as ids of their blocks.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;

/// Longest prompt a trace may have: what the block managers are sized for.
const MAX_BLOCKS: usize = 1 << 16;

/// One prompt: an id for each of its blocks. The same id is the same block after the same prefix.
pub(crate) type Prompt = Vec<u32>;

/// Prompts in the order they arrived.
pub(crate) struct Trace {
    pub(crate) prompts: Vec<Prompt>,
    /// Blocks of all prompts.
    pub(crate) num_blocks: usize,
    /// Different ones among them: a pool of as many never evicts.
    pub(crate) num_distinct: usize,
}

/// What is read of a line; other fields are skipped.
#[derive(Deserialize)]
struct Line {
    h: Prompt,
}

impl Trace {
    /// Reads gzipped lines of `{"h": [0, 1, 2], ...}`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Self::parse(BufReader::new(GzDecoder::new(file)))
            .with_context(|| format!("in {}", path.display()))
    }

    fn parse(lines: impl BufRead) -> anyhow::Result<Self> {
        let mut prompts = Vec::new();
        for (i, line) in lines.lines().enumerate() {
            let parsed = line
                .map_err(anyhow::Error::from)
                .and_then(|text| Ok(serde_json::from_str::<Line>(&text)?));
            prompts.push(parsed.with_context(|| format!("line {}", i + 1))?.h);
        }
        Self::new(prompts)
    }

    /// Checks that every id has one place and one id before it: only then does an id name a prefix,
    /// and is a cached block without its predecessors impossible to reuse.
    pub(crate) fn new(prompts: Vec<Prompt>) -> anyhow::Result<Self> {
        ensure!(!prompts.is_empty(), "no requests");
        let mut before = HashMap::new();
        for (i, prompt) in prompts.iter().enumerate() {
            let request = i + 1;
            ensure!(
                (1..=MAX_BLOCKS).contains(&prompt.len()),
                "request {request} has {} blocks; it must be from 1 to {MAX_BLOCKS}",
                prompt.len()
            );
            for (place, &id) in prompt.iter().enumerate() {
                let parent = place.checked_sub(1).map(|p| (p, prompt[p]));
                let known = *before.entry(id).or_insert(parent);
                ensure!(
                    known == parent,
                    "request {request}: id {id} does not follow the blocks it followed before"
                );
            }
        }
        Ok(Self {
            num_blocks: prompts.iter().map(Vec::len).sum(),
            num_distinct: before.len(),
            prompts,
        })
    }

    /// Prompts that fit into a pool of `num_blocks`; the others can never run there.
    pub(crate) fn fitting(&self, num_blocks: usize) -> impl Iterator<Item = &Prompt> {
        self.prompts.iter().filter(move |p| p.len() <= num_blocks)
    }

    /// Percentage of the prompt blocks, those of prompts that do not fit included.
    pub(crate) fn percent(&self, num_hits: usize) -> f64 {
        100.0 * num_hits as f64 / self.num_blocks as f64
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::super::lengths::SplitMix;
    use super::*;

    /// Random prompts that share prefixes: walks through a tree with two children a node.
    pub(crate) fn random_trace(seed: u64, num_requests: usize, longest: usize) -> Trace {
        let mut random = SplitMix(seed);
        let mut walk = |_| {
            let len = 1 + random.next() as usize % longest;
            let mut node = 1;
            let mut step = |_| {
                node = 2 * node + (random.next() % 2) as u32;
                node
            };
            (0..len).map(&mut step).collect()
        };
        Trace::new((0..num_requests).map(&mut walk).collect()).unwrap()
    }

    #[test]
    fn lines_are_read_and_wrong_ones_named() {
        let text = "{\"t_ms\":0,\"h\":[0,7]}\n{\"h\":[0,8,9]}\n";
        let trace = Trace::parse(text.as_bytes()).unwrap();
        assert_eq!(trace.prompts, [vec![0, 7], vec![0, 8, 9]]);
        assert_eq!((trace.num_blocks, trace.num_distinct), (5, 4));
        for (text, reason) in [
            ("", "no requests"),
            ("{\"h\":[0]}\n{\"h\":[0,-1]}", "line 2"),
            ("{\"h\":[0]}\n{}", "line 2"),
            ("{\"h\":[0]}\n{\"h\":[]}", "request 2 has 0 blocks"),
            ("{\"h\":[0,1]}\n{\"h\":[1]}", "request 2: id 1"),
            ("{\"h\":[0,2]}\n{\"h\":[1,2]}", "request 2: id 2"),
            ("{\"h\":[3,3]}", "request 1: id 3"),
        ] {
            let error = format!("{:#}", Trace::parse(text.as_bytes()).err().unwrap());
            assert!(error.contains(reason), "{error}");
        }
    }
}
