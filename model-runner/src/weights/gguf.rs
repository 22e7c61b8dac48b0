//! The GGUF container: typed metadata and named tensors in one file.
//!
//! ```text
//! magic "GGUF" | version u32 | tensor_count u64 | metadata_count u64
//! metadata:  key string | type u32 | value                              (x metadata_count)
//! tensors:   name string | n_dims u32 | dims u64... | type u32 | offset u64  (x tensor_count)
//! padding to `general.alignment`, then the tensors' data, each aligned too
//! ```
//!
//! Versions 2 and 3, little endian. Source: the GGUF specification of the ggml project.
//!
//! This is an own parser because the crates at hand copy what a mapped file already holds:
//! `candle-core`, `gguf-rs` and `gguf` decode every token of a vocabulary into an owned value
//! (the first brings a tensor library along, the last knows no type past Q8_K and is no longer
//! kept up), and `gguf-rs-lib`, hardened as it is, reads version 3 only and bounds its memory by
//! a constant of 256 MiB, not by the file. Here metadata stays in the mapping and is walked once
//! for validity, so opening allocates only an index of keys and tensor names.

use std::collections::BTreeMap;
use std::path::Path;

use super::LoadError;
use super::gguf_tensor::{Fault, GgufTensor, name, parse_tensors};
use super::gguf_value::{Cursor, Entry, GgufArray, GgufValue};
use super::mapped::FileBytes;

/// Most metadata keys and most tensors a file may have; real ones have tens and thousands.
const MAX_ENTRIES: u64 = 1 << 16;
const DEFAULT_ALIGNMENT: usize = 32;

/// A parsed GGUF file: metadata by key and tensors by name.
#[derive(Debug)]
pub struct Gguf {
    file: FileBytes,
    version: u32,
    metadata: BTreeMap<Box<str>, Entry>,
    tensors: BTreeMap<Box<str>, GgufTensor>,
}

impl Gguf {
    /// Maps a file and checks all of its header.
    ///
    /// # Errors
    /// [`LoadError`] naming the file, the key or tensor, and the reason. Allocates no more than
    /// an index of the names, whatever the counts in the header say.
    pub fn open(path: &Path) -> Result<Gguf, LoadError> {
        Gguf::parse(FileBytes::map(path)?)
    }

