//! Files nobody should have written: opening them is an error that names the file, never a panic,
//! and never costs more memory than a small multiple of the file.

use std::path::Path;

use pageloom_model_runner::weights::{Checkpoint, Gguf, LoadError};
use proptest::prelude::*;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Writes GGUF headers, honest or not.
#[derive(Clone)]
struct Header {
    metadata: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    num_metadata: Option<u64>,
    num_tensors: Option<u64>,
    data: usize,
}

impl Header {
    fn new() -> Header {
        let (metadata, tensors) = (Vec::new(), Vec::new());
        Header {
            metadata,
            tensors,
            num_metadata: None,
            num_tensors: None,
            data: 256,
        }
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Header {
        self.metadata
            .push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Header {
        let mut entry = string(name);
        entry.extend((dims.len() as u32).to_le_bytes());
        entry.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        let num_tensors = self.num_tensors.unwrap_or(self.tensors.len() as u64);
        let num_metadata = self.num_metadata.unwrap_or(self.metadata.len() as u64);
        bytes.extend(num_tensors.to_le_bytes());
        bytes.extend(num_metadata.to_le_bytes());
        bytes.extend(self.metadata.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 7);
        bytes
    }

    fn open(&self) -> Result<Gguf, LoadError> {
        Gguf::from_bytes(self.bytes(), Path::new("hostile.gguf"))
    }

    /// Opens the file, which must fail with a message that has `parts` in it.
    fn refused(&self, parts: &[&str]) {
        let mut message = String::new();
        let bytes = self.bytes();
        let size = bytes.len() as u64;
        let used = allocation_counter::measure(|| {
            let error = Gguf::from_bytes(bytes, Path::new("hostile.gguf")).unwrap_err();
            message = error.to_string();
        });
        for part in parts.iter().chain(&["hostile.gguf"]) {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
        assert!(
            used.bytes_max < 4096 + 16 * size,
            "{} bytes for {size}: {message}",
            used.bytes_max
        );
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

#[test]
fn an_honest_header_is_read() {
    let gguf = Header::new()
        .key("general.name", STRING, &string("x"))
        .key("n", 5, &(-3i32).to_le_bytes())
        .tensor("t", &[8, 4], 0, 0)
        .tensor("u", &[32], 2, 128)
        .open()
        .unwrap();
    assert_eq!(gguf.str("general.name").unwrap(), Some("x"));
    assert_eq!(gguf.float("n").unwrap(), Some(-3.0));
    assert!(gguf.uint("n").is_err() && gguf.bool("n").is_err());
    assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["t", "u"]);
}

#[test]
fn counts_in_the_billions_are_refused() {
    let mut header = Header::new().tensor("t", &[8], 0, 0);
    for count in [1 << 17, 1 << 33, u64::MAX] {
        header.num_tensors = Some(count);
        header.refused(&["tensors"]);
        let mut header = Header::new();
        header.num_metadata = Some(count);
        header.refused(&["metadata keys"]);
    }
    header.num_tensors = Some(60_000);
    header.refused(&["malformed"]);
}

#[test]
fn lengths_past_the_end_are_refused() {
    for len in [1 << 10, 1 << 32, 1 << 63, u64::MAX - 7, u64::MAX] {
        let huge = len.to_le_bytes();
        Header::new().key("k", STRING, &huge).refused(&["`k`"]);
        for kind in [0, 3, 6, 7, STRING, ARRAY, 12] {
            let array = [&u32::to_le_bytes(kind)[..], &huge].concat();
            Header::new().key("k", ARRAY, &array).refused(&["`k`"]);
        }
    }
}

#[test]
fn arrays_nested_without_end_are_refused() {
    let level = [&ARRAY.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    Header::new()
        .key("k", ARRAY, &level.repeat(100_000))
        .refused(&["nested"]);
}

#[test]
fn values_outside_their_type_are_refused() {
    Header::new().key("k", 7, &[2]).refused(&["boolean"]);
    Header::new().key("k", 13, &[0]).refused(&["type 13"]);
    Header::new()
        .key("k", STRING, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF])
        .refused(&["UTF-8"]);
    let zero = 0u32.to_le_bytes();
    Header::new()
        .key("k", 4, &zero)
        .key("k", 4, &zero)
        .refused(&["`k` appears twice"]);
    for alignment in [0u32, 3, 24, u32::MAX] {
        let value = alignment.to_le_bytes();
        Header::new()
            .key("general.alignment", 4, &value)
            .refused(&["general.alignment"]);
    }
}

#[test]
fn tensors_outside_the_file_are_refused_by_name() {
    for (dims, kind, offset, reason) in [
        (&[8u64, 4][..], 0, 160, "past the file"),
        (&[65], 0, 0, "past the file"),
        (&[8], 0, u64::MAX - 31, "past the file"),
        (&[8], 0, 1 << 63, "past the file"),
        (&[8], 0, 4, "not aligned"),
        (&[0], 0, 0, "zero"),
        (&[8, 0], 0, 0, "zero"),
        (&[1 << 62], 0, 0, "overflows"),
        (&[1 << 32, 1 << 32], 0, 0, "overflows"),
        (&[1 << 40, 1 << 10, 1 << 10, 1 << 10], 0, 0, "overflows"),
        (&[33], 2, 0, "Q4_0 blocks"),
        (&[128], 12, 0, "Q4_K blocks"),
        (&[32], 4, 0, "Q4_2"),
        (&[256], 10, 0, "Q2_K"),
        (&[8], 77, 0, "number 77"),
        (&[], 0, 0, "0 dimensions"),
        (&[1, 1, 1, 1, 1], 0, 0, "5 dimensions"),
    ] {
        Header::new()
            .tensor("blk.0.x", dims, kind, offset)
            .refused(&["`blk.0.x`", reason]);
    }
    Header::new()
        .tensor("t", &[1], 0, 0)
        .tensor("t", &[1], 0, 0)
        .refused(&["`t` appears twice"]);
}

#[test]
fn other_files_and_versions_are_refused() {
    let open = |bytes: &[u8]| {
        Gguf::from_bytes(bytes.to_vec(), Path::new("f"))
            .unwrap_err()
            .to_string()
    };
    assert!(open(b"").contains("4 bytes are expected"));
    assert!(open(b"PK\x03\x04 something").contains("magic"));
    assert!(open(b"GGUF\x01\0\0\0").contains("version 1"));
    assert!(open(b"GGUF\0\0\0\x03").contains("big-endian"));
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let gguf = Header::new()
        .key("general.architecture", STRING, &string("mamba"))
        .open()
        .unwrap();
    let message = Checkpoint::from_gguf(gguf).unwrap_err().to_string();
    for part in ["mamba", "llama", "qwen2", "qwen3", "hostile.gguf"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_shape_that_contradicts_the_configuration_names_both() {
    let bytes = std::fs::read(model("gguf/llama-f32.gguf")).unwrap();
    // The same number of rows and columns exchanged in the entry of one tensor.
    let name = b"blk.1.ffn_up.weight";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap()
        + name.len()
        + 4;
    let mut changed = bytes;
    let (a, b) = changed[at..].split_at_mut(8);
    a[..8].swap_with_slice(&mut b[..8]);
    let gguf = Gguf::from_bytes(changed, Path::new("f.gguf")).unwrap();
    let error = Checkpoint::from_gguf(gguf).unwrap_err();
    assert!(matches!(error, LoadError::TensorShape { .. }));
    let message = error.to_string();
    assert!(
        message.contains("blk.1.ffn_up.weight") && message.contains("[64, 32]"),
        "{message}"
    );
}

fn model(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/models")
        .join(path)
}

/// Reads every weight the configuration promises; what opens must also read.
fn read_everything(checkpoint: &Checkpoint) {
    let config = checkpoint.config();
    config.inv_freq();
    for layer in 0..config.num_layers {
        for module in [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "mlp.down_proj",
            "input_layernorm",
        ] {
            let name = format!("model.layers.{layer}.{module}.weight");
            let tensor = checkpoint.tensor(&name).unwrap();
            let mut out = vec![0.0; tensor.cols()];
            for row in 0..tensor.rows() {
                tensor.read_row(row, &mut out);
            }
        }
    }
}

/// Opens a damaged copy of a file of a model, in a folder of its own where it has others.
fn open_damaged(path: &str, bytes: Vec<u8>) {
    let result = match path.strip_suffix("/model.safetensors") {
        None => Gguf::from_bytes(bytes, Path::new("f")).and_then(Checkpoint::from_gguf),
        Some(folder) => {
            let config = std::fs::read(model(folder).join("config.json")).unwrap();
            Checkpoint::from_safetensors_bytes(&config, bytes, Path::new("f"))
        }
    };
    match result {
        Ok(checkpoint) => read_everything(&checkpoint),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn some_file() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "gguf/llama-q4_0.gguf",
        "gguf/qwen2-q4_1-mixed.gguf",
        "gguf/llama3-f16.gguf",
        "qwen3/model.safetensors",
        "smollm2/model.safetensors",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_truncated_file_is_an_error(path in some_file(), share in 0.0..1.0f64) {
        let mut bytes = std::fs::read(model(path)).unwrap();
        bytes.truncate((bytes.len() as f64 * share) as usize);
        let folder = path.strip_suffix("/model.safetensors");
        let failed = match folder {
            None => Gguf::from_bytes(bytes, Path::new("f")).is_err(),
            Some(folder) => {
                let config = std::fs::read(model(folder).join("config.json")).unwrap();
                Checkpoint::from_safetensors_bytes(&config, bytes, Path::new("f")).is_err()
            }
        };
        prop_assert!(failed);
    }

    #[test]
    fn a_damaged_header_is_an_error_or_a_model_that_reads(
        path in some_file(),
        flips in prop::collection::vec((0.0..1.0f64, 0u8..=255), 1..6),
    ) {
        let mut bytes = std::fs::read(model(path)).unwrap();
        // Nearly all of the flips land in the header: the data cannot be wrong.
        let header = 6000.min(bytes.len());
        for (share, mask) in flips {
            bytes[(header as f64 * share) as usize] ^= mask;
        }
        open_damaged(path, bytes);
    }
}
