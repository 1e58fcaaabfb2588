//! Tables that were read before, on disk.
//!
//! Enters: a table and the build-id of its library. Leaves: the same table, for the same file. A file is a magic number, the scan's version,
//! an XXH3 checksum, and a zstd frame of MessagePack; it is written beside and renamed, so it is whole or not there. Invariant: no error of
//! the cache is one of the caller's: what cannot be read is read anew. Refused: a folder or a file that others could have written (only
//! root's and one's own, writable for nobody else, no links), damaged files, those of other versions. Over [`TOTAL_MAX`] the oldest go.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use xxhash_rust::xxh3::xxh3_64;

use super::Library;
use crate::elf::{Source as _, image};
use crate::kernel::Table;

const MAGIC: [u8; 8] = *b"\x89ISNAME\n";
/// Of the file's form and of what a scan finds: older files are read anew.
const VERSION: u32 = 1;
/// Magic number, version, checksum.
const HEAD: usize = 8 + 4 + 8;
/// Bytes of all files; libtorch's takes 1.3 MB.
const TOTAL_MAX: u64 = 256 << 20;
/// Bytes of one, packed and unpacked; libtorch's unpacks to 8 MB.
const PACKED_MAX: u64 = 32 << 20;
const TABLE_MAX: usize = 128 << 20;
/// Files in the folder that are looked at.
const FILES_MAX: usize = 65_536;
/// zstd's default.
const LEVEL: i32 = 3;

/// What a library is known by: its build-id, and its size, which a stripped copy does not share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Nothing for a library without a build-id, which is then read each time.
    pub fn of(library: &Library) -> Option<Self> {
        let id = faster_hex::hex_string(&image::build_id(library)?);
        Some(Self(format!("{id}-{:x}.v{VERSION}", library.size())))
    }
}

#[derive(Debug)]
pub struct Cache {
    folder: OwnedFd,
}

impl Cache {
    /// The user's own: below `$XDG_CACHE_HOME`, else `/var/cache` for root, else `~/.cache`. Nothing where it cannot be had.
    pub fn open() -> Option<Self> {
        let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = set("XDG_CACHE_HOME")
            .or_else(|| rustix::process::geteuid().is_root().then(|| PathBuf::from("/var/cache")))
            .or_else(|| set("HOME").map(|home| home.join(".cache")))?;
        Self::at(&base.join("inferspan/names"))
    }

    /// Makes the folder if it is not there.
    pub fn at(folder: &Path) -> Option<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).ok()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty()).ok()?;
        let metadata = File::from(folder.try_clone().ok()?).metadata().ok()?;
        is_own(&metadata).then_some(Self { folder })
    }

    pub fn get(&self, key: &Key) -> Option<Table> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.folder, &key.0, flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || !is_own(&metadata) {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(PACKED_MAX).read_to_end(&mut bytes).ok()?;
        let (head, packed) = bytes.split_at_checked(HEAD)?;
        if head != head_of(packed) {
            return None;
        }
        let table = zstd::bulk::decompress(packed, TABLE_MAX).ok()?;
        rmp_serde::from_slice(&table).ok()
    }

    /// Best effort.
    pub fn put(&self, key: &Key, table: &Table) {
        let Ok(bytes) = rmp_serde::to_vec(table) else { return };
        let Ok(packed) = zstd::bulk::compress(&bytes, LEVEL) else { return };
        if bytes.len() > TABLE_MAX || (packed.len() + HEAD) as u64 > PACKED_MAX {
            return;
        }
        // Two processes may write at once; each has a name of its own.
        let beside = format!(".{}.{}", key.0, std::process::id());
        let written = self.write(&beside, &packed).and_then(|()| {
            rustix::fs::renameat(&self.folder, &beside, &self.folder, &key.0).map_err(std::io::Error::from)
        });
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.folder, &beside, AtFlags::empty());
        }
        self.shrink(TOTAL_MAX);
    }

    fn write(&self, name: &str, packed: &[u8]) -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.folder, name, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(&head_of(packed))?;
        file.write_all(packed)
    }

    /// Removes the oldest files until the others fit.
    fn shrink(&self, max: u64) {
        let Ok(entries) = Dir::read_from(&self.folder) else { return };
        let mut files: Vec<(i64, u64, std::ffi::CString)> = Vec::new();
        for entry in entries.flatten().take(FILES_MAX) {
            let Ok(stat) = rustix::fs::statat(&self.folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
                files.push((stat.st_mtime, stat.st_size as u64, entry.file_name().to_owned()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, name) in files {
            if total <= max {
                return;
            }
            if rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty()).is_ok() {
                total -= size;
            }
        }
    }
}

fn head_of(packed: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..].copy_from_slice(&xxh3_64(packed).to_le_bytes());
    head
}

/// Whether nobody else can have written it.
fn is_own(metadata: &std::fs::Metadata) -> bool {
    // S_IWGRP and S_IWOTH.
    let for_others = metadata.mode() & 0o022;
    (metadata.uid() == 0 || metadata.uid() == rustix::process::geteuid().as_raw()) && for_others == 0
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