    /// Like [`Gguf::open`] for a file that is in memory; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Gguf, LoadError> {
        Gguf::parse(FileBytes::owned(bytes, path))
    }

    fn parse(file: FileBytes) -> Result<Gguf, LoadError> {
        let mut cursor = Cursor::new(&file);
        let header = parse_header(&mut cursor, &file);
        let at = cursor.offset();
        let header = header.map_err(|fault| match fault {
            Fault::Load(error) => *error,
            Fault::Reason(reason) => LoadError::Malformed {
                path: file.path_buf(),
                offset: at,
                reason,
            },
        })?;
        let (version, metadata, tensors) = header;
        Ok(Gguf {
            file,
            version,
            metadata,
            tensors,
        })
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Keys of the metadata in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(|key| &**key)
    }

    /// Names of the tensors in alphabetical order, in GGUF's spelling.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(|name| &**name)
    }

    /// Value of a metadata key.
    pub fn get(&self, key: &str) -> Option<GgufValue<'_>> {
        let entry = self.metadata.get(key)?;
        // The walk in `parse` accepted these very bytes.
        Cursor::at(&self.file, entry.offset).value(entry.kind).ok()
    }

    /// A key's string; `None` if the key is absent.
    ///
    /// # Errors
    /// [`LoadError::Config`] if the value is of another type. The same goes for the methods below.
    pub fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.typed(key, "a string", |value| match value {
            GgufValue::Str(s) => Some(s),
            _ => None,
        })
    }

    /// A key's non-negative integer of any width.
    ///
    /// # Errors
    /// As [`Gguf::str`].
    pub fn uint(&self, key: &str) -> Result<Option<u64>, LoadError> {
        self.typed(key, "a non-negative integer", |value| match value {
            GgufValue::Uint(x) => Some(x),
            GgufValue::Int(x) => u64::try_from(x).ok(),
            _ => None,
        })
    }

    /// A key's number as a float.
    ///
    /// # Errors
    /// As [`Gguf::str`].
    pub fn float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a number", |value| match value {
            GgufValue::Float(x) => Some(x),
            GgufValue::Uint(x) => Some(x as f64),
            GgufValue::Int(x) => Some(x as f64),
            _ => None,
        })
    }

    /// A key's boolean.
    ///
    /// # Errors
    /// As [`Gguf::str`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "a boolean", |value| match value {
            GgufValue::Bool(x) => Some(x),
            _ => None,
        })
    }

    /// A key's array.
    ///
    /// # Errors
    /// As [`Gguf::str`].
    pub fn array(&self, key: &str) -> Result<Option<GgufArray<'_>>, LoadError> {
        self.typed(key, "an array", |value| match value {
            GgufValue::Array(x) => Some(x),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        pick: impl FnOnce(GgufValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let found = value.kind_name();
        match pick(value) {
            Some(picked) => Ok(Some(picked)),
            None => Err(self.config_error(key, format!("expected {wanted}, found {found}"))),
        }
    }

    pub(crate) fn config_error(&self, key: &str, reason: String) -> LoadError {
        LoadError::Config {
            path: self.file.path_buf(),
            key: key.to_owned(),
            reason,
        }
    }

    /// Path the file was opened from.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn bytes(&self) -> &FileBytes {
        &self.file
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<(&str, &GgufTensor)> {
        self.tensors
            .get_key_value(name)
            .map(|(name, tensor)| (&**name, tensor))
    }
}

type Header = (
    u32,
    BTreeMap<Box<str>, Entry>,
    BTreeMap<Box<str>, GgufTensor>,
);

fn parse_header(cursor: &mut Cursor<'_>, file: &FileBytes) -> Result<Header, Fault> {
    let magic = cursor.bytes(4)?;
    if magic != b"GGUF" {
        return Err(Fault::Reason(format!(
            "magic is {magic:02x?}, expected \"GGUF\""
        )));
    }
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err(Fault::Reason("big-endian GGUF is not supported".to_owned()));
        }
        _ => {
            return Err(Fault::Reason(format!(
                "version {version}, supported are 2 and 3"
            )));
        }
    }
    let num_tensors = entry_count(cursor, "tensors")?;
    let num_keys = entry_count(cursor, "metadata keys")?;
    let metadata = parse_metadata(cursor, num_keys)?;
    let alignment = alignment(file, &metadata)?;
    let tensors = parse_tensors(cursor, file, num_tensors, alignment)?;
    Ok((version, metadata, tensors))
}

fn entry_count(cursor: &mut Cursor<'_>, what: &str) -> Result<u64, Fault> {
    let count = cursor.u64()?;
    if count > MAX_ENTRIES {
        return Err(Fault::Reason(format!(
            "{count} {what}, at most {MAX_ENTRIES} are allowed"
        )));
    }
    Ok(count)
}

fn parse_metadata(
    cursor: &mut Cursor<'_>,
    num_keys: u64,
) -> Result<BTreeMap<Box<str>, Entry>, Fault> {
    let mut metadata = BTreeMap::new();
    for _ in 0..num_keys {
        let key = name(cursor)?;
        let kind = cursor.u32()?;
        let entry = Entry {
            kind,
            offset: cursor.offset(),
        };
        cursor
            .skip_value(kind, 0)
            .map_err(|reason| format!("value of `{key}`: {reason}"))?;
        if metadata.contains_key(&key) {
            return Err(Fault::Reason(format!("metadata key `{key}` appears twice")));
        }
        metadata.insert(key, entry);
    }
    Ok(metadata)
}

fn alignment(file: &FileBytes, metadata: &BTreeMap<Box<str>, Entry>) -> Result<usize, Fault> {
    let Some(entry) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match Cursor::at(file, entry.offset).value(entry.kind) {
        Ok(GgufValue::Uint(x)) if x.is_power_of_two() && x <= 1 << 30 => Ok(x as usize),
        other => Err(Fault::Load(Box::new(LoadError::Config {
            path: file.path_buf(),
            key: "general.alignment".to_owned(),
            reason: format!("expected a power of two up to 2^30, found {other:?}"),
        }))),
    }
}
