//! Beam search against what Hugging Face transformers found with the same weights
//! (`beams/record_beams.py`).

mod support;

use std::{collections::HashMap, path::Path};

use pageloom_engine::{BeamSearch, EarlyStopping, Engine, EngineConfig, EngineStats, Request};
use pageloom_model_runner::{KvDtype, SamplingParams};
use serde::Deserialize;
use serde_json::Value;
use support::{Harness, real_engine_with};

#[derive(Deserialize)]
struct Recorded {
    near_tie_below: f64,
    prompts: Vec<Prompt>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Prompt {
    name: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt: String,
    width: usize,
    max_new_tokens: usize,
    length_penalty: f32,
    early_stopping: Value,
    /// The model's own end of text first.
    eos_ids: Vec<u32>,
    repetition_penalty: Option<f32>,
    min_new_tokens: Option<usize>,
    sequences: Vec<Vec<u32>>,
    scores: Vec<f64>,
    /// Smallest difference of log-probability that decided anything.
    min_gap: f64,
}

fn recorded() -> Recorded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/beams/beams.json");
    let text = std::fs::read_to_string(path).expect("the recorded searches");
    serde_json::from_str(&text).expect("their format")
}

fn request(case: &Case, prompt: &[u32]) -> Request {
    let early_stopping = match &case.early_stopping {
        Value::Bool(true) => EarlyStopping::Immediately,
        Value::Bool(false) => EarlyStopping::Heuristic,
        _ => EarlyStopping::Never,
    };
    Request {
        n: case.width,
        max_tokens: Some(case.max_new_tokens),
        beams: Some(BeamSearch {
            length_penalty: case.length_penalty,
            early_stopping,
        }),
        sampling: SamplingParams {
            stop_token_ids: case.eos_ids[1..].to_vec(),
            repetition_penalty: case.repetition_penalty.unwrap_or(1.0),
            min_tokens: case.min_new_tokens.unwrap_or(0),
            ..SamplingParams::greedy()
        },
        ..Request::new(prompt.to_vec())
    }
}

/// Sequences and scores, best first.
type Found = Vec<(Vec<u32>, f64)>;

/// All at once: searches of all widths and rules in the same steps.
fn search_all(recorded: &Recorded, engine: Engine) -> (Vec<Found>, EngineStats) {
    let prompts: HashMap<_, _> = recorded.prompts.iter().map(|p| (&p.name, &p.ids)).collect();
    let mut harness = Harness::new(engine);
    let ids: Vec<_> = (recorded.cases.iter())
        .map(|case| harness.add(&request(case, prompts[&case.prompt])))
        .collect();
    harness.run();
    let found = |id| {
        let outcomes = &harness.transcripts[id].outcomes;
        let found = |index| (harness.transcripts[id].ids(index), outcomes[&index].score);
        (0..outcomes.len())
            .map(found)
            .map(|(ids, score)| (ids, score.expect("ranked")))
            .collect()
    };
    let all = ids.iter().map(found).collect();
    (all, harness.engine.stats())
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf"]
fn beams_and_scores_are_those_of_transformers() {
    let recorded = recorded();
    let config = EngineConfig {
        num_blocks: 4096,
        ..EngineConfig::default()
    };
    let (all, _) = search_all(&recorded, real_engine_with(config, KvDtype::F32));
    let mut num_near_ties = 0;
    for (case, found) in recorded.cases.iter().zip(&all) {
        let same = found.iter().map(|(ids, _)| ids).eq(&case.sequences);
        if !same && case.min_gap < recorded.near_tie_below {
            // Rounding in another order can decide it the other way.
            num_near_ties += 1;
            println!(
                "{}: a near tie, {} apart, went the other way",
                case.name, case.min_gap
            );
            continue;
        }
        for (rank, ((ids, score), expected)) in found.iter().zip(&case.sequences).enumerate() {
            assert_eq!(ids, expected, "{}, rank {rank}", case.name);
            let off = (score - case.scores[rank]).abs() / case.scores[rank].abs().max(1.0);
            assert!(off < 2e-4, "{}, rank {rank}: {score}, {off} off", case.name);
        }
        assert_eq!(found.len(), case.width, "{}", case.name);
    }
    assert!(num_near_ties <= 2);
    assert_eq!(recorded.cases.len(), 74);
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf"]
fn beams_are_the_same_bit_for_bit_in_a_pool_that_preempts_them() {
    let mut recorded = recorded();
    recorded.cases.retain(|case| case.width == 4);
    let roomy = EngineConfig {
        num_blocks: 4096,
        ..EngineConfig::default()
    };
    let tight = EngineConfig {
        num_blocks: 60,
        num_host_blocks: 30,
        max_num_batched_tokens: 96,
        max_num_seqs: 64,
        ..EngineConfig::default()
    };
    let (expected, _) = search_all(&recorded, real_engine_with(roomy, KvDtype::F32));
    let engine = real_engine_with(tight, KvDtype::F32);
    let (found, stats) = search_all(&recorded, engine);
    assert_eq!(found, expected);
    let preemptions = stats.num_preemptions_by_swap + stats.num_preemptions_by_recompute;
    assert!(preemptions >= 10, "{preemptions} preemptions");
}
