//! Safetensors of a Hugging Face style folder, in one file or in shards.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use safetensors::tensor::{Dtype, Metadata};
use serde_json::Value;

use super::json::read_json;
use super::mapped::FileBytes;
use super::{LoadError, WeightType};

/// Longest header a safetensors file may have, as in the format's own library.
const MAX_HEADER_BYTES: usize = 100_000_000;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Tensors of a folder by name.
#[derive(Debug)]
pub(super) struct Safetensors {
    files: Vec<FileBytes>,
    tensors: BTreeMap<Box<str>, StoredTensor>,
}

/// Where a tensor's elements lie. The range was checked against the file.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    file: usize,
    /// Type in the file's own spelling.
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    start: usize,
    len: usize,
}

impl Safetensors {
    pub(super) fn open(folder: &Path) -> Result<Safetensors, LoadError> {
        let mut all = Safetensors {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            for (name, tensor) in all.add_file(&single)? {
                all.tensors.insert(name, tensor);
            }
        } else if index.exists() {
            all.add_shards(folder, &index)?;
        } else {
            let reason = format!("neither {SINGLE} nor {INDEX} in the folder");
            return Err(LoadError::NotAModel {
                path: folder.to_owned(),
                reason,
            });
        }
        Ok(all)
    }

    /// A single file in memory, for tests and fuzzing; `path` is what errors call it.
    pub(super) fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Safetensors, LoadError> {
        let file = FileBytes::owned(bytes, path);
        let tensors = parse_header(&file, 0)?;
        Ok(Safetensors {
            files: vec![file],
            tensors,
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<(&str, &StoredTensor)> {
        self.tensors
            .get_key_value(name)
            .map(|(name, tensor)| (&**name, tensor))
    }

    pub(super) fn path_of(&self, tensor: &StoredTensor) -> &Path {
        self.files[tensor.file].path()
    }

    pub(super) fn data(&self, tensor: &StoredTensor) -> &[u8] {
        let end = tensor.start + tensor.len;
        self.files[tensor.file].lend(tensor.start..end)
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }

    fn add_file(&mut self, path: &Path) -> Result<BTreeMap<Box<str>, StoredTensor>, LoadError> {
        let file = FileBytes::map(path)?;
        let tensors = parse_header(&file, self.files.len())?;
        self.files.push(file);
        Ok(tensors)
    }

    /// Opens the shards an index names and takes from each what the index says is there.
    fn add_shards(&mut self, folder: &Path, index: &Path) -> Result<(), LoadError> {
        let error = |key: &str, reason: String| LoadError::Config {
            path: index.to_owned(),
            key: key.to_owned(),
            reason,
        };
        let map = read_json(index)?;
        let Some(Value::Object(weight_map)) = map.get("weight_map") else {
            return Err(error(
                "weight_map",
                "the key is missing or not an object".to_owned(),
            ));
        };
        let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in weight_map {
            let Value::String(shard) = shard else {
                return Err(error(
                    tensor,
                    format!("expected a file name, found {shard}"),
                ));
            };
            by_shard.entry(shard).or_default().push(tensor);
        }
        for (shard, names) in by_shard {
            if !is_plain_file_name(shard) {
                let reason = format!("{shard:?} is not the name of a file in the folder");
                return Err(error(names[0], reason));
            }
            let path = folder.join(shard);
            let mut tensors = self.add_file(&path)?;
            for name in names {
                let Some((name, tensor)) = tensors.remove_entry(name) else {
                    return Err(LoadError::TensorMissing {
                        path,
                        tensor: name.to_owned(),
                    });
                };
                self.tensors.insert(name, tensor);
            }
        }
        Ok(())
    }
}

/// A name that stays in its folder: no separators, no `..`, not empty.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    single && components.next().is_none() && !name.contains(['/', '\\', '\0'])
}

/// Type of the weights if it is one that can be read.
pub(super) fn weight_type(dtype: Dtype) -> Option<WeightType> {
    match dtype {
        Dtype::F32 => Some(WeightType::F32),
        Dtype::F16 => Some(WeightType::F16),
        Dtype::BF16 => Some(WeightType::Bf16),
        _ => None,
    }
}

fn parse_header(
    file: &FileBytes,
    index: usize,
) -> Result<BTreeMap<Box<str>, StoredTensor>, LoadError> {
    let malformed = |offset, reason| LoadError::Malformed {
        path: file.path_buf(),
        offset,
        reason,
    };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(malformed(
            file.len(),
            "too short for a header's length".to_owned(),
        ));
    };
    let header_bytes = u64::from_le_bytes(*length);
    let header = usize::try_from(header_bytes)
        .ok()
        .filter(|len| *len <= MAX_HEADER_BYTES);
    let Some((header, data)) = header.and_then(|len| rest.split_at_checked(len)) else {
        let reason = format!(
            "a header of {header_bytes} bytes in a file of {}",
            file.len()
        );
        return Err(malformed(0, reason));
    };
    // The library checks that every size is its shape's and that the tensors cover the data
    // without a gap. Its `read_metadata` is not used: it adds unchecked sums of offsets.
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| malformed(8, error.to_string()))?;
    if metadata.data_len() != data.len() {
        let reason = format!(
            "the header describes {} bytes of tensors, the file has {}",
            metadata.data_len(),
            data.len()
        );
        return Err(malformed(8 + header.len(), reason));
    }
    let data_start = 8 + header.len();
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        if start > end || end > data.len() {
            let reason = format!(
                "bytes {start}..{end} of {} are outside the file",
                data.len()
            );
            return Err(LoadError::Tensor {
                path: file.path_buf(),
                tensor: name,
                reason,
            });
        }
        let tensor = StoredTensor {
            file: index,
            dtype: info.dtype,
            shape: info.shape.clone(),
            start: data_start + start,
            len: end - start,
        };
        tensors.insert(name.into_boxed_str(), tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn error(bytes: Vec<u8>) -> String {
        Safetensors::from_bytes(bytes, Path::new("x.safetensors"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_header_is_checked_against_the_file() {
        let header = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        let good = Safetensors::from_bytes(file(header, 24), Path::new("x")).unwrap();
        assert_eq!(good.get("a").unwrap().1.shape, [2, 3]);
        assert!(error(file(header, 23)).contains("x.safetensors"));
        assert!(error(file(header, 25)).contains("24 bytes"));
        assert!(error(vec![1, 2, 3]).contains("too short"));
        assert!(error(u64::MAX.to_le_bytes().to_vec()).contains("header of"));
        assert!(error(file("[]", 0)).contains("malformed"));
    }

    #[test]
    fn sizes_that_overflow_are_errors_without_allocating() {
        let huge = 1u64 << 62;
        let one = |shape: &str, end: u64| {
            file(
                &format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#),
                0,
            )
        };
        error(one(&format!("[{huge},{huge}]"), 0));
        error(one(&format!("[{huge}]"), u64::MAX));
        // Offsets that add up to the end of the address space: eight tensors of 2^61 - 1 bytes.
        let size = (1u64 << 61) - 1;
        let entries: Vec<String> = (0..8)
            .map(|i| {
                let (start, end) = (i * size, (i + 1) * size);
                format!(
                    r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#
                )
            })
            .collect();
        error(file(&format!("{{{}}}", entries.join(",")), 0));
    }

    #[test]
    fn shard_names_cannot_leave_the_folder() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "x/",
            "./x",
            "a\0",
        ] {
            assert!(!is_plain_file_name(bad), "{bad:?}");
        }
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
    }
}
