//! `pageloom generate`.

use std::process::Output;

use serde_json::Value;

use crate::{run, text};

#[test]
fn generate_prints_text_or_one_json_object() {
    let args = [
        "generate",
        "--prompt",
        "hi",
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        "--ignore-eos",
    ];
    let plain = run(&args);
    assert!(plain.status.success(), "{plain:?}");
    let json = run(&[&args[..], &["--json"]].concat());
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(report["finish_reason"], "length");
    assert!(report["timing"]["first_token_s"].as_f64().unwrap() > 0.0);
    assert_eq!(
        text(&plain.stdout),
        format!("{}\n", report["text"].as_str().unwrap())
    );
    // The chat template makes another prompt of it.
    let chat = run(&[&args[..], &["--json", "--chat", "--system", "be brief"]].concat());
    let chat: Value = serde_json::from_slice(&chat.stdout).unwrap();
    let len = |report: &Value| report["prompt_token_ids"].as_array().unwrap().len();
    assert!(len(&chat) > len(&report));
}

#[test]
fn speculation_changes_no_token() {
    for temperature in ["0", "0.7"] {
        let args = [
            "generate",
            "--prompt",
            "to be or not to be or not to be",
            "--max-tokens",
            "40",
            "--temperature",
            temperature,
            "--seed",
            "5",
            "--ignore-eos",
            "--json",
        ];
        let speculative = ["--speculative", "ngram", "--prompt-lookup-min", "1"];
        let ids = |args: &[&str]| {
            let output = run(args);
            assert!(output.status.success(), "{output:?}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            report["token_ids"].clone()
        };
        assert_eq!(ids(&[&args[..], &speculative].concat()), ids(&args));
    }
}

/// Numbers and texts of what `generate` printed: each text stands below `[number]`.
fn listed(output: &Output) -> Vec<(String, String)> {
    assert!(output.status.success(), "{output:?}");
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text(&output.stdout).lines() {
        if line.starts_with(&format!("[{}]", all.len() + 1)) {
            all.push((line.to_owned(), String::new()));
        } else {
            let (_, text) = all.last_mut().expect("a number comes first");
            text.push_str(line);
            text.push('\n');
        }
    }
    all
}

#[test]
fn generate_prints_several_sequences_with_the_best_first() {
    let ask = ["generate", "--prompt", "hi", "--max-tokens", "12"];
    for (flags, num_choices, is_ranked) in [
        (&["--n", "3", "--seed", "1"][..], 3, false),
        (&["--n", "2", "--best-of", "4", "--seed", "1"], 2, true),
        (
            &["--n", "3", "--beam-search", "--temperature", "0"],
            3,
            true,
        ),
        (
            &[
                "--beam-search",
                "--best-of",
                "4",
                "--length-penalty",
                "-0.5",
                "--early-stopping",
                "never",
            ],
            1,
            true,
        ),
        // Longer than all together have room for: cut to what there is.
        (
            &["--n", "5", "--seed", "1", "--max-tokens", "100000"],
            5,
            false,
        ),
    ] {
        let args = [&ask[..3], flags, &ask[3..]].concat();
        let args = if flags.contains(&"--max-tokens") {
            [&ask[..3], flags].concat()
        } else {
            args
        };
        let output = run(&[&args[..], &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let choices = report["choices"].as_array().unwrap();
        assert_eq!(choices.len(), num_choices, "{flags:?}");
        for field in ["text", "token_ids", "finish_reason", "score"] {
            assert_eq!(report[field], choices[0][field], "{flags:?}");
        }
        let scores: Vec<f64> = choices.iter().filter_map(|c| c["score"].as_f64()).collect();
        assert_eq!(scores.len(), if is_ranked { num_choices } else { 0 });
        assert!(scores.is_sorted_by(|a, b| a >= b), "{flags:?}: {scores:?}");
        assert!(report["timing"]["first_token_s"].as_f64().unwrap() > 0.0);
        let printed = listed(&run(&args));
        assert_eq!(printed.len(), num_choices);
        for ((head, text), choice) in printed.iter().zip(choices) {
            let score = choice["score"]
                .as_f64()
                .map(|score| format!(" score {score:.4}"));
            assert!(
                head.ends_with(&score.unwrap_or_else(|| "]".to_owned())),
                "{head}"
            );
            let expected: String = choice["text"].as_str().unwrap().lines().collect();
            assert_eq!(text.lines().collect::<String>(), expected, "{flags:?}");
        }
    }
    // One that is not ranked is at the top of the object and in the list.
    let one = run(&[&ask[..], &["--json"]].concat());
    let one: Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!(one["choices"].as_array().unwrap().len(), 1);
    assert_eq!(one["choices"][0]["text"], one["text"]);
}
