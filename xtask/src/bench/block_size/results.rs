//! Tables, plots and checks of block sizes, and the recommendation.

use super::super::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, Series, Source, Table,
};
use super::super::lengths::Request;
use super::costs::{Kernels, Other};
use super::{Args, BLOCK_SIZES};

/// Of figure 18b, read off the plot: seconds a token on an A100, for ShareGPT and Alpaca.
const PAPER_SHAREGPT: [f64; 9] = [2.3, 1.95, 2.0, 0.57, 0.08, 0.07, 0.09, 0.16, 1.35];
const PAPER_ALPACA: [f64; 9] = [3.6, 1.9, 2.1, 0.73, 0.60, 0.54, 1.9, 4.8, 18.2];

/// What was found of one block size.
pub(super) struct Row {
    pub(super) block_size: usize,
    pub(super) kernels: Kernels,
    pub(super) other: Other,
    /// Output tokens a second on the real model, if there was one.
    pub(super) tokens_per_s: Option<f64>,
}

pub(super) fn experiment(args: &Args, requests: &[Request], rows: &[Row]) -> Experiment {
    let inputs = args.inputs(requests);
    let recommended = inputs.recommended();
    let mut results = Experiment::measured("block-size", "Block size");
    results.figures = vec!["Fig 18b".to_owned(), "section 7.2".to_owned()];
    results.command = match &args.model {
        Some(_) => "cargo xtask bench block-size --model MODEL.gguf".to_owned(),
        None => results.command,
    };
    results.paper = "Latency of vLLM on an A100 for blocks of 1 to 256 tokens, at a fixed rate: 16 to 128 \
        serve ShareGPT best, 16 to 32 Alpaca; smaller blocks keep the GPU from reading in parallel, larger \
        ones waste memory. The choice is left to the user; 16 is the default."
        .to_owned();
    results.ours = format!(
        "Each cost alone: attention of one layer, {} sequences in the middle of their output, block sizes \
         in turn; slots that the block manager hands out and no token fills; a copy of a block of one layer. \
         Then, with a model, requests of a quarter of the lengths through the real engine, all at once, in \
         a pool of {} slots.",
        args.concurrency, args.slots
    );
    for (name, value) in [
        ("query heads", args.num_heads),
        ("key-value heads", args.num_kv_heads),
        ("head size", args.head_dim),
        ("requests", requests.len()),
        ("rounds", args.rounds.into()),
        ("threads", args.threads.into()),
        ("recommended block size", recommended),
    ] {
        results.parameter(name, value);
    }
    results.parameter("cache", inputs.kv_dtype.name());
    results.parameter("mean prompt", inputs.mean_prompt);
    results.parameter("mean output", inputs.mean_output);
    results.tables.push(table(rows));
    results.tables.push(model_table(args, requests));
    results.plots.push(costs_plot(rows));
    results.plots.push(latency_plot(rows));
    results.checks = checks(rows, recommended);
    results.notes.push(format!(
        "For this model's keys and these lengths {recommended} tokens a block are recommended, and `serve \
         --block-size auto` takes as many: the size with the least sum of attention's slowdown and wasted \
         slots in the second table, which is made from the heads' size, the cache's format and mean lengths \
         alone."
    ));
    if let Some(row) = rows.first() {
        results.notes.push(format!(
            "Reserving the longest request's length for every sequence would waste {:.1} % of the slots.",
            row.other.reserved_percent
        ));
    }
    results
}

fn best(rows: &[Row], f: impl Fn(&Row) -> f64) -> f64 {
    rows.iter().map(f).fold(f64::INFINITY, f64::min)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(
        "Costs by block size, measured.",
        &[
            ("block size", 0),
            ("decode, us", 0),
            ("over best", 2),
            ("prefill, us", 0),
            ("over best", 2),
            ("wasted slots, %", 1),
            ("copy of a block, us", 2),
            ("output tokens/s", 0),
        ],
    );
    let decode = best(rows, |row| row.kernels.decode_us);
    let prefill = best(rows, |row| row.kernels.prefill_us);
    for row in rows {
        table.rows.push(vec![
            Cell::from(row.block_size),
            row.kernels.decode_us.into(),
            (row.kernels.decode_us / decode).into(),
            row.kernels.prefill_us.into(),
            (row.kernels.prefill_us / prefill).into(),
            row.other.waste_percent.into(),
            row.other.copy_us.into(),
            row.tokens_per_s.into(),
        ]);
    }
    table
}

