//! What each phase makes of the machine: percent of the measured rates.

use pageloom_benches::machine::{Rate as Limit, Rates as Limits};
use pageloom_model_runner::ModelConfig;

use super::Setup;
use super::peers::{Id, OUTPUT_LEN, PROMPT_LEN};
use super::tables::{self, Figure};
use super::throughput::{Rate, Rounds};

/// What a token costs.
pub(super) struct Work {
    /// Weights that every token is multiplied with, but for the output layer.
    layers: f64,
    /// Weights of the output layer.
    output: f64,
    /// Weights that are looked up, not multiplied with.
    looked_up: f64,
    /// Multiply-adds of attention for each token of context.
    attention: f64,
}

impl Work {
    pub(super) fn of(config: &ModelConfig) -> Work {
        let size = |n: usize| n as f64;
        let (hidden, heads) = (
            size(config.hidden_size),
            size(config.num_heads * config.head_dim),
        );
        let kv_heads = size(config.num_kv_heads * config.head_dim);
        let layer = hidden * (heads + 2.0 * kv_heads) // queries, keys, values
            + heads * hidden
            + 3.0 * hidden * size(config.intermediate_size);
        let output = hidden * size(config.vocab_size);
        Work {
            layers: size(config.num_layers) * layer,
            output,
            looked_up: if config.tie_word_embeddings {
                0.0
            } else {
                output
            },
            attention: size(config.num_layers) * 2.0 * heads,
        }
    }

    /// Operations (two a multiply-add) of a token of a prompt, of which the last alone has an
    /// output.
    fn prefill(&self) -> f64 {
        let context = PROMPT_LEN as f64 / 2.0;
        2.0 * (self.layers + self.output / PROMPT_LEN as f64 + self.attention * context)
    }

    /// Operations of a generated token.
    fn decode(&self) -> f64 {
        let context = PROMPT_LEN as f64 + OUTPUT_LEN as f64 / 2.0;
        2.0 * (self.layers + self.output + self.attention * context)
    }

    /// Share of the weights that a token is multiplied with.
    pub(super) fn streamed(&self) -> f64 {
        let used = self.layers + self.output;
        used / (used + self.looked_up)
    }
}

/// Prints the limits and where each phase is below them. `weights`: bytes of the default mode, if
/// the program said so.
pub(super) fn print(setup: &Setup, config: &ModelConfig, rounds: &Rounds, weights: Option<f64>) {
    print_limits(&rounds.machine);
    let limit = |of: &dyn Fn(&Limits) -> Option<Limit>| -> Option<f64> {
        let all: Figure = rounds
            .machine
            .iter()
            .filter_map(of)
            .map(|limit| limit.all)
            .collect();
        (!all.is_empty()).then(|| all.median())
    };
    let work = Work::of(config);
    let ours = |batch_size, rate| rounds.rate(Id::Pageloom(0), batch_size, rate).median();
    let mut rows = Vec::new();
    let rate = ours(1, Rate::Decode);
    if let (Some(weights), Some(read)) = (weights, limit(&|l| Some(l.read))) {
        let gigabytes = weights * work.streamed() * rate / 1e9;
        rows.push(vec![
            "one stream, decode".to_owned(),
            format!("{gigabytes:.1} GB/s of weights"),
            format!("{:.0} % of reading", 100.0 * gigabytes / read),
        ]);
    }
    let largest = setup.largest();
    let phases = [
        ("one stream, decode".to_owned(), work.decode() * rate),
        (
            format!("prefill, {largest} at once"),
            work.prefill() * ours(largest, Rate::Prefill),
        ),
        (
            format!("decode, {largest} at once"),
            work.decode() * ours(largest, Rate::Decode),
        ),
    ];
    let limits = [
        ("FMA", limit(&|l| Some(l.fma))),
        ("VNNI", limit(&|l| l.vnni)),
        ("AMX bf16", limit(&|l| l.amx_bf16)),
        ("AMX int8", limit(&|l| l.amx_int8)),
    ];
    for (phase, operations) in phases {
        let operations = operations / 1e9;
        let percent = |(name, limit): &(&str, Option<f64>)| {
            limit.map(|limit| format!("{:.1} % of {name}", 100.0 * operations / limit))
        };
        let percents: Vec<String> = limits.iter().filter_map(percent).collect();
        rows.push(vec![
            phase,
            format!("{operations:.1} GOP/s"),
            percents.join(", "),
        ]);
    }
    tables::print("Roofline", &["phase", "does", "which is"], &rows);
}

fn print_limits(rounds: &[Limits]) {
    let threads = rounds.first().map_or(1, |limits| limits.num_threads);
    let mut rows = Vec::new();
    let mut row = |name: &str, of: &dyn Fn(&Limits) -> Option<Limit>| {
        let of_all = |which: fn(Limit) -> f64| -> Figure {
            rounds.iter().filter_map(of).map(which).collect()
        };
        let (one, all) = (of_all(|limit| limit.one), of_all(|limit| limit.all));
        if !one.is_empty() {
            rows.push(vec![name.to_owned(), one.show(1), all.show(1)]);
        }
    };
    row("streaming read, GB/s", &|l| Some(l.read));
    row("f32 FMA, GFLOP/s", &|l| Some(l.fma));
    row("int8 VNNI, GOP/s", &|l| l.vnni);
    row("AMX bf16, GFLOP/s", &|l| l.amx_bf16);
    row("AMX int8, GOP/s", &|l| l.amx_int8);
    let all = format!("{threads} threads");
    tables::print(
        "Limits of the machine, measured",
        &["what", "1 thread", &all],
        &rows,
    );
}
