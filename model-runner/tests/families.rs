//! Every supported family against logits of transformers, on tiny models (`make_models.py`).

mod support;

use pageloom_model_runner::{Batch, KvDtype, TokenId, WeightDtype};
use serde::Deserialize;
use std::collections::BTreeMap;
use support::{Ask, Sequence, by_token, greedy, logprobs, push, run, runner, scores};

/// Every token of the vocabulary.
const ALL: usize = usize::MAX;

#[derive(Deserialize)]
struct References {
    models: BTreeMap<String, Model>,
}

#[derive(Deserialize)]
struct Model {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    prompt: Vec<TokenId>,
    last_logits: Vec<f64>,
    top1: Vec<TokenId>,
    greedy: Vec<TokenId>,
    gap: Vec<f64>,
}

fn references() -> BTreeMap<String, Model> {
    let json = std::fs::read(support::model_path("references.json")).unwrap();
    serde_json::from_slice::<References>(&json).unwrap().models
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
    logits.iter().map(|x| x - max - sum.ln()).collect()
}

fn argmax(scores: &[f32]) -> TokenId {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter().position(|&x| x == best).unwrap() as TokenId
}

#[test]
fn logits_and_greedy_continuations_equal_those_of_transformers() {
    for (name, model) in references() {
        let block_size = 16;
        let mut runner = runner(&name, WeightDtype::F32, KvDtype::F32, block_size);
        for row in model.rows {
            let scored = scores(&mut runner, block_size, &row.prompt, usize::MAX, ALL);
            let found: Vec<Vec<f32>> = scored.iter().map(by_token).collect();
            let expected = log_softmax(&row.last_logits);
            assert_eq!(found[0].len(), expected.len(), "{name}: vocabulary");
            for (token, (f, e)) in found.last().unwrap().iter().zip(&expected).enumerate() {
                let difference = (f64::from(*f) - e).abs();
                assert!(difference < 2e-4, "{name}: token {token}: {f} is not {e}");
            }
            let top1: Vec<TokenId> = found.iter().map(|scores| argmax(scores)).collect();
            assert_eq!(top1, row.top1, "{name}");
            let continuation = greedy(&mut runner, block_size, &row.prompt, row.greedy.len());
            for (step, ((token, _), expected)) in continuation.iter().zip(&row.greedy).enumerate() {
                if row.gap[step] < 1e-3 {
                    break;
                }
                assert_eq!(token, expected, "{name}: step {step} of {:?}", row.prompt);
            }
        }
    }
}

#[test]
fn a_prompt_gives_the_same_bits_in_chunks_in_company_and_in_other_blocks() {
    let prompt: Vec<TokenId> = (0..100).map(|i| (i * 37 + 11) % 120).collect();
    for name in ["llama", "smollm2", "mistral", "qwen2", "qwen3", "llama3"] {
        for kv_dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            let mut runner = runner(name, WeightDtype::Auto, kv_dtype, 16);
            let whole = scores(&mut runner, 16, &prompt, usize::MAX, ALL);
            for chunk in [1, 7, 16, 33] {
                assert_eq!(
                    scores(&mut runner, 16, &prompt, chunk, ALL),
                    whole,
                    "{name}: {chunk}"
                );
            }
            let mut in_company = Vec::new();
            let mut own = Sequence::new(1, 16, &prompt);
            let mut others: Vec<Sequence> = (4..8)
                .map(|i| Sequence::new(i, 16, &prompt[i as usize..]))
                .collect();
            for step in 0..10 {
                let mut batch = Batch::default();
                for (i, other) in others.iter_mut().enumerate() {
                    push(&mut batch, other, 1 + (i + step) % 9, 16, Ask::Nothing);
                }
                push(&mut batch, &mut own, 10, 16, Ask::Scores { top: ALL });
                in_company.extend(logprobs(run(&mut runner, &batch)));
            }
            assert_eq!(in_company, whole, "{name}");
        }
        let mut small_blocks = runner(name, WeightDtype::Auto, KvDtype::F32, 4);
        let mut large_blocks = runner(name, WeightDtype::Auto, KvDtype::F32, 64);
        let small = scores(&mut small_blocks, 4, &prompt, 9, ALL);
        assert_eq!(
            scores(&mut large_blocks, 64, &prompt, 50, ALL),
            small,
            "{name}: block size"
        );
    }
}

#[test]
fn malformed_batches_are_errors_and_the_runner_lives_on() {
    let mut runner = runner("llama", WeightDtype::Auto, KvDtype::F32, 16);
    let good = || {
        let mut batch = Batch::default();
        push(
            &mut batch,
            &mut Sequence::new(0, 16, &[1, 2, 3]),
            3,
            16,
            Ask::Greedy,
        );
        batch
    };
    let expected = run(&mut runner, &good());
    type Change = fn(&mut Batch);
    let broken: [(&str, Change); 9] = [
        ("tokens", |b| b.tokens[1] = 1 << 30),
        ("positions", |b| b.positions[2] = 7),
        ("slots", |b| b.slots[0] += 1),
        ("row_offsets", |b| b.row_offsets[1] = 9),
        ("table_offsets", |b| b.table_offsets.clear()),
        ("context_lens", |b| b.context_lens[0] = 2),
        ("outputs", |b| b.outputs[0].row = 3),
        ("block", |b| {
            b.block_tables[0] = 1 << 20;
            b.slots
                .iter_mut()
                .enumerate()
                .for_each(|(i, slot)| *slot = (16 << 20) + i as u32);
        }),
        ("block", |b| b.copies.push((0, 1 << 20))),
    ];
    for (field, change) in broken {
        let mut batch = good();
        change(&mut batch);
        let error = runner
            .run(&batch, &mut Default::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(field), "{field}: {error}");
        assert_eq!(run(&mut runner, &good()).rows, expected.rows);
    }
}
