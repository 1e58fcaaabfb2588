//! The only reader of `/proc`.
//!
//! Enters: a process's number and what is asked of it. Leaves: the few fields that others need, parsed; paths that lead to its files.
//! Every file is read up to a cap. Invariant: nothing of a process is touched, only looked at. What [`Proc::at`] is given may be another
//! mount of `/proc`, or a recorded directory of its shape.

pub mod descriptors;
pub mod root;
pub mod text;

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use text::{Mapping, Stat, Status, Usage};

/// Caps on what is read. The largest seen: 250 kB of maps (the engine of docs/support-matrix.md), tens of MB of sockets (a busy
/// proxy in the same namespace).
const TEXT_MAX: u64 = 1 << 20;
const MAPS_MAX: u64 = 16 << 20;
const SOCKETS_MAX: u64 = 64 << 20;
/// A process of that engine has some 2,000 mappings.
const MAPPINGS_MAX: usize = 100_000;
/// `fs.nr_open` where nobody has raised it. One that is not listed would be taken for none.
const DESCRIPTORS_MAX: usize = 1 << 20;
const THREADS_MAX: usize = 4096;

/// Inode of the host's first pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
pub const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The process that asks, where a number is expected: right in every pid namespace.
pub const OWN: &str = "self";

/// A `/proc`, and what may be asked of it. A process is named by its number in that `/proc`, or by [`OWN`].
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
}

