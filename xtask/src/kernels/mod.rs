//! `cargo xtask kernels`: builds the CUDA kernels that are committed and embedded.
//!
//! ```text
//! cuda/rope.cu --nvcc--> ptx/rope.ptx --ptxas--> sm_90/rope.cubin      (compute_80, for every GPU)
//!                             \---------ptxas--> sm_80, sm_90a, sm_100, sm_120   (--check: thrown away)
//! cuda/x.cu, `// targets: sm_90a` --------------> sm_90a/x.cubin
//! all of them ----------------------------------> src/cuda/embedded.rs, the table in README.md
//! ```

mod compile;
mod embedded;
mod occupancy;
mod report;
mod source;
mod toolkit;
mod tree;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use compile::{Build, Built, EVERY, REPORTED};
use source::Unit;
use toolkit::Toolkit;
use tree::Tree;

/// All embedded code together; it is part of every program that links the crate.
const MAX_BYTES: u64 = 12 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these sources: names of files in paged-attn-kernels/cuda without `.cu`
    stems: Vec<String>,
    /// Writes nothing: fails unless the committed files are what the sources give, compiles for
    /// every architecture, and fails on spills
    #[arg(long, conflicts_with = "report")]
    check: bool,
    /// Prints registers, spills, shared memory and occupancy of every kernel instead
    #[arg(long)]
    report: bool,
    /// Writes that table into the kernels' README, and nothing else
    #[arg(long, requires = "report", conflicts_with = "stems")]
    write: bool,
    /// An nvcc of release 13.0.88; by default of $CUDA_HOME or $PATH, else installed from wheels
    #[arg(long, value_name = "PATH")]
    nvcc: Option<PathBuf>,
}

/// Runs the task.
///
/// # Errors
/// If a kernel does not compile, or `--check` finds something.
pub(crate) fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace's root")?;
    let tree = Tree::new(&workspace.join("paged-attn-kernels"));
    let units = source::read(&tree.cuda)?;
    let chosen = choose(&units, &args.stems)?;
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let toolkit = Toolkit::find(args.nvcc.as_deref(), &env::current_dir()?.join(target))?;
    let build = Build {
        toolkit: &toolkit,
        folder: &tree.cuda,
        architectures: if args.check { EVERY } else { REPORTED },
    };
    let results = build.run(&chosen);
    let built = all(chosen.into_iter().zip(results).collect())?;
    let whole = args.stems.is_empty();
    if args.check {
        let faults = faults(&tree, &units, &built, whole)?;
        for fault in &faults {
            eprintln!("{fault}");
        }
        ensure!(
            faults.is_empty(),
            "{} faults; `cargo xtask kernels` builds anew",
            faults.len()
        );
    } else if args.report {
        let table = report::table(&built);
        if args.write {
            write_report(&tree, &table)?;
        }
        print!("{table}");
        return Ok(());
    } else {
        write(&tree, &units, &built, whole)?;
    }
    let mib = tree.bytes(&units) as f64 / f64::from(1 << 20);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} of {} variants, {mib:.2} MiB embedded, {seconds:.0} s",
        built.len(),
        units.len()
    );
    Ok(())
}

/// The units of the sources that are named; all if none is.
fn choose<'a>(units: &'a [Unit], stems: &[String]) -> Result<Vec<&'a Unit>> {
    let known: BTreeSet<_> = units.iter().map(|unit| unit.stem.as_str()).collect();
    for stem in stems {
        let list = || known.iter().copied().collect::<Vec<_>>().join(" ");
        ensure!(
            known.contains(stem.as_str()),
            "no source {stem}; there are: {}",
            list()
        );
    }
    let chosen = |unit: &&Unit| stems.is_empty() || stems.contains(&unit.stem);
    Ok(units.iter().filter(chosen).collect())
}

/// What was built, if all was; shows warnings and errors, each once for all variants that have it.
fn all(results: Vec<(&Unit, Result<Built>)>) -> Result<Vec<(&Unit, Built)>> {
    let mut messages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut built = Vec::new();
    let mut num_failed = 0;
    for (unit, result) in results {
        let message = match result {
            Ok(done) => {
                let warnings = done.warnings.clone();
                built.push((unit, done));
                warnings
            }
            Err(error) => {
                num_failed += 1;
                format!("{error:#}\n")
            }
        };
        if !message.is_empty() {
            messages.entry(message).or_default().push(unit.label());
        }
    }
    for (message, units) in messages {
        eprint!("{}:\n{message}", units.join(", "));
    }
    match num_failed {
        0 => Ok(built),
        _ => bail!("{num_failed} variants do not compile"),
    }
}

