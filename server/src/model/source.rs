//! What `--model` may say.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ModelError;

/// Name of the model that is served when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A GGUF file or a folder on this machine.
    Path(PathBuf),
    /// A repository of the Hugging Face hub.
    Hub(HubId),
    /// [`DEFAULT_MODEL`].
    Default,
}

/// `ORG/NAME[@REVISION][:FILE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `ORG/NAME`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
    /// One GGUF file of the repository.
    pub file: Option<String>,
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

impl ModelSource {
    /// Reads the value of `--model`. What exists on this machine comes before the hub.
    ///
    /// # Errors
    /// [`ModelError::Unknown`].
    pub fn parse(given: &str) -> Result<Self, ModelError> {
        if given == DEFAULT_MODEL {
            return Ok(ModelSource::Default);
        }
        let path = Path::new(given);
        if path.exists() {
            return Ok(ModelSource::Path(path.to_owned()));
        }
        HubId::parse(given)
            .map(ModelSource::Hub)
            .ok_or_else(|| ModelError::Unknown {
                given: given.to_owned(),
            })
    }

    /// The name the model is served under unless another is given: never a path of this machine.
    pub fn served_name(&self) -> String {
        match self {
            ModelSource::Default => DEFAULT_MODEL.to_owned(),
            ModelSource::Hub(id) => id.repo.clone(),
            ModelSource::Path(path) => {
                let is_gguf = path
                    .extension()
                    .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
                // `.` and `..` have no name of their own.
                let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = if is_gguf {
                    whole.file_stem()
                } else {
                    whole.file_name()
                };
                name.map_or_else(
                    || "model".to_owned(),
                    |name| name.to_string_lossy().into_owned(),
                )
            }
        }
    }
}

impl HubId {
    fn parse(given: &str) -> Option<Self> {
        let (rest, file) = match given.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (given, None),
        };
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (rest, None),
        };
        let (org, name) = repo.split_once('/')?;
        let is_name = |part: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            part.chars().all(inner)
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.len() <= 96
                && !part.contains("..")
        };
        let is_revision = |part: &str| part.split('/').all(is_name);
        // Without a `:`, something that ends like a file is a file that is not there.
        let missing_file = file.is_none() && name.to_ascii_lowercase().ends_with(".gguf");
        let ok = is_name(org)
            && is_name(name)
            && revision.is_none_or(is_revision)
            && file.is_none_or(|file| {
                is_relative(file) && file.to_ascii_lowercase().ends_with(".gguf")
            })
            && !missing_file;
        ok.then(|| HubId {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}

/// Whether a file name from outside stays inside the folder it is joined to.
pub(super) fn is_relative(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && Path::new(name)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(given: &str) -> Option<(String, Option<String>, Option<String>)> {
        match ModelSource::parse(given) {
            Ok(ModelSource::Hub(id)) => {
                assert_eq!(id.to_string(), given);
                Some((id.repo, id.revision, id.file))
            }
            _ => None,
        }
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        let id = |repo: &str, revision: Option<&str>, file: Option<&str>| {
            let own = |text: &str| text.to_owned();
            Some((own(repo), revision.map(own), file.map(own)))
        };
        assert_eq!(hub("Qwen/Qwen3-0.6B"), id("Qwen/Qwen3-0.6B", None, None));
        assert_eq!(hub("a/b@main"), id("a/b", Some("main"), None));
        assert_eq!(hub("a/b@refs/pr/1"), id("a/b", Some("refs/pr/1"), None));
        assert_eq!(
            hub("a/b@v1:q/c.gguf"),
            id("a/b", Some("v1"), Some("q/c.gguf"))
        );
        for path in [
            "nowhere.gguf",
            "./a/b",
            "/a/b",
            "../b",
            "a/../b",
            "a/b/c",
            "models/c.gguf",
            "a/b:../c.gguf",
            "a/b:c.bin",
            "a/b@",
            "a/",
            "/",
            "",
            "a/b:",
            "~/b",
            "a/b@x/../y",
        ] {
            assert!(
                matches!(
                    ModelSource::parse(path),
                    Err(ModelError::Unknown { .. }) | Ok(ModelSource::Path(_))
                ),
                "{path}"
            );
            assert_eq!(hub(path), None, "{path}");
        }
    }

    #[test]
    fn a_path_that_exists_is_a_path_and_is_served_by_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Tiny.Q8_0.gguf");
        std::fs::write(&file, "x").unwrap();
        let source = ModelSource::parse(file.to_str().unwrap()).unwrap();
        assert_eq!(source, ModelSource::Path(file));
        assert_eq!(source.served_name(), "Tiny.Q8_0");
        assert_eq!(
            ModelSource::parse(DEFAULT_MODEL).unwrap(),
            ModelSource::Default
        );
    }
}
