//! What sharing blocks saves, for several samples of a prompt and for beam search: figure 15 of the
//! paper, with a real model, since beams of random weights part at random.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use flate2::read::GzDecoder;
use pageloom_engine::text::Tokenizer;
use pageloom_engine::{BeamSearch, Engine, EngineConfig, ModelExecutor, Request};
use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, SamplingParams, TokenId,
};
use serde::Deserialize;

const BLOCK_SIZE: usize = 16;
/// Longest sequence, and what the pool is sized for: no request is ever preempted.
const CONTEXT: usize = 1024;

/// Sequences of a request, with what the paper measured on Alpaca in percent (figure 15).
const PARALLEL: [(usize, f64); 3] = [(2, 6.09), (4, 8.53), (6, 9.79)];
const BEAMS: [(usize, f64); 3] = [(2, 37.56), (4, 53.13), (6, 55.16)];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file or a folder of safetensors
    #[arg(long)]
    model: PathBuf,
    /// Prompts: a line of JSON each with `instruction`, `input` and `output_tokens`, plain or .gz, as
    /// made from the Alpaca data
    #[arg(long)]
    prompts: PathBuf,
    /// Requests, evenly from the whole file
    #[arg(long, default_value_t = 100)]
    requests: usize,
    /// Requests at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    concurrency: u16,
}

#[derive(Deserialize)]
struct Line {
    instruction: String,
    input: String,
    output_tokens: usize,
}

/// A prompt, and how long each of its answers is made.
struct Task {
    prompt: Vec<TokenId>,
    num_output_tokens: usize,
}

/// Blocks over all steps.
#[derive(Default)]
struct Blocks {
    logical: usize,
    physical: usize,
    num_steps: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint)?);
    let tasks = read_tasks(&args.prompts, args.requests, &tokenizer)?;
    let mean =
        |f: fn(&Task) -> usize| tasks.iter().map(f).sum::<usize>() as f64 / tasks.len() as f64;
    println!(
        "{} requests, {} at once, of {:.1} prompt and {:.1} output tokens; blocks of {BLOCK_SIZE}; \
         saved: 1 - physical / logical blocks, summed over the steps",
        tasks.len(),
        args.concurrency,
        mean(|task| task.prompt.len()),
        mean(|task| task.num_output_tokens),
    );
    println!("| decoding | saved | in the paper | steps | seconds |");
    println!("|---|---:|---:|---:|---:|");
    for (name, beams, all) in [
        ("parallel", None, PARALLEL),
        ("beam", Some(BeamSearch::default()), BEAMS),
    ] {
        for (num_seqs, paper) in all {
            let start = Instant::now();
            let blocks = measure(args, &checkpoint, &tokenizer, &tasks, num_seqs, beams)?;
            println!(
                "| {name} {num_seqs} | {:.1} % | {paper:.1} % | {} | {:.0} |",
                100.0 * (1.0 - blocks.physical as f64 / blocks.logical as f64),
                blocks.num_steps,
                start.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}

fn read_tasks(path: &Path, most: usize, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Task>> {
    let unreadable = || format!("cannot read prompts from {}", path.display());
    let file = File::open(path).with_context(unreadable)?;
    let lines: Box<dyn BufRead> = match path.extension() {
        Some(gz) if gz == "gz" => Box::new(BufReader::new(GzDecoder::new(file))),
        _ => Box::new(BufReader::new(file)),
    };
    let mut tasks = Vec::new();
    for (number, line) in (1..).zip(lines.lines()) {
        let at = || format!("{}, line {number}", path.display());
        let line: Line = serde_json::from_str(&line.with_context(at)?).with_context(at)?;
        let text = match line.input.as_str() {
            "" => line.instruction,
            input => format!("{}\n{input}", line.instruction),
        };
        let prompt = tokenizer.encode(&text, false).with_context(at)?;
        let fits = prompt.len() + line.output_tokens <= CONTEXT;
        if fits && !prompt.is_empty() && line.output_tokens > 0 {
            tasks.push(Task {
                prompt,
                num_output_tokens: line.output_tokens,
            });
        }
    }
    ensure!(
        !tasks.is_empty(),
        "{} has no prompts that fit",
        path.display()
    );
    let stride = tasks.len().div_ceil(most.max(1));
    Ok(tasks.into_iter().step_by(stride).collect())
}

fn measure(
    args: &Args,
    checkpoint: &Checkpoint,
    tokenizer: &Arc<Tokenizer>,
    tasks: &[Task],
    num_seqs: usize,
    beams: Option<BeamSearch>,
) -> anyhow::Result<Blocks> {
    let concurrency = usize::from(args.concurrency);
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks: (CONTEXT / BLOCK_SIZE + 1) * num_seqs * concurrency,
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
        while num_running < concurrency
            && let Some((seed, task)) = waiting.next()
        {
            engine.add(request(task, seed, num_seqs, beams), start.elapsed())?;
            num_running += 1;
        }
        if !engine.begin_step(start.elapsed())? {
            return Ok(blocks);
        }
        // With the step's slots, before anything ends.
        let stats = engine.stats();
        blocks.logical += stats.num_logical_blocks;
        blocks.physical += stats.num_referenced_blocks;
        blocks.num_steps += 1;
        engine.end_step(|| start.elapsed());
        let is_end = |event: &pageloom_engine::RequestEvent| match event {
            pageloom_engine::RequestEvent::Output(delta) => {
                delta.index == 0 && delta.finish.is_some()
            }
            pageloom_engine::RequestEvent::Prompt { .. } => false,
        };
        num_running -= engine
            .drain_events()
            .filter(|(_, event)| is_end(event))
            .count();
    }
}

/// All of a request's sequences have the length that the data says, as in the paper.
fn request(task: &Task, seed: u64, num_seqs: usize, beams: Option<BeamSearch>) -> Request {
    Request {
        n: num_seqs,
        beams,
        max_tokens: Some(task.num_output_tokens),
        sampling: SamplingParams {
            seed: seed << 32,
            ..SamplingParams::default()
        },
        ignore_eos: true,
        ..Request::new(task.prompt.clone())
    }
}