/// Writes what was built, the table of it, and the report if it is `whole`.
fn write(tree: &Tree, units: &[Unit], built: &[(&Unit, Built)], whole: bool) -> Result<()> {
    for (unit, built) in built {
        for (file, contents) in unit.files().iter().zip(&built.contents) {
            tree::write(&tree.cuda.join(file), contents)?;
        }
    }
    for file in tree.superfluous(units)? {
        println!("removed {file}");
        fs::remove_file(tree.cuda.join(&file)).with_context(|| format!("cannot remove {file}"))?;
    }
    // Others may not have been built yet.
    let present = units.iter().filter(|unit| tree.has(unit));
    tree::write(&tree.table, embedded::source(present).as_bytes())?;
    let table = report::table(built);
    if whole {
        write_report(tree, &table)?;
    }
    print!("{table}");
    for spill in spills(built) {
        eprintln!("{spill}");
    }
    Ok(())
}

/// Writes the report into the README.
fn write_report(tree: &Tree, table: &str) -> Result<()> {
    let page = fs::read_to_string(&tree.readme)
        .with_context(|| format!("cannot read {}", tree.readme.display()))?;
    let page = report::insert(&page, table)
        .with_context(|| format!("cannot write into {}", tree.readme.display()))?;
    tree::write(&tree.readme, page.as_bytes())
}

/// What is wrong with the tree, and with what was built. Without the report unless all of it was.
fn faults(
    tree: &Tree,
    units: &[Unit],
    built: &[(&Unit, Built)],
    whole: bool,
) -> Result<Vec<String>> {
    let mut faults = spills(built);
    for (unit, built) in built {
        let silent = built
            .launches
            .iter()
            .filter(|(_, launch)| launch.dynamic_shared.is_none());
        faults.extend(silent.map(|(kernel, _)| {
            format!(
                "{}: {kernel} does not tell its dynamic shared memory",
                unit.label()
            )
        }));
        for (file, contents) in unit.files().iter().zip(&built.contents) {
            let difference = tree::difference(&tree.cuda.join(file), contents);
            faults.extend(difference.map(|difference| format!("cuda/{file} {difference}")));
        }
    }
    let superfluous = tree.superfluous(units)?;
    faults.extend(
        superfluous
            .iter()
            .map(|file| format!("cuda/{file} is of no source")),
    );
    let table = embedded::source(units.iter());
    let difference = tree::difference(&tree.table, table.as_bytes());
    faults.extend(difference.map(|difference| format!("src/cuda/embedded.rs {difference}")));
    if whole {
        let page = fs::read_to_string(&tree.readme)
            .with_context(|| format!("cannot read {}", tree.readme.display()))?;
        match report::insert(&page, &report::table(built)) {
            Ok(wanted) if wanted == page => {}
            Ok(_) => faults.push("README.md has another report".to_string()),
            Err(error) => faults.push(format!("README.md has {error}")),
        }
    }
    let bytes = tree.bytes(units);
    if bytes > MAX_BYTES {
        faults.push(format!("{bytes} bytes are embedded, more than {MAX_BYTES}"));
    }
    Ok(faults)
}

/// Functions that ran out of registers.
fn spills(built: &[(&Unit, Built)]) -> Vec<String> {
    let mut spills = Vec::new();
    for (unit, built) in built {
        for (architecture, functions) in &built.usage {
            for function in functions.iter().filter(|function| function.spill_bytes > 0) {
                let (label, name, bytes) = (unit.label(), &function.name, function.spill_bytes);
                spills.push(format!(
                    "{label}: {name} spills {bytes} bytes on {architecture}"
                ));
            }
        }
    }
    spills
}

#[cfg(test)]
mod tests {
    use super::*;
    use usage::{Entry, Function, Launch};