impl Proc {
    /// This host's.
    pub fn this() -> Self {
        Self::at("/proc")
    }

    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Every process, in no order.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        numbers(&self.root, usize::MAX)
    }

    pub fn exists(&self, process: impl Display) -> bool {
        self.path(process, "").exists()
    }

    pub fn has_thread(&self, process: impl Display, thread: u32) -> bool {
        self.path(process, "task").join(thread.to_string()).exists()
    }

    pub fn stat(&self, process: impl Display) -> io::Result<Stat> {
        parsed(text::stat(&self.read(process, "stat", TEXT_MAX)?))
    }

    pub fn usage(&self, process: impl Display) -> io::Result<Usage> {
        parsed(text::usage(&self.read(process, "stat", TEXT_MAX)?))
    }

    pub fn status(&self, process: impl Display) -> io::Result<Status> {
        parsed(text::status(&self.read(process, "status", TEXT_MAX)?))
    }

    /// The words of its command line; none when it has none, or may not be read.
    pub fn arguments(&self, process: impl Display) -> Vec<String> {
        text::arguments(&self.read(process, "cmdline", TEXT_MAX).unwrap_or_default())
    }

    /// One variable of the environment that it was started with.
    pub fn variable(&self, process: impl Display, name: &str) -> Option<String> {
        text::variable(&self.read(process, "environ", TEXT_MAX).ok()?, name)
    }

    pub fn cgroup(&self, process: impl Display) -> String {
        self.lossy(process, "cgroup")
    }

    pub fn mounts(&self, process: impl Display) -> String {
        self.lossy(process, "mounts")
    }

    pub fn limits(&self, process: impl Display) -> io::Result<String> {
        self.read(process, "limits", TEXT_MAX).map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    /// What its time namespace adds to `CLOCK_MONOTONIC`, ns.
    pub fn monotonic_offset_ns(&self, process: impl Display) -> Option<i64> {
        text::monotonic_offset_ns(&self.lossy(process, "timens_offsets"))
    }

    /// Its file mappings.
    pub fn maps(&self, process: impl Display) -> io::Result<Vec<Mapping>> {
        let text = self.read(process, "maps", MAPS_MAX)?;
        Ok(text::maps(&text).take(MAPPINGS_MAX).collect())
    }

    /// Its threads.
    pub fn threads(&self, process: impl Display) -> io::Result<Vec<u32>> {
        numbers(&self.path(process, "task"), THREADS_MAX)
    }

    /// Kernel names of its threads, read as they are asked for.
    pub fn thread_names(&self, process: impl Display) -> impl Iterator<Item = Vec<u8>> {
        let threads = self.threads(&process).unwrap_or_default();
        let name = move |thread: u32| self.read(&process, &format!("task/{thread}/comm"), TEXT_MAX).unwrap_or_default();
        threads.into_iter().map(name)
    }

    /// The descriptors that it has open. Refused also to whoever may list them and not know what they are (CAP_DAC_READ_SEARCH without
    /// CAP_SYS_PTRACE).
    pub fn descriptors(&self, process: impl Display) -> io::Result<Vec<u32>> {
        let open = numbers(&self.path(&process, "fd"), DESCRIPTORS_MAX)?;
        match open.first().map(|fd| self.descriptor(&process, *fd)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            _ => Ok(open),
        }
    }

    /// What a descriptor is: a path, or `socket:[…]`.
    pub fn descriptor(&self, process: impl Display, fd: u32) -> io::Result<Vec<u8>> {
        self.link(process, &format!("fd/{fd}"))
    }

    /// Inode of a namespace of its: `pid`, `net`, …
    pub fn namespace(&self, process: impl Display, kind: &str) -> Option<u64> {
        text::namespace_inode(&self.link(process, &format!("ns/{kind}")).ok()?)
    }

    /// A table of the sockets in its network namespace: `tcp`, `tcp6`, `unix`.
    pub fn sockets(&self, process: impl Display, table: &str) -> Vec<u8> {
        self.read(process, &format!("net/{table}"), SOCKETS_MAX).unwrap_or_default()
    }

    /// A value of the kernel's: `kernel/osrelease`.
    pub fn kernel_value(&self, name: &str) -> Option<String> {
        let text = read_capped(&self.root.join("sys").join(name), TEXT_MAX).ok()?;
        Some(String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    /// Its root directory.
    pub fn root_of(&self, process: impl Display) -> PathBuf {
        self.path(process, "root")
    }

    /// The program that it runs.
    pub fn executable(&self, process: impl Display) -> PathBuf {
        self.path(process, "exe")
    }

    /// The mapped file itself, even when its path was replaced or lies in another mount namespace. Opening it takes `CAP_SYS_ADMIN` or
    /// `CAP_CHECKPOINT_RESTORE`.
    pub fn mapped_file(&self, process: impl Display, start: u64, end: u64) -> PathBuf {
        self.path(process, &format!("map_files/{start:x}-{end:x}"))
    }

    /// Reads its memory, all that fits `into` or nothing; see `process_vm_readv(2)` for who may.
    pub fn memory(&self, process: impl Display, address: u64, into: &mut [u8]) -> io::Result<()> {
        File::open(self.path(process, "mem"))?.read_exact_at(into, address)
    }

    fn lossy(&self, process: impl Display, name: &str) -> String {
        String::from_utf8_lossy(&self.read(process, name, TEXT_MAX).unwrap_or_default()).into_owned()
    }

    fn read(&self, process: impl Display, name: &str, max: u64) -> io::Result<Vec<u8>> {
        read_capped(&self.path(process, name), max)
    }

    fn link(&self, process: impl Display, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read_link(self.path(process, name)).map(|link| OsString::from(link).into_vec())
    }

    fn path(&self, process: impl Display, name: &str) -> PathBuf {
        self.root.join(process.to_string()).join(name)
    }
}

fn parsed<T>(value: Option<T>) -> io::Result<T> {
    value.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Numbers among the names in a directory.
fn numbers(directory: &Path, max: usize) -> io::Result<Vec<u32>> {
    let entries = std::fs::read_dir(directory)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).take(max).collect())
}

/// Without waiting for what may be a pipe; longer files are cut.
fn read_capped(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let mut text = Vec::new();
    File::from(file).take(max).read_to_end(&mut text)?;
    Ok(text)
}
