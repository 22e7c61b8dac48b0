//! `pageloom generate`.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use pageloom_engine::text::{ChatMessage, RenderOptions};
use pageloom_engine::{FinishReason, Request, RequestEvent, StopCause};
use pageloom_model_runner::{SamplingParams, TokenId};
use serde::Serialize;

use super::{CacheOptions, ModelOptions};
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
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingOptions,
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

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    prompt_token_ids: Vec<TokenId>,
    token_ids: Vec<TokenId>,
    text: String,
    finish_reason: &'static str,
    stop_reason: Option<serde_json::Value>,
    seed: u64,
    timing: Timing,
}

#[derive(Debug, Serialize)]
struct Timing {
    /// Fetching, if it was needed, and loading.
    load_s: f64,
    /// From the prompt to its first token.
    first_token_s: f64,
    /// From the prompt to the last token.
    total_s: f64,
    /// Tokens a second after the first.
    decode_tokens_per_s: Option<f64>,
}

/// Generates and prints.
///
/// # Errors
/// If the model is missing or wrong, a flag is out of range or generation failed.
pub(super) fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut cache = args.cache.clone();
    // One sequence: what the pool and the buffers are sized for.
    cache.max_num_seqs.get_or_insert(1);
    let launched = launch(&args.model, &cache, &EngineOptions::default())?;
    let load_s = start.elapsed().as_secs_f64();
    let prompt = prompt_tokens(&args, &launched)?;
    let seed = match args.sampling.seed {
        Some(seed) => seed,
        None => getrandom::u64().context("the system has no random numbers to give")?,
    };
    let request = request(
        &args.sampling,
        prompt.clone(),
        seed,
        launched.config.max_model_len,
    );
    let mut report = Report {
        model: launched.name.clone(),
        prompt_token_ids: prompt,
        token_ids: Vec::new(),
        text: String::new(),
        finish_reason: "",
        stop_reason: None,
        seed,
        timing: Timing {
            load_s,
            first_token_s: 0.0,
            total_s: 0.0,
            decode_tokens_per_s: None,
        },
    };
    generate(launched, request, &mut report, !args.json)?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))
    } else {
        print("\n")
    }
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

fn request(
    options: &SamplingOptions,
    prompt: Vec<TokenId>,
    seed: u64,
    max_model_len: usize,
) -> Request {
    let room = max_model_len.saturating_sub(prompt.len());
    let mut request = Request::new(prompt);
    // At least one, so that a prompt that fills the context is an error and not an empty answer.
    request.max_tokens = Some(options.max_tokens.min(room).max(1));
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

fn generate(
    launched: Launched,
    request: Request,
    report: &mut Report,
    echo: bool,
) -> anyhow::Result<()> {
    let mut engine = launched.engine;
    let start = Instant::now();
    engine.add(request, start.elapsed())?;
    let mut events = Vec::new();
    while engine.has_work() {
        engine.step(start.elapsed())?;
        events.extend(engine.drain_events());
        for (_, event) in events.drain(..) {
            let RequestEvent::Output(delta) = event else {
                continue;
            };
            if echo {
                print(&delta.text)?;
            }
            if report.token_ids.is_empty() {
                report.timing.first_token_s = start.elapsed().as_secs_f64();
            }
            report.text.push_str(&delta.text);
            report.token_ids.extend(delta.tokens.iter().map(|t| t.id));
            if let Some(finish) = delta.finish {
                (report.finish_reason, report.stop_reason) = ending(finish)?;
            }
        }
    }
    let timing = &mut report.timing;
    timing.total_s = start.elapsed().as_secs_f64();
    let decode_s = timing.total_s - timing.first_token_s;
    let num_decoded = report.token_ids.len().saturating_sub(1);
    timing.decode_tokens_per_s =
        (num_decoded > 0 && decode_s > 0.0).then(|| num_decoded as f64 / decode_s);
    Ok(())
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
