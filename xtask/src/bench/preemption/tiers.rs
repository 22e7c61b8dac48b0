//! 256 tokens swapped out and in, beside computing them again, by block size: the paper's figure 19a, on
//! the CPU, where both tiers are main memory.

use std::path::PathBuf;
use std::time::Instant;

use pageloom_model_runner::{
    Batch, Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, StepOutput,
};

use super::super::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, Series, Source, Table,
};
use super::super::kernel::median;

const BLOCK_SIZES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// As the paper's.
const NUM_TOKENS: usize = 256;
/// Room behind a sequence, so that its blocks are found in no cache of the processor: each round uses
/// others.
const NUM_PLACES: usize = 8;

/// Of figure 19a, read off the plot: milliseconds for 256 tokens of OPT-13B.
const PAPER_SWAP_OUT: [f64; 9] = [55.6, 35.8, 26.0, 21.0, 18.7, 17.4, 16.8, 16.5, 16.2];
const PAPER_SWAP_IN: [f64; 9] = [82.0, 54.0, 35.0, 26.0, 22.0, 19.0, 18.0, 17.5, 17.0];
const PAPER_RECOMPUTE: f64 = 37.5;

/// What is measured.
pub(super) struct Tiers {
    pub(super) model: PathBuf,
    pub(super) num_threads: usize,
    pub(super) rounds: u16,
}

/// Medians, in milliseconds.
struct Row {
    block_size: usize,
    out_ms: f64,
    in_ms: f64,
    recompute_ms: f64,
}

/// A model with a cache of one block size, and what was measured with it.
struct Bench {
    runner: CpuRunner,
    block_size: usize,
    output: StepOutput,
    samples: [Vec<f64>; 3],
}

impl Tiers {
    pub(super) fn experiment(&self) -> anyhow::Result<Experiment> {
        let mut rows = Vec::new();
        // One after another: nine models at once would not fit small machines.
        for block_size in BLOCK_SIZES {
            eprintln!("blocks of {block_size}");
            let mut bench = self.bench(block_size)?;
            for round in 0..NUM_PLACES + usize::from(self.rounds) {
                bench.round(round)?;
            }
            rows.push(bench.row());
        }
        let checkpoint = Checkpoint::open(&self.model)?;
        let mut results =
            Experiment::measured("preemption", "Swap against recomputation by block size");
        results.figures = vec!["Fig 19a".to_owned()];
        results.command = "cargo xtask bench preemption --model MODEL.gguf".to_owned();
        results.paper = "256 tokens of OPT-13B are copied out of an A100's memory and back, block by block, \
            and computed again instead: small blocks make many small copies over PCIe, so swapping is slow \
            below 16 tokens; recomputing does not depend on the block size."
            .to_owned();
        results.ours = "The same on a CPU, whose tiers are both main memory: the blocks of a 256-token \
            sequence, shuffled, all layers, moved by one call each way, and a prefill of 256 tokens."
            .to_owned();
        let model = checkpoint.config();
        let shape = format!(
            "{}, {} layers, {} key-value heads of {}",
            model.architecture, model.num_layers, model.num_kv_heads, model.head_dim
        );
        results.parameter("model", shape);
        results.parameter("cache", KvDtype::Bf16.name());
        results.parameter("rounds", usize::from(self.rounds));
        results.parameter("threads", self.num_threads);
        results.tables.push(table(&rows));
        results.plots.push(plot(&rows));
        results.checks = checks(&rows);
        let wins = rows
            .iter()
            .filter(|row| row.out_ms + row.in_ms < row.recompute_ms);
        results.notes.push(format!(
            "There is no PCIe bus here: a swap is a copy in memory, at memory's speed, and computing is \
             slow. Swapping is quicker at {} of {} block sizes. The scheduler's mode `auto` measures both \
             while it serves and takes the quicker.",
            wins.count(),
            rows.len()
        ));
        Ok(results)
    }

    fn bench(&self, block_size: usize) -> anyhow::Result<Bench> {
        let options = LoadOptions {
            num_threads: self.num_threads,
            ..LoadOptions::default()
        };
        let model = Model::load(&Checkpoint::open(&self.model)?, options)?;
        let num_blocks = NUM_PLACES * NUM_TOKENS / block_size;
        let cache = RunnerConfig {
            block_size,
            num_blocks,
            num_host_blocks: num_blocks,
            kv_dtype: KvDtype::Bf16,
        };
        Ok(Bench {
            runner: CpuRunner::new(model, cache)?,
            block_size,
            output: StepOutput::default(),
            samples: Default::default(),
        })
    }
}

impl Bench {
    /// A sequence is computed, swapped out and swapped in, at a place of its own.
    fn round(&mut self, round: usize) -> anyhow::Result<()> {
        let (place, other) = (round % NUM_PLACES, (round + NUM_PLACES / 2) % NUM_PLACES);
        let began = Instant::now();
        self.runner
            .run(&prefill(self.block_size, place), &mut self.output)?;
        let recomputed = began.elapsed();
        let pairs = blocks(self.block_size, place).zip(blocks(self.block_size, other));
        let out = Batch {
            swap_outs: pairs.collect(),
            ..nothing()
        };
        self.runner.run(&out, &mut self.output)?;
        let swapped_out = self.output.transfer_time;
        let back = Batch {
            swap_ins: out
                .swap_outs
                .iter()
                .map(|&(device, host)| (host, device))
                .collect(),
            ..nothing()
        };
        self.runner.run(&back, &mut self.output)?;
        let swapped_in = self.output.transfer_time;
        // In the first rounds memory is taken from the system.
        if round >= NUM_PLACES {
            let times = [swapped_out, swapped_in, recomputed];
            for (samples, time) in self.samples.iter_mut().zip(times) {
                samples.push(time.as_secs_f64() * 1e3);
            }
        }
        Ok(())
    }

