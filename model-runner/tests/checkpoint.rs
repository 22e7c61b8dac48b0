//! Checkpoints of every family and format, opened from the tiny models next to this file.

use std::path::{Path, PathBuf};

use pageloom_model_runner::weights::{Checkpoint, LoadError, RopeScaling, WeightType};

const FOLDERS: [&str; 6] = ["llama", "smollm2", "mistral", "qwen2", "qwen3", "llama3"];
const GGUF_FILES: [&str; 9] = [
    "llama-f32",
    "llama-f16",
    "llama-bf16",
    "llama-q4_0",
    "llama-q4_1",
    "llama-q8_0",
    "llama3-f16",
    "qwen2-q4_1-mixed",
    "qwen3-q8_0",
];

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models")
}

fn open_gguf(name: &str) -> Checkpoint {
    Checkpoint::open(&models().join(format!("gguf/{name}.gguf"))).unwrap()
}

fn open_folder(name: &str) -> Checkpoint {
    Checkpoint::open(&models().join(name)).unwrap()
}

/// All values of a tensor.
fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).unwrap();
    let mut values = vec![f32::NAN; tensor.rows() * tensor.cols()];
    for (row, out) in values.chunks_mut(tensor.cols()).enumerate() {
        tensor.read_row(row, out);
    }
    values
}

const SOME_TENSORS: [&str; 8] = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
];

#[test]
fn every_model_opens_and_every_weight_is_a_number() {
    let all = FOLDERS
        .map(open_folder)
        .into_iter()
        .chain(GGUF_FILES.map(open_gguf));
    for checkpoint in all {
        assert!(checkpoint.file_bytes() > 10_000);
        for name in SOME_TENSORS {
            let finite = values(&checkpoint, name).iter().all(|x| x.is_finite());
            assert!(finite, "{name} of {}", checkpoint.path().display());
        }
    }
}

#[test]
fn a_gguf_of_f32_holds_the_folders_weights_bit_for_bit() {
    let (folder, gguf) = (open_folder("llama"), open_gguf("llama-f32"));
    for name in SOME_TENSORS.into_iter().chain(["lm_head.weight"]) {
        assert_eq!(values(&folder, name), values(&gguf, name), "{name}");
    }
    let (a, b) = (folder.config(), gguf.config());
    assert_eq!(
        (a.rope_theta, a.rms_norm_eps),
        (b.rope_theta, b.rms_norm_eps)
    );
    assert_eq!(
        (a.num_heads, a.num_kv_heads, a.head_dim),
        (b.num_heads, b.num_kv_heads, b.head_dim)
    );
    assert_eq!(
        (a.vocab_size, &a.eos_token_ids),
        (b.vocab_size, &b.eos_token_ids)
    );
}

#[test]
fn quantised_weights_are_near_the_ones_they_were_made_from() {
    let exact = open_gguf("llama-f32");
    for (file, bound) in [
        ("llama-f16", 0.001),
        ("llama-bf16", 0.005),
        ("llama-q8_0", 0.01),
        ("llama-q4_1", 0.12),
        ("llama-q4_0", 0.15),
    ] {
        let quantised = open_gguf(file);
        for name in SOME_TENSORS {
            let (a, b) = (values(&exact, name), values(&quantised, name));
            let norm: f32 = a.iter().map(|x| x * x).sum();
            let error: f32 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
            let relative = (error / norm).sqrt();
            assert!(relative < bound, "{file} {name}: {relative}");
        }
    }
}

#[test]
fn the_config_says_which_optional_parts_a_family_has() {
    for (name, qkv_bias, qk_norm, tied) in [
        ("llama", false, false, false),
        ("smollm2", false, false, true),
        ("mistral", false, false, false),
        ("qwen2", true, false, true),
        ("qwen3", false, true, true),
    ] {
        let checkpoint = open_folder(name);
        let config = checkpoint.config();
        assert_eq!(
            (config.qkv_bias, config.qk_norm),
            (qkv_bias, qk_norm),
            "{name}"
        );
        assert_eq!(config.tie_word_embeddings, tied, "{name}");
        assert_eq!(checkpoint.has_tensor("lm_head.weight"), !tied, "{name}");
        assert_eq!(
            checkpoint.has_tensor("model.layers.0.self_attn.q_proj.bias"),
            qkv_bias
        );
        assert_eq!(
            checkpoint.has_tensor("model.layers.1.self_attn.q_norm.weight"),
            qk_norm
        );
    }
    // The window of 16 is switched off in this model.
    assert_eq!(open_folder("qwen2").config().max_position_embeddings, 128);
    assert_eq!(open_folder("qwen3").config().rope_theta, 20000.0);
}

