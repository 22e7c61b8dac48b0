//! Folders of safetensors: a `config.json`, a zero byte, and the bytes of `model.safetensors`.
//!
//! From the repository's root, with cargo-fuzz and a nightly compiler installed:
//!
//! ```text
//! mkdir -p fuzz/corpus/safetensors
//! for m in model-runner/tests/models/{llama,mistral,qwen2,qwen3,smollm2}; do
//!     (cat $m/config.json; printf '\0'; cat $m/model.safetensors) > fuzz/corpus/safetensors/${m##*/}
//! done
//! cargo +nightly fuzz run safetensors -- -max_total_time=300 -max_len=160000 -malloc_limit_mb=64
//! ```

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pageloom_model_runner::weights::Checkpoint;

#[path = "../weights.rs"]
mod weights;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (Some(config), Some(tensors)) = (parts.next(), parts.next()) else {
        return;
    };
    match Checkpoint::from_safetensors_bytes(config, tensors.to_vec(), Path::new("fuzz")) {
        Ok(checkpoint) => weights::read_all(&checkpoint),
        Err(error) => assert!(error.to_string().contains("fuzz")),
    }
});
