//! `pageloom bench`: many requests at once, in process.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use pageloom_engine::{Engine, FinishReason, Request, RequestEvent};
use pageloom_model_runner::{Operation, Profile, SamplingParams, SharedProfile, TokenId};
use serde::Serialize;

use super::{CacheOptions, ModelOptions};
use crate::launch::{EngineOptions, launch};

/// Prompts are random ids from this range, as far as the vocabulary reaches: it leaves out
/// special tokens at both ends of common vocabularies.
const PROMPT_IDS: std::ops::Range<u64> = 100..48_000;

/// Flags of `pageloom bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    cache: CacheOptions,
    /// Numbers of requests submitted at once
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,8,32,64",
        value_name = "B,B,..."
    )]
    batch_sizes: Vec<usize>,
    /// Random tokens in each prompt
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    prompt_len: usize,
    /// Tokens generated for each, whatever they are; at least 2
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    output_len: usize,
    /// Seed of the prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object per batch size
    #[arg(long)]
    json: bool,
    /// Tell where the time goes, by operation
    #[arg(long)]
    profile: bool,
}

/// Rates at one batch size, in tokens a second.
#[derive(Debug, Serialize)]
struct Rates {
    batch_size: usize,
    prompt_len: usize,
    output_len: usize,
    /// Prompt tokens over the time of a run with one output token each.
    prefill: f64,
    /// Time of the whole run.
    total_s: f64,
    /// Tokens after the first over the time that a whole run takes longer than a prefill.
    decode: f64,
    /// Prompt and output tokens over the time of the whole run.
    all: f64,
    /// Memory that the weights take.
    weight_bytes: u64,
    /// With --profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Phases>,
}

/// Where the time of the two phases goes.
#[derive(Debug, Serialize)]
struct Phases {
    /// Of a whole run, until every request has its first token.
    prefill: Shares,
    /// The rest of the run.
    decode: Shares,
}

/// Milliseconds by operation, over all steps of a phase.
#[derive(Debug, Clone, Default, Serialize)]
struct Shares {
    num_steps: u64,
    total_ms: f64,
    /// All threads together: in parallel work, and not.
    busy_ms: f64,
    idle_ms: f64,
    /// In the order they are done; what is left of the total at the end.
    ms: Vec<(&'static str, f64)>,
}

impl Shares {
    /// `total`: time of the run, from its first request to its last token.
    fn new(profile: &Profile, total: Duration) -> Self {
        let in_ms = |time: Duration| 1e3 * time.as_secs_f64();
        let operations = Operation::ALL.map(|op| (op.name(), in_ms(profile.time(op))));
        let timed: f64 = operations.iter().map(|(_, ms)| ms).sum();
        let (run, total) = (in_ms(profile.run_time), in_ms(total));
        let mut ms = operations.to_vec();
        ms.push(("between operations", run - timed));
        // Requests, plans, batches, text: everything of the engine that is not the model's.
        ms.push(("scheduling", total - run));
        Shares {
            num_steps: profile.num_steps,
            total_ms: total,
            busy_ms: in_ms(profile.busy_time),
            idle_ms: total * profile.num_threads as f64 - in_ms(profile.busy_time),
            ms,
        }
    }

    fn print(&self, phase: &str) {
        println!("{phase}: {} steps, {:.1} ms", self.num_steps, self.total_ms);
        let per_step = self.num_steps.max(1) as f64;
        for (name, ms) in &self.ms {
            let (step, share) = (ms / per_step, 100.0 * ms / self.total_ms);
            println!("  {name:<20} {step:>9.3} ms a step {share:>6.1} %");
        }
        let idle = 100.0 * self.idle_ms / (self.busy_ms + self.idle_ms);
        println!("  threads idle, or waiting for one that works alone: {idle:.1} %");
    }
}

/// Times each batch size and prints a line for it.
///
/// # Errors
/// If the model is missing or wrong, a flag is out of range or a request failed.
pub(super) fn run(args: BenchArgs) -> anyhow::Result<()> {
    let largest = args.batch_sizes.iter().copied().max().unwrap_or(0);
    if largest == 0 || args.batch_sizes.contains(&0) {
        bail!("--batch-sizes: every size must be at least 1");
    }
    if args.prompt_len == 0 || args.output_len < 2 {
        bail!("--prompt-len must be at least 1 and --output-len at least 2");
    }
    let length = args.prompt_len.checked_add(args.output_len);
    let length = length.context("--prompt-len and --output-len are too large")?;
    let mut cache = args.cache.clone();
    cache.max_num_seqs.get_or_insert(largest);
    cache.max_model_len.get_or_insert(length);
    let options = EngineOptions {
        prefix_caching: false,
        max_num_queued_reqs: Some(largest),
        profile: args.profile.then(SharedProfile::default),
        ..EngineOptions::default()
    };
    let mut launched = launch(&args.model, &cache, &options)?;
    eprintln!("{}", launched.summary);
    let mut bench = Bench {
        engine: &mut launched.engine,
        vocab_size: launched.vocab_size,
        prompt_len: args.prompt_len,
        weight_bytes: launched.summary.weight_bytes(),
        profile: options.profile.clone(),
        phases: None,
        // Seed 0 must not start the generator at its fixed point.
        random: (args.seed ^ 0x9e37_79b9_7f4a_7c15).max(1),
    };
    bench.time(1, 4.min(args.output_len))?;
    for &batch_size in &args.batch_sizes {
        let rates = bench.rates(batch_size, args.output_len)?;
        if args.json {
            println!("{}", serde_json::to_string(&rates)?);
        } else {
            println!(
                "RES B={} prefill {:.1} tok/s, total {:.2} s, decode {:.1} tok/s, all {:.1} tok/s",
                rates.batch_size, rates.prefill, rates.total_s, rates.decode, rates.all
            );
            if let Some(phases) = &rates.profile {
                phases.prefill.print("prefill");
                phases.decode.print("decode");
            }
        }
    }
    Ok(())
}

struct Bench<'a> {
    engine: &'a mut Engine,
    vocab_size: usize,
    prompt_len: usize,
    weight_bytes: u64,
    profile: Option<SharedProfile>,
    /// Of the last run.
    phases: Option<Phases>,
    /// State of the generator of prompts, never zero.
    random: u64,
}

