//! Requests through the real engine, in a pool of a fixed number of slots.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use pageloom_engine::text::Tokenizer;
use pageloom_engine::{Engine, EngineConfig, ModelExecutor, Request, RequestEvent};
use pageloom_model_runner::{
    Checkpoint, CpuRunner, LoadOptions, Model, RunnerConfig, SamplingParams,
};

use super::super::lengths::{self, SplitMix};
use super::Args;

/// Lengths are the trace's over this, as the pool is the paper's.
const SCALE: usize = 4;
const NUM_REQUESTS: usize = 48;
const QUICK_REQUESTS: usize = 3;

/// Output tokens a second, of requests that all come at once.
pub(super) fn tokens_per_s(
    args: &Args,
    model: &Path,
    requests: &[lengths::Request],
    block_size: usize,
) -> anyhow::Result<f64> {
    let checkpoint = Checkpoint::open(model)?;
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint)?);
    let config = EngineConfig {
        block_size,
        num_blocks: args.slots / block_size,
        max_model_len: lengths::CONTEXT / SCALE + SCALE,
        enable_prefix_caching: false,
        ..EngineConfig::default()
    };
    let options = LoadOptions {
        num_threads: args.threads.into(),
        ..LoadOptions::default()
    };
    let cache = RunnerConfig {
        block_size,
        num_blocks: config.num_blocks,
        num_host_blocks: 0,
        kv_dtype: args.dtype.kv(),
    };
    let runner = CpuRunner::new(Model::load(&checkpoint, options)?, cache)?;
    let vocab_size = runner.config().vocab_size as u64;
    let executor = Box::new(ModelExecutor::new(runner));
    let mut engine = Engine::new(config, executor, tokenizer)?;
    let mut random = SplitMix(args.seed);
    let num = if args.run.quick {
        QUICK_REQUESTS
    } else {
        NUM_REQUESTS
    };
    for length in requests.iter().cycle().take(num) {
        let prompt = length.prompt.div_ceil(SCALE);
        let tokens = (0..prompt)
            .map(|_| (random.next() % vocab_size) as u32)
            .collect();
        let request = Request {
            max_tokens: Some(length.output.div_ceil(SCALE)),
            ignore_eos: true,
            sampling: SamplingParams {
                seed: random.next(),
                ..SamplingParams::default()
            },
            ..Request::new(tokens)
        };
        engine.add(request, Duration::ZERO)?;
    }
    let began = Instant::now();
    let mut num_tokens = 0;
    while engine.step(began.elapsed())? {
        for (_, event) in engine.drain_events() {
            if let RequestEvent::Output(delta) = event {
                num_tokens += delta.tokens.len();
            }
        }
    }
    let wanted = requests.iter().cycle().take(num);
    let wanted: usize = wanted.map(|length| length.output.div_ceil(SCALE)).sum();
    ensure!(
        num_tokens == wanted,
        "{num_tokens} tokens came, of {wanted}"
    );
    Ok(num_tokens as f64 / began.elapsed().as_secs_f64())
}
