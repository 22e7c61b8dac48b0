//! Long runs that can be interrupted: each finished point is kept until all are.
//!
//! ```text
//! target/bench/points/NAME/KEY.json    one point's result
//! ```
//!
//! KEY digests this program, the folder that results go to and the point's parameters. A program built
//! anew has new keys, so that no figure mixes two versions of the code; and a run removes only the points
//! that it used, so that two runs at the same time do not harm each other.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::experiment::{RunArgs, target};
use super::whole_file::write_file;

/// The points of one run of an experiment.
pub(crate) struct Points {
    folder: PathBuf,
    /// Of this program, and of where results go.
    run: Sha256,
    /// Points that an earlier run saved are computed again.
    fresh: bool,
    /// Files of this run's points, there or yet to come.
    used: Mutex<BTreeSet<PathBuf>>,
}

impl Points {
    /// `name` is of the experiment. Points of an earlier run are found unless `--fresh`.
    pub(crate) fn open(name: &str, args: &RunArgs) -> anyhow::Result<Self> {
        Self::open_in(&target().join("bench/points"), name, args)
    }

    fn open_in(folder: &Path, name: &str, args: &RunArgs) -> anyhow::Result<Self> {
        let results = args.folder();
        let mut run = Sha256::new();
        run.update(program()?);
        run.update(results.as_os_str().as_encoded_bytes());
        run.update([0]);
        Ok(Self {
            folder: folder.join(name),
            run,
            fresh: args.fresh,
            used: Mutex::default(),
        })
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
        let num_saved = self.num_saved(parameters)?;
        let progress = Progress::new(&self.folder, parameters.len(), num_saved);
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
                *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                progress.one_more();
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..num_threads.min(parameters.len()) {
                scope.spawn(work);
            }
            work();
        });
        let results = results.into_iter();
        let results =
            results.map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner));
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
        let path = self.path(parameters)?;
        let is_new = self.used().insert(path.clone());
        if !(self.fresh && is_new)
            && let Some(text) = read_if_there(&path)?
        {
            return serde_json::from_str(&text).with_context(|| {
                format!(
                    "{} is no saved point; --fresh computes it again",
                    path.display()
                )
            });
        }
        // Through JSON either way, so that a resumed run has the same figures to the last bit.
        let text = serde_json::to_string(&compute(parameters)?)?;
        // Another run that ends may have taken the folder away.
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        write_file(&path, &text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Where the point of `parameters` is kept.
    fn path(&self, parameters: &impl Serialize) -> anyhow::Result<PathBuf> {
        let mut digest = self.run.clone();
        digest.update(serde_json::to_vec(parameters)?);
        let key: String = digest
            .finalize()
            .iter()
            .take(16)
            .map(|b| format!("{b:02x}"))
            .collect();
        Ok(self.folder.join(format!("{key}.json")))
    }

    fn used(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `parameters` need not be computed.
    fn num_saved(&self, parameters: &[impl Serialize]) -> anyhow::Result<usize> {
        let mut num_saved = 0;
        for parameters in parameters {
            num_saved += usize::from(!self.fresh && self.path(parameters)?.exists());
        }
        Ok(num_saved)
    }

    /// The files that this run used, for [`remove`] when its results are written.
    pub(crate) fn into_files(self) -> Vec<PathBuf> {
        let used = self.used.into_inner();
        let used = used.unwrap_or_else(PoisonError::into_inner);
        used.into_iter().collect()
    }

    /// Removes what this run used: its results are written.
    pub(crate) fn forget(self) -> anyhow::Result<()> {
        remove(&self.into_files())
    }
}

/// Removes the files of points, and their folder if nothing is left in it.
pub(crate) fn remove(files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", file.display()));
            }
            _ => {}
        }
    }
    if let Some(folder) = files.first().and_then(|file| file.parent()) {
        // It stays if it has the points of another run.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// None if there is no such file, as when another run has just removed it.
fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text
            .map(Some)
            .with_context(|| format!("cannot read {}", path.display())),
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

/// A bar on the terminal; where there is none, a line now and then.
struct Progress {
    name: String,
    num_points: usize,
    begun: Instant,
    /// Points that are done, and when they were last told of.
    told: Mutex<(usize, Instant)>,
    bar: Option<ProgressBar>,
}

/// Between two lines.
const TOLD_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    fn new(folder: &Path, num_points: usize, num_saved: usize) -> Self {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if num_saved > 0 {
            eprintln!("{name}: goes on: {num_saved} of {num_points} points are saved");
        }
        let begun = Instant::now();
        Self {
            name: name.clone().into_owned(),
            num_points,
            begun,
            told: Mutex::new((0, begun)),
            bar: io::stderr()
                .is_terminal()
                .then(|| bar(name.into_owned(), num_points)),
        }
    }

    fn one_more(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.0 += 1;
        if told.1.elapsed() >= TOLD_EVERY {
            told.1 = Instant::now();
            let elapsed_s = self.begun.elapsed().as_secs();
            let (name, num_points) = (&self.name, self.num_points);
            eprintln!("{name}: {} of {num_points} points, {elapsed_s} s", told.0);
        }
    }
}

