//! Gives up, once a run is attached, what it no longer needs.
//!
//! Enters: the capabilities that are kept. Leaves: every thread of this process with these and no others, and with `no_new_privs`. A
//! capability is a thread's own, and threads that libraries started know nothing of this: each gives up by itself, in the handler of a
//! signal, as libpsx does it. Refused: a thread that blocks the signal; whoever calls is told that there is one.

use std::fs;
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::discover::privilege::Privileges;
use crate::proc::{OWN, Proc};

/// Ignored where nobody handles it, so one that comes late does nothing. Nothing here asks for it.
const SIGNAL: i32 = libc::SIGURG;
/// A thread takes its signal when it next runs.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// What the handler keeps.
static KEPT: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, thiserror::Error)]
pub enum NotGivenUp {
    #[error("the capabilities that are no longer needed could not be given up: {0}")]
    Refused(#[from] io::Error),
    #[error("{0} threads have not given up the capabilities that are no longer needed")]
    Threads(usize),
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Every thread keeps `kept` of what it has, and can gain nothing, whatever it executes.
pub fn give_up(kept: Privileges) -> Result<(), NotGivenUp> {
    KEPT.store(kept.0, SeqCst);
    limit(kept.0)?;
    let before = handle(on_signal as *const () as usize)?;
    let until = Instant::now() + PATIENCE;
    let left = loop {
        let threads = privileged_threads(kept);
        if threads.is_empty() || Instant::now() >= until {
            break threads.len();
        }
        for thread in threads {
            // SAFETY: no pointers. A thread that has ended meanwhile is not found; its number is not another process's.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL) };
        }
        std::thread::sleep(LOOK_EVERY);
    };
    // SAFETY: as it was given.
    unsafe { libc::sigaction(SIGNAL, &raw const before, ptr::null_mut()) };
    if left > 0 { Err(NotGivenUp::Threads(left)) } else { Ok(()) }
}

/// Whether opening a file anew there may take more than an owner's rights: it, or its folder, is another user's, or closed.
pub fn is_in_others_hands(file: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_open = |path: &Path, mode| fs::metadata(path).map(|of| of.uid() == own && of.mode() & mode == mode);
    let is_file_open = is_open(file, 0o200).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(true),
        _ => Err(error),
    });
    // Write and enter the folder, write the file.
    !(is_open(folder, 0o300).unwrap_or(false) && is_file_open.unwrap_or(false))
}

/// Threads of this process that could do more than they should.
fn privileged_threads(kept: Privileges) -> Vec<u32> {
    let proc = Proc::this();
    let may = |thread: &u32| {
        let status = proc.status(format_args!("{OWN}/task/{thread}"));
        status.is_ok_and(|status| status.permitted & !kept.0 != 0 || !status.no_new_privs)
    };
    proc.threads(OWN).unwrap_or_default().into_iter().filter(may).collect()
}

fn handle(handler: usize) -> io::Result<libc::sigaction> {
    // SAFETY: all bits zero are a valid value; it is filled below.
    let mut action = unsafe { zeroed::<libc::sigaction>() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_RESTART;
    let mut before = MaybeUninit::uninit();
    // SAFETY: both live across the call. The handler makes system calls and nothing else.
    if unsafe { libc::sigaction(SIGNAL, &raw const action, before.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call that succeeded has filled it.
    Ok(unsafe { before.assume_init() })
}

extern "C" fn on_signal(_: i32) {
    // SAFETY: this thread's own errno, which the interrupted code may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    // What fails shows in `/proc`.
    let _ = limit(KEPT.load(SeqCst));
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// This thread keeps these capabilities and can gain none. Inherited and ambient ones go as well. Safe in a signal's handler.
fn limit(kept: u64) -> io::Result<()> {
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    let half = |bits: u32| Half { effective: bits, permitted: bits, inheritable: 0 };
    let halves = [half(kept as u32), half((kept >> 32) as u32)];
    // SAFETY: the kernel reads a header and two halves, which live across the call.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn a_file_is_in_its_own_hands_where_the_folder_is_and_it_is_too() {
        let folder = std::env::temp_dir().join(format!("inferspan-hands-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("access.jsonl");
        assert!(!is_in_others_hands(&file), "it will be made");
        fs::write(&file, "").unwrap();
        assert!(!is_in_others_hands(&file));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(is_in_others_hands(&file));
        fs::remove_file(&file).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&folder, Some(65_534), None).unwrap();
            assert!(is_in_others_hands(&file), "of another user's folder");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert!(is_in_others_hands(&file), "there is no folder");
    }
}
