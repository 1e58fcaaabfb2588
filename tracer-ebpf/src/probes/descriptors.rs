//! Keeps the table of descriptors right: every call that makes, copies or closes one.
//!
//! Because what a descriptor is, is set by the call that creates it, what is no socket is ignored from its first byte, and a
//! number that is used again never inherits a verdict. What no call here announces (inherited over a fork, received over a
//! unix socket) is told by user space, once it has looked.

use aya_ebpf::helpers::bpf_probe_read_user;
use tracer_ebpf::wire::net::{CLASS_IGNORED, CLASS_TCP, CLASS_UNIX, CLASS_UNKNOWN, KIND_CLOSED_RANGE, Range, is_open};

use super::net::Registers;
use crate::{
    emit,
    table::{self, Caller},
};

const SYS_OPEN: u64 = 2;
const SYS_CLOSE: u64 = 3;
const SYS_PIPE: u64 = 22;
const SYS_DUP: u64 = 32;
const SYS_DUP2: u64 = 33;
const SYS_SOCKET: u64 = 41;
const SYS_ACCEPT: u64 = 43;
const SYS_SOCKETPAIR: u64 = 53;
const SYS_FCNTL: u64 = 72;
const SYS_CREAT: u64 = 85;
const SYS_EPOLL_CREATE: u64 = 213;
const SYS_MQ_OPEN: u64 = 240;
const SYS_INOTIFY_INIT: u64 = 253;
const SYS_OPENAT: u64 = 257;
const SYS_SIGNALFD: u64 = 282;
const SYS_TIMERFD_CREATE: u64 = 283;
const SYS_EVENTFD: u64 = 284;
const SYS_ACCEPT4: u64 = 288;
const SYS_SIGNALFD4: u64 = 289;
const SYS_EVENTFD2: u64 = 290;
const SYS_EPOLL_CREATE1: u64 = 291;
const SYS_DUP3: u64 = 292;
const SYS_PIPE2: u64 = 293;
const SYS_INOTIFY_INIT1: u64 = 294;
const SYS_PERF_EVENT_OPEN: u64 = 298;
const SYS_FANOTIFY_INIT: u64 = 300;
const SYS_OPEN_BY_HANDLE_AT: u64 = 304;
const SYS_MEMFD_CREATE: u64 = 319;
const SYS_USERFAULTFD: u64 = 323;
const SYS_IO_URING_SETUP: u64 = 425;
const SYS_PIDFD_OPEN: u64 = 434;
const SYS_CLOSE_RANGE: u64 = 436;
const SYS_OPENAT2: u64 = 437;
const SYS_PIDFD_GETFD: u64 = 438;
const SYS_MEMFD_SECRET: u64 = 447;

const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;
const EBADF: i64 = 9;
/// `close_range` marks only.
const CLOSE_RANGE_CLOEXEC: u64 = 4;

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
/// `type` of `socket()` without its `SOCK_CLOEXEC` and `SOCK_NONBLOCK` bits.
const SOCK_TYPE_MASK: u64 = 0xf;
const SOCK_STREAM: u64 = 1;

/// Whether a call makes something that is no socket.
#[inline(always)]
fn makes_no_socket(number: u64) -> bool {
    matches!(
        number,
        SYS_OPEN
            | SYS_CREAT
            | SYS_EPOLL_CREATE
            | SYS_MQ_OPEN
            | SYS_INOTIFY_INIT
            | SYS_OPENAT
            | SYS_SIGNALFD
            | SYS_TIMERFD_CREATE
            | SYS_EVENTFD
            | SYS_SIGNALFD4
            | SYS_EVENTFD2
            | SYS_EPOLL_CREATE1
            | SYS_INOTIFY_INIT1
            | SYS_PERF_EVENT_OPEN
            | SYS_FANOTIFY_INIT
            | SYS_OPEN_BY_HANDLE_AT
            | SYS_MEMFD_CREATE
            | SYS_USERFAULTFD
            | SYS_IO_URING_SETUP
            | SYS_PIDFD_OPEN
            | SYS_OPENAT2
            | SYS_MEMFD_SECRET
    )
}

/// Whether a call makes, copies or closes a descriptor.
#[inline(always)]
pub fn is_of_interest(number: u64) -> bool {
    makes_no_socket(number)
        || matches!(
            number,
            SYS_CLOSE
                | SYS_PIPE
                | SYS_DUP
                | SYS_DUP2
                | SYS_SOCKET
                | SYS_ACCEPT
                | SYS_SOCKETPAIR
                | SYS_FCNTL
                | SYS_ACCEPT4
                | SYS_DUP3
                | SYS_PIPE2
                | SYS_CLOSE_RANGE
                | SYS_PIDFD_GETFD
        )
}

/// A call that is no data call.
#[inline(always)]
pub fn call(caller: Caller, number: u64, regs: &Registers, result: i64) {
    if number == SYS_CLOSE {
        // On Linux the descriptor is gone whatever close() returned, unless there was none.
        if result != -EBADF {
            table::closed(caller, regs.di as u32);
        }
        return;
    }
    if result < 0 {
        return;
    }
    let (old, new) = (regs.di as u32, result as u32);
    // One place that creates, because it is inlined.
    let class = match number {
        SYS_ACCEPT | SYS_ACCEPT4 => class_of_accepted(caller, old),
        SYS_SOCKET => class_of_socket(regs.di, regs.si),
        SYS_SOCKETPAIR => return pair(caller, regs.r10, class_of_socket(regs.di, regs.si)),
        SYS_PIPE | SYS_PIPE2 => return pair(caller, regs.di, CLASS_IGNORED),
        SYS_FCNTL if regs.si != F_DUPFD && regs.si != F_DUPFD_CLOEXEC => return,
        SYS_DUP2 | SYS_DUP3 if new == old => return,
        SYS_DUP | SYS_DUP2 | SYS_DUP3 | SYS_FCNTL => table::class_of(caller, old),
        SYS_PIDFD_GETFD => CLASS_UNKNOWN,
        SYS_CLOSE_RANGE => return closed_range(caller, regs),
        _ => CLASS_IGNORED,
    };
    table::created(caller, new, class, matches!(number, SYS_ACCEPT | SYS_ACCEPT4));
}

#[inline(always)]
fn class_of_socket(domain: u64, kind: u64) -> u32 {
    match (u64::from(domain as u32), kind & SOCK_TYPE_MASK) {
        (AF_UNIX, SOCK_STREAM) => CLASS_UNIX,
        (AF_INET | AF_INET6, SOCK_STREAM) => CLASS_TCP,
        _ => CLASS_IGNORED,
    }
}

/// The new descriptor is what its listener is; when nobody has said what that is, user space looks.
#[inline(always)]
fn class_of_accepted(caller: Caller, listener: u32) -> u32 {
    match table::class_of(caller, listener) {
        class if is_open(class) => class,
        _ => CLASS_UNKNOWN,
    }
}

#[inline(always)]
fn pair(caller: Caller, address: u64, class: u32) {
    // SAFETY: the helper checks the address.
    if let Ok(pair) = unsafe { bpf_probe_read_user(address as *const [u32; 2]) } {
        table::created(caller, pair[0], class, false);
        table::created(caller, pair[1], class, false);
    }
}

/// User space knows which of them matter.
#[inline(always)]
fn closed_range(caller: Caller, regs: &Registers) {
    if regs.dx & CLOSE_RANGE_CLOEXEC == 0 {
        let header = emit::header(emit::now(), caller.pid_tgid, KIND_CLOSED_RANGE);
        emit::edge(&Range { header, first: regs.di as u32, last: regs.si as u32 });
    }
}