#[test]
fn both_forms_of_llama3_scaling_give_the_same_frequencies() {
    let (folder, gguf) = (open_folder("llama3"), open_gguf("llama3-f16"));
    assert!(matches!(
        folder.config().rope_scaling,
        Some(RopeScaling::Llama3 { .. })
    ));
    assert!(matches!(
        gguf.config().rope_scaling,
        Some(RopeScaling::Factors(_))
    ));
    let (a, b) = (folder.config().inv_freq(), gguf.config().inv_freq());
    assert_eq!(a.len(), b.len());
    for (x, y) in a.into_iter().zip(b) {
        assert!((x - y).abs() <= 1e-6 * x, "{x} {y}");
    }
    assert_eq!(folder.config().eos_token_ids, [2, 0]);
}

#[test]
fn packed_rows_hold_the_values_of_the_reference() {
    let text = std::fs::read_to_string(models().join("references.json")).unwrap();
    let references: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = references["dequant"].as_array().unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let name = row["type"].as_str().unwrap();
        let hex = row["hex"].as_str().unwrap();
        let bytes: Vec<u8> = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let expected: Vec<f32> = row["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap() as f32)
            .collect();
        let dtype = weight_type(name);
        assert_eq!(dtype.row_bytes(expected.len()), Some(bytes.len()), "{name}");
        let mut out = vec![f32::NAN; expected.len()];
        dtype.dequantise(&bytes, &mut out);
        assert_eq!(out, expected, "{name}");
    }
}

fn weight_type(name: &str) -> WeightType {
    *WeightType::ALL
        .iter()
        .find(|dtype| dtype.to_string() == name)
        .expect(name)
}

#[test]
fn a_missing_path_and_an_empty_folder_are_errors_with_the_path() {
    let missing = models().join("no-such-model");
    let error = Checkpoint::open(&missing).unwrap_err();
    assert!(matches!(error, LoadError::Io { .. }));
    assert!(error.to_string().contains("no-such-model"));
    let error = Checkpoint::open(&models().join("gguf")).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    let error = Checkpoint::open(&models().join("references.json")).unwrap_err();
    assert!(error.to_string().contains("GGUF"), "{error}");
}

#[test]
#[ignore = "needs the real model: set PAGELOOM_REAL_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf"]
fn the_real_model_opens_and_reads_within_two_seconds() {
    let path = std::env::var_os("PAGELOOM_REAL_MODEL").expect("PAGELOOM_REAL_MODEL is set");
    let start = std::time::Instant::now();
    let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
    let opened = start.elapsed();
    let config = checkpoint.config();
    assert_eq!(
        (config.num_layers, config.hidden_size, config.vocab_size),
        (30, 576, 49152)
    );
    assert_eq!(
        (config.num_heads, config.num_kv_heads, config.head_dim),
        (9, 3, 64)
    );
    assert_eq!(
        (config.rope_theta, &config.eos_token_ids[..]),
        (100_000.0, &[2][..])
    );
    assert!(config.tie_word_embeddings);
    let mut sum = 0.0;
    for layer in 0..config.num_layers {
        for module in [
            "self_attn.q_proj",
            "mlp.up_proj",
            "mlp.gate_proj",
            "mlp.down_proj",
        ] {
            sum += values(
                &checkpoint,
                &format!("model.layers.{layer}.{module}.weight"),
            )[7];
        }
    }
    sum += values(&checkpoint, "model.embed_tokens.weight")[7];
    println!(
        "opened in {opened:?}, read in {:?}, sum {sum}",
        start.elapsed()
    );
    assert!(sum.is_finite() && start.elapsed().as_secs() < 2);
}

/// A copy of the sharded model with another text for its index.
fn sharded_copy(name: &str, edit: impl Fn(&str) -> String) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(models().join("llama3")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, edit(&text)).unwrap();
    folder
}

#[test]
fn an_index_that_lies_is_an_error_with_the_tensor_or_the_shard() {
    let second = "model-00002-of-00003.safetensors";
    for (name, replacement, said) in [
        ("missing", "model-00009-of-00003.safetensors", "model-00009"),
        ("traversal", "../llama/model.safetensors", "../llama"),
        ("absolute", "/etc/passwd", "/etc/passwd"),
        (
            "elsewhere",
            "model-00001-of-00003.safetensors",
            "is missing",
        ),
        ("folder", ".", "not the name of a file"),
    ] {
        let folder = sharded_copy(name, |text| text.replace(second, replacement));
        let error = Checkpoint::open(&folder).unwrap_err().to_string();
        assert!(error.contains(said), "{name}: {error}");
    }
    let folder = sharded_copy("honest", str::to_owned);
    Checkpoint::open(&folder).unwrap();
}
