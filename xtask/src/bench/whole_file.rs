//! Files that are there whole or not at all.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

/// Replaces a file at once: who is interrupted leaves the old one.
pub(crate) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let unwritable = || format!("cannot write {}", path.display());
    let mut builder = tempfile::Builder::new();
    // Temporary files are private by default, results are not.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let mut file = builder
        .prefix(".writing-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .with_context(unwritable)?;
    file.write_all(text.as_bytes()).with_context(unwritable)?;
    file.persist(path).with_context(unwritable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        write_file(&path, "old").unwrap();
        write_file(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        // Nothing else is left there.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = folder.path().join("missing/results.json");
        let error = format!("{:#}", write_file(&nowhere, "new").unwrap_err());
        assert!(error.contains("missing/results.json"), "{error}");
    }
}
