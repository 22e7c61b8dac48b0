//! `cargo xtask gpu-bundle`: one folder that checks and times everything on a GPU machine without Rust.
//!
//! ```text
//! target/gpu-bundle/
//!   run.sh        checks, then compute-sanitizer where there is one, then benchmarks; tables last
//!   tests/        the test programs of the CUDA kernels
//!   xtask         `bench kernels`
//!   peers.py      what the benchmarks are compared with, where PyTorch is
//! ```

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// What fits where bundles are sent.
const MAX_BYTES: u64 = 60 << 20;

/// Packages whose tests named `cuda*` belong into the bundle.
const PACKAGES: [&str; 2] = ["pageloom-paged-attn-kernels", "pageloom-model-runner"];

const SCRIPT: &str = include_str!("run.sh");
const PEERS: &str = include_str!("../../../benches/peers/gpu_attention.py");

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder; what it holds is replaced
    #[arg(long, default_value = "target/gpu-bundle")]
    out: PathBuf,
}

/// The part of cargo's messages that names a program.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds the programs and gathers them.
///
/// # Errors
/// If something does not build, or the bundle is too large.
pub(crate) fn run(args: &Args) -> Result<()> {
    let tests = build_tests()?;
    ensure!(!tests.is_empty(), "no test is named cuda");
    let programs = args.out.join("tests");
    if args.out.exists() {
        fs::remove_dir_all(&args.out)
            .with_context(|| format!("cannot replace {}", args.out.display()))?;
    }
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    for (name, program) in &tests {
        copy_stripped(program, &programs.join(name))?;
    }
    copy_stripped(&env::current_exe()?, &args.out.join("xtask"))?;
    fs::write(args.out.join("peers.py"), PEERS)?;
    let script = args.out.join("run.sh");
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let bytes = size(&args.out)?;
    ensure!(
        bytes <= MAX_BYTES,
        "the bundle has {bytes} bytes, more than {MAX_BYTES}"
    );
    println!(
        "{}: {} tests, {:.1} MiB. On a machine with an NVIDIA GPU: {}",
        args.out.display(),
        tests.len(),
        bytes as f64 / f64::from(1 << 20),
        script.display()
    );
    Ok(())
}

/// Builds the test programs; their names and where they are.
fn build_tests() -> Result<Vec<(String, PathBuf)>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "test",
        "--release",
        "--no-run",
        "--tests",
        "--message-format=json-render-diagnostics",
    ]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut child = command
        .current_dir(workspace)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut tests = Vec::new();
    let output = child.stdout.take().context("cargo has an output")?;
    for line in BufReader::new(output).lines() {
        let message: Message = serde_json::from_str(&line?)?;
        if let ("compiler-artifact", Some(program), Some(target)) =
            (message.reason.as_str(), message.executable, message.target)
            && target.name.starts_with("cuda")
            && target.kind.iter().any(|kind| kind == "test")
        {
            tests.push((target.name, program));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo test --no-run failed: {status}");
    }
    tests.sort();
    Ok(tests)
}

/// Copies a program without its symbols.
fn copy_stripped(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip")
        .arg("-o")
        .args([to, from])
        .status()
        .context("cannot run strip, of binutils")?;
    ensure!(
        status.success(),
        "strip {} failed: {status}",
        from.display()
    );
    Ok(())
}

/// Bytes of all files in a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => size(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}
