//! Where runs are asked: a socket each, in a folder that root alone writes into.
//!
//! Refused: a folder, or a socket, that another user could have put there; a link in its place; a peer that is neither root nor who runs this.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// The folder, unless [`VARIABLE`] names another.
const FOLDER: &str = "/run/inferspan";
pub const VARIABLE: &str = "INFERSPAN_RUN_DIR";
const ENDING: &str = "sock";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{} is not a folder of root's, or of whoever runs this, that others cannot write into", .0.display())]
    InOthersHands(PathBuf),
    #[error("its socket would have a path that is too long")]
    TooLong,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Refused {
    let path = path.to_owned();
    |error| Refused::Io { path, error }
}

/// Where sockets are.
pub fn folder() -> PathBuf {
    std::env::var_os(VARIABLE).filter(|named| !named.is_empty()).map_or_else(|| FOLDER.into(), PathBuf::from)
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// It is what it should be. Links are not followed.
fn check(folder: &Path) -> Result<(), Refused> {
    let of = fs::symlink_metadata(folder).map_err(at(folder))?;
    let is_good = of.is_dir() && is_trusted(of.uid()) && of.mode() & 0o022 == 0;
    if is_good { Ok(()) } else { Err(Refused::InOthersHands(folder.to_owned())) }
}

/// The process at the other end is root's, or of the user that runs this.
pub(super) fn is_friend(stream: impl AsFd) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| is_trusted(peer.uid.as_raw()))
}

/// A socket of this process's own; it is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Own {
    /// Makes folder and socket. Sockets of processes that are gone are removed on the way.
    pub(super) fn bind(folder: &Path) -> Result<Self, Refused> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(folder)(error)),
            _ => check(folder)?,
        }
        let path = folder.join(format!("{}.{ENDING}", std::process::id()));
        for known in all(folder)? {
            if is_left_behind(&known) {
                // Whoever bound it may have removed it just now.
                let _ = fs::remove_file(&known);
            }
        }
        // It gets its name when it listens: before, another run would take it for one that was left behind.
        let making = path.with_extension("making");
        let _ = fs::remove_file(&making);
        let listener = UnixListener::bind(&making).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => Refused::TooLong,
            _ => at(&making)(error),
        })?;
        let mut own = Self { listener, path: making };
        fs::set_permissions(&own.path, Permissions::from_mode(0o600)).map_err(at(&own.path))?;
        own.listener.set_nonblocking(true).map_err(at(&own.path))?;
        let placed = renameat_with(CWD, &own.path, CWD, &path, RenameFlags::NOREPLACE);
        placed.map_err(|error| at(&path)(error.into()))?;
        own.path = path;
        Ok(own)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // One that stays is removed by the next run.
        let _ = fs::remove_file(&self.path);
    }
}

/// Nobody listens any more.
fn is_left_behind(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The sockets in a folder, in order.
fn all(folder: &Path) -> Result<Vec<PathBuf>, Refused> {
    let entries = fs::read_dir(folder).map_err(at(folder))?;
    let is_socket = |path: &PathBuf| {
        let is_one = fs::symlink_metadata(path).is_ok_and(|of| of.file_type().is_socket() && is_trusted(of.uid()));
        is_one && path.extension().is_some_and(|ending| ending == ENDING)
    };
    let mut found: Vec<PathBuf> = entries.map_while(Result::ok).map(|entry| entry.path()).filter(is_socket).collect();
    found.sort();
    Ok(found)
}

/// Connections to all runs that listen there.
pub(super) fn connect(folder: &Path) -> Result<Vec<UnixStream>, Refused> {
    check(folder)?;
    let mut streams = Vec::new();
    for path in all(folder)? {
        match UnixStream::connect(&path) {
            Ok(stream) if is_friend(&stream) => streams.push(stream),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(at(&path)(error)),
            // It is gone, or somebody else's.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(streams)
}
