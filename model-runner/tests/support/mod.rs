//! Drives a runner without a scheduler: sequences with fixed block tables.
#![allow(dead_code)] // Each test binary uses a part.

use std::path::PathBuf;
use std::sync::Arc;

use pageloom_model_runner::{
    Batch, Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, OutputRow, RunnerConfig,
    SamplingParams, StepOutput, TokenId, TokenLogprobs, Want, WeightDtype,
};

/// A file or folder of `tests/models`.
pub(crate) fn model_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/models")
        .join(name)
}

pub(crate) fn runner(
    name: &str,
    dtype: WeightDtype,
    kv_dtype: KvDtype,
    block_size: usize,
) -> CpuRunner {
    runner_with_host(name, dtype, kv_dtype, block_size, 0)
}

pub(crate) fn runner_with_host(
    name: &str,
    dtype: WeightDtype,
    kv_dtype: KvDtype,
    block_size: usize,
    num_host_blocks: usize,
) -> CpuRunner {
    let checkpoint = Checkpoint::open(&model_path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let model = Model::load(
        &checkpoint,
        LoadOptions {
            dtype,
            num_threads: 2,
            ..Default::default()
        },
    )
    .unwrap();
    let num_blocks = 2048 / block_size;
    CpuRunner::new(
        model,
        RunnerConfig {
            block_size,
            num_blocks,
            num_host_blocks,
            kv_dtype,
        },
    )
    .unwrap()
}

/// A sequence whose blocks are scattered over the cache.
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_computed: usize,
    pub(crate) table: Vec<u32>,
}

impl Sequence {
    /// Sequence `index` of at most 8, of up to 256 tokens.
    pub(crate) fn new(index: u32, block_size: usize, tokens: &[TokenId]) -> Self {
        let num_blocks = 256 / block_size as u32;
        let table = (0..num_blocks)
            .rev()
            .map(|block| block * 8 + index)
            .collect();
        Sequence {
            tokens: tokens.to_vec(),
            num_computed: 0,
            table,
        }
    }
}

/// What the rows of a chunk are wanted for.
#[derive(Clone, Copy)]
pub(crate) enum Ask {
    Nothing,
    /// Log-probability of the next token after each row, with this many of the best.
    Scores {
        top: usize,
    },
    Greedy,
}

/// Adds the next `num_tokens` tokens of a sequence to a batch.
pub(crate) fn push(
    batch: &mut Batch,
    sequence: &mut Sequence,
    num_tokens: usize,
    block_size: usize,
    ask: Ask,
) {
    if batch.row_offsets.is_empty() {
        batch.row_offsets.push(0);
        batch.table_offsets.push(0);
    }
    let range = sequence.num_computed..sequence.num_computed + num_tokens;
    for position in range.clone() {
        let row = batch.tokens.len() as u32;
        batch.tokens.push(sequence.tokens[position]);
        batch.positions.push(position as u32);
        let block = sequence.table[position / block_size];
        batch
            .slots
            .push(block * block_size as u32 + (position % block_size) as u32);
        if let Ask::Scores { top } = ask {
            let token = sequence.tokens.get(position + 1).copied().unwrap_or(0);
            batch.outputs.push(OutputRow {
                row,
                want: Want::Score { token, top },
            });
        }
    }
    if let Ask::Greedy = ask {
        let row = batch.tokens.len() as u32 - 1;
        let want = Want::Sample {
            params: Arc::new(SamplingParams {
                logprobs: Some(2),
                ..SamplingParams::greedy()
            }),
            num_prompt_tokens: 0,
            history: Vec::new(),
        };
        batch.outputs.push(OutputRow { row, want });
    }
    sequence.num_computed = range.end;
    batch.row_offsets.push(batch.tokens.len() as u32);
    batch.context_lens.push(range.end as u32);
    batch
        .block_tables
        .extend(&sequence.table[..range.end.div_ceil(block_size)]);
    batch.table_offsets.push(batch.block_tables.len() as u32);
}

pub(crate) fn run(runner: &mut CpuRunner, batch: &Batch) -> StepOutput {
    let mut out = StepOutput::default();
    runner.run(batch, &mut out).unwrap();
    out
}

/// Log-probabilities by token id.
pub(crate) fn by_token(logprobs: &TokenLogprobs) -> Vec<f32> {
    let mut all = vec![f32::NAN; logprobs.top.len()];
    for &(token, logprob) in &logprobs.top {
        all[token as usize] = logprob;
    }
    all
}

/// Log-probabilities of the token after each token of a prompt, computed in chunks.
pub(crate) fn scores(
    runner: &mut CpuRunner,
    block_size: usize,
    tokens: &[TokenId],
    chunk: usize,
    top: usize,
) -> Vec<TokenLogprobs> {
    let mut sequence = Sequence::new(3, block_size, tokens);
    let mut all = Vec::new();
    while sequence.num_computed < tokens.len() {
        let mut batch = Batch::default();
        let num_tokens = chunk.min(tokens.len() - sequence.num_computed);
        push(
            &mut batch,
            &mut sequence,
            num_tokens,
            block_size,
            Ask::Scores { top },
        );
        all.extend(logprobs(run(runner, &batch)));
    }
    all
}

/// The log-probabilities of a step that only scores.
pub(crate) fn logprobs(out: StepOutput) -> impl Iterator<Item = TokenLogprobs> {
    out.rows
        .into_iter()
        .map(|row| row.unwrap().logprobs.unwrap())
}

/// Greedy continuation, with the margin of the best log-probability over the second.
pub(crate) fn greedy(
    runner: &mut CpuRunner,
    block_size: usize,
    prompt: &[TokenId],
    num_tokens: usize,
) -> Vec<(TokenId, f32)> {
    let mut sequence = Sequence::new(5, block_size, prompt);
    let mut continuation = Vec::new();
    while continuation.len() < num_tokens {
        let mut batch = Batch::default();
        let rest = sequence.tokens.len() - sequence.num_computed;
        push(&mut batch, &mut sequence, rest, block_size, Ask::Greedy);
        let out = run(runner, &batch).rows.remove(0).unwrap();
        let top = &out.logprobs.unwrap().top;
        continuation.push((out.token, top[0].1 - top[1].1));
        sequence.tokens.push(out.token);
    }
    continuation
}
