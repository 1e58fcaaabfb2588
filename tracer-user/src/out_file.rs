//! Where a file of outputs lies, and opens it there.
//!
//! Enters: a path as a user gave it. Leaves: a file that nobody else can have led elsewhere. The path is walked part by part. Refused: a
//! link in a folder that others can write, since where it leads is theirs to change; in such a folder also a file of another user than the
//! folder's own; a named pipe that nobody reads, at once, since to open it would wait for a reader.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::exit::{Code, Failure};

/// Links on one way; as Linux has it (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// `PROC_SUPER_MAGIC` of `linux/magic.h`. Its links are no texts: `/dev/stdout` leads through them.
const PROC_MAGIC: u64 = 0x9fa0;
/// Written by the group or by all.
const OTHERS_WRITE: u32 = 0o022;
/// Of outputs: read by their owner's group, by nobody else.
pub const OUTPUT: u32 = 0o640;
/// Of what may hold secrets: read by its owner alone.
pub const PRIVATE: u32 = 0o600;

/// Why a file is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OutFileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{} is a link in a folder that others can write, and where it leads is theirs to change", .0.display())]
    Link(PathBuf),
    #[error("it belongs to another user, and so does its folder or all can write it")]
    Foreign,
    #[error("it is a named pipe that nobody reads")]
    NoReader,
}

impl From<Errno> for OutFileError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl OutFileError {
    /// As a user is told it. `what`: `the access log`.
    pub fn failure(&self, what: &str, path: &Path) -> Failure {
        let code = match self {
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::Usage,
        };
        let fix = match self {
            Self::Io(_) => "name a file in a folder that exists and can be written",
            Self::Link(_) => "name what it leads to, or a file in a folder that only you can write",
            Self::Foreign => "name a file that is not there yet, or one in a folder that only you can write",
            Self::NoReader => "start its reader first, or name a file",
        };
        Failure::new(code, format!("cannot write {what} to {}: {self}", path.display()), fix)
    }
}

/// What becomes of what is in the file already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    Kept,
    Dropped,
}

/// A folder, and a name in it that is no link.
#[derive(Debug)]
pub struct OutFile {
    folder: OwnedFd,
    name: OsString,
    /// Others can make files and links beside it.
    is_shared: bool,
    /// Of the folder.
    owner: u32,
    /// A link of `/proc`'s, which the kernel follows by itself.
    is_descriptor: bool,
}

