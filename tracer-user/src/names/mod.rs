//! Kernel names of the libraries on this machine.
//!
//! Enters: a library's file. Leaves: its [`Table`], read anew or from the cache. [`crate::kernel`] does the reading and is pure; this room
//! opens files. Refused: what is no regular file.

pub mod cache;
pub mod rows;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::elf::{ElfError, Source};
use crate::kernel::{self, ScanError, Table};
use cache::Cache;

/// An open library.
#[derive(Debug)]
pub struct Library {
    file: File,
    size: u64,
}

impl Library {
    /// Opens a regular file, without waiting for what may be a pipe.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Self::of(File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// A file that is open already.
    pub fn of(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(Self { size: metadata.len(), file })
    }
}

impl Source for Library {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

/// The kernels that a library registers; from the cache if it has been read before.
pub fn table(library: &Library, cache: Option<&Cache>) -> Result<Table, ScanError> {
    let key = cache.and_then(|_| cache::Key::of(library));
    if let (Some(cache), Some(key)) = (cache, &key)
        && let Some(table) = cache.get(key)
    {
        return Ok(table);
    }
    let table = kernel::scan(library)?;
    if let (Some(cache), Some(key)) = (cache, &key) {
        cache.put(key, &table);
    }
    Ok(table)
}

/// Whether an error says that the file is no library at all, and not that it could not be read.
pub fn is_no_library(error: &ScanError) -> bool {
    matches!(error, ScanError::Elf(ElfError::NotElf | ElfError::NotElf64 | ElfError::Damaged { .. }))
}
