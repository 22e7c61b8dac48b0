//! CSV files that someone else made: read with care, and never much of what is none.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;

/// Longest text that is read, in bytes: it is held as a whole.
const MAX_BYTES: u64 = 256 << 20;
/// Longest line, in bytes: what is longer is no row of a few numbers.
const MAX_LINE: usize = 4096;
/// Most rows.
const MAX_ROWS: usize = 4_000_000;

/// The text of a file, which may be gzip.
///
/// # Errors
/// Names the file, and the line if that is no UTF-8.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let text = || {
        let file = File::open(path)?;
        ensure!(!file.metadata()?.is_dir(), "it is a folder");
        let mut reader = BufReader::new(file);
        if reader.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            text_of(MultiGzDecoder::new(reader), MAX_BYTES)
        } else {
            text_of(reader, MAX_BYTES)
        }
    };
    text().with_context(|| format!("cannot read {}", path.display()))
}

fn text_of(reader: impl Read, max_bytes: u64) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    reader.take(max_bytes + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= max_bytes,
        "more than {} MiB of text",
        max_bytes >> 20
    );
    String::from_utf8(bytes).or_else(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        bail!("line {line}: this is no text in UTF-8")
    })
}

/// Lines that are not blank, and their numbers.
///
/// # Errors
/// If there are too many, or one is too long.
pub(crate) fn lines(text: &str) -> anyhow::Result<Vec<(usize, &str)>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        ensure!(
            line.len() <= MAX_LINE,
            "line {number}: {} bytes; this is no CSV of a few columns",
            line.len()
        );
        if !line.trim().is_empty() {
            found.push((number, line));
        }
        ensure!(
            found.len() <= MAX_ROWS + 1,
            "line {number}: more than {MAX_ROWS} rows"
        );
    }
    Ok(found)
}

/// The cells of a line, without the blanks and the quotes around them.
///
/// # Errors
/// A quote that is not closed, or something behind one that is.
pub(crate) fn cells(line: &str) -> anyhow::Result<Vec<Cow<'_, str>>> {
    if !line.contains('"') {
        return Ok(line.split(',').map(|cell| cell.trim().into()).collect());
    }
    let mut cells = Vec::new();
    let mut rest = Some(line);
    while let Some(line) = rest {
        let line = line.trim_start();
        let Some(mut quoted) = line.strip_prefix('"') else {
            let (cell, after) = cut(line);
            ensure!(!cell.contains('"'), "{cell:?}: a quote within a cell");
            cells.push(cell.trim().into());
            rest = after;
            continue;
        };
        let mut cell = String::new();
        loop {
            let (part, after) = quoted.split_once('"').context("a quote is not closed")?;
            cell += part;
            // Two of them are one.
            match after.strip_prefix('"') {
                Some(after) => quoted = after,
                None => {
                    quoted = after;
                    break;
                }
            }
            cell.push('"');
        }
        let (behind, after) = cut(quoted);
        ensure!(behind.trim().is_empty(), "{behind:?} behind a quoted cell");
        cells.push(cell.trim().to_owned().into());
        rest = after;
    }
    Ok(cells)
}

/// Up to the next comma, and what comes behind that, if there is one.
fn cut(line: &str) -> (&str, Option<&str>) {
    match line.split_once(',') {
        Some((cell, after)) => (cell, Some(after)),
        None => (line, None),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gz(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> anyhow::Result<String> {
        let folder = tempfile::tempdir().unwrap();
        // What it is is told from what it holds, not from its name.
        let path = folder.path().join("trace.gz");
        std::fs::write(&path, bytes).unwrap();
        read_text(&path)
    }

    #[test]
    fn gzip_is_read_to_its_end() {
        assert_eq!(read(b"a,b\n1,2\n").unwrap(), "a,b\n1,2\n");
        assert_eq!(read(&gz(b"a,b\n")).unwrap(), "a,b\n");
        // Two files, one after the other, are a gzip file too.
        let two = [gz(b"a,b\n"), gz(b"1,2\n")].concat();
        assert_eq!(read(&two).unwrap(), "a,b\n1,2\n");
        let whole = gz(b"a,b\n1,2\n3,4\n");
        for len in 2..whole.len() {
            let error = format!("{:#}", read(&whole[..len]).unwrap_err());
            assert!(error.contains("trace.gz"), "{len}: {error}");
        }
        assert!(read(&[gz(b"a,b\n"), b"more".to_vec()].concat()).is_err());
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let error = format!("{:#}", read(b"a,b\n1,\xff\n").unwrap_err());
        assert!(error.contains("line 2: "), "{error}");
        let folder = std::env::temp_dir();
        let error = format!("{:#}", read_text(&folder).unwrap_err());
        assert!(error.contains("it is a folder"), "{error}");
        // Without end: no more is held than is allowed.
        let error = text_of(std::io::repeat(b'0'), 1 << 20).unwrap_err();
        assert!(error.to_string().contains("more than 1 MiB"), "{error}");
        let error = lines(&"x".repeat(MAX_LINE + 1)).unwrap_err().to_string();
        assert!(error.contains("line 1: 4097 bytes"), "{error}");
    }

    #[test]
    fn cells_are_as_other_programs_write_them() {
        for (line, expected) in [
            ("1, 2,3", &["1", "2", "3"][..]),
            ("1,,", &["1", "", ""]),
            (
                "\"a b\",\"c, d\", \"e \"\"f\"\"\" ,5",
                &["a b", "c, d", "e \"f\"", "5"],
            ),
            ("\"1\"", &["1"]),
        ] {
            assert_eq!(cells(line).unwrap(), expected, "{line}");
        }
        for (line, reason) in [
            ("1,\"2", "not closed"),
            ("\"1\"2,3", "behind"),
            ("1\"2,3", "within"),
        ] {
            let error = cells(line).unwrap_err().to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
        let with_mark = "\u{feff}a,b\r\n\r\n1,2\r\n";
        assert_eq!(lines(with_mark).unwrap(), [(1, "a,b"), (3, "1,2")]);
    }
}
