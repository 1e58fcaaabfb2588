//! Reads the library files that targets map.
//!
//! Enters: mappings. Leaves: the points of a family in a file. Files are opened through `/proc/<pid>/map_files`, which is the mapped
//! inode itself even when its path was replaced or lies in another mount namespace; where that is not allowed, through
//! `/proc/<pid>/root`, checked to be the same inode. Refused: files of more than [`FILE_BYTES_MAX`].

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::code::Code;
use super::family::{Family, Point};
use super::plan::Library;
use crate::proc::Proc;

/// The tokenizer library is 11 MB, an interpreter with debug information 35; nothing that is worth probing is near this.
const FILE_BYTES_MAX: u64 = 1 << 28;

/// A path that leads to the library's very inode.
pub fn reach(library: &Library) -> io::Result<PathBuf> {
    let (pid, start, end) = library.through;
    let proc = Proc::this();
    let exact = proc.mapped_file(pid, start, end);
    if File::open(&exact).is_ok() {
        return Ok(exact);
    }
    let below = library.path.strip_prefix("/").unwrap_or(&library.path);
    let by_name = proc.root_of(pid).join(below);
    if fs::metadata(&by_name)?.ino() != library.inode {
        return Err(io::Error::other("the file at its path is not the one that is mapped"));
    }
    Ok(by_name)
}

/// The points of a family in the library that `path` leads to; empty when it has none, or is stripped of their names.
pub fn points(path: &Path, family: &Family) -> io::Result<Vec<Point>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("the file is too large to be such a library"));
    }
    // As a whole: a read a symbol name takes fifty times longer. Not mapped: the file is the target's, and may shrink.
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let code = Code::parse(&bytes).map_err(io::Error::other)?;
    Ok((family.points)(&code))
}