    /// A tree with two sources and all that is built of them, which is `contents`.
    fn tree(package: &Path) -> (Tree, Vec<Unit>) {
        let tree = Tree::new(package);
        tree::write(&tree.cuda.join("rope.cu"), b"").unwrap();
        tree::write(
            &tree.cuda.join("attend.cu"),
            b"// variants: HEAD_DIM=64,80\n",
        )
        .unwrap();
        let units = source::read(&tree.cuda).unwrap();
        tree::write(&tree.readme, b"<!-- kernel report -->\n<!-- end -->\n").unwrap();
        (tree, units)
    }

    fn built(units: &[Unit]) -> Vec<(&Unit, Built)> {
        let built = |unit: &Unit| {
            let entry = Some(Entry {
                registers: 40,
                static_shared: 0,
            });
            let function = Function {
                name: unit.stem.clone(),
                spill_bytes: 0,
                entry,
            };
            let launch = Launch {
                threads: Some(128),
                dynamic_shared: Some(0),
            };
            Built {
                contents: vec![b"ptx\n".to_vec(), b"cubin\xff".to_vec()],
                usage: vec![("sm_80", vec![function.clone()]), ("sm_90", vec![function])],
                launches: [(unit.stem.clone(), launch)].into(),
                warnings: String::new(),
            }
        };
        units.iter().map(|unit| (unit, built(unit))).collect()
    }

    #[test]
    fn what_was_just_written_has_no_fault() {
        let package = tempfile::tempdir().unwrap();
        let (tree, units) = tree(package.path());
        let built = built(&units);
        assert_eq!(faults(&tree, &units, &built, true).unwrap().len(), 6 + 2);
        write(&tree, &units, &built, true).unwrap();
        assert!(faults(&tree, &units, &built, true).unwrap().is_empty());
    }

    #[test]
    fn every_fault_is_told() {
        let package = tempfile::tempdir().unwrap();
        let (tree, units) = tree(package.path());
        let mut built = built(&units);
        write(&tree, &units, &built, true).unwrap();
        fs::write(tree.cuda.join("ptx/rope.ptx"), "PTX\n").unwrap();
        fs::remove_file(tree.cuda.join("sm_90/rope.cubin")).unwrap();
        fs::write(tree.cuda.join("sm_90/attend_128.cubin"), "").unwrap();
        fs::write(&tree.table, "").unwrap();
        fs::write(tree.cuda.join("ptx/attend_80.ptx"), vec![b' '; 12 << 20]).unwrap();
        built[0].1.usage[0].1[0].spill_bytes = 8;
        built[2].1.launches.get_mut("rope").unwrap().dynamic_shared = None;
        assert_eq!(
            faults(&tree, &units, &built, true).unwrap(),
            [
                "attend.cu HEAD_DIM=64: attend spills 8 bytes on sm_80",
                "cuda/ptx/attend_80.ptx differs from line 1 on",
                "rope.cu: rope does not tell its dynamic shared memory",
                "cuda/ptx/rope.ptx differs from line 1 on",
                "cuda/sm_90/rope.cubin is missing",
                "cuda/sm_90/attend_128.cubin is of no source",
                "src/cuda/embedded.rs differs from line 1 on",
                "README.md has another report",
                "12582932 bytes are embedded, more than 12582912",
            ]
        );
    }

    #[test]
    fn a_partial_build_lists_what_is_there() {
        let package = tempfile::tempdir().unwrap();
        let (tree, units) = tree(package.path());
        let mut rope = built(&units);
        rope.retain(|(unit, _)| unit.stem == "rope");
        write(&tree, &units, &rope, false).unwrap();
        let table = fs::read_to_string(&tree.table).unwrap();
        assert_eq!(table, embedded::source(units[2..].iter()));
        assert!(faults(&tree, &units, &rope, false).unwrap()[0].contains("embedded.rs differs"));
    }

    #[test]
    fn an_unknown_source_is_answered_with_the_known() {
        let package = tempfile::tempdir().unwrap();
        let (_, units) = tree(package.path());
        let named = |stem: &str| choose(&units, &[stem.to_string()]);
        assert_eq!(named("attend").unwrap().len(), 2);
        assert_eq!(choose(&units, &[]).unwrap().len(), 3);
        let error = named("ropes").unwrap_err().to_string();
        assert_eq!(error, "no source ropes; there are: attend rope");
    }
}
