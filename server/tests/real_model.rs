//! `pageloom generate` with SmolLM2-135M-Instruct against the recorded references.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Where the two best logits are closer than this, another right implementation may part.
const CLOSE_CALL: f64 = 0.05;

fn fixture() -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("../model-runner/tests/fixtures/smollm2.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn generate(model: &str, row: &Value) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pageloom"));
    command.args(["generate", "--model", model, "--dtype", "f32", "--json"]);
    command.args(["--temperature", "0", "--max-tokens", "48"]);
    command.args(["--prompt", row["prompt"].as_str().unwrap()]);
    if row["kind"] == "chat" {
        command.arg("--chat");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf"]
fn generated_rows_equal_the_references_up_to_the_first_near_tie() {
    let model = std::env::var("PAGELOOM_REAL_MODEL").expect("PAGELOOM_REAL_MODEL");
    for row in fixture()["greedy"].as_array().unwrap() {
        let report = generate(&model, row);
        assert_eq!(
            report["prompt_token_ids"], row["prompt_ids"],
            "{}",
            row["prompt"]
        );
        let gaps = row["gap"].as_array().unwrap();
        let decided = gaps
            .iter()
            .position(|gap| gap.as_f64().unwrap() < CLOSE_CALL);
        let decided = decided.unwrap_or(gaps.len());
        let expected = &row["output_ids"].as_array().unwrap()[..decided];
        let found = report["token_ids"].as_array().unwrap();
        // The end of text is a token of the reference and the reason of the report.
        let found = &found[..decided.min(found.len())];
        assert!(
            expected.starts_with(found),
            "{}: {found:?} {expected:?}",
            row["prompt"]
        );
        assert!(
            expected.len() - found.len() <= 1,
            "{}: {found:?}",
            row["prompt"]
        );
    }
}
