//! A process's root directory, looked into from outside.
//!
//! The files in it are the target's, so they are opened inside its root (a symbolic link cannot lead out of it), only when regular,
//! without blocking, and read up to a cap.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Entries of a directory that are looked at; a large Python environment has some 2,000 packages.
const ENTRIES_MAX: usize = 65_536;

/// A process's root directory, `/proc/PID/root`.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    pub fn open(path: &Path) -> Option<Self> {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok().map(Self)
    }

    fn open_inside(&self, path: &Path, flags: OFlags) -> Option<File> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        openat2(&self.0, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
            .ok()
            .map(File::from)
    }

    /// At most `max` bytes of a regular file.
    pub fn read(&self, path: &Path, max: u64) -> Option<Vec<u8>> {
        let file = self.open_inside(path, OFlags::empty())?;
        file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let mut text = Vec::new();
        file.take(max).read_to_end(&mut text).ok()?;
        Some(text)
    }

    /// Names in a directory for which `is_wanted`: at most `max`, among the first [`ENTRIES_MAX`] of all.
    pub fn names(&self, path: &Path, max: usize, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let Some(directory) = self.open_inside(path, OFlags::DIRECTORY) else { return Vec::new() };
        // The descriptor is already inside the root; this reads the directory that it is.
        let Ok(entries) = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd())) else {
            return Vec::new();
        };
        let names = entries.take(ENTRIES_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| is_wanted(name)).take(max).collect()
    }
}