/// What the recommendation rests on.
fn model_table(args: &Args, requests: &[Request]) -> Table {
    let columns = [
        ("block size", 0),
        ("longer steps, %", 1),
        ("wasted slots, %", 1),
        ("together, %", 1),
    ];
    let mut table = Table::new("Costs as the recommendation estimates them.", &columns);
    for cost in args.inputs(requests).costs() {
        table.rows.push(vec![
            Cell::from(cost.block_size),
            (100.0 * cost.attention).into(),
            (100.0 * cost.waste).into(),
            (100.0 * cost.total()).into(),
        ]);
    }
    table
}

fn measured(rows: &[Row], name: &str, f: impl Fn(&Row) -> Option<f64>) -> Series {
    let point = |row: &Row| Some((row.block_size as f64, f(row)?));
    Series {
        name: name.to_owned(),
        source: Source::Measured,
        points: rows.iter().filter_map(point).collect(),
    }
}

fn costs_plot(rows: &[Row]) -> Plot {
    let decode = best(rows, |row| row.kernels.decode_us);
    let prefill = best(rows, |row| row.kernels.prefill_us);
    Plot {
        name: "costs".to_owned(),
        title: "What a block size costs".to_owned(),
        caption: "Attention's time over that of the best size, less one; slots without a token over slots \
            with one."
            .to_owned(),
        kind: PlotKind::Lines,
        x: Axis::log("block size (tokens)"),
        y: Axis {
            max: Some(100.0),
            ..Axis::linear("cost (%)")
        },
        series: vec![
            measured(rows, "decode attention", |row| Some(100.0 * (row.kernels.decode_us / decode - 1.0))),
            measured(rows, "prefill attention", |row| {
                Some(100.0 * (row.kernels.prefill_us / prefill - 1.0))
            }),
            measured(rows, "wasted slots", |row| {
                let waste = row.other.waste_percent / 100.0;
                Some(100.0 * waste / (1.0 - waste))
            }),
        ],
        thresholds: Vec::new(),
    }
}

/// The paper's latencies and our time a token, each over its best.
fn latency_plot(rows: &[Row]) -> Plot {
    let paper = |name: &str, latencies: [f64; 9]| {
        let best = latencies.into_iter().fold(f64::INFINITY, f64::min);
        Series {
            name: name.to_owned(),
            source: Source::Paper("Fig 18b".to_owned()),
            points: BLOCK_SIZES
                .iter()
                .zip(latencies)
                .map(|(&b, s)| (b as f64, s / best))
                .collect(),
        }
    };
    let most = rows
        .iter()
        .filter_map(|row| row.tokens_per_s)
        .fold(0.0, f64::max);
    let mut series = vec![
        paper("ShareGPT", PAPER_SHAREGPT),
        paper("Alpaca", PAPER_ALPACA),
    ];
    if most > 0.0 {
        series.insert(
            0,
            measured(rows, "ShareGPT", |row| Some(most / row.tokens_per_s?)),
        );
    }
    Plot {
        name: "latency".to_owned(),
        title: "Time by block size, over the best".to_owned(),
        caption:
            "The paper's normalised latency at a fixed rate near capacity, ours the time for all \
            requests at once: the paper's exaggerates what a queue adds, ours does not."
                .to_owned(),
        kind: PlotKind::Lines,
        x: Axis::log("block size (tokens)"),
        y: Axis::log("over the best (times)"),
        series,
        thresholds: Vec::new(),
    }
}

fn checks(rows: &[Row], recommended: usize) -> Vec<Check> {
    let mut checks = vec![
        Check::new(
            "recommended block size",
            recommended as f64,
            Bound::Between(16.0, 128.0),
        )
        .paper(16.0)
        .unit("tokens"),
    ];
    let at = |block_size: usize| rows.iter().find(|row| row.block_size == block_size);
    let decode = best(rows, |row| row.kernels.decode_us);
    let slower = at(16).map(|row| 100.0 * (row.kernels.decode_us / decode - 1.0));
    let name = "blocks of 16: decode attention above the best size";
    checks.push(Check::new(name, slower, Bound::AtMost(15.0)).unit("%"));
    let wasted = at(16).map(|row| row.other.waste_percent);
    let name = "blocks of 16: wasted slots";
    checks.push(
        Check::new(name, wasted, Bound::AtMost(4.0))
            .paper(3.7)
            .unit("%"),
    );
    let most = rows
        .iter()
        .filter_map(|row| row.tokens_per_s)
        .fold(0.0, f64::max);
    if most > 0.0 {
        let ours = at(recommended).and_then(|row| row.tokens_per_s);
        let short = ours.map(|ours| 100.0 * (1.0 - ours / most));
        let name = "recommended block size: end to end, below the best size";
        checks.push(Check::new(name, short, Bound::AtMost(5.0)).unit("%"));
    }
    checks
}
