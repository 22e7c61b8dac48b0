//! SmolLM2-135M-Instruct against the recorded references in `fixtures/smollm2.json`.
//!
//! `PAGELOOM_REAL_MODEL=.../SmolLM2-135M-Instruct.Q4_1.gguf \
//!  cargo test --release -p pageloom-model-runner --test real_model -- --ignored --nocapture`

mod support;

use std::path::{Path, PathBuf};

use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, TokenId, WeightDtype,
};
use serde::Deserialize;
use support::{greedy, scores};

#[derive(Deserialize)]
struct Fixture {
    greedy: Vec<GreedyRow>,
    score: Vec<ScoreRow>,
}

#[derive(Deserialize)]
struct GreedyRow {
    prompt_ids: Vec<TokenId>,
    output_ids: Vec<TokenId>,
    gap: Vec<f32>,
}

#[derive(Deserialize)]
struct ScoreRow {
    ids: Vec<TokenId>,
    logprob: Vec<f32>,
    top5_ids: Vec<Vec<TokenId>>,
}

fn fixture() -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn real_runner(dtype: WeightDtype) -> CpuRunner {
    let path = std::env::var_os("PAGELOOM_REAL_MODEL").map(PathBuf::from);
    let path = path.expect("PAGELOOM_REAL_MODEL names the GGUF file");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let options = LoadOptions { dtype, ..Default::default() };
    let model = Model::load(&checkpoint, options).unwrap();
    let config = RunnerConfig { block_size: 16, num_blocks: 512, kv_dtype: KvDtype::F32 };
    CpuRunner::new(model, config).unwrap()
}

/// Mean absolute difference of log-probabilities and share of positions with the same best token.
fn compare_scores(runner: &mut CpuRunner, rows: &[ScoreRow]) -> (f32, f32) {
    let (mut difference, mut num_equal, mut num_positions) = (0.0, 0, 0);
    for row in rows {
        let found = scores(runner, 16, &row.ids[..row.ids.len() - 1], 64);
        for (i, scores) in found.iter().enumerate() {
            difference += (scores[row.ids[i + 1] as usize] - row.logprob[i]).abs();
            let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            num_equal += usize::from(scores[row.top5_ids[i][0] as usize] == best);
            num_positions += 1;
        }
    }
    (difference / num_positions as f32, num_equal as f32 / num_positions as f32)
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL"]
fn log_probabilities_equal_the_references() {
    let mut runner = real_runner(WeightDtype::F32);
    let (difference, equal) = compare_scores(&mut runner, &fixture().score);
    println!("f32: mean absolute difference {difference:.2e}, best token equal {equal:.4}");
    assert!(difference <= 2e-3 && equal > 0.99);
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL"]
fn the_default_weights_stay_close_to_the_references() {
    let mut runner = real_runner(WeightDtype::Auto);
    let (difference, equal) = compare_scores(&mut runner, &fixture().score);
    println!("auto: mean absolute difference {difference:.2e}, best token equal {equal:.4}");
    assert!(difference <= 2e-2 && equal > 0.98);
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL"]
fn greedy_continuations_equal_the_references_up_to_the_first_near_tie() {
    let mut runner = real_runner(WeightDtype::F32);
    for row in fixture().greedy {
        let found = greedy(&mut runner, 16, &row.prompt_ids, row.output_ids.len());
        let decided = row.gap.iter().position(|gap| *gap < 0.05).unwrap_or(row.gap.len());
        let found: Vec<TokenId> = found.iter().take(decided).map(|(token, _)| *token).collect();
        assert_eq!(found, row.output_ids[..decided], "prompt {:?}", row.prompt_ids);
    }
}