    fn row(self) -> Row {
        let [out_ms, in_ms, recompute_ms] = self.samples.map(median);
        Row {
            block_size: self.block_size,
            out_ms,
            in_ms,
            recompute_ms,
        }
    }
}

/// A step without sequences.
fn nothing() -> Batch {
    Batch {
        row_offsets: vec![0],
        table_offsets: vec![0],
        ..Batch::default()
    }
}

/// Blocks of a sequence at a place: every second one first, so that none follows the one before.
fn blocks(block_size: usize, place: usize) -> impl Iterator<Item = u32> + Clone {
    let num = NUM_TOKENS / block_size;
    let order = (0..num).step_by(2).chain((1..num).step_by(2));
    order.map(move |i| (place * num + i) as u32)
}

/// 256 tokens, computed at once.
fn prefill(block_size: usize, place: usize) -> Batch {
    let table: Vec<u32> = blocks(block_size, place).collect();
    let slot = |i: usize| table[i / block_size] * block_size as u32 + (i % block_size) as u32;
    Batch {
        tokens: (0..NUM_TOKENS).map(|i| (i % 97 + 1) as u32).collect(),
        positions: (0..NUM_TOKENS as u32).collect(),
        slots: (0..NUM_TOKENS).map(slot).collect(),
        row_offsets: vec![0, NUM_TOKENS as u32],
        context_lens: vec![NUM_TOKENS as u32],
        table_offsets: vec![0, table.len() as u32],
        block_tables: table,
        ..Batch::default()
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(
        "Milliseconds for 256 tokens; the paper's are of OPT-13B on an A100.",
        &[
            ("block size", 0),
            ("swap out", 2),
            ("swap in", 2),
            ("recompute", 1),
            ("recompute / swaps", 1),
            ("paper: out", 1),
            ("paper: in", 1),
            ("paper: recompute / swaps", 2),
        ],
    );
    for (i, row) in rows.iter().enumerate() {
        let (paper_out, paper_in) = (PAPER_SWAP_OUT[i], PAPER_SWAP_IN[i]);
        table.rows.push(vec![
            Cell::from(row.block_size),
            row.out_ms.into(),
            row.in_ms.into(),
            row.recompute_ms.into(),
            (row.recompute_ms / (row.out_ms + row.in_ms)).into(),
            paper_out.into(),
            paper_in.into(),
            (PAPER_RECOMPUTE / (paper_out + paper_in)).into(),
        ]);
    }
    table
}

fn plot(rows: &[Row]) -> Plot {
    let ours = |name: &str, f: &dyn Fn(&Row) -> f64| Series {
        name: name.to_owned(),
        source: Source::Measured,
        points: rows
            .iter()
            .map(|row| (row.block_size as f64, f(row)))
            .collect(),
    };
    let paper = |name: &str, f: &dyn Fn(usize) -> f64| Series {
        name: name.to_owned(),
        source: Source::Paper("Fig 19a".to_owned()),
        points: BLOCK_SIZES
            .iter()
            .enumerate()
            .map(|(i, &b)| (b as f64, f(i)))
            .collect(),
    };
    Plot {
        name: "tiers".to_owned(),
        title: "256 tokens: swapped out and in, or computed again".to_owned(),
        caption: "The paper's are of OPT-13B on an A100 behind PCIe, ours of a small model on a CPU: shapes \
            compare, heights do not."
            .to_owned(),
        kind: PlotKind::Lines,
        x: Axis::log("block size (tokens)"),
        y: Axis::log("time (ms)"),
        series: vec![
            ours("swap out and in", &|row| row.out_ms + row.in_ms),
            paper("swap out and in", &|i| PAPER_SWAP_OUT[i] + PAPER_SWAP_IN[i]),
            ours("recompute", &|row| row.recompute_ms),
            paper("recompute", &|_| PAPER_RECOMPUTE),
        ],
        thresholds: Vec::new(),
    }
}

fn checks(rows: &[Row]) -> Vec<Check> {
    let swap = |row: &Row| row.out_ms + row.in_ms;
    let at = |block_size: usize| rows.iter().find(|row| row.block_size == block_size);
    let paper = |i: usize| PAPER_SWAP_OUT[i] + PAPER_SWAP_IN[i];
    let small = at(1).zip(at(16)).map(|(one, many)| swap(one) / swap(many));
    let recomputed = rows.iter().map(|row| row.recompute_ms);
    let (least, most) = (
        recomputed.clone().fold(f64::INFINITY, f64::min),
        recomputed.fold(0.0, f64::max),
    );
    vec![
        Check::new(
            "swap of blocks of 1 over blocks of 16",
            small,
            Bound::AtMost(paper(0) / paper(4)),
        )
        .paper(paper(0) / paper(4))
        .unit("times"),
        Check::new(
            "recompute, slowest over quickest block size",
            most / least,
            Bound::AtMost(1.5),
        )
        .paper(39.0 / 36.0)
        .unit("times"),
    ]
}
