//! Tokenizers and chat templates of whole models: the tiny ones of the model runner's tests, and
//! the real one where it is at hand.

use std::path::{Path, PathBuf};

use pageloom_engine::text::{ChatMessage, ChatTemplate, Detokenizer, RenderOptions, Tokenizer};
use pageloom_model_runner::Checkpoint;
use proptest::prelude::*;
use serde_json::Value;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-runner/tests/models")
}

fn open(model: &str) -> (Checkpoint, Tokenizer) {
    let checkpoint = Checkpoint::open(&models().join(model)).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    (checkpoint, tokenizer)
}

/// The same tokenizer as `tokenizer.json` and as GGUF metadata.
const BOTH: [&str; 2] = ["smollm2", "gguf/llama-q8_0.gguf"];

fn references() -> Value {
    let text = std::fs::read_to_string(models().join("references.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["tokenizer"].take()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

fn messages(list: &Value) -> Vec<ChatMessage> {
    let message = |value: &Value| ChatMessage {
        role: value["role"].as_str().unwrap().to_owned(),
        content: value["content"].as_str().unwrap().to_owned(),
        name: None,
    };
    list.as_array().unwrap().iter().map(message).collect()
}

fn prompt() -> RenderOptions {
    RenderOptions {
        add_generation_prompt: true,
        ..Default::default()
    }
}

#[test]
fn texts_have_the_ids_transformers_gives_them_and_come_back() {
    let references = references();
    for model in BOTH {
        let (_, tokenizer) = open(model);
        let texts = references["texts"].as_array().unwrap();
        assert!(!texts.is_empty());
        for row in texts {
            let text = row["text"].as_str().unwrap();
            let encoded = tokenizer.encode(text, true).unwrap();
            assert_eq!(encoded, ids(&row["ids"]), "{model}: {text:?}");
            assert_eq!(tokenizer.decode(&encoded, false).unwrap(), text, "{model}");
        }
    }
}

#[test]
fn chats_are_rendered_as_transformers_renders_them() {
    let references = references();
    let chat = &references["chat"];
    for model in BOTH {
        let (checkpoint, tokenizer) = open(model);
        let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer).unwrap();
        let template = template.expect("the model has a template");
        let text = template
            .render(&messages(&chat["messages"]), &prompt())
            .unwrap();
        assert_eq!(text, chat["text"].as_str().unwrap(), "{model}");
        assert_eq!(
            tokenizer.encode(&text, false).unwrap(),
            ids(&chat["ids"]),
            "{model}"
        );
    }
}

#[test]
fn control_tokens_are_special_and_end_tokens_known() {
    for model in BOTH {
        let (_, tokenizer) = open(model);
        let end = tokenizer.token_to_id("<|im_end|>").unwrap();
        assert_eq!(tokenizer.eos_ids(), [end], "{model}");
        assert!(tokenizer.is_special(end));
        assert_eq!(tokenizer.token_text(end), "<|im_end|>");
        let ids = tokenizer.encode("a<|im_end|>b", false).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == end).count(), 1);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a<|im_end|>b");
    }
}

#[test]
fn ids_past_the_vocabulary_are_refused() {
    let (checkpoint, tokenizer) = open(BOTH[0]);
    let vocab_size = checkpoint.config().vocab_size;
    assert_eq!(tokenizer.vocab_size(), vocab_size);
    let error = tokenizer.decode(&[0, vocab_size as u32], true).unwrap_err();
    assert!(
        error.to_string().contains(&vocab_size.to_string()),
        "{error}"
    );
    assert!(tokenizer.decode(&[u32::MAX], true).is_err());
    assert_eq!(tokenizer.token_text(u32::MAX), "");
}

