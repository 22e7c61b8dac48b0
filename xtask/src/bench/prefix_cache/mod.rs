//! Hit rate of the prefix cache against pool size, on real traces: each eviction policy of the
//! block manager beside the best any could do.

mod belady;
mod replay;
mod trace;

use std::path::Path;
use std::time::Instant;

use pageloom_block_manager::{Config, Eviction};

use trace::Trace;

/// See `benches/data/README.md`.
const TRACES: [&str; 2] = ["conversation", "synthetic"];
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/data");

/// Pool sizes by default, in blocks.
const NUM_BLOCKS: [u32; 8] = [1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000];
const QUICK_NUM_BLOCKS: [u32; 3] = [2_000, 10_000, 40_000];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pool sizes, in blocks of the traces (512 tokens). Sizes that hold a whole trace are left to
    /// the row "unlimited"
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    blocks: Option<Vec<u32>>,
    /// Three pool sizes only
    #[arg(long, conflicts_with = "blocks")]
    quick: bool,
    /// Tokens a block has in the replay. The rates do not depend on it, memory and time do
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    block_size: u16,
}

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
        policy("segmented LRU", Eviction::SegmentedLru),
    ]
}

/// Percentages of the prompt blocks that are found.
struct Row {
    num_blocks: usize,
    belady: f64,
    policies: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let sizes = match &args.blocks {
        Some(sizes) => sizes.as_slice(),
        None if args.quick => &QUICK_NUM_BLOCKS,
        None => &NUM_BLOCKS,
    };
    let policies = policies();
    println!(
        "Share of prompt blocks found cached, in percent; below: points below Belady; gain: points \
         above the first policy, and how much of its distance to Belady they are."
    );
    for name in TRACES {
        let trace = read(name)?;
        let pools = sizes.iter().map(|&n| n as usize);
        let limited = pools.filter(|&n| n < trace.num_distinct);
        let mut rows = Vec::new();
        for num_blocks in limited.chain([trace.num_distinct]) {
            let started = Instant::now();
            rows.push(measure(&trace, &policies, num_blocks, args.block_size)?);
            eprintln!(
                "{name}, {num_blocks} blocks: {:.1} s",
                started.elapsed().as_secs_f64()
            );
        }
        print_table(name, &trace, &policies, &rows);
    }
    Ok(())
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

fn print_table(name: &str, trace: &Trace, policies: &[Policy], rows: &[Row]) {
    println!(
        "\nMooncake {name}: {} requests, {} prompt blocks, {} distinct\n",
        trace.prompts.len(),
        trace.num_blocks,
        trace.num_distinct,
    );
    let mut names = String::new();
    for (i, policy) in policies.iter().enumerate() {
        let gain = if i > 0 { " gain |" } else { "" };
        names += &format!(" {} | below |{gain}", policy.name);
    }
    println!("| pool blocks | Belady |{names}");
    println!(
        "|---:|---:|{}---:|---:|",
        "---:|---:|---:|".repeat(policies.len() - 1)
    );
    for row in rows {
        let size = match row.num_blocks {
            n if n == trace.num_distinct => "unlimited".to_owned(),
            n => n.to_string(),
        };
        let mut rates = String::new();
        let first = row.policies[0];
        for (i, rate) in row.policies.iter().enumerate() {
            rates += &format!(" {rate:.1} | {:.1} |", row.belady - rate);
            if i > 0 {
                let (gain, gap) = (rate - first, row.belady - first);
                let closed = if gap > 0.0 { 100.0 * gain / gap } else { 0.0 };
                rates += &format!(" {gain:+.2}, {closed:.0} % |");
            }
        }
        println!("| {size} | {:.1} |{rates}", row.belady);
    }
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
