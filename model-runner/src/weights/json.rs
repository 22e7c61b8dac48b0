//! JSON files of bounded size and typed access to their keys.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::LoadError;

/// Larger JSON files are not read; the largest index there is has a few MiB.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON object from a file of bounded size.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let io_error = |source| LoadError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io_error)?;
    if !file.metadata().map_err(io_error)?.is_file() {
        return Err(io_error(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut text = Vec::new();
    file.take(MAX_JSON_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(io_error)?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(LoadError::Malformed {
            path: path.to_owned(),
            offset: text.len(),
            reason: format!("more than {MAX_JSON_BYTES} bytes of JSON"),
        });
    }
    parse_json(&text, path)
}

/// Parses a JSON object; `path` is what errors call it.
pub(super) fn parse_json(text: &[u8], path: &Path) -> Result<Map<String, Value>, LoadError> {
    serde_json::from_slice(text).map_err(|error| LoadError::Malformed {
        path: path.to_owned(),
        offset: 0,
        reason: error.to_string(),
    })
}

/// A JSON object and the file it came from.
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) map: &'a Map<String, Value>,
    /// Key of the object inside the file, with a dot; empty for the file itself.
    pub(super) prefix: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn error(&self, key: &str, reason: impl Into<String>) -> LoadError {
        LoadError::Config {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            reason: reason.into(),
        }
    }

    /// The value of a key; `null` counts as absent, as in transformers.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let picked = pick(value);
        picked
            .map(Some)
            .ok_or_else(|| self.error(key, format!("expected {wanted}, found {value}")))
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let pick = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.typed(key, "a non-negative integer", pick)
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn bool(&self, key: &str) -> Result<bool, LoadError> {
        Ok(self
            .typed(key, "a boolean", Value::as_bool)?
            .unwrap_or(false))
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, LoadError> {
        self.typed(key, "an object", Value::as_object)
    }

    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, LoadError> {
        value.ok_or_else(|| self.error(key, "the key is missing"))
    }

    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>, LoadError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let pick = |value: &'a Value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            other => id(other).map(|id| vec![id]),
        };
        Ok(self
            .typed(key, "a token id or a list of them", pick)?
            .unwrap_or_default())
    }
}
