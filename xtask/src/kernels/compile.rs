//! Runs nvcc and ptxas over all units, on all cores.
//!
//! The front end runs once a unit, to PTX for compute_80; ptxas then makes of that PTX the cubin for
//! sm_90 and, to prove that it can, code for every other architecture. PTX for compute_80 is what a
//! driver compiles on all of them, so nothing would be learnt by running the front end again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};

use super::source::{Target, Unit};
use super::toolkit::Toolkit;
use super::usage::{self, Function, Launch};

/// Architectures that `--check` compiles for.
pub(crate) const EVERY: &[&str] = &["sm_80", "sm_90", "sm_90a", "sm_100", "sm_120"];
/// Architectures in the report; sm_90's is also the embedded cubin.
pub(crate) const REPORTED: &[&str] = &["sm_80", "sm_90"];

/// What became of a unit.
#[derive(Debug)]
pub(crate) struct Built {
    /// Contents of [`Unit::files`], in that order.
    pub(crate) contents: Vec<Vec<u8>>,
    /// What each architecture's code occupies.
    pub(crate) usage: Vec<(&'static str, Vec<Function>)>,
    /// How each kernel is launched.
    pub(crate) launches: BTreeMap<String, Launch>,
    pub(crate) warnings: String,
}

/// How to build.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub(crate) toolkit: &'a Toolkit,
    /// Of the sources.
    pub(crate) folder: &'a Path,
    /// For portable units; sm_90 is among them.
    pub(crate) architectures: &'static [&'static str],
}

impl Build<'_> {
    /// Builds every unit; results in the units' order.
    pub(crate) fn run(&self, units: &[&Unit]) -> Vec<Result<Built>> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(unit) = units.get(index) else {
                    return done;
                };
                done.push((index, self.unit(unit)));
            }
        };
        let num_threads = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(units.len());
        let mut done: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
            let results = threads
                .into_iter()
                .map(|thread| thread.join().expect("a panic was told"));
            results.flatten().collect()
        });
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn unit(&self, unit: &Unit) -> Result<Built> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let file = format!("{}.ptx", unit.name);
        let path = folder.path().join(&file);
        let (virtual_architecture, embedded, architectures): (_, _, &[&'static str]) =
            match unit.target {
                Target::Portable => ("compute_80", "sm_90", self.architectures),
                Target::Sm90a => ("compute_90a", "sm_90a", &["sm_90a"]),
            };
        let mut nvcc = Command::new(&self.toolkit.nvcc);
        nvcc.arg("-ptx")
            .arg(format!("-arch={virtual_architecture}"))
            .args(["-O3", "-std=c++17"]);
        nvcc.args(
            unit.defines
                .iter()
                .map(|(name, value)| format!("-D{name}={value}")),
        );
        // Relative, so that messages name the source as it is known.
        nvcc.current_dir(self.folder)
            .arg(format!("{}.cu", unit.stem))
            .arg("-o")
            .arg(&path);
        let mut messages = run(&mut nvcc)?;
        let ptx = fs::read_to_string(&path).context("nvcc wrote no PTX")?;
        let ptx = condensed(&without_folder(&ptx, &unit.stem));
        fs::write(&path, &ptx)?;

        let mut contents = Vec::new();
        if unit.target == Target::Portable {
            contents.push(ptx.clone().into_bytes());
        }
        let mut usage = Vec::new();
        for &architecture in architectures {
            let cubin = folder.path().join(architecture);
            let mut ptxas = Command::new(&self.toolkit.ptxas);
            // Its messages name the file as it is given.
            ptxas.current_dir(folder.path()).arg(&file);
            ptxas
                .arg("-v")
                .arg(format!("-arch={architecture}"))
                .arg("-o")
                .arg(&cubin);
            let text = run(&mut ptxas).with_context(|| format!("for {architecture}"))?;
            usage.push((architecture, usage::parse(&text)?));
            if architecture == embedded {
                contents.push(fs::read(&cubin).context("ptxas wrote no cubin")?);
            }
            messages.push_str(&text);
        }
        let warnings = usage::warnings(&messages)
            .map(|line| format!("{line}\n"))
            .collect();
        Ok(Built {
            contents,
            usage,
            launches: usage::launches(&ptx),
            warnings,
        })
    }
}