#[test]
fn a_model_without_a_template_has_none_and_one_without_a_tokenizer_says_so() {
    let checkpoint = Checkpoint::open(&models().join("llama")).unwrap();
    let error = Tokenizer::from_checkpoint(&checkpoint)
        .unwrap_err()
        .to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

proptest! {
    #[test]
    fn streamed_pieces_joined_are_the_decoded_text(
        ids in prop::collection::vec(0u32..288, 0..64),
        skip_special in any::<bool>(),
    ) {
        for model in BOTH {
            let (_, tokenizer) = open(model);
            let mut detokenizer = Detokenizer::new(skip_special);
            let mut text = String::new();
            for &id in &ids {
                text.push_str(&detokenizer.push(&tokenizer, id));
            }
            text.push_str(&detokenizer.flush(&tokenizer));
            prop_assert_eq!(text, tokenizer.decode(&ids, skip_special).unwrap());
        }
    }

    #[test]
    fn any_text_survives_the_way_there_and_back(text in "\\PC{0,40}|[ \\n\\t0-9aé😀<|>]{0,40}") {
        let (_, tokenizer) = open(BOTH[1]);
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

/// Texts of one kind of character, the worst there is for pre-tokenizers and merges.
fn monotonous_texts(chars: usize) -> Vec<String> {
    let mixed = "The quick brown fox, 42 times.\n";
    ["a", " ", "\n", "7", "!", "é", "😀", "a ", " \n", mixed]
        .map(|unit| unit.repeat(chars / unit.chars().count()))
        .to_vec()
}

#[test]
fn long_prompts_of_the_worst_kinds_come_back() {
    for model in BOTH {
        let (_, tokenizer) = open(model);
        // Quadratic work would take minutes at this length; this takes a second.
        for text in monotonous_texts(200_000) {
            let ids = tokenizer.encode(&text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }
}

fn real_model() -> (Checkpoint, Tokenizer) {
    let path = std::env::var_os("PAGELOOM_REAL_MODEL").expect("PAGELOOM_REAL_MODEL is set");
    let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    (checkpoint, tokenizer)
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf"]
fn the_real_tokenizer_gives_the_fixtures_ids() {
    let (checkpoint, tokenizer) = real_model();
    let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer)
        .unwrap()
        .unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("../model-runner/tests/fixtures/smollm2.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (greedy, score) = (
        fixture["greedy"].as_array().unwrap(),
        fixture["score"].as_array().unwrap(),
    );
    assert!(!greedy.is_empty() && !score.is_empty());
    for row in greedy {
        let mut text = row["prompt"].as_str().unwrap().to_owned();
        let is_chat = row["kind"] == "chat";
        if is_chat {
            let user = ChatMessage {
                role: "user".to_owned(),
                content: text,
                name: None,
            };
            text = template.render(&[user], &prompt()).unwrap();
        }
        assert_eq!(
            tokenizer.encode(&text, !is_chat).unwrap(),
            ids(&row["prompt_ids"]),
            "{text}"
        );
        let output = tokenizer.decode(&ids(&row["output_ids"]), true).unwrap();
        assert_eq!(output, row["text"].as_str().unwrap());
    }
    for row in score {
        let text = row["text"].as_str().unwrap();
        assert_eq!(
            tokenizer.encode(text, true).unwrap(),
            ids(&row["ids"]),
            "{text}"
        );
    }
}

#[test]
fn templates_in_the_idioms_of_models_write_what_transformers_writes() {
    let data: Value = serde_json::from_str(include_str!("data/templates.json")).unwrap();
    for row in data["rows"].as_array().unwrap() {
        let name = row["template"].as_str().unwrap();
        let source = data["templates"][name].as_str().unwrap().to_owned();
        let template =
            ChatTemplate::from_source(source, "<s>".to_owned(), "</s>".to_owned()).unwrap();
        let message = |turn: &Value| ChatMessage {
            role: turn[0].as_str().unwrap().to_owned(),
            content: turn[1].as_str().unwrap().to_owned(),
            name: None,
        };
        let chat: Vec<_> = row["chat"]
            .as_array()
            .unwrap()
            .iter()
            .map(message)
            .collect();
        let options = RenderOptions {
            add_generation_prompt: row["add_generation_prompt"].as_bool().unwrap(),
            kwargs: [("enable_thinking".to_owned(), Value::Bool(false))]
                .into_iter()
                .collect(),
            ..Default::default()
        };
        match (template.render(&chat, &options), row["text"].as_str()) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}: {}", row["chat"]),
            (Err(error), None) => {
                assert!(
                    error.to_string().contains(row["error"].as_str().unwrap()),
                    "{error}"
                );
            }
            (result, expected) => panic!("{name}: {result:?}, transformers {expected:?}"),
        }
    }
}
