//! The folder that keeps fetched models.
//!
//! ```text
//! $PAGELOOM_CACHE, else $XDG_CACHE_HOME/pageloom, else ~/.cache/pageloom
//!   smollm2-135m-instruct/
//!     SmolLM2-135M-Instruct.Q4_1.gguf     complete and checked: it got its name by a rename
//!     .lock                               held while someone fetches
//!     .fetch-PID/                         work in progress; stale if nobody holds the lock
//! ```

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::ModelError;

/// Begins the names of folders of unfinished work.
const WORK_PREFIX: &str = ".fetch-";

/// The folder that keeps fetched models.
///
/// # Errors
/// [`ModelError::NoCache`] if neither variable is set and there is no home folder.
pub fn cache_dir() -> Result<PathBuf, ModelError> {
    choose(|name| env::var_os(name), env::home_dir())
}

fn choose(
    var: impl Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
) -> Result<PathBuf, ModelError> {
    let set = |name| {
        var(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    // The XDG specification says that a relative path there is to be ignored.
    let xdg = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    set("PAGELOOM_CACHE")
        .or_else(|| xdg.map(|path| path.join("pageloom")))
        .or_else(|| {
            let home = home.filter(|home| !home.as_os_str().is_empty())?;
            Some(home.join(".cache").join("pageloom"))
        })
        .ok_or(ModelError::NoCache)
}

/// Exclusive use of a model's folder, with a folder for work in progress.
pub(super) struct Workplace {
    _lock: File,
    dir: PathBuf,
}

impl Workplace {
    /// Waits until no other process fetches into `folder`, and clears away what one left behind.
    pub(super) fn open(folder: &Path) -> Result<Self, ModelError> {
        fs::create_dir_all(folder).map_err(|e| ModelError::io(folder, e))?;
        let path = folder.join(".lock");
        let lock = File::create(&path).map_err(|e| ModelError::io(&path, e))?;
        if lock.try_lock().is_err() {
            eprintln!("Waiting for another pageloom that is fetching this model ...");
            lock.lock().map_err(|e| ModelError::io(&path, e))?;
        }
        for entry in fs::read_dir(folder).map_err(|e| ModelError::io(folder, e))? {
            let entry = entry.map_err(|e| ModelError::io(folder, e))?;
            if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
                let stale = entry.path();
                fs::remove_dir_all(&stale).map_err(|e| ModelError::io(&stale, e))?;
            }
        }
        let dir = folder.join(format!("{WORK_PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).map_err(|e| ModelError::io(&dir, e))?;
        Ok(Workplace { _lock: lock, dir })
    }

    /// Folder for work in progress, on the same file system as the model's own place.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next one to hold the lock.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_first_of_three_places_says() {
        let choose = |own: &str, xdg: &str, home: Option<&str>| {
            super::choose(
                |name| {
                    Some(OsString::from(match name {
                        "PAGELOOM_CACHE" => own,
                        _ => xdg,
                    }))
                },
                home.map(PathBuf::from),
            )
            .ok()
        };
        assert_eq!(choose("/c", "/x", Some("/h")), Some("/c".into()));
        assert_eq!(choose("", "/x", Some("/h")), Some("/x/pageloom".into()));
        assert_eq!(
            choose("", "x", Some("/h")),
            Some("/h/.cache/pageloom".into())
        );
        assert_eq!(choose("", "", None), None);
    }

    #[test]
    fn work_left_behind_is_cleared_and_the_models_stay() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".fetch-1")).unwrap();
        fs::write(folder.path().join(".fetch-1/half.whl"), "x").unwrap();
        fs::write(folder.path().join("model.gguf"), "x").unwrap();
        let work = Workplace::open(folder.path()).unwrap();
        assert!(!folder.path().join(".fetch-1").exists());
        let dir = work.dir().to_owned();
        assert!(dir.exists());
        drop(work);
        assert!(!dir.exists() && folder.path().join("model.gguf").exists());
    }
}
