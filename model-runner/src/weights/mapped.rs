use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::LoadError;

/// The bytes of a model file and where they came from. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FileBytes {
    path: Arc<Path>,
    bytes: Arc<Bytes>,
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
        })
    }

    /// Bytes that are in memory already; `path` is what errors call them.
    pub(crate) fn owned(bytes: Vec<u8>, path: &Path) -> FileBytes {
        FileBytes {
            path: Arc::from(path),
            bytes: Arc::new(Bytes::Owned(bytes)),
        }
    }

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
