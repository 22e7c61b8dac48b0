//! `pageloom generate`.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use pageloom_engine::text::{ChatMessage, RenderOptions};
use pageloom_engine::{
    BeamSearch, EarlyStopping, Engine, FinishReason, MAX_BEAMS, OutputDelta, Request, RequestError,
    RequestEvent, StopCause,
};
use pageloom_model_runner::{SamplingParams, TokenId};
use serde::Serialize;

use super::{CacheOptions, ModelOptions};
use crate::api::MAX_N;
use crate::launch::{EngineOptions, Launched, launch};

/// Flags of `pageloom generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    cache: CacheOptions,
    /// Text to continue, or with --chat the user's message
    #[arg(short, long)]
    prompt: String,
    /// Use the model's chat template
    #[arg(long)]
    chat: bool,
    /// System message of the chat
    #[arg(long, requires = "chat", value_name = "TEXT")]
    system: Option<String>,
    /// Print one JSON object at the end instead of the text as it comes: `choices` has every
    /// sequence, best first, and the first one's fields stand at the top too
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    sequences: SequenceOptions,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingOptions {
    /// Most tokens to generate
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied, up to 2
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    temperature: f32,
    /// Keep the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: u32,
    /// Drop tokens less likely than this share of the likeliest one
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Make tokens that occurred before less likely, if above 1
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    repetition_penalty: f32,
    /// Seed of the random draws [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// End the text before this string; several are allowed
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on past the model's end of text
    #[arg(long)]
    ignore_eos: bool,
}

/// How many sequences, and how they are found. Sequences that are ranked, and several, are printed
/// when all are there; each below its number and, if ranked, its score.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Several sequences")]
struct SequenceOptions {
    /// Sequences to print
    #[arg(long, default_value_t = 1, value_name = "N")]
    n: usize,
    /// Sequences to generate, of which the --n with the highest log-probability per token are
    /// printed; with --beam-search the number of beams [default: --n]
    #[arg(long, value_name = "N")]
    best_of: Option<usize>,
    /// Search for the likeliest sequences instead of drawing them
    #[arg(long, alias = "use-beam-search")]
    beam_search: bool,
    /// A beam's score is the sum of its log-probabilities over its length to this power: above 0
    /// favours long ones
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "P",
        requires = "beam_search"
    )]
    #[arg(allow_negative_numbers = true)]
    length_penalty: f32,
    /// When a search ends with as many finished sequences as it has beams. true: at once; false:
    /// when the best beam scores no better as it is; never: when it cannot score better any more
    #[arg(long, value_enum, default_value_t, requires = "beam_search")]
    early_stopping: Stopping,
}

/// `--early-stopping`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stopping {
    True,
    #[default]
    False,
    Never,
}

impl SequenceOptions {
    fn num_generated(&self) -> usize {
        self.best_of.unwrap_or(self.n)
    }

    fn is_ranked(&self) -> bool {
        self.beam_search || self.num_generated() > self.n
    }

    fn beams(&self) -> Option<BeamSearch> {
        self.beam_search.then_some(BeamSearch {
            length_penalty: self.length_penalty,
            early_stopping: match self.early_stopping {
                Stopping::True => EarlyStopping::Immediately,
                Stopping::False => EarlyStopping::Heuristic,
                Stopping::Never => EarlyStopping::Never,
            },
        })
    }

