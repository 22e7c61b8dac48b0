use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

use super::super::Tokenizer;
use super::*;

/// Writes metadata as a GGUF file has it.
#[derive(Default)]
struct Metadata {
    bytes: Vec<u8>,
    num_keys: u64,
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) {
        self.num_keys += 1;
        self.string(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn str(mut self, key: &str, value: &str) -> Metadata {
        self.key(key, 8);
        self.string(value);
        self
    }

    fn array_of(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    fn strings(mut self, key: &str, values: &[&str]) -> Metadata {
        self.array_of(key, 8, values.len());
        values.iter().for_each(|value| self.string(value));
        self
    }

    fn floats(mut self, key: &str, values: &[f32]) -> Metadata {
        self.array_of(key, 6, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn ints(mut self, key: &str, values: &[i32]) -> Metadata {
        self.array_of(key, 5, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn gguf(self) -> Gguf {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(self.num_keys.to_le_bytes());
        bytes.extend(self.bytes);
        Gguf::from_bytes(bytes, Path::new("test.gguf")).unwrap()
    }
}

fn references() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/tokenizers.json")).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn sentence_piece() -> (Tokenizer, Value) {
    let reference = references()["sentencepiece"].take();
    let tokens: Vec<&str> = list(&reference["tokens"])
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    let scores: Vec<f32> = list(&reference["scores"])
        .iter()
        .map(|score| score.as_f64().unwrap() as f32)
        .collect();
    let types: Vec<i32> = list(&reference["types"])
        .iter()
        .map(|kind| kind.as_i64().unwrap() as i32)
        .collect();
    let gguf = Metadata::default()
        .str("tokenizer.ggml.model", "llama")
        .strings(TOKENS, &tokens)
        .floats("tokenizer.ggml.scores", &scores)
        .ints("tokenizer.ggml.token_type", &types)
        .gguf();
    let rebuilt = rebuild(&gguf).unwrap();
    assert!(rebuilt.add_bos && !rebuilt.add_eos);
    (Tokenizer::from_rebuilt(rebuilt, tokens.len()), reference)
}

#[test]
fn sentence_piece_vocabularies_give_the_ids_sentence_piece_gives() {
    let (tokenizer, reference) = sentence_piece();
    for row in list(&reference["texts"]) {
        let text = row["text"].as_str().unwrap();
        let expected: Vec<u32> = list(&row["ids"])
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect();
        // SentencePiece itself knows no control tokens in text.
        if !text.contains("<s>") {
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        }
        let decoded = tokenizer.decode(&expected, true).unwrap();
        assert_eq!(decoded, row["decoded"].as_str().unwrap(), "{text:?}");
    }
}

#[test]
fn long_texts_without_words_are_merged_in_proportion() {
    let (tokenizer, _) = sentence_piece();
    let time = |chars: usize| {
        let start = Instant::now();
        tokenizer
            .encode(&"the page ".repeat(chars / 9), false)
            .unwrap();
        start.elapsed()
    };
    let (short, long) = (time(25_000), time(200_000));
    assert!(
        long < 24 * short.max(Duration::from_millis(20)),
        "{short:?} {long:?}"
    );
}

/// The words a pre-tokenizer cuts a text into.
fn words(kind: PreTokenizer, text: &str) -> Vec<String> {
    let mut cut = PreTokenizedString::from(text);
    kind.build().unwrap().pre_tokenize(&mut cut).unwrap();
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits
        .into_iter()
        .map(|(_, (start, end), _)| text[start..end].to_owned())
        .collect()
}

#[test]
fn words_are_cut_as_by_another_regular_expression_engine() {
    let references = references();
    for name in ["llama-bpe", "qwen2"] {
        let kind = PreTokenizer::named(name).unwrap();
        for row in list(&references["words"][name]) {
            let expected: Vec<&str> = list(&row["words"])
                .iter()
                .map(|word| word.as_str().unwrap())
                .collect();
            assert_eq!(words(kind, &expected.concat()), expected, "{name}");
        }
    }
}

/// The expressions look ahead; an engine that gives up on long runs would leave the rest uncut.
#[test]
fn long_runs_of_spaces_are_cut_like_short_ones() {
    for name in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
        let kind = PreTokenizer::named(name).unwrap();
        let text = format!("a{}b c\n{}d", " ".repeat(100_000), "\n".repeat(100_000));
        let words = words(kind, &text);
        let lengths: Vec<usize> = words.iter().map(String::len).collect();
        assert_eq!(words.last().unwrap(), "d", "{name}: {lengths:?}");
        assert_eq!(lengths[..2], [1, 99_999], "{name}");
        assert_eq!(words[2], " b", "{name}");
    }
}

#[test]
fn metadata_that_makes_no_tokenizer_is_an_error_naming_file_and_key() {
    let model = |name: &str| Metadata::default().str("tokenizer.ggml.model", name);
    let tokens = ["a", "b", "ab"];
    let gpt2 = |pre: &str| {
        model("gpt2")
            .strings(TOKENS, &tokens)
            .str("tokenizer.ggml.pre", pre)
    };
    for (metadata, said) in [
        (Metadata::default(), "tokenizer.ggml.model"),
        (model("bert").strings(TOKENS, &tokens), "bert"),
        (model("gpt2"), TOKENS),
        (model("gpt2").strings(TOKENS, &tokens), "tokenizer.ggml.pre"),
        (gpt2("tekken"), "llama-bpe"),
        (gpt2("gpt-2"), MERGES),
        (gpt2("gpt-2").strings(MERGES, &["a"]), MERGES),
        (gpt2("gpt-2").strings(MERGES, &["a c"]), "`c`"),
        (
            gpt2("gpt-2").ints("tokenizer.ggml.token_type", &[1]),
            "3 tokens but 1",
        ),
        (
            gpt2("gpt-2").strings("tokenizer.ggml.token_type", &["1"]),
            "integers",
        ),
        (
            model("llama").strings(TOKENS, &tokens),
            "tokenizer.ggml.scores",
        ),
        (model("llama").ints(TOKENS, &[1]), TOKENS),
    ] {
        let Err(error) = rebuild(&metadata.gguf()) else {
            panic!("{said}")
        };
        let error = error.to_string();
        assert!(
            error.contains(said) && error.contains("test.gguf"),
            "{said}: {error}"
        );
    }
    assert!(rebuild(&gpt2("gpt-2").strings(MERGES, &["a b"]).gguf()).is_ok());
}