impl OutFile {
    pub fn find(path: &Path) -> Result<Self, OutFileError> {
        let is_folder = || OutFileError::from(Errno::ISDIR);
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(is_folder());
        }
        let mut left: VecDeque<OsString> = parts(path);
        let mut folder = open_folder(CWD, OsStr::new("."))?;
        let (mut way, mut links) = (PathBuf::new(), 0);
        while let Some(part) = left.pop_front() {
            if part == "/" || part == ".." || part == "." {
                folder = open_folder(&folder, &part)?;
                way.push(&part);
                continue;
            }
            let is_last = left.is_empty();
            let is_link = match rustix::fs::statat(&folder, &part, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => kind(&stat) == FileType::Symlink,
                Err(Errno::NOENT) if is_last => false,
                Err(errno) => return Err(errno.into()),
            };
            let is_of_proc = is_link && rustix::fs::fstatfs(&folder)?.f_type as u64 == PROC_MAGIC;
            if is_last && (is_of_proc || !is_link) {
                let its = rustix::fs::fstat(&folder)?;
                let (is_shared, owner) = (is_shared(&its), its.st_uid);
                return Ok(Self { folder, name: part, is_shared, owner, is_descriptor: is_of_proc });
            }
            if is_link && !is_of_proc {
                if is_shared(&rustix::fs::fstat(&folder)?) {
                    return Err(OutFileError::Link(way.join(part)));
                }
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                let to = rustix::fs::readlinkat(&folder, &part, Vec::new())?;
                for part in parts(Path::new(OsStr::from_bytes(to.to_bytes()))).into_iter().rev() {
                    left.push_front(part);
                }
                continue;
            }
            let flags = if is_of_proc { OFlags::empty() } else { OFlags::NOFOLLOW };
            folder = rustix::fs::openat(
                &folder,
                &part,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | flags,
                Mode::empty(),
            )?;
            way.push(part);
        }
        Err(is_folder())
    }

    /// What is there; nothing where nothing is.
    pub fn kind(&self) -> Option<FileType> {
        self.stat().map(|stat| kind(&stat))
    }

    fn stat(&self) -> Option<Stat> {
        let flags = if self.is_descriptor { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        rustix::fs::statat(&self.folder, &self.name, flags).ok()
    }

    /// Opens the file for writing, and makes it where there is none. `mode`: its permissions then. Only the opening does not wait.
    pub fn open(&self, existing: Existing, mode: u32) -> Result<File, OutFileError> {
        let append = if existing == Existing::Kept { OFlags::APPEND } else { OFlags::empty() };
        let follow = if self.is_descriptor { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file =
            match rustix::fs::openat(&self.folder, &self.name, flags | append | follow, Mode::from_raw_mode(mode)) {
                Ok(file) => file,
                Err(Errno::NXIO) if self.kind() == Some(FileType::Fifo) => return Err(OutFileError::NoReader),
                // It became one since it was looked at.
                Err(Errno::LOOP) => return Err(OutFileError::Link(PathBuf::from(&self.name))),
                Err(errno) => return Err(errno.into()),
            };
        let stat = rustix::fs::fstat(&file)?;
        if self.is_shared && ![0, own_user(), self.owner].contains(&stat.st_uid) {
            return Err(OutFileError::Foreign);
        }
        rustix::fs::fcntl_setfl(&file, append)?;
        let file = File::from(file);
        if existing == Existing::Dropped && kind(&stat) == FileType::RegularFile {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Whether [`Self::replace`] may do what it does, by doing it without a content.
    pub fn may_replace(&self) -> Result<(), OutFileError> {
        drop(self.begin()?);
        self.forget();
        Ok(())
    }

    /// Puts `content` there at once: a reader sees the old file or the whole new one. One that was there keeps its owner and permissions.
    pub fn replace(&self, content: &[u8]) -> Result<(), OutFileError> {
        let written = self.begin().and_then(|mut file| {
            if let Some(old) = self.stat() {
                // Another owner's may be refused; then it is ours.
                let _ = std::os::unix::fs::fchown(&file, Some(old.st_uid), Some(old.st_gid));
                rustix::fs::fchmod(&file, Mode::from_raw_mode(old.st_mode & 0o777))?;
            }
            file.write_all(content)?;
            file.sync_all()?;
            Ok(rustix::fs::renameat(&self.folder, self.temporary(), &self.folder, &self.name)?)
        });
        if written.is_err() {
            self.forget();
        }
        written
    }

    /// A new file beside it.
    fn begin(&self) -> Result<File, OutFileError> {
        self.forget();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.folder, self.temporary(), flags, Mode::from_raw_mode(OUTPUT)).map(File::from)?)
    }

    /// Takes away what a run before may have left.
    fn forget(&self) {
        // Mostly there is none.
        let _ = rustix::fs::unlinkat(&self.folder, self.temporary(), AtFlags::empty());
    }

    fn temporary(&self) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".{}", std::process::id()));
        name
    }
}

/// Opens what one run writes from its beginning to its end.
pub fn open(path: &Path, what: &str, existing: Existing) -> Result<File, Failure> {
    let opened = OutFile::find(path).and_then(|file| file.open(existing, OUTPUT));
    opened.map_err(|error| error.failure(what, path))
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components().map(|part: Component<'_>| part.as_os_str().to_owned()).collect()
}

fn open_folder(from: impl std::os::fd::AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(from, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether anybody but this user and root can make files in a folder.
fn is_shared(folder: &Stat) -> bool {
    folder.st_mode & OTHERS_WRITE != 0 || ![0, own_user()].contains(&folder.st_uid)
}

#[cfg(test)]
#[path = "out_file_tests.rs"]
mod tests;