    /// What needs no model to be seen.
    fn check(&self, temperature: f32, max_num_seqs: Option<usize>) -> anyhow::Result<()> {
        let (n, num) = (self.n, self.num_generated());
        let field = self.best_of.map_or("--n", |_| "--best-of");
        if n == 0 || n > MAX_N {
            bail!("--n {n}: must be between 1 and {MAX_N}");
        }
        if num < n || num > MAX_N {
            bail!("--best-of {num}: must be between --n ({n}) and {MAX_N}");
        }
        if let Some(most) = max_num_seqs.filter(|&most| num > most) {
            bail!("{field} {num}: --max-num-seqs lets only {most} be computed at once");
        }
        if self.beam_search {
            if num > MAX_BEAMS {
                bail!("{field} {num}: must be at most {MAX_BEAMS} with --beam-search");
            }
            if temperature != 0.0 && temperature != 1.0 {
                bail!("--temperature {temperature}: must be 0 or 1 with --beam-search");
            }
        } else if num > 1 && temperature == 0.0 {
            bail!("{field} {num}: all would be equal with --temperature 0 and no --beam-search");
        }
        Ok(())
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    prompt_token_ids: Vec<TokenId>,
    /// The first of `choices`.
    #[serde(flatten)]
    first: Choice,
    choices: Vec<Choice>,
    seed: u64,
    timing: Timing,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Choice {
    token_ids: Vec<TokenId>,
    text: String,
    finish_reason: &'static str,
    stop_reason: Option<serde_json::Value>,
    /// What it was ranked by.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

impl Choice {
    fn append(&mut self, delta: OutputDelta) -> anyhow::Result<()> {
        self.text.push_str(&delta.text);
        self.token_ids.extend(delta.tokens.iter().map(|t| t.id));
        self.score = delta.score;
        if let Some(finish) = delta.finish {
            (self.finish_reason, self.stop_reason) = ending(finish)?;
        }
        Ok(())
    }
}

#[derive(Debug, Default, Serialize)]
struct Timing {
    /// Fetching, if it was needed, and loading.
    load_s: f64,
    /// From the prompt to its first token.
    first_token_s: f64,
    /// From the prompt to the last token.
    total_s: f64,
    /// Tokens of all choices a second, after the first of each.
    decode_tokens_per_s: Option<f64>,
}

/// Generates and prints.
///
/// # Errors
/// If the model is missing or wrong, a flag is out of range or generation failed.
pub(super) fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let sequences = &args.sequences;
    let mut cache = args.cache.clone();
    sequences.check(args.sampling.temperature, cache.max_num_seqs)?;
    // One request: what the pool and the buffers are sized for.
    cache.max_num_seqs.get_or_insert(sequences.num_generated());
    let mut launched = launch(&args.model, &cache, &EngineOptions::default())?;
    let mut timing = Timing {
        load_s: start.elapsed().as_secs_f64(),
        ..Timing::default()
    };
    let prompt = prompt_tokens(&args, &launched)?;
    let seed = match args.sampling.seed {
        Some(seed) => seed,
        None => getrandom::u64().context("the system has no random numbers to give")?,
    };
    let max_model_len = launched.config.max_model_len;
    let request = request(&args, prompt.clone(), seed, max_model_len);
    // Several at once would be told apart by nobody.
    let is_one = sequences.n == 1 && !sequences.is_ranked();
    let echo = is_one && !args.json;
    let choices = generate(&mut launched.engine, request, &mut timing, echo)?;
    if args.json {
        let report = Report {
            model: launched.name,
            prompt_token_ids: prompt,
            first: choices[0].clone(),
            choices,
            seed,
            timing,
        };
        print(&format!("{}\n", serde_json::to_string(&report)?))
    } else if is_one {
        print("\n")
    } else {
        print(&listed(&choices))
    }
}

/// The texts below their numbers.
fn listed(choices: &[Choice]) -> String {
    let listed = choices.iter().zip(1..).map(|(choice, number)| {
        let score = choice.score.map(|score| format!(" score {score:.4}"));
        format!("[{number}]{}\n{}\n", score.unwrap_or_default(), choice.text)
    });
    listed.collect::<Vec<_>>().join("\n")
}

fn prompt_tokens(args: &GenerateArgs, launched: &Launched) -> anyhow::Result<Vec<TokenId>> {
    if !args.chat {
        return Ok(launched.tokenizer.encode(&args.prompt, true)?);
    }
    let template = launched
        .template
        .as_ref()
        .context("--chat: this model has no chat template; give one with --chat-template FILE")?;
    let message = |role: &str, content: &str| ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
        name: None,
    };
    let mut messages = Vec::new();
    messages.extend(args.system.as_deref().map(|text| message("system", text)));
    messages.push(message("user", &args.prompt));
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    let text = template.render(&messages, &options)?;
    Ok(launched.tokenizer.encode(&text, false)?)
}

fn request(args: &GenerateArgs, prompt: Vec<TokenId>, seed: u64, max_model_len: usize) -> Request {
    let (options, sequences) = (&args.sampling, &args.sequences);
    let room = max_model_len.saturating_sub(prompt.len());
    let mut request = Request::new(prompt);
    request.n = sequences.n;
    request.best_of = sequences.best_of;
    request.beams = sequences.beams();
    // What is past the context is cut by the engine, and to what the cache can hold.
    request.max_tokens = Some(options.max_tokens.max(1)).filter(|&most| most < room);
    request.sampling = SamplingParams {
        temperature: options.temperature,
        top_p: options.top_p,
        top_k: options.top_k,
        min_p: options.min_p,
        repetition_penalty: options.repetition_penalty,
        seed,
        ..SamplingParams::default()
    };
    request.stop.clone_from(&options.stop);
    request.ignore_eos = options.ignore_eos;
    request
}

/// All choices, the best first. `echo`: the text is printed as it comes.
fn generate(
    engine: &mut Engine,
    request: Request,
    timing: &mut Timing,
    echo: bool,
) -> anyhow::Result<Vec<Choice>> {
    let start = Instant::now();
    let mut choices = vec![Choice::default(); request.n];
    engine.add(request, start.elapsed()).map_err(with_flags)?;
    let mut events = Vec::new();
    while engine.has_work() {
        engine.step(start.elapsed())?;
        events.extend(engine.drain_events());
        for (_, event) in events.drain(..) {
            let delta = match event {
                // The step that completes the prompt draws the first token.
                RequestEvent::Prompt { .. } => {
                    timing.first_token_s = start.elapsed().as_secs_f64();
                    continue;
                }
                RequestEvent::Output(delta) => delta,
            };
            if echo {
                print(&delta.text)?;
            }
            choices[delta.index].append(delta)?;
        }
    }
    timing.total_s = start.elapsed().as_secs_f64();
    let decode_s = timing.total_s - timing.first_token_s;
    let after_first = |choice: &Choice| choice.token_ids.len().saturating_sub(1);
    let num_decoded: usize = choices.iter().map(after_first).sum();
    timing.decode_tokens_per_s =
        (num_decoded > 0 && decode_s > 0.0).then(|| num_decoded as f64 / decode_s);
    Ok(choices)
}

/// Says which flags help, where it is no field that is wrong.
fn with_flags(error: RequestError) -> anyhow::Error {
    let hint = match error {
        RequestError::NeverFits { .. } => {
            ": lower --max-tokens, --n or --best-of, or raise --kv-cache-memory-bytes"
        }
        _ => "",
    };
    anyhow!("{error}{hint}")
}

fn ending(finish: FinishReason) -> anyhow::Result<(&'static str, Option<serde_json::Value>)> {
    Ok(match finish {
        FinishReason::Length => ("length", None),
        FinishReason::Stop(None) => ("stop", None),
        FinishReason::Stop(Some(StopCause::Token(id))) => ("stop", Some(id.into())),
        FinishReason::Stop(Some(StopCause::String(text))) => ("stop", Some(text.into())),
        FinishReason::Abort => bail!("generation was aborted"),
        FinishReason::Error(message) => bail!("generation failed: {message}"),
    })
}

/// Prints to standard output at once; whoever closed the pipe has read enough.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => outcome.context("cannot write to standard output"),
    }
}
