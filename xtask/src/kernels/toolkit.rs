//! nvcc and ptxas: those of the machine if they are the right ones, else pinned wheels.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The release whose output is committed. CUDA 13.0 writes PTX ISA 9.0, which every driver since
/// 13.0 takes; a newer release writes PTX that it refuses. And the bytes are those of this compiler.
const RELEASE: &str = "13.0.88";

/// All five are pinned: nvcc alone would bring the newest of the others.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// Where the compilers are.
#[derive(Debug)]
pub(crate) struct Toolkit {
    pub(crate) nvcc: PathBuf,
    pub(crate) ptxas: PathBuf,
}

impl Toolkit {
    /// `given` if there is one; else of `$CUDA_HOME` or `$PATH` if it is the right release; else
    /// installed under `target`, once.
    ///
    /// # Errors
    /// If `given` is another release, there is no g++, or the wheels cannot be installed.
    pub(crate) fn find(given: Option<&Path>, target: &Path) -> Result<Toolkit> {
        let host = Command::new("g++").arg("--version").output();
        ensure!(
            host.is_ok_and(|output| output.status.success()),
            "nvcc needs g++ for its preprocessor, and there is none (on Debian: apt-get install g++)"
        );
        if let Some(nvcc) = given {
            return Toolkit::accept(nvcc);
        }
        let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        for folder in home.into_iter().chain(env::split_paths(&path)) {
            let nvcc = folder.join("nvcc");
            if !nvcc.is_file() {
                continue;
            }
            match Toolkit::accept(&nvcc) {
                Ok(toolkit) => return Ok(toolkit),
                Err(reason) => eprintln!("passed over: {reason:#}"),
            }
        }
        install(&target.join(format!("cuda-toolkit-{RELEASE}")))
    }

    /// The tools beside `nvcc`, if they are of the right release.
    fn accept(nvcc: &Path) -> Result<Toolkit> {
        // A link elsewhere has no ptxas beside it.
        let nvcc = nvcc
            .canonicalize()
            .with_context(|| format!("no {}", nvcc.display()))?;
        let ptxas = nvcc.with_file_name("ptxas");
        for tool in [&nvcc, &ptxas] {
            let text = output(Command::new(tool).arg("--version"))?;
            verify(tool, &text)?;
        }
        Ok(Toolkit { nvcc, ptxas })
    }
}

/// Refuses a tool whose `--version` is not [`RELEASE`].
fn verify(tool: &Path, version: &str) -> Result<()> {
    let tool = tool.display();
    let found = release(version).with_context(|| format!("{tool} tells no release:\n{version}"))?;
    ensure!(
        found == RELEASE,
        "{tool} is release {found}; the committed kernels are built by {RELEASE}, whose PTX (ISA 9.0) \
         drivers take from CUDA 13.0 on"
    );
    Ok(())
}

/// `13.0.88` of `Cuda compilation tools, release 13.0, V13.0.88`.
fn release(text: &str) -> Option<&str> {
    let (_, release) = text.split_once(", release ")?;
    release
        .lines()
        .next()?
        .split_once(", V")
        .map(|(_, release)| release.trim())
}

/// Installs the wheels into `folder`, unless that was done.
fn install(folder: &Path) -> Result<Toolkit> {
    // Written last: an installation that was interrupted has none.
    let marker = folder.join("installed");
    let wanted = WHEELS.join("\n");
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return Toolkit::accept(&nvcc_in(folder)?);
    }
    eprintln!(
        "installing CUDA {RELEASE} into {} (105 MB of wheels)",
        folder.display()
    );
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    output(Command::new("python3").args(["-m".as_ref(), "venv".as_ref(), folder.as_os_str()]))
        .context("the wheels need python3 with venv (on Debian: apt-get install python3-venv)")?;
    let python = folder.join("bin/python");
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    output(Command::new(python).args(pip).args(WHEELS)).context("pip cannot install the wheels")?;
    let toolkit = Toolkit::accept(&nvcc_in(folder)?)?;
    fs::write(&marker, wanted).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(toolkit)
}

/// `lib/python3.*/site-packages/nvidia/cu13/bin/nvcc`
fn nvcc_in(folder: &Path) -> Result<PathBuf> {
    let lib = folder.join("lib");
    for entry in fs::read_dir(&lib).with_context(|| format!("cannot list {}", lib.display()))? {
        let nvcc = entry?.path().join("site-packages/nvidia/cu13/bin/nvcc");
        if nvcc.is_file() {
            return Ok(nvcc);
        }
    }
    bail!("the wheels brought no nvcc into {}", folder.display())
}

/// What `command` writes to its standard output.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_os_string();
    let name = Path::new(&name)
        .file_name()
        .unwrap_or(OsStr::new("?"))
        .display()
        .to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "{name} failed, {}:\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(release: &str) -> String {
        format!(
            "nvcc: NVIDIA (R) Cuda compiler driver\n\
             Cuda compilation tools, release {release}\n\
             Build cuda_13.0.r13.0/compiler.36424714_0\n"
        )
    }

    #[test]
    fn only_the_release_of_the_committed_kernels_is_accepted() {
        let nvcc = Path::new("/opt/cuda/bin/nvcc");
        verify(nvcc, &version("13.0, V13.0.88")).unwrap();
        for other in ["13.0, V13.0.48", "13.2, V13.2.51", "12.8, V12.8.93"] {
            let error = verify(nvcc, &version(other)).unwrap_err().to_string();
            let (_, number) = other.split_once('V').unwrap();
            assert!(
                error.contains(&format!("nvcc is release {number}; ")),
                "{error}"
            );
        }
        let error = verify(nvcc, "clang version 18.1.8")
            .unwrap_err()
            .to_string();
        assert!(error.contains("tells no release"), "{error}");
    }

    #[test]
    fn a_failing_command_is_told_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no ensurepip; exit 1"]));
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("sh failed") && error.contains("no ensurepip"),
            "{error}"
        );
        let error = output(&mut Command::new("/no/such/python3"))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "cannot run python3");
    }
}
