//! Negative controls: each planted bug must be found.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::planted::{PLANTED, Planted};

/// Longer than this a simulation only takes if it hangs.
const PATIENCE: Duration = Duration::from_secs(900);

/// What a simulation came to.
#[derive(Debug)]
enum Found {
    AtSeed(u64),
    Nothing,
}

/// Plants each bug whose name contains `only` and simulates `num_seeds` scenarios.
///
/// # Errors
/// If one is not found, or cannot be planted; or if something is found where none is planted.
pub(crate) fn run(num_seeds: u64, only: Option<&str>) -> Result<()> {
    let copy = Copy::new()?;
    copy.build().context("the sources without a bug")?;
    match copy.simulate(num_seeds)? {
        Found::Nothing => println!("{num_seeds} seeds pass without a planted bug"),
        Found::AtSeed(seed) => bail!("seed {seed} fails without a planted bug"),
    }
    let mut missed = Vec::new();
    let chosen = |planted: &&Planted| only.is_none_or(|part| planted.name.contains(part));
    println!("| planted bug | breaks | found within seeds | s |\n|---|---|---|---|");
    for planted in PLANTED.iter().filter(chosen) {
        let begun = Instant::now();
        let found = copy
            .with(planted, || {
                copy.build().and_then(|()| copy.simulate(num_seeds))
            })
            .with_context(|| format!("control \"{}\"", planted.name))?;
        let found = match found {
            Found::AtSeed(seed) => (seed + 1).to_string(),
            Found::Nothing => {
                missed.push(planted.name);
                "not found".to_owned()
            }
        };
        let seconds = begun.elapsed().as_secs();
        println!(
            "| {} | {} | {found} | {seconds} |",
            planted.name, planted.breaks
        );
    }
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}

/// A copy of the workspace's sources, with a target folder of its own.
struct Copy {
    root: PathBuf,
}

impl Copy {
    fn new() -> Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in the workspace's root")?;
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        let root = env::current_dir()?.join(target).join("sim-controls");
        let copy = Copy { root };
        // But for what was built: a file that has moved must not be there twice.
        for entry in fs::read_dir(&copy.root).into_iter().flatten() {
            let path = entry?.path();
            if path == copy.target() {
                continue;
            }
            match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            }
            .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let listed = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(workspace)
            .output()
            .context("git ls-files")?;
        ensure!(listed.status.success(), "git ls-files: {}", listed.status);
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            let (from, to) = (workspace.join(name), copy.root.join(name));
            // Deleted, and not yet from the index.
            if !from.is_file() {
                continue;
            }
            fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
            fs::copy(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(copy)
    }

    /// Does something while a bug is planted.
    fn with<T>(&self, planted: &Planted, something: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.root.join(planted.file);
        let sound =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let num_places = sound.matches(planted.find).count();
        ensure!(
            num_places == 1,
            "{:?} occurs {num_places} times in {}",
            planted.find,
            planted.file
        );
        fs::write(&path, sound.replace(planted.find, planted.replacement))?;
        let result = something();
        fs::write(&path, sound)?;
        result
    }

    fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    fn build(&self) -> Result<()> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--release", "--quiet", "--package", "xtask"])
            .env("CARGO_TARGET_DIR", self.target())
            // A planted bug may leave something unused.
            .env("RUSTFLAGS", "-Awarnings")
            .current_dir(&self.root)
            .status()
            .context("cargo build")?;
        ensure!(built.success(), "it does not build: {built}");
        Ok(())
    }

    fn simulate(&self, num_seeds: u64) -> Result<Found> {
        let mut child = Command::new(self.target().join("release/xtask"))
            .args(["sim", "--seeds", &num_seeds.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("the simulation does not start")?;
        let output = child.stdout.take().context("its output is piped")?;
        let lines = std::thread::spawn(move || {
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.find_map(|line| failed_seed(&line))
        });
        let begun = Instant::now();
        while !lines.is_finished() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !lines.is_finished() {
            child.kill()?;
            bail!("the simulation hangs");
        }
        let failed = lines.join().ok().context("its output was read")?;
        if failed.is_some() {
            // It only shrinks from now on.
            child.kill()?;
        }
        let status = child.wait()?;
        match failed {
            Some(seed) => Ok(Found::AtSeed(seed)),
            None if status.success() => Ok(Found::Nothing),
            None => bail!("the simulation ended with {status}"),
        }
    }
}

/// The seed in a line that says that it failed.
fn failed_seed(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("seed ")?;
    let (seed, _) = rest.split_once(" failed")?;
    seed.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_can_be_planted() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for planted in PLANTED {
            let file = fs::read_to_string(workspace.join(planted.file)).expect(planted.file);
            let num_places = file.matches(planted.find).count();
            assert_eq!(num_places, 1, "{}", planted.name);
        }
    }

    #[test]
    fn the_seed_is_read_from_the_report() {
        assert_eq!(failed_seed("seed 17 failed: why"), Some(17));
        assert_eq!(failed_seed("seeds 10000, requests 3"), None);
    }
}
