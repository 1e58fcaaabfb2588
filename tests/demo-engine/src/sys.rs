//! The few system calls that `std` has no word for, each in the smallest safe wrapper.
//!
//! libzmq moves data with `sendto`/`recvfrom`, libuv with `read`/`write`; the demo engine must make the same calls, since
//! they are what is being observed. `std` picks them itself, so the ZeroMQ side is spelled out here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Names the calling thread as `/proc/<pid>/task/<tid>/comm` shows it (the kernel keeps 15 bytes).
pub(crate) fn set_comm(name: &str) {
    let mut bytes = name.as_bytes().to_vec();
    bytes.truncate(15);
    bytes.push(0);
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, which `bytes` is for the whole call.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

/// Asks the kernel for a SIGTERM when the thread that started this process dies.
pub(crate) fn die_with_parent() {
    // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
}

/// Sends `signal` to the process `pid`.
pub(crate) fn kill(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes numbers only.
    check(unsafe { libc::kill(pid.cast_signed(), signal) }).map(drop)
}

/// `sendto(fd, bytes, MSG_NOSIGNAL)`; bytes sent.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe `bytes`, which outlives the call.
    check_len(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

/// `recvfrom(fd, up to limit)`; an empty vector is the end of the stream.
pub(crate) fn receive(fd: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    // SAFETY: the pointer and the length describe `bytes`, which is exclusively ours.
    let n = check_len(unsafe { libc::recv(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), limit, 0) })?;
    bytes.truncate(n);
    Ok(bytes)
}

/// `CLOCK_MONOTONIC` in seconds: Python's `time.monotonic()`.
pub(crate) fn monotonic() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Unix seconds: Python's `time.time()`.
pub(crate) fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Wakes another thread's [`Poller`], as libzmq and libuv do.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes numbers only.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight readable bytes. A full counter means that the other side is awake already.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub(crate) fn drain(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: eight writable bytes. Nothing to read is no error here.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}

/// Sets `SO_SNDBUF`.
pub(crate) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let len = size_of::<u32>() as libc::socklen_t;
    let value = (&raw const bytes).cast();
    // SAFETY: the value is four readable bytes, as the length says.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, value, len) }).map(drop)
}

/// A listening socket that a parent left open under this number.
pub(crate) fn inherited_listener(fd: libc::c_int) -> io::Result<std::net::TcpListener> {
    // SAFETY: F_GETFD takes numbers only; it fails on a number that names nothing.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, was left to us by our parent, and nothing else in this process owns it.
    Ok(unsafe { std::net::TcpListener::from_raw_fd(fd) })
}

/// Lets children inherit `socket`.
pub(crate) fn keep_over_exec(socket: &std::net::TcpListener) -> io::Result<()> {
    // SAFETY: fcntl takes numbers only.
    check(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
}

/// A readiness report of [`Poller::wait`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
}

/// Level-triggered epoll.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes numbers only.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn control(&self, op: libc::c_int, fd: BorrowedFd<'_>, token: u64, write: bool) -> io::Result<()> {
        let events = if write { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: token };
        // SAFETY: `event` is valid for the call; the kernel copies it.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd.as_raw_fd(), &raw mut event) }).map(drop)
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, false)
    }

    /// Whether to be told when `fd` can be written, too.
    pub(crate) fn want_write(&self, fd: BorrowedFd<'_>, token: u64, write: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, write)
    }

    /// Waits up to `timeout`; a signal ends the wait early, with nothing.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<Vec<Ready>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: pointer and length describe `events`.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 64, milliseconds) };
        let n = match check(n) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        let failed = (libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();
        Ok(events[..n as usize]
            .iter()
            .map(|event| Ready {
                token: event.u64,
                readable: event.events & (libc::EPOLLIN.cast_unsigned() | failed) != 0,
                writable: event.events & libc::EPOLLOUT.cast_unsigned() != 0,
            })
            .collect())
    }
}

/// Counters that several processes share: memory of a memfd, inherited by its descriptor number.
#[derive(Debug)]
pub(crate) struct Shared {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the memory is mapped for the life of the process and is only reached through atomics.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// A new memfd of `len` counters, inherited by every child.
    pub(crate) fn create(len: usize) -> io::Result<OwnedFd> {
        // SAFETY: the name is NUL-terminated.
        let fd = check(unsafe { libc::memfd_create(c"demo-engine-metrics".as_ptr(), 0) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: ftruncate takes numbers only.
        check(unsafe { libc::ftruncate(fd.as_raw_fd(), (len * size_of::<AtomicU64>()) as libc::off_t) })?;
        Ok(fd)
    }

    /// Maps what [`Shared::create`] made.
    pub(crate) fn map(fd: libc::c_int, len: usize) -> io::Result<Self> {
        let bytes = len * size_of::<AtomicU64>();
        // SAFETY: a fresh shared mapping of a file that `create` made `bytes` long; the result is checked.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast()).map(|start| Self { start, len }).ok_or_else(io::Error::last_os_error)
    }

    pub(crate) fn counters(&self) -> &[AtomicU64] {
        // SAFETY: `map` made `len` counters at a page-aligned address; they are never unmapped, and zero bytes are valid.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}
