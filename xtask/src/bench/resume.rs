//! Long runs that can be interrupted: each finished point is kept until all are.
//!
//! ```text
//! target/bench/points/NAME/KEY.json    one point's result; KEY digests this program and the parameters
//! ```
//!
//! A program built anew has new keys, so that no figure mixes two versions of the code.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::experiment::{RunArgs, target};
use super::report::write_file;

/// The points of one run of an experiment.
pub(crate) struct Points {
    folder: PathBuf,
    /// Of this program.
    program: &'static [u8],
}

impl Points {
    /// `name` is of the experiment. Points of an earlier run are found unless `--fresh`.
    pub(crate) fn open(name: &str, args: &RunArgs) -> anyhow::Result<Self> {
        Self::open_in(&target().join("bench/points"), name, args.fresh)
    }

    fn open_in(folder: &Path, name: &str, fresh: bool) -> anyhow::Result<Self> {
        let points = Self {
            folder: folder.join(name),
            program: program()?,
        };
        if fresh {
            points.forget()?;
        }
        fs::create_dir_all(&points.folder)
            .with_context(|| format!("cannot make {}", points.folder.display()))?;
        Ok(points)
    }

    /// A result for each of `parameters`, in their order: saved ones, and those `compute` gives.
    /// Up to `num_threads` at once; more than 1 is for simulations, whose results need no quiet.
    ///
    /// # Errors
    /// The first that `compute` gives. What is finished is saved.
    pub(crate) fn all<P, T>(
        &self,
        parameters: &[P],
        num_threads: usize,
        compute: impl Fn(&P) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<T>>
    where
        P: Serialize + Sync,
        T: Serialize + DeserializeOwned + Send,
    {
        let progress = Progress::new(&self.folder, parameters.len());
        let results: Vec<Mutex<Option<anyhow::Result<T>>>> =
            parameters.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(parameters) = parameters.get(i) else {
                    break;
                };
                let result = self.one(parameters, &compute);
                if result.is_err() {
                    // Others end what they have begun.
                    next.store(usize::MAX / 2, Ordering::Relaxed);
                }
                *results[i].lock().unwrap_or_else(|e| e.into_inner()) = Some(result);
                progress.0.inc(1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..num_threads.min(parameters.len()) {
                scope.spawn(work);
            }
            work();
        });
        let results = results.into_iter();
        let results = results.map(|result| result.into_inner().unwrap_or_else(|e| e.into_inner()));
        let (ended, unbegun): (Vec<_>, Vec<_>) = results.partition(Option::is_some);
        let ended: Vec<T> = ended.into_iter().flatten().collect::<anyhow::Result<_>>()?;
        anyhow::ensure!(unbegun.is_empty(), "points were left out");
        Ok(ended)
    }

    /// The saved result of `parameters`, or what `compute` gives, which is saved.
    fn one<P, T>(
        &self,
        parameters: &P,
        compute: impl Fn(&P) -> anyhow::Result<T>,
    ) -> anyhow::Result<T>
    where
        P: Serialize,
        T: Serialize + DeserializeOwned,
    {
        let mut digest = Sha256::new();
        digest.update(self.program);
        digest.update(serde_json::to_vec(parameters)?);
        let key: String = digest
            .finalize()
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect();
        let path = self.folder.join(format!("{key}.json"));
        if path.exists() {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            return serde_json::from_str(&text).with_context(|| {
                format!("{} is no saved point; --fresh forgets it", path.display())
            });
        }
        // Through JSON either way, so that a resumed run has the same figures to the last bit.
        let text = serde_json::to_string(&compute(parameters)?)?;
        write_file(&path, &text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Removes what is saved: the run is over, or starts over.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Replays are pure: as many at once as there are cores.
pub(crate) fn num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A digest of this program's file, which is read once.
fn program() -> anyhow::Result<&'static [u8]> {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(digest) = PROGRAM.get() {
        return Ok(digest);
    }
    let path = std::env::current_exe().context("this program has no path")?;
    let file = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(PROGRAM.get_or_init(|| Sha256::digest(file).to_vec()))
}

/// A bar on the terminal; nothing where there is none.
struct Progress(ProgressBar);

impl Progress {
    fn new(folder: &Path, num_points: usize) -> Self {
        let bar =
            ProgressBar::with_draw_target(Some(num_points as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{prefix} [{bar:30}] {pos}/{len} points, {elapsed}, about {eta} left",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(
            folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
        bar.tick();
        Self(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn an_interrupted_run_continues_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let open = |fresh| Points::open_in(folder.path(), "sweep", fresh).unwrap();
        let num_computed = AtomicUsize::new(0);
        let compute = |until: u32| {
            let num_computed = &num_computed;
            move |&n: &u32| {
                anyhow::ensure!(n < until, "interrupted");
                num_computed.fetch_add(1, Ordering::Relaxed);
                Ok(f64::from(n) / 3.0)
            }
        };
        let points = [0, 1, 2, 3];
        assert!(open(false).all(&points, 1, compute(2)).is_err());
        assert_eq!(num_computed.load(Ordering::Relaxed), 2);
        let resumed = open(false).all(&points, 2, compute(9)).unwrap();
        assert_eq!(num_computed.load(Ordering::Relaxed), 4);
        assert_eq!(resumed, points.map(|n| f64::from(n) / 3.0));
        open(true).all(&points, 2, compute(9)).unwrap();
        assert_eq!(num_computed.load(Ordering::Relaxed), 8);
        open(false).forget().unwrap();
        assert!(!folder.path().join("sweep").exists());
    }

    #[test]
    fn other_parameters_are_other_points() {
        let folder = tempfile::tempdir().unwrap();
        let points = Points::open_in(folder.path(), "sweep", false).unwrap();
        let calls = Cell::new(0);
        let compute = |_: &(u32, bool)| {
            calls.set(calls.get() + 1);
            Ok(calls.get())
        };
        assert_eq!(points.one(&(1, true), compute).unwrap(), 1);
        assert_eq!(points.one(&(1, false), compute).unwrap(), 2);
        assert_eq!(points.one(&(1, true), compute).unwrap(), 1);
    }

    #[test]
    fn a_damaged_point_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let points = Points::open_in(folder.path(), "sweep", false).unwrap();
        points.one(&1, |_| Ok(5)).unwrap();
        let file = fs::read_dir(&points.folder).unwrap().next().unwrap();
        fs::write(file.unwrap().path(), "{").unwrap();
        let error = points.one(&1, |_| Ok(5)).unwrap_err();
        assert!(format!("{error:#}").contains("--fresh"), "{error:#}");
    }
}