impl Bench<'_> {
    fn rates(&mut self, batch_size: usize, output_len: usize) -> anyhow::Result<Rates> {
        let prefill_s = self.time(batch_size, 1)?;
        let total_s = self.time(batch_size, output_len)?;
        let profile = self.phases.take();
        let tokens = |per_request: usize| (per_request * batch_size) as f64;
        Ok(Rates {
            batch_size,
            prompt_len: self.prompt_len,
            output_len,
            prefill: tokens(self.prompt_len) / prefill_s,
            total_s,
            decode: tokens(output_len - 1) / (total_s - prefill_s),
            all: tokens(self.prompt_len + output_len) / total_s,
            weight_bytes: self.weight_bytes,
            profile,
        })
    }

    /// The profile of the last so many seconds, if one is kept; the next starts empty.
    fn taken(&self, seconds: f64) -> Option<Shares> {
        let profile = self.profile.as_ref()?.take();
        Some(Shares::new(&profile, Duration::from_secs_f64(seconds)))
    }

    /// Seconds to answer `batch_size` requests that arrive together.
    fn time(&mut self, batch_size: usize, output_len: usize) -> anyhow::Result<f64> {
        let requests: Vec<Request> = (0..batch_size).map(|_| self.request(output_len)).collect();
        let start = Instant::now();
        for request in requests {
            self.engine.add(request, start.elapsed())?;
        }
        let mut num_tokens = 0;
        // What came before is not of this run.
        self.taken(0.0);
        let mut begun = HashSet::new();
        let mut prefill = None;
        while self.engine.has_work() {
            self.engine.step(start.elapsed())?;
            for (id, event) in self.engine.drain_events() {
                if let RequestEvent::Output(delta) = event {
                    num_tokens += delta.tokens.len();
                    begun.insert(id);
                    if let Some(FinishReason::Error(message)) = delta.finish {
                        bail!("a request failed: {message}");
                    }
                }
            }
            if prefill.is_none() && begun.len() == batch_size {
                let until = start.elapsed().as_secs_f64();
                prefill = self.taken(until).map(|shares| (until, shares));
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        self.phases = prefill.and_then(|(until, prefill)| {
            let decode = self.taken(seconds - until)?;
            Some(Phases { prefill, decode })
        });
        if num_tokens != batch_size * output_len {
            bail!(
                "{num_tokens} tokens were generated instead of {}",
                batch_size * output_len
            );
        }
        Ok(seconds)
    }

    fn request(&mut self, output_len: usize) -> Request {
        let prompt = (0..self.prompt_len).map(|_| self.random_id()).collect();
        let mut request = Request::new(prompt);
        request.max_tokens = Some(output_len);
        request.ignore_eos = true;
        request.sampling = SamplingParams {
            min_tokens: output_len,
            ..SamplingParams::greedy()
        };
        request
    }

    fn random_id(&mut self) -> TokenId {
        // Xorshift (Marsaglia 2003).
        let mut x = self.random;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        let vocab = self.vocab_size as u64;
        let range = if vocab > PROMPT_IDS.start {
            PROMPT_IDS.start..PROMPT_IDS.end.min(vocab)
        } else {
            0..vocab
        };
        let id = range.start + (x >> 11) % (range.end - range.start);
        TokenId::try_from(id).unwrap_or(0)
    }
}
