//! Hit rate of the prefix cache against pool size, on real traces: each eviction policy of the
//! block manager beside the best any could do.

mod belady;
mod replay;
mod results;
mod trace;

use std::path::Path;

use anyhow::Context;
use pageloom_block_manager::{Config, Eviction};
use serde::{Deserialize, Serialize};

use super::experiment::{Experiment, RunArgs};
use super::resume::{Points, num_threads};
use trace::Trace;

/// Names of traces, and the percentage of their prompt blocks that came before: counted when the traces
/// were taken over, see `benches/data/README.md`.
const TRACES: [(&str, f64); 2] = [("conversation", 36.6), ("synthetic", 64.0)];
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/data");

/// Pool sizes by default, in blocks.
const NUM_BLOCKS: [u32; 8] = [1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000];
const QUICK_NUM_BLOCKS: [u32; 3] = [2_000, 10_000, 40_000];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pool sizes, with commas between, in blocks of the traces (512 tokens). Sizes that hold a whole
    /// trace are left to the row "unlimited" [default: 1000 to 160000, each about twice the one before;
    /// with --quick 2000,10000,40000]
    #[arg(long, value_delimiter = ',', value_name = "SIZES", value_parser = clap::value_parser!(u32).range(1..))]
    blocks: Option<Vec<u32>>,
    #[command(flatten)]
    run: RunArgs,
    /// Tokens a block has in the replay. The rates do not depend on it, memory and time do
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    block_size: u16,
}

/// Pageloom's own policy.
const OURS: &str = "segmented LRU";

/// A column of the table. The replay sets block size and number of blocks.
struct Policy {
    name: &'static str,
    config: Config,
}

/// What is measured beside Belady; least recently used comes first.
fn policies() -> Vec<Policy> {
    let policy = |name, eviction| Policy {
        name,
        config: Config {
            eviction,
            ..Config::default()
        },
    };
    vec![
        policy("LRU", Eviction::Lru),
        policy(OURS, Eviction::SegmentedLru),
    ]
}

/// Percentages of the prompt blocks that are found.
#[derive(Serialize, Deserialize)]
struct Row {
    num_blocks: usize,
    belady: f64,
    policies: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let is_own = args.blocks.is_some() || args.block_size != 1;
    let args = Args {
        blocks: args.blocks.clone(),
        run: args.run.apart(is_own),
        ..*args
    };
    experiment_of(&args)?.publish(&args.run)
}

/// With the pool sizes by default.
pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    experiment_of(&Args {
        blocks: None,
        run: run.clone(),
        block_size: 1,
    })
}

/// One point: a pool size of a trace.
#[derive(Serialize)]
struct Point {
    trace: &'static str,
    num_blocks: usize,
    block_size: u16,
}

fn experiment_of(args: &Args) -> anyhow::Result<Experiment> {
    let sizes = match &args.blocks {
        Some(sizes) => sizes.as_slice(),
        None if args.run.quick => &QUICK_NUM_BLOCKS,
        None => &NUM_BLOCKS,
    };
    let traces = TRACES.map(|(name, _)| read(name)).into_iter();
    let traces: Vec<Trace> = traces.collect::<anyhow::Result<_>>()?;
    let mut points = Vec::new();
    for (&(name, _), trace) in TRACES.iter().zip(&traces) {
        let pools = sizes.iter().map(|&n| n as usize);
        let limited = pools.filter(|&n| n < trace.num_distinct);
        points.extend(limited.chain([trace.num_distinct]).map(|num_blocks| Point {
            trace: name,
            num_blocks,
            block_size: args.block_size,
        }));
    }
    let saved = Points::open("prefix-cache", &args.run)?;
    let policies = policies();
    let rows = saved.all(&points, num_threads(), |point| {
        let i = TRACES.iter().position(|(name, _)| *name == point.trace);
        let trace = &traces[i.context("a trace of the list")?];
        measure(trace, &policies, point.num_blocks, point.block_size)
    })?;
    let mut results = results::new();
    results.flag("blocks", args.blocks.as_deref().unwrap_or_default());
    results.points = saved.into_files();
    for (&(name, unlimited), trace) in TRACES.iter().zip(&traces) {
        let points = points
            .iter()
            .zip(&rows)
            .filter(|(point, _)| point.trace == name);
        let rows: Vec<&Row> = points.map(|(_, row)| row).collect();
        let of = results::OfTrace {
            name,
            unlimited,
            trace,
            rows: &rows,
        };
        of.add_to(&policies, &mut results);
    }
    Ok(results)
}

fn read(name: &str) -> anyhow::Result<Trace> {
    Trace::read(&Path::new(DATA).join(format!("mooncake_{name}.jsonl.gz")))
}

fn measure(
    trace: &Trace,
    policies: &[Policy],
    num_blocks: usize,
    block_size: u16,
) -> anyhow::Result<Row> {
    let hit_rate = |policy: &Policy| {
        let config = Config {
            block_size: block_size.into(),
            num_blocks,
            ..policy.config.clone()
        };
        Ok(trace.percent(replay::num_hits(trace, config)?))
    };
    Ok(Row {
        num_blocks,
        belady: trace.percent(belady::num_hits(trace, num_blocks)),
        policies: policies
            .iter()
            .map(hit_rate)
            .collect::<anyhow::Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlimited_memory_finds_every_block_seen_before() {
        for (name, expected) in [
            ("conversation", (288_500, 105_710, "36.6")),
            ("synthetic", (121_877, 77_953, "64.0")),
        ] {
            let trace = read(name).unwrap();
            assert_eq!(belady::num_hits(&trace, trace.num_distinct), expected.1);
            for policy in policies() {
                let config = Config {
                    block_size: 1,
                    num_blocks: trace.num_distinct,
                    ..policy.config
                };
                let hits = replay::num_hits(&trace, config).unwrap();
                let rate = format!("{:.1}", trace.percent(hits));
                assert_eq!((trace.num_blocks, hits, rate.as_str()), expected, "{name}");
            }
        }
    }

    #[test]
    fn hit_rates_do_not_depend_on_the_tokens_a_block_holds() {
        let mut prompts = read("synthetic").unwrap().prompts;
        prompts.truncate(300);
        let trace = Trace::new(prompts).unwrap();
        let policies = policies();
        let rates = |block_size| {
            let row = measure(&trace, &policies, 1_000, block_size).unwrap();
            assert!(row.policies.iter().all(|rate| *rate < row.belady));
            row.policies
        };
        assert_eq!(rates(1), rates(512));
        assert_eq!(rates(1), rates(7));
    }

    #[test]
    fn prompts_longer_than_the_pool_count_as_missed() {
        let trace = Trace::new(vec![vec![0, 1], vec![0, 1, 2], vec![0, 1]]).unwrap();
        let row = measure(&trace, &policies(), 2, 1).unwrap();
        let percent = 100.0 * 2.0 / 7.0;
        assert_eq!(row.belady, percent);
        assert!(row.policies.iter().all(|rate| *rate == percent));
    }
}
