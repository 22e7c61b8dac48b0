//! What sharing blocks saves, for several samples of a prompt and for beam search: figure 15, with a
//! real model, since beams of random weights part at random.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pageloom_engine::text::Tokenizer;
use pageloom_engine::{BeamSearch, Engine, EngineConfig, ModelExecutor, Request, RequestEvent};
use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, SamplingParams,
};
use serde::{Deserialize, Serialize};

use super::Subject;
use super::prompts::{Task, read_tasks};
use crate::bench::experiment::{
    Axis, Bound, Check, Experiment, Plot, PlotKind, RunArgs, Series, Source, Table,
};
use crate::bench::resume::Points;

const BLOCK_SIZE: usize = 16;
/// Longest sequence, and what the pool is sized for: no request is ever preempted.
const CONTEXT: usize = 1024;
/// Requests at once. Sharing is within a request, so it does not depend on their number.
const CONCURRENCY: usize = 8;

/// Sequences of a request, with what the paper measured on Alpaca in percent (figure 15).
const PARALLEL: [(usize, f64); 3] = [(2, 6.09), (4, 8.53), (6, 9.79)];
const BEAMS: [(usize, f64); 3] = [(2, 37.56), (4, 53.13), (6, 55.16)];
/// Points of percent that may be between: the model is another, and so are its beams.
const NEAR: f64 = 10.0;

/// A model and prompts.
pub(crate) struct Inputs<'a> {
    pub(crate) model: &'a Path,
    pub(crate) prompts: &'a Path,
}

#[derive(Serialize)]
struct Point<'a> {
    model: &'a Path,
    prompts: &'a Path,
    num_requests: usize,
    num_seqs: usize,
    is_beams: bool,
}

/// Blocks over all steps.
#[derive(Default, Serialize, Deserialize)]
struct Blocks {
    logical: usize,
    physical: usize,
}

impl Blocks {
    fn saved_percent(&self) -> f64 {
        100.0 * (1.0 - self.physical as f64 / self.logical as f64)
    }
}

pub(crate) fn experiment(
    name: &str,
    inputs: &Inputs<'_>,
    run: &RunArgs,
) -> anyhow::Result<Experiment> {
    let num_requests = if run.quick { 8 } else { 100 };
    let points = Points::open(&format!("{name}-measured"), run)?;
    let subject = Subject::open(inputs.model)?;
    let checkpoint = Checkpoint::open(inputs.model)?;
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint)?);
    let tasks = read_tasks(inputs.prompts, &tokenizer, (num_requests, CONTEXT))?;
    let point = |(num_seqs, is_beams)| Point {
        model: inputs.model,
        prompts: inputs.prompts,
        num_requests,
        num_seqs,
        is_beams,
    };
    let of =
        |all: [(usize, f64); 3], is_beams| all.map(|(num_seqs, _)| point((num_seqs, is_beams)));
    let parameters: Vec<Point<'_>> = (of(PARALLEL, false).into_iter())
        .chain(of(BEAMS, true))
        .collect();
    let blocks = points.all(&parameters, 1, |point| {
        measure(&checkpoint, &tokenizer, &tasks, point)
    })?;
    let mut experiment = Experiment::measured(name, "Several samples of a prompt");
    experiment.points = points.into_files();
    experiment.command = format!("cargo xtask bench {name} --model MODEL.gguf --prompts FILE");
    experiment.parameter("model", subject.shape);
    explain(&mut experiment, &tasks);
    let saved: Vec<f64> = blocks.iter().map(Blocks::saved_percent).collect();
    for (kind, papers, ours) in [
        ("samples", PARALLEL, &saved[..3]),
        ("beams", BEAMS, &saved[3..]),
    ] {
        experiment.tables.push(table(kind, papers, ours));
        experiment.plots.push(plot(kind, papers, ours));
        for ((num_seqs, paper), &ours) in papers.into_iter().zip(ours) {
            let name = format!("{num_seqs} {kind}: blocks saved");
            let check = Check::new(name, ours, Bound::Within(NEAR));
            experiment.checks.push(check.paper(paper).unit("%"));
        }
    }
    Ok(experiment)
}

