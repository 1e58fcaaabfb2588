//! System calls of traced processes, at their exit.
//!
//! One raw tracepoint sees number, arguments and result of every call. Data calls go to [`super::pieces`]; what makes, copies or
//! closes a descriptor goes to [`super::descriptors`]. `io_uring` moves bytes without a call: its sockets show no data here.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel, bpf_probe_read_user},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_ebpf::wire::cuda::{KIND_MAPPED, Mapped};
use tracer_ebpf::wire::net::{KIND_RECEIVED, Range};
use tracer_ebpf::wire::target::{CAPTURE, LIBRARIES};

use super::descriptors;
use super::pieces::{self, Bytes};
use crate::{
    emit, filter,
    table::{self, Caller},
};

/// Offset of `r10` in x86-64's `struct pt_regs` (arch/x86/include/uapi/asm/ptrace.h), where [`Registers`] starts.
const PT_REGS_R10: u64 = 56;
/// Offset of `orig_ax`, the call's number.
const PT_REGS_ORIG_AX: u64 = 120;

/// The arguments in `struct pt_regs` that survive to a system call's exit and are of use.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Registers {
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub ax: u64,
    pub cx: u64,
    pub dx: u64,
    pub si: u64,
    pub di: u64,
}

const SYS_READ: u64 = 0;
const SYS_WRITE: u64 = 1;
const SYS_MMAP: u64 = 9;
const SYS_READV: u64 = 19;
const SYS_WRITEV: u64 = 20;
const SYS_SENDFILE: u64 = 40;
const SYS_SENDTO: u64 = 44;
const SYS_RECVFROM: u64 = 45;
const SYS_SENDMSG: u64 = 46;
const SYS_RECVMSG: u64 = 47;
const SYS_SPLICE: u64 = 275;
const SYS_RECVMMSG: u64 = 299;
const SYS_SENDMMSG: u64 = 307;
/// On a stream they do what `readv` and `writev` do; `preadv` and `pwritev` fail.
const SYS_PREADV2: u64 = 327;
const SYS_PWRITEV2: u64 = 328;

/// `MSG_OOB | MSG_PEEK | MSG_ERRQUEUE`: what such a receive returns is not the stream, or not yet.
const NOT_THE_STREAM: u64 = 0x1 | 0x2 | 0x2000;

/// A write that would have to wait.
const EAGAIN: i64 = 11;
/// Errors that say that the peer is gone; all others are ignored.
const EPIPE: i64 = 32;
const ECONNRESET: i64 = 104;

/// `cmsg_level` and `cmsg_type` of descriptors that came over a unix socket.
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;

/// Most messages of a `sendmmsg` or `recvmmsg` whose lengths are added up.
const MESSAGES_MAX: u64 = 64;

/// A data call, whichever it was.
struct Call {
    out: bool,
    /// It asked for more than 0 bytes, so that a 0 means the end of the stream.
    asked: bool,
    bytes: Bytes,
}

/// `struct msghdr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MsgHdr {
    name: u64,
    name_len: u64,
    iov: u64,
    iov_len: u64,
    control: u64,
    control_len: u64,
    flags: u64,
}

/// `struct mmsghdr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MmsgHdr {
    header: MsgHdr,
    len: u32,
    pad: u32,
}

/// `struct cmsghdr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CmsgHdr {
    len: u64,
    level: u32,
    kind: u32,
}

/// Arguments: `struct pt_regs *`, result.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let caller = match filter::target((pid_tgid >> 32) as u32) {
        Some(flags) if flags & (CAPTURE | LIBRARIES) != 0 => Caller { pid_tgid, flags },
        _ => return 0,
    };
    let regs = ctx.arg::<u64>(0);
    // SAFETY: the helper checks the address.
    let Ok(number) = (unsafe { bpf_probe_read_kernel((regs + PT_REGS_ORIG_AX) as *const u64) }) else { return 0 };
    if number == SYS_MMAP {
        mapped(&ctx, caller, regs);
        return 0;
    }
    if caller.flags & CAPTURE == 0 {
        return 0;
    }
    let is_data = is_data(number);
    if !is_data && !descriptors::is_of_interest(number) {
        return 0;
    }
    // SAFETY: the helper checks the address.
    let Ok(regs) = (unsafe { bpf_probe_read_kernel((regs + PT_REGS_R10) as *const Registers) }) else { return 0 };
    let result = ctx.arg::<u64>(1) as i64;
    if is_data {
        data(&ctx, caller, number, &regs, result);
    } else {
        descriptors::call(caller, number, &regs, result);
    }
    0
}

/// `mmap(address, length, protection, flags, descriptor, offset)`: tells of a file that became executable.
#[inline(always)]
fn mapped(ctx: &RawTracePointContext, caller: Caller, regs: u64) {
    const PROT_EXEC: u64 = 4;
    // SAFETY: the helper checks the address.
    let Ok(regs) = (unsafe { bpf_probe_read_kernel((regs + PT_REGS_R10) as *const Registers) }) else { return };
    let has_failed = (ctx.arg::<u64>(1) as i64) < 0;
    if caller.flags & LIBRARIES != 0 && regs.dx & PROT_EXEC != 0 && (regs.r8 as i32) >= 0 && !has_failed {
        emit::edge(&Mapped { header: emit::header(emit::now(), caller.pid_tgid, KIND_MAPPED) });
    }
}