fn bar(name: String, num_points: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(num_points as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:30}] {pos}/{len} points, {elapsed}, about {eta} left",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(name);
    // A point may take minutes; the clock goes on.
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn args(fresh: bool, out: &str) -> RunArgs {
        RunArgs {
            quick: true,
            fresh,
            out: Some(out.into()),
        }
    }

    fn open(folder: &Path, fresh: bool) -> Points {
        Points::open_in(folder, "sweep", &args(fresh, "results")).unwrap()
    }

    #[test]
    fn an_interrupted_run_continues_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let open = |fresh| open(folder.path(), fresh);
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
        assert_eq!(open(false).num_saved(&points).unwrap(), 2);
        let resumed = open(false).all(&points, 2, compute(9)).unwrap();
        assert_eq!(num_computed.load(Ordering::Relaxed), 4);
        assert_eq!(resumed, points.map(|n| f64::from(n) / 3.0));
        assert_eq!(open(true).num_saved(&points).unwrap(), 0);
        let fresh = open(true);
        fresh.all(&points, 2, compute(9)).unwrap();
        assert_eq!(num_computed.load(Ordering::Relaxed), 8);
        // What this run has computed itself is no earlier run's.
        fresh.all(&points, 2, compute(9)).unwrap();
        assert_eq!(num_computed.load(Ordering::Relaxed), 8);
        fresh.forget().unwrap();
        assert!(!folder.path().join("sweep").exists());
    }

    #[test]
    fn runs_at_the_same_time_keep_out_of_each_others_way() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = [open(folder.path(), false), open(folder.path(), true)];
        let verify = Points::open_in(folder.path(), "sweep", &args(false, "verify")).unwrap();
        let ok = |value: u32| move |_: &u32| Ok(value);
        assert_eq!(first.all(&[1, 2], 1, ok(5)).unwrap(), [5, 5]);
        assert_eq!(second.all(&[1], 1, ok(6)).unwrap(), [6]);
        // Results that go elsewhere are of another run.
        assert_eq!(verify.all(&[1], 1, ok(7)).unwrap(), [7]);
        second.forget().unwrap();
        verify.forget().unwrap();
        // One point of the first is gone with the second run, the other is not.
        let resumed = open(folder.path(), false);
        assert_eq!(resumed.num_saved(&[1, 2]).unwrap(), 1);
        assert_eq!(first.all(&[1, 2, 3], 1, ok(8)).unwrap(), [8, 5, 8]);
        first.forget().unwrap();
        assert!(!folder.path().join("sweep").exists());
        // Nor does it matter that the folder is gone.
        assert_eq!(resumed.all(&[4], 1, ok(9)).unwrap(), [9]);
    }

    #[test]
    fn other_parameters_are_other_points() {
        let folder = tempfile::tempdir().unwrap();
        let points = open(folder.path(), false);
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
        let points = open(folder.path(), false);
        points.one(&1, |_| Ok(5)).unwrap();
        let file = fs::read_dir(&points.folder).unwrap().next().unwrap();
        fs::write(file.unwrap().path(), "{").unwrap();
        let error = points.one(&1, |_| Ok(5)).unwrap_err();
        assert!(format!("{error:#}").contains("--fresh"), "{error:#}");
        assert_eq!(open(folder.path(), true).one(&1, |_| Ok(6)).unwrap(), 6);
    }
}
