//! GGUF files: whatever the bytes are, opening ends in a model that reads or in an error.
//!
//! From the repository's root, with cargo-fuzz and a nightly compiler installed:
//!
//! ```text
//! mkdir -p fuzz/corpus/gguf && cp model-runner/tests/models/gguf/* fuzz/corpus/gguf
//! cargo +nightly fuzz run gguf -- -max_total_time=300 -max_len=65536 -malloc_limit_mb=64
//! ```

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pageloom_model_runner::weights::{Checkpoint, Gguf, GgufValue};

#[path = "../weights.rs"]
mod weights;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(data.to_vec(), Path::new("fuzz.gguf")) else {
        return;
    };
    for key in gguf.keys() {
        let value = gguf.get(key).expect("a key that is listed has a value");
        if let GgufValue::Array(array) = value {
            assert_eq!(array.iter().count(), array.len(), "{key}");
        }
    }
    match Checkpoint::from_gguf(gguf) {
        Ok(checkpoint) => weights::read_all(&checkpoint),
        Err(error) => assert!(error.to_string().contains("fuzz.gguf")),
    }
});
