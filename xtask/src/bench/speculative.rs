//! What speculation by n-grams saves: one stream at a time on a real model, with and without it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pageloom_engine::text::{ChatMessage, ChatTemplate, RenderOptions, Tokenizer};
use pageloom_engine::{Engine, EngineConfig, ModelExecutor, NgramConfig, Request, RequestEvent};
use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, SamplingParams, TokenId,
};

const BLOCK_SIZE: usize = 16;
/// Longest sequence, and what the pool is sized for.
const CONTEXT: usize = 2048;

/// Each workload's prompts, what a user would ask of a chat.
const WORKLOADS: [(&str, [&str; 2]); 2] = [
    (
        "summarising",
        [
            include_str!("../../../benches/data/speculative/summarise_harbour.txt"),
            include_str!("../../../benches/data/speculative/summarise_soil.txt"),
        ],
    ),
    (
        "code editing",
        [
            include_str!("../../../benches/data/speculative/edit_inventory.txt"),
            include_str!("../../../benches/data/speculative/edit_queue.txt"),
        ],
    ),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file or a folder of safetensors, with a chat template
    #[arg(long)]
    model: PathBuf,
    /// Threads that compute [default: one per core]
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Most drafts a step: a column for each number, beside one without
    #[arg(long, value_delimiter = ',', default_values_t = [NgramConfig::default().num_speculative_tokens])]
    num_speculative_tokens: Vec<usize>,
    /// Fewest last tokens that must have occurred before
    #[arg(long, default_value_t = NgramConfig::default().prompt_lookup_min)]
    prompt_lookup_min: usize,
    /// Most last tokens that are compared
    #[arg(long, default_value_t = NgramConfig::default().prompt_lookup_max)]
    prompt_lookup_max: usize,
    /// 0: greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Rounds, in each of which every column has its turn; the medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
}

/// A workload's prompts, and what was measured of each column.
struct Rows {
    prompts: Vec<Vec<TokenId>>,
    columns: Vec<Column>,
}

/// One way to decode.
struct Column {
    engine: Engine,
    /// `None`: without speculation.
    num_drafts: Option<usize>,
    /// Seconds from the first token to the last: for each prompt, one for each round.
    seconds: Vec<Vec<f64>>,
    /// Steps in which those were computed.
    num_steps: u64,
    /// The answers of the last round.
    answers: Vec<Vec<TokenId>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint)?);
    let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer)?
        .context("the model has no chat template")?;
    println!(
        "one stream, temperature {}, at most {} tokens; n-grams of {} to {} tokens; medians of {} \
         rounds; tokens a second after the first",
        args.temperature,
        args.max_tokens,
        args.prompt_lookup_min,
        args.prompt_lookup_max,
        args.rounds
    );
    println!(
        "| workload | prompt + output tokens | drafts a step | tokens/s | ratio | accepted | \
         tokens a step |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (name, texts) in WORKLOADS {
        let prompts = texts.iter().map(|text| prompt(text, &template, &tokenizer));
        let mut rows = Rows {
            prompts: prompts.collect::<anyhow::Result<_>>()?,
            columns: columns(args, &checkpoint, &tokenizer, texts.len())?,
        };
        for _ in 0..args.rounds {
            // In turn for each prompt: the machine may not be ours alone.
            for (at, prompt) in rows.prompts.iter().enumerate() {
                for column in &mut rows.columns {
                    column.measure(args, at, prompt)?;
                }
            }
        }
        rows.print(name, usize::from(args.rounds))?;
    }
    Ok(())
}

