//! The committed files, and how they differ from what was built.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::source::Unit;

/// Where built files lie, from the folder of the sources.
const FOLDERS: [&str; 3] = ["ptx", "sm_90", "sm_90a"];

/// The kernels' part of the repository.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Of the sources: `cuda`.
    pub(crate) cuda: PathBuf,
    pub(crate) table: PathBuf,
    pub(crate) readme: PathBuf,
}

impl Tree {
    /// `package`: the folder of the kernels' crate.
    pub(crate) fn new(package: &Path) -> Self {
        Tree {
            cuda: package.join("cuda"),
            table: package.join("src/cuda/embedded.rs"),
            readme: package.join("README.md"),
        }
    }

    /// PTX and cubins that no unit has (any more), from the folder of the sources.
    pub(crate) fn superfluous(&self, units: &[Unit]) -> Result<Vec<String>> {
        let expected: BTreeSet<_> = units.iter().flat_map(Unit::files).collect();
        let mut found = BTreeSet::new();
        for folder in FOLDERS {
            let path = self.cuda.join(folder);
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot list {}", path.display()));
                }
            };
            for entry in entries {
                let name = entry?.file_name().display().to_string();
                if name.ends_with(".ptx") || name.ends_with(".cubin") {
                    found.insert(format!("{folder}/{name}"));
                }
            }
        }
        Ok(found.difference(&expected).cloned().collect())
    }

    /// Whether everything built of `unit` is there.
    pub(crate) fn has(&self, unit: &Unit) -> bool {
        unit.files()
            .iter()
            .all(|file| self.cuda.join(file).is_file())
    }

    /// Bytes of all files of `units` that are there.
    pub(crate) fn bytes(&self, units: &[Unit]) -> u64 {
        let files = units.iter().flat_map(Unit::files);
        files
            .filter_map(|file| fs::metadata(self.cuda.join(file)).ok())
            .map(|file| file.len())
            .sum()
    }
}

/// How the file differs from what it should be; `None` if it does not.
pub(crate) fn difference(path: &Path, wanted: &[u8]) -> Option<String> {
    match fs::read(path) {
        Ok(found) if found == wanted => None,
        Ok(found) => {
            let line = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
            let common = found.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            // Cubins have no lines.
            let place = match std::str::from_utf8(wanted) {
                Ok(_) => format!("line {}", line(&wanted[..common])),
                Err(_) => format!("byte {common}"),
            };
            Some(format!("differs from {place} on"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Some("is missing".to_string()),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}

/// Writes the file unless it is so already: one that is touched is compiled again.
pub(crate) fn write(path: &Path, wanted: &[u8]) -> Result<()> {
    if difference(path, wanted).is_none() {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, wanted).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::source;

    #[test]
    fn files_whose_variant_is_gone_are_superfluous() {
        let package = tempfile::tempdir().unwrap();
        let tree = Tree::new(package.path());
        fs::create_dir(&tree.cuda).unwrap();
        fs::write(tree.cuda.join("attend.cu"), "// variants: HEAD_DIM=64,80\n").unwrap();
        let units = source::read(&tree.cuda).unwrap();
        assert!(tree.superfluous(&units).unwrap().is_empty() && !tree.has(&units[0]));
        for file in [
            "ptx/attend_64.ptx",
            "sm_90/attend_64.cubin",
            "ptx/attend_128.ptx",
        ] {
            write(&tree.cuda.join(file), b"12345").unwrap();
        }
        assert_eq!(tree.superfluous(&units).unwrap(), ["ptx/attend_128.ptx"]);
        assert!(tree.has(&units[0]) && !tree.has(&units[1]));
        assert_eq!(tree.bytes(&units), 10);
    }

    #[test]
    fn a_difference_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ptx");
        assert_eq!(difference(&path, b"").unwrap(), "is missing");
        fs::write(&path, b"one\ntwo\n").unwrap();
        assert_eq!(difference(&path, b"one\ntwo\n"), None);
        assert_eq!(
            difference(&path, b"one\ntoo\n").unwrap(),
            "differs from line 2 on"
        );
        assert_eq!(
            difference(&path, b"one\ntwo\nthree\n").unwrap(),
            "differs from line 3 on"
        );
        assert_eq!(
            difference(&path, b"on\xff").unwrap(),
            "differs from byte 2 on"
        );
    }

    #[test]
    fn a_file_that_is_right_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ptx/a.ptx");
        write(&path, b"one").unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        write(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    }
}
