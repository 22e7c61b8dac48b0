//! Models of the Hugging Face hub, kept in the cache that Python's tools use too.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

use super::source::is_relative;
use super::{HubId, ModelError};

/// Small files of a model, fetched where they exist.
const SIDE_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// Weights in one file.
const WEIGHTS: &str = "model.safetensors";
/// Weights in several files, by tensor name.
const INDEX: &str = "model.safetensors.index.json";
/// Broken downloads are taken up again this many times.
const NUM_RETRIES: usize = 5;

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// A GGUF file or a folder of the hub's cache, with everything in it that a model needs.
///
/// What is complete in the cache is used without asking the hub. Weights in formats that can carry
/// code (pickle) are never fetched.
pub(super) fn fetch(id: &HubId) -> Result<PathBuf, ModelError> {
    let cache = Cache::new(hub_cache()?);
    let revision = id.revision.clone().unwrap_or_else(|| "main".to_owned());
    let repo = Repo::with_revision(id.repo.clone(), RepoType::Model, revision);
    let fail = |reason: String| ModelError::Hub {
        id: id.to_string(),
        reason,
    };
    let cached = cache.repo(repo.clone());
    if let Some(path) = find_cached(&cached, id) {
        return Ok(path);
    }
    let token = set("HF_TOKEN").or_else(|| cache.token());
    let mut builder = ApiBuilder::from_cache(cache)
        .with_progress(true)
        .with_retries(NUM_RETRIES)
        .with_token(token);
    if let Some(endpoint) = set("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let api = builder.build().map_err(|e| fail(e.to_string()))?;
    let remote = api.repo(repo);
    let listing = remote
        .info()
        .map_err(|e| fail(format!("the hub does not list this repository: {e}")))?;
    let files: BTreeSet<String> = listing
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .filter(|name| is_relative(name))
        .collect();
    if let Some(file) = choose_gguf(id, &files)? {
        return get(&remote, &file).map_err(fail);
    }
    fetch_folder(&remote, &files).map_err(fail)
}

/// The GGUF file to fetch, if it is one that is wanted.
fn choose_gguf(id: &HubId, files: &BTreeSet<String>) -> Result<Option<String>, ModelError> {
    let fail = |reason: String| ModelError::Hub {
        id: id.to_string(),
        reason,
    };
    if let Some(file) = &id.file {
        return match files.contains(file) {
            true => Ok(Some(file.clone())),
            false => Err(fail(format!("the repository has no file {file}"))),
        };
    }
    if files.contains(WEIGHTS) || files.contains(INDEX) {
        return Ok(None);
    }
    let is_gguf = |name: &&String| name.to_ascii_lowercase().ends_with(".gguf");
    let gguf: Vec<String> = files.iter().filter(is_gguf).cloned().collect();
    match gguf.len() {
        0 => Err(fail(
            "the repository has neither safetensors nor GGUF files".to_owned(),
        )),
        1 => Ok(gguf.into_iter().next()),
        _ => Err(ModelError::ChooseFile {
            id: id.to_string(),
            files: gguf,
        }),
    }
}

/// Fetches the small files and then the weights: weights in the cache mean that all is there.
fn fetch_folder(remote: &ApiRepo, files: &BTreeSet<String>) -> Result<PathBuf, String> {
    for name in SIDE_FILES {
        if files.contains(name) {
            get(remote, name)?;
        }
    }
    let weights = if files.contains(WEIGHTS) {
        get(remote, WEIGHTS)?
    } else {
        let index = get(remote, INDEX)?;
        for shard in shards(&index)? {
            get(remote, &shard)?;
        }
        index
    };
    let folder = weights.parent().map(Path::to_owned);
    folder.ok_or_else(|| format!("{} is in no folder", weights.display()))
}

fn get(remote: &ApiRepo, name: &str) -> Result<PathBuf, String> {
    remote.get(name).map_err(|e| format!("{name}: {e}"))
}

fn shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let text = fs::read(index).map_err(|e| e.to_string())?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| format!("{INDEX}: {e}"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards
        .iter()
        .find(|name| !is_relative(name) || !name.ends_with(".safetensors"))
    {
        Some(name) => Err(format!(
            "{INDEX} names {name:?}, which is no safetensors file"
        )),
        None => Ok(shards),
    }
}

fn find_cached(cached: &CacheRepo, id: &HubId) -> Option<PathBuf> {
    if let Some(file) = &id.file {
        return cached.get(file);
    }
    let config = cached.get("config.json")?;
    if cached.get(WEIGHTS).is_none() {
        let index = cached.get(INDEX)?;
        let shards = shards(&index).ok()?;
        if shards.iter().any(|shard| cached.get(shard).is_none()) {
            return None;
        }
    }
    config.parent().map(Path::to_owned)
}

/// The hub's cache folder, by the variables its own tools read.
fn hub_cache() -> Result<PathBuf, ModelError> {
    if let Some(path) = set("HF_HUB_CACHE") {
        return Ok(path.into());
    }
    if let Some(home) = set("HF_HOME") {
        return Ok(PathBuf::from(home).join("hub"));
    }
    let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
    let home = home.ok_or(ModelError::NoCache)?;
    Ok(home.join(".cache/huggingface/hub"))
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