fn prompt(
    text: &str,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<TokenId>> {
    let message = ChatMessage {
        role: "user".to_owned(),
        content: text.trim_end().to_owned(),
        name: None,
    };
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    let text = template.render(&[message], &options)?;
    Ok(tokenizer.encode(&text, false)?)
}

fn columns(
    args: &Args,
    checkpoint: &Checkpoint,
    tokenizer: &Arc<Tokenizer>,
    num_prompts: usize,
) -> anyhow::Result<Vec<Column>> {
    let with = args.num_speculative_tokens.iter().copied().map(Some);
    let make = |num_drafts: Option<usize>| {
        let config = EngineConfig {
            block_size: BLOCK_SIZE,
            num_blocks: CONTEXT / BLOCK_SIZE + 1,
            max_model_len: CONTEXT,
            // Every round computes its prompts.
            enable_prefix_caching: false,
            speculative: num_drafts.map(|num_speculative_tokens| NgramConfig {
                num_speculative_tokens,
                prompt_lookup_min: args.prompt_lookup_min,
                prompt_lookup_max: args.prompt_lookup_max,
            }),
            ..EngineConfig::default()
        };
        config.validate()?;
        let mut load = LoadOptions::default();
        if let Some(threads) = args.threads {
            load.num_threads = threads.get();
        }
        let cache = RunnerConfig {
            block_size: BLOCK_SIZE,
            num_blocks: config.num_blocks,
            num_host_blocks: 0,
            kv_dtype: KvDtype::Bf16,
        };
        let runner = CpuRunner::new(Model::load(checkpoint, load)?, cache)?;
        let executor = Box::new(ModelExecutor::new(runner));
        Ok(Column {
            engine: Engine::new(config, executor, Arc::clone(tokenizer))?,
            num_drafts,
            seconds: vec![Vec::new(); num_prompts],
            num_steps: 0,
            answers: vec![Vec::new(); num_prompts],
        })
    };
    [None].into_iter().chain(with).map(make).collect()
}

impl Column {
    /// Answers one of the prompts.
    fn measure(&mut self, args: &Args, at: usize, prompt: &[TokenId]) -> anyhow::Result<()> {
        let request = Request {
            max_tokens: Some(args.max_tokens),
            sampling: SamplingParams {
                temperature: args.temperature,
                ..SamplingParams::default()
            },
            ..Request::new(prompt.to_vec())
        };
        self.engine.add(request, Duration::ZERO)?;
        let mut answer = Vec::new();
        let mut first = None;
        let start = Instant::now();
        while self.engine.step(start.elapsed())? {
            self.num_steps += u64::from(first.is_some());
            for (_, event) in self.engine.drain_events() {
                if let RequestEvent::Output(delta) = event {
                    answer.extend(delta.tokens.iter().map(|token| token.id));
                }
            }
            if first.is_none() && !answer.is_empty() {
                first = Some(start.elapsed());
            }
        }
        let time = start.elapsed() - first.context("no token was drawn")?;
        self.seconds[at].push(time.as_secs_f64());
        self.answers[at] = answer;
        Ok(())
    }

    /// Seconds from the first token of each answer to its last: the sum of each prompt's median.
    fn median_seconds(&self) -> f64 {
        let median = |seconds: &Vec<f64>| {
            let mut seconds = seconds.clone();
            seconds.sort_by(f64::total_cmp);
            seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
        };
        self.seconds.iter().map(median).sum()
    }
}

impl Rows {
    fn print(&self, name: &str, num_rounds: usize) -> anyhow::Result<()> {
        let without = &self.columns[0];
        let num_prompt: usize = self.prompts.iter().map(Vec::len).sum();
        let num_output: usize = without.answers.iter().map(Vec::len).sum();
        // But for the first of each.
        let num_timed = (num_output - self.prompts.len()) as f64;
        for column in &self.columns {
            ensure!(
                column.answers == without.answers,
                "{name}: the tokens with {:?} drafts are not those without",
                column.num_drafts
            );
            let num_drafts = column.num_drafts.map_or("-".to_owned(), |n| n.to_string());
            let stats = column.engine.stats();
            let accepted = match stats.num_draft_tokens {
                0 => "-".to_owned(),
                drafts => {
                    let share = 100.0 * stats.num_accepted_tokens as f64 / drafts as f64;
                    format!("{share:.0} % of {}", drafts / num_rounds as u64)
                }
            };
            let seconds = column.median_seconds();
            println!(
                "| {name} | {num_prompt} + {num_output} | {num_drafts} | {:.1} | {:.2} | \
                 {accepted} | {:.2} |",
                num_timed / seconds,
                without.median_seconds() / seconds,
                num_timed * num_rounds as f64 / column.num_steps as f64
            );
        }
        Ok(())
    }
}