/// Runs all tasks to their ends.
fn measure(
    checkpoint: &Checkpoint,
    tokenizer: &Arc<Tokenizer>,
    tasks: &[Task],
    point: &Point<'_>,
) -> anyhow::Result<Blocks> {
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks: (CONTEXT / BLOCK_SIZE + 1) * point.num_seqs * CONCURRENCY,
        max_model_len: CONTEXT,
        ..EngineConfig::default()
    };
    let model = Model::load(checkpoint, LoadOptions::default())?;
    let cache = RunnerConfig {
        block_size: BLOCK_SIZE,
        num_blocks: config.num_blocks,
        num_host_blocks: 0,
        kv_dtype: KvDtype::Bf16,
    };
    let executor = ModelExecutor::new(CpuRunner::new(model, cache)?);
    let mut engine = Engine::new(config, Box::new(executor), Arc::clone(tokenizer))?;
    let start = Instant::now();
    let mut blocks = Blocks::default();
    let mut waiting = (0..).zip(tasks);
    let mut num_running = 0;
    loop {
        while num_running < CONCURRENCY
            && let Some((seed, task)) = waiting.next()
        {
            engine.add(request(task, seed, point), start.elapsed())?;
            num_running += 1;
        }
        if !engine.begin_step(start.elapsed())? {
            return Ok(blocks);
        }
        // With the step's slots, before anything ends.
        let stats = engine.stats();
        blocks.logical += stats.num_logical_blocks;
        blocks.physical += stats.num_referenced_blocks;
        engine.end_step(|| start.elapsed());
        let is_end = |event: &RequestEvent| match event {
            RequestEvent::Output(delta) => delta.index == 0 && delta.finish.is_some(),
            RequestEvent::Prompt { .. } => false,
        };
        let events = engine.drain_events();
        num_running -= events.filter(|(_, event)| is_end(event)).count();
    }
}

/// All of a request's sequences have the length that the data says, as in the paper.
fn request(task: &Task, seed: u64, point: &Point<'_>) -> Request {
    Request {
        n: point.num_seqs,
        beams: point.is_beams.then(BeamSearch::default),
        max_tokens: Some(task.num_output_tokens),
        sampling: SamplingParams {
            seed: seed << 32,
            ..SamplingParams::default()
        },
        ignore_eos: true,
        ..Request::new(task.prompt.clone())
    }
}

fn explain(experiment: &mut Experiment, tasks: &[Task]) {
    let mean =
        |f: fn(&Task) -> usize| tasks.iter().map(f).sum::<usize>() as f64 / tasks.len() as f64;
    experiment.figures = vec!["Fig 15".into()];
    experiment.parameter("requests", tasks.len());
    experiment.parameter("requests at once", CONCURRENCY);
    experiment.parameter("block size", BLOCK_SIZE);
    experiment.parameter("prompt tokens, mean", mean(|task| task.prompt.len()));
    experiment.parameter("output tokens, mean", mean(|task| task.num_output_tokens));
    experiment.paper =
        "OPT-13B on Alpaca's prompts: part of the blocks that are saved as samples share their \
        prompt's, and beams their common past."
            .into();
    experiment.ours = "A real model on real prompts, evenly from the file. Each answer is as long as the data's. \
        Saved is 1 - blocks in use / blocks by the sequences, summed over the steps: no time is measured. The \
        prompts are a file of JSON lines with `instruction`, `input` and `output` (or `output_tokens`), as made \
        from the Alpaca data, whose licence forbids to keep them here."
        .into();
    experiment.notes.push(
        "Longer outputs leave less to the prompt that samples share, and more to what beams have in common."
            .into(),
    );
}

fn table(kind: &str, papers: [(usize, f64); 3], ours: &[f64]) -> Table {
    let columns = [(kind, 0), ("paper", 1), ("measured", 1), ("difference", 1)];
    let mut table = Table::new(format!("Blocks saved, %: {kind} (Fig 15)"), &columns);
    for ((num_seqs, paper), &ours) in papers.into_iter().zip(ours) {
        let row = vec![
            num_seqs.into(),
            paper.into(),
            ours.into(),
            (ours - paper).into(),
        ];
        table.rows.push(row);
    }
    table
}

fn plot(kind: &str, papers: [(usize, f64); 3], ours: &[f64]) -> Plot {
    let names = papers.map(|(num_seqs, _)| num_seqs.to_string());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let bars = |source, values: Vec<f64>| Series {
        name: "blocks saved".into(),
        source,
        points: (0..).map(f64::from).zip(values).collect(),
    };
    Plot {
        name: kind.into(),
        title: format!("Blocks saved by sharing them, {kind}"),
        caption: "A real model on the prompts of Alpaca.".into(),
        kind: PlotKind::Bars,
        x: Axis::categories(&format!("{kind} of a request"), &names),
        y: Axis::linear("blocks saved (%)"),
        series: vec![
            bars(
                Source::Paper("Fig 15".into()),
                papers.map(|(_, paper)| paper).into(),
            ),
            bars(Source::Measured, ours.to_vec()),
        ],
        thresholds: Vec::new(),
    }
}
