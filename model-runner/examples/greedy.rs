//! Greedy decoding with nothing but this crate: one sequence, block table 0, 1, 2, ...
//!
//! `cargo run --release -p pageloom-model-runner --example greedy -- MODEL TOKEN_ID...`

use std::path::Path;
use std::sync::Arc;

use pageloom_model_runner::{
    Batch, Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, OutputRow, RunnerConfig,
    SamplingParams, StepOutput, TokenId, Want,
};

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: greedy MODEL TOKEN_ID...")?;
    let mut tokens = args
        .map(|id| id.parse())
        .collect::<Result<Vec<TokenId>, _>>()?;

    let checkpoint = Checkpoint::open(Path::new(&path))?;
    let model = Model::load(&checkpoint, LoadOptions::default())?;
    let config = RunnerConfig {
        block_size: BLOCK_SIZE,
        num_blocks: NUM_BLOCKS,
        num_host_blocks: 0,
        kv_dtype: KvDtype::F32,
    };
    let mut runner = CpuRunner::new(model, config)?;

    let params = Arc::new(SamplingParams::greedy());
    let num_prompt_tokens = tokens.len() as u32;
    let mut out = StepOutput::default();
    let mut num_computed = 0;
    while tokens.len() < BLOCK_SIZE * NUM_BLOCKS {
        // The first step brings the whole prompt, every later one the token drawn last.
        let new = num_computed as u32..tokens.len() as u32;
        let num_blocks = tokens.len().div_ceil(BLOCK_SIZE) as u32;
        let batch = Batch {
            tokens: tokens[num_computed..].to_vec(),
            positions: new.clone().collect(),
            slots: new.clone().collect(), // Position and slot agree: block i holds block i.
            row_offsets: vec![0, new.len() as u32],
            context_lens: vec![new.end],
            block_tables: (0..num_blocks).collect(),
            table_offsets: vec![0, num_blocks],
            outputs: vec![OutputRow {
                row: new.len() as u32 - 1,
                want: Want::Sample {
                    params: params.clone(),
                    num_prompt_tokens,
                    history: Vec::new(),
                },
            }],
            ..Batch::default()
        };
        runner.run(&batch, &mut out)?;
        num_computed = tokens.len();
        let token = out.rows.remove(0)?.token;
        if checkpoint.config().eos_token_ids.contains(&token) {
            break;
        }
        print!("{token} ");
        tokens.push(token);
    }
    println!();
    Ok(())
}
