use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;

use super::LoadError;

/// Bytes of tensors that are lent before the pages of a mapped file are given back: bounds how
/// much of a file is resident beside the weights that are packed from it.
const WINDOW_BYTES: usize = 64 << 20;

/// The bytes of a model file and where they came from. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FileBytes {
    path: Arc<Path>,
    bytes: Arc<Bytes>,
    /// Bytes lent since pages were given back.
    lent: Arc<AtomicUsize>,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps a file read-only; pages come in as they are read.
    pub(crate) fn map(path: &Path) -> Result<FileBytes, LoadError> {
        let io_error = |source| LoadError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        let meta = file.metadata().map_err(io_error)?;
        if !meta.is_file() {
            return Err(io_error(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        // SAFETY: the mapping is private and read-only, and every access to it goes through a
        // slice bounded by the mapping's length. What remains is the contract of every mapped
        // model: the file must not be truncated or rewritten while it is served.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        Ok(FileBytes {
            path: Arc::from(path),
            bytes: Arc::new(Bytes::Mapped(map)),
            lent: Arc::default(),
        })
    }

    /// Bytes that are in memory already; `path` is what errors call them.
    pub(crate) fn owned(bytes: Vec<u8>, path: &Path) -> FileBytes {
        FileBytes {
            path: Arc::from(path),
            bytes: Arc::new(Bytes::Owned(bytes)),
            lent: Arc::default(),
        }
    }

    /// The bytes of a tensor that will be read soon, and most likely once.
    ///
    /// Reading a model through its mapping would leave all of it resident beside the copy that is
    /// packed. So when enough was lent, the pages of all of the file are given back; what is read
    /// after all comes in again.
    ///
    /// # Panics
    /// If the range is outside the file.
    pub(crate) fn lend(&self, range: Range<usize>) -> &[u8] {
        let bytes = &self[range];
        // Two threads that both find the window full both give back: once too often.
        if self.lent.fetch_add(bytes.len(), Ordering::Relaxed) >= WINDOW_BYTES {
            self.lent.store(bytes.len(), Ordering::Relaxed);
            self.give_back();
        }
        bytes
    }

    #[cfg(unix)]
    fn give_back(&self) {
        if let Bytes::Mapped(map) = &*self.bytes {
            // SAFETY: the mapping is of a file and nothing was written to it, so a page that is
            // dropped and read again has the same bytes: the file's, which must not change while
            // it is mapped, as `map` asks for anyway.
            let outcome = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // It is advice: refused, pages stay resident, which is right too.
            drop(outcome);
        }
    }

    #[cfg(not(unix))]
    fn give_back(&self) {}

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path_buf(&self) -> PathBuf {
        self.path.to_path_buf()
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBytes")
            .field("path", &self.path)
            .field("len", &self.len())
            .finish()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;

    use super::*;

    const PIECE: usize = 8 << 20;

    fn sparse_file(len: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len as u64).unwrap();
        file
    }

    /// Bytes of a file that are resident in this process's mapping of it.
    fn resident(path: &Path) -> usize {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines();
        let name = path.to_str().unwrap();
        lines.find(|line| line.ends_with(name)).unwrap();
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        let kib: usize = rss.split_whitespace().next().unwrap().parse().unwrap();
        kib << 10
    }

    fn read(bytes: &[u8]) -> u64 {
        bytes.iter().step_by(512).map(|byte| u64::from(*byte)).sum()
    }

    #[test]
    fn a_file_lent_piece_by_piece_is_never_resident_as_a_whole() {
        let len = 3 * WINDOW_BYTES;
        let file = sparse_file(len);
        let bytes = FileBytes::map(file.path()).unwrap();
        let mut most = 0;
        for start in (0..len).step_by(PIECE) {
            assert_eq!(read(bytes.lend(start..start + PIECE)), 0);
            most = most.max(resident(file.path()));
        }
        let bound = WINDOW_BYTES / 2..=WINDOW_BYTES + PIECE;
        assert!(bound.contains(&most), "{most}");
        // The control: what is read past `lend` stays.
        assert_eq!(read(&bytes), 0);
        assert_eq!(resident(file.path()), len);
    }

    #[test]
    fn what_was_given_back_reads_the_same_again() {
        let mut file = sparse_file(0);
        let contents: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        io::Write::write_all(&mut file, &contents).unwrap();
        let bytes = FileBytes::map(file.path()).unwrap();
        let lent = bytes.lend(0..contents.len());
        assert!(lent == contents && resident(file.path()) > 0);
        bytes.give_back();
        assert_eq!(resident(file.path()), 0);
        assert!(lent == contents);
    }
}