#[inline(always)]
fn is_data(number: u64) -> bool {
    matches!(
        number,
        SYS_READ
            | SYS_WRITE
            | SYS_READV
            | SYS_WRITEV
            | SYS_SENDFILE
            | SYS_SENDTO
            | SYS_RECVFROM
            | SYS_SENDMSG
            | SYS_RECVMSG
            | SYS_SPLICE
            | SYS_RECVMMSG
            | SYS_SENDMMSG
            | SYS_PREADV2
            | SYS_PWRITEV2
    )
}

#[inline(always)]
fn data(ctx: &RawTracePointContext, caller: Caller, number: u64, regs: &Registers, result: i64) {
    let mut fd = regs.di as u32;
    let mut total = result as u64;
    let flat = Bytes::Flat { address: regs.si };
    let vectors = Bytes::Vectors { address: regs.si, count: regs.dx };
    let mut call = Call { out: false, asked: regs.dx != 0, bytes: flat };
    match number {
        SYS_RECVFROM if regs.r10 & NOT_THE_STREAM != 0 => return,
        SYS_RECVMSG if regs.dx & NOT_THE_STREAM != 0 => return,
        SYS_WRITE | SYS_SENDTO => call.out = true,
        SYS_READV | SYS_PREADV2 => call.bytes = vectors,
        SYS_WRITEV | SYS_PWRITEV2 => (call.out, call.bytes) = (true, vectors),
        SYS_SENDMSG | SYS_RECVMSG => {
            call.out = number == SYS_SENDMSG;
            if result >= 0 {
                // SAFETY: the helper checks the address.
                let Ok(header) = (unsafe { bpf_probe_read_user(regs.si as *const MsgHdr) }) else { return };
                call.asked = header.iov_len != 0;
                call.bytes = Bytes::Vectors { address: header.iov, count: header.iov_len };
                if number == SYS_RECVMSG {
                    received(caller, &header);
                }
            }
        }
        SYS_SENDMMSG | SYS_RECVMMSG => {
            if regs.r10 & NOT_THE_STREAM != 0 {
                return;
            }
            (call.out, call.asked, call.bytes) = (number == SYS_SENDMMSG, false, Bytes::Unseen);
            if result > 0 {
                total = sum(regs.si, total);
            }
        }
        SYS_SENDFILE => (call.out, call.bytes) = (true, Bytes::Unseen),
        SYS_SPLICE => {
            // One end is a pipe. What it read first.
            (call.asked, call.bytes) = (regs.r8 != 0, Bytes::Unseen);
            if table::class_of(caller, fd) <= tracer_ebpf::wire::net::CLASS_IGNORED {
                (fd, call.out) = (regs.dx as u32, true);
            }
        }
        _ => {}
    }
    if result > 0 && total > 0 {
        if let Some(descriptor) = table::used(caller, fd) {
            // Of a call with many buffers it is seen when they are gone through.
            if call.out && matches!(call.bytes, Bytes::Flat { .. }) {
                table::wrote(caller.pid_tgid, fd, descriptor, total >= regs.dx, emit::now());
            }
            pieces::send(ctx, caller, fd, descriptor, call.out, total, call.bytes);
        }
    } else if (result == 0 && !call.out && call.asked) || result == -ECONNRESET || (result == -EPIPE && call.out) {
        table::peer_closed(caller, fd);
    } else if result == -EAGAIN && call.out && !matches!(call.bytes, Bytes::Unseen) {
        // Of a call whose bytes are not seen its end would not be seen either; and a pipe with nothing in it is refused as well.
        table::refused(caller, fd);
    }
}

/// Tells user space when a message brought descriptors: their numbers are in it, and what they are is not.
#[inline(always)]
fn received(caller: Caller, header: &MsgHdr) {
    if header.control == 0 || header.control_len < size_of::<CmsgHdr>() as u64 {
        return;
    }
    // SAFETY: the helper checks the address.
    let Ok(control) = (unsafe { bpf_probe_read_user(header.control as *const CmsgHdr) }) else { return };
    if control.level == SOL_SOCKET && control.kind == SCM_RIGHTS {
        let header = emit::header(emit::now(), caller.pid_tgid, KIND_RECEIVED);
        emit::edge(&Range { header, first: 0, last: 0 });
    }
}

/// Bytes of the first `count` messages of an array of `struct mmsghdr`.
#[inline(always)]
fn sum(array: u64, count: u64) -> u64 {
    let mut total = 0;
    for index in 0..MESSAGES_MAX {
        if index >= count {
            break;
        }
        let message = (array + index * size_of::<MmsgHdr>() as u64 + size_of::<MsgHdr>() as u64) as *const u32;
        // SAFETY: the helper checks the address.
        let Ok(len) = (unsafe { bpf_probe_read_user(message) }) else { break };
        total += u64::from(len);
    }
    total
}
