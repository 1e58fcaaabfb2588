//! Keeps the classes of descriptors right: every call that makes, copies or closes one.
//!
//! Because a descriptor's class is set by the call that creates it, what is no socket is ignored from its first byte, and a
//! number that is used again never inherits a verdict. What no call here announces (inherited over a fork, received over a
//! unix socket) is unknown until user space has looked.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_user};
use tracer_ebpf::wire::net::{
    Address, CLASS_IGNORED, CLASS_TCP, CLASS_UNIX, CLASS_UNKNOWN, KIND_ADDRESS, KIND_CLOSED, KIND_OPENED, SIDE_LOCAL,
    SIDE_PEER, Socket,
};

use super::net::Registers;
use crate::{emit, filter};

const SYS_OPEN: u64 = 2;
const SYS_CLOSE: u64 = 3;
const SYS_PIPE: u64 = 22;
const SYS_DUP: u64 = 32;
const SYS_DUP2: u64 = 33;
const SYS_SOCKET: u64 = 41;
const SYS_ACCEPT: u64 = 43;
const SYS_GETSOCKNAME: u64 = 51;
const SYS_GETPEERNAME: u64 = 52;
const SYS_SOCKETPAIR: u64 = 53;
const SYS_FCNTL: u64 = 72;
const SYS_CREAT: u64 = 85;
const SYS_EPOLL_CREATE: u64 = 213;
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
const SYS_MEMFD_CREATE: u64 = 319;
const SYS_IO_URING_SETUP: u64 = 425;
const SYS_PIDFD_OPEN: u64 = 434;
const SYS_OPENAT2: u64 = 437;

const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;
const EBADF: i64 = 9;

const AF_UNIX: u64 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `type` of `socket()` without its `SOCK_CLOEXEC` and `SOCK_NONBLOCK` bits.
const SOCK_TYPE_MASK: u64 = 0xf;
const SOCK_STREAM: u64 = 1;

/// `struct sockaddr_in6`; `sockaddr_in` is a prefix with the address where `flow` is.
#[repr(C)]
#[derive(Clone, Copy)]
struct SockAddr {
    family: u16,
    port: [u8; 2],
    flow: [u8; 4],
    octets: [u8; 16],
}

/// Any call that is not a data call.
#[inline(always)]
pub fn call(pid_tgid: u64, regs: &Registers, result: i64) {
    let tgid = (pid_tgid >> 32) as u32;
    if regs.orig_ax == SYS_CLOSE {
        // On Linux the descriptor is gone whatever close() returned, unless there was none.
        if result != -EBADF {
            closed(pid_tgid, regs.di as u32);
        }
        return;
    }
    if result < 0 {
        return;
    }
    let new = result as u32;
    match regs.orig_ax {
        SYS_ACCEPT | SYS_ACCEPT4 => accepted(pid_tgid, regs, new),
        SYS_GETSOCKNAME => address(pid_tgid, regs.di as u32, SIDE_LOCAL, regs.si),
        SYS_GETPEERNAME => address(pid_tgid, regs.di as u32, SIDE_PEER, regs.si),
        SYS_SOCKET => filter::set_class(tgid, new, class_of_socket(regs.di, regs.si)),
        SYS_SOCKETPAIR => set_pair(tgid, regs.r10, class_of_socket(regs.di, regs.si)),
        SYS_PIPE | SYS_PIPE2 => set_pair(tgid, regs.di, CLASS_IGNORED),
        SYS_DUP => filter::set_class(tgid, new, filter::class_of(tgid, regs.di as u32)),
        SYS_FCNTL if regs.si == F_DUPFD || regs.si == F_DUPFD_CLOEXEC => {
            filter::set_class(tgid, new, filter::class_of(tgid, regs.di as u32));
        }
        SYS_DUP2 | SYS_DUP3 if new != regs.di as u32 => {
            // Closes what `new` was, without a close().
            closed(pid_tgid, new);
            filter::set_class(tgid, new, filter::class_of(tgid, regs.di as u32));
        }
        SYS_OPEN | SYS_CREAT | SYS_OPENAT | SYS_OPENAT2 | SYS_EVENTFD | SYS_EVENTFD2 | SYS_EPOLL_CREATE
        | SYS_EPOLL_CREATE1 | SYS_TIMERFD_CREATE | SYS_SIGNALFD | SYS_SIGNALFD4 | SYS_INOTIFY_INIT
        | SYS_INOTIFY_INIT1 | SYS_PERF_EVENT_OPEN | SYS_MEMFD_CREATE | SYS_IO_URING_SETUP | SYS_PIDFD_OPEN => {
            filter::ignore(tgid, new);
        }
        _ => {}
    }
}

#[inline(always)]
fn class_of_socket(domain: u64, kind: u64) -> u32 {
    match (domain as u32 as u64, kind & SOCK_TYPE_MASK) {
        (AF_UNIX, SOCK_STREAM) => CLASS_UNIX,
        (domain, SOCK_STREAM) if domain == AF_INET as u64 || domain == AF_INET6 as u64 => CLASS_TCP,
        _ => CLASS_IGNORED,
    }
}

#[inline(always)]
fn set_pair(tgid: u32, address: u64, class: u32) {
    // SAFETY: the helper checks the address.
    if let Ok([first, second]) = unsafe { bpf_probe_read_user(address as *const [u32; 2]) } {
        filter::set_class(tgid, first, class);
        filter::set_class(tgid, second, class);
    }
}

/// The new descriptor is what its listener is.
#[inline(always)]
fn accepted(pid_tgid: u64, regs: &Registers, fd: u32) {
    let tgid = (pid_tgid >> 32) as u32;
    let class = match filter::class_of(tgid, regs.di as u32) {
        class @ (CLASS_TCP | CLASS_UNIX) => class,
        _ => CLASS_UNKNOWN,
    };
    filter::set_class(tgid, fd, class);
    emit::edge(&Socket { header: emit::header(now(), pid_tgid, KIND_OPENED), fd, class });
    if regs.si != 0 {
        address(pid_tgid, fd, SIDE_PEER, regs.si);
    }
}

#[inline(always)]
fn closed(pid_tgid: u64, fd: u32) {
    let tgid = (pid_tgid >> 32) as u32;
    let class = filter::class_of(tgid, fd);
    if class == CLASS_IGNORED {
        filter::set_class(tgid, fd, CLASS_UNKNOWN);
        return;
    }
    if class != CLASS_UNKNOWN {
        filter::set_class(tgid, fd, CLASS_UNKNOWN);
    }
    emit::edge(&Socket { header: emit::header(now(), pid_tgid, KIND_CLOSED), fd, class });
}

#[inline(always)]
fn address(pid_tgid: u64, fd: u32, side: u32, from: u64) {
    // SAFETY: the helper checks the address. A `sockaddr_in` is shorter, and what lies behind it on the stack is not used.
    let Ok(socket) = (unsafe { bpf_probe_read_user(from as *const SockAddr) }) else { return };
    if socket.family != AF_INET && socket.family != AF_INET6 {
        return;
    }
    let mut octets = socket.octets;
    if socket.family == AF_INET {
        octets = [0; 16];
        octets[0] = socket.flow[0];
        octets[1] = socket.flow[1];
        octets[2] = socket.flow[2];
        octets[3] = socket.flow[3];
    }
    emit::edge(&Address {
        header: emit::header(now(), pid_tgid, KIND_ADDRESS),
        fd,
        side,
        family: socket.family,
        port: u16::from_be_bytes(socket.port),
        pad: 0,
        octets,
    });
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