/// Runs a compiler; what it said.
fn run(command: &mut Command) -> Result<String> {
    // They would change the output.
    command
        .env_remove("NVCC_PREPEND_FLAGS")
        .env_remove("NVCC_APPEND_FLAGS");
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    anyhow::ensure!(output.status.success(), "{}", text.trim_end());
    Ok(text)
}

/// Clears what names of internal linkage tell of the folder and of the machine's headers.
///
/// nvcc calls them `_INTERNAL_db8f282a_14_copy_blocks_cu_54b51978...`: two hashes around the source's
/// name, one of its absolute path. As zeros they keep the lengths that mangled names count, and the
/// source's name is enough for a program of one source.
fn without_folder(ptx: &str, stem: &str) -> String {
    const HASH: usize = 8;
    let file: String = format!("{stem}_cu")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let middle = format!("_{}_{file}_", file.len());
    let is_hash = |bytes: Option<&[u8]>| {
        bytes.is_some_and(|bytes| {
            bytes
                .iter()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let zeros = "0".repeat(HASH);
    let mut clear = ptx.to_string();
    for (start, _) in ptx.match_indices(&middle) {
        let (before, after) = (start.wrapping_sub(HASH)..start, start + middle.len());
        let after = after..after + HASH;
        let bytes = ptx.as_bytes();
        if is_hash(bytes.get(before.clone())) && is_hash(bytes.get(after.clone())) {
            clear.replace_range(before, &zeros);
            clear.replace_range(after, &zeros);
        }
    }
    clear
}

/// Drops what only readers of the compiler's output need, a sixth of the text: indentation, empty
/// lines, and the two comments around each piece of inline assembly. Other comments stay: one says
/// what shared memory a launch adds.
fn condensed(ptx: &str) -> String {
    let is_kept = |line: &&str| !matches!(*line, "" | "// begin inline asm" | "// end inline asm");
    ptx.lines()
        .map(str::trim)
        .filter(is_kept)
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_internal_linkage_lose_their_hashes_and_nothing_else() {
        // nvcc 13.0.88, of copy_sample.cu.
        let named = |path: &str, headers: &str| {
            format!(
                "mov.u64 \t%rd3, _ZN45_INTERNAL_{path}_14_copy_sample_cu_{headers}8pageloom47_GLOBAL__N__\
                 {path}_14_copy_sample_cu_{headers}5tableE;\n\t// .globl\tcopy_sample\n"
            )
        };
        let cleared = without_folder(&named("db8f282a", "54b51978"), "copy_sample");
        assert_eq!(cleared, named("00000000", "00000000"));
        let other = named("db8f282a", "54b51978");
        assert_eq!(without_folder(&other, "sample"), other);
        let short = "8a_14_copy_sample_cu_54b5";
        assert_eq!(without_folder(short, "copy_sample"), short);
    }

    #[test]
    fn condensed_text_has_the_same_instructions_and_comments_that_say_something() {
        let text = "\n.reg .b32 %r<2>;\n\n\t// begin inline asm\n\tmov.b32 %r1, 1;\n\t// end inline asm\n\
                    \t// dynamic shared: 64\n$L__BB0_1:\n\tret; \n";
        let expected =
            ".reg .b32 %r<2>;\nmov.b32 %r1, 1;\n// dynamic shared: 64\n$L__BB0_1:\nret;\n";
        assert_eq!(condensed(text), expected);
    }

    #[test]
    fn a_failing_compiler_is_told_in_its_own_words() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'rope.cu(3): error: expected a \";\"' >&2; exit 2",
        ]);
        let error = run(&mut command).unwrap_err().to_string();
        assert_eq!(error, "rope.cu(3): error: expected a \";\"");
    }
}
