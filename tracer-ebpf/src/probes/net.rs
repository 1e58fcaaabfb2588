//! Data system calls of traced processes, at their exit.
//!
//! One raw tracepoint sees number, arguments and result of every call. What is not a data call goes to
//! [`super::descriptors`], which keeps the classes right.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel,
        bpf_probe_read_user, generated::bpf_probe_read_user as probe_read_user,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_ebpf::wire::net::{
    CAPTURE_MAX, CLASS_IGNORED, Data, KIND_DATA_IN, KIND_DATA_OUT, KIND_PEER_CLOSED, Socket, cap_index,
};

use super::descriptors;
use crate::{
    emit, filter,
    maps::{self, SCRATCH},
};

/// Offset of `r10` in x86-64's `struct pt_regs` (arch/x86/include/uapi/asm/ptrace.h), where [`Registers`] starts.
const PT_REGS_R10: u64 = 56;

/// The part of `struct pt_regs` that survives to a system call's exit and is of use.
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
    pub orig_ax: u64,
}

const SYS_READ: u64 = 0;
const SYS_WRITE: u64 = 1;
const SYS_READV: u64 = 19;
const SYS_WRITEV: u64 = 20;
const SYS_SENDTO: u64 = 44;
const SYS_RECVFROM: u64 = 45;
const SYS_SENDMSG: u64 = 46;
const SYS_RECVMSG: u64 = 47;

/// `MSG_OOB | MSG_PEEK | MSG_ERRQUEUE`: what such a receive returns is not the stream, or not yet.
const NOT_THE_STREAM: u64 = 0x1 | 0x2 | 0x2000;

/// Errors that say that the peer is gone; all others are ignored.
const EPIPE: i64 = 32;
const ECONNRESET: i64 = 104;

/// Most pieces that are gathered from an iovec array; a call with more is captured up to here.
const PIECES_MAX: u64 = 32;

/// A data call, whichever it was.
struct Call {
    out: bool,
    /// It asked for more than 0 bytes, so that a 0 means the end of the stream.
    asked: bool,
    /// `address` leads to an array of `count` `struct iovec`, else to the bytes.
    pieces: bool,
    address: u64,
    count: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Iovec {
    base: u64,
    len: u64,
}

/// The head of `struct msghdr`, up to the iovec array.
#[repr(C)]
#[derive(Clone, Copy)]
struct MsgHdr {
    name: u64,
    name_len: u64,
    iov: u64,
    iov_len: u64,
}

/// Arguments: `struct pt_regs *`, result.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    match filter::target((pid_tgid >> 32) as u32) {
        Some(flags) if flags & filter::CAPTURE != 0 => {}
        _ => return 0,
    }
    // SAFETY: the helper checks the address.
    let Ok(regs) = (unsafe { bpf_probe_read_kernel((ctx.arg::<u64>(0) + PT_REGS_R10) as *const Registers) }) else {
        return 0;
    };
    let result = ctx.arg::<u64>(1) as i64;
    let mut call = Call { out: false, asked: regs.dx != 0, pieces: false, address: regs.si, count: regs.dx };
    match regs.orig_ax {
        SYS_READ => {}
        SYS_RECVFROM if regs.r10 & NOT_THE_STREAM == 0 => {}
        SYS_WRITE | SYS_SENDTO => call.out = true,
        SYS_READV => call.pieces = true,
        SYS_WRITEV => (call.out, call.pieces) = (true, true),
        SYS_SENDMSG | SYS_RECVMSG if result >= 0 => {
            if regs.orig_ax == SYS_RECVMSG && regs.dx & NOT_THE_STREAM != 0 {
                return 0;
            }
            // SAFETY: the helper checks the address.
            let Ok(header) = (unsafe { bpf_probe_read_user(regs.si as *const MsgHdr) }) else { return 0 };
            let asked = header.iov_len != 0;
            let out = regs.orig_ax == SYS_SENDMSG;
            call = Call { out, asked, pieces: true, address: header.iov, count: header.iov_len };
        }
        SYS_RECVFROM | SYS_SENDMSG | SYS_RECVMSG => return 0,
        _ => {
            descriptors::call(pid_tgid, &regs, result);
            return 0;
        }
    }
    if result > 0 {
        data(pid_tgid, &regs, result as u64, &call);
    } else if (result == 0 && !call.out && call.asked) || result == -ECONNRESET || (result == -EPIPE && call.out) {
        peer_closed(pid_tgid, regs.di as u32);
    }
    0
}

/// The stream has ended, or the connection was reset.
#[inline(always)]
fn peer_closed(pid_tgid: u64, fd: u32) {
    let class = filter::class_of((pid_tgid >> 32) as u32, fd);
    if class != CLASS_IGNORED {
        // SAFETY: no arguments, no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        emit::edge(&Socket { header: emit::header(now, pid_tgid, KIND_PEER_CLOSED), fd, class });
    }
}

/// Inlined once: its loop is what the verifier spends its time on.
#[inline(always)]
fn data(pid_tgid: u64, regs: &Registers, result: u64, call: &Call) {
    let (tgid, fd) = ((pid_tgid >> 32) as u32, regs.di as u32);
    let class = filter::class_of(tgid, fd);
    if class == CLASS_IGNORED {
        return;
    }
    // SAFETY: no arguments, no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: no arguments, no preconditions.
    let Some(scratch) = SCRATCH.get_ptr_mut(unsafe { bpf_get_smp_processor_id() }) else { return };
    let cap = u64::from(maps::cap(cap_index(class, call.out)));
    let wanted = if result < cap { result } else { cap };
    let head = scratch.cast::<Data>();
    // SAFETY: `Scratch` is larger than `Data`, aligned to 8, and this CPU's own until the program returns.
    let payload = unsafe { head.add(1).cast::<u8>() };
    let captured = if call.pieces {
        gather(payload, wanted, call.address, call.count)
    } else {
        copy(payload, 0, wanted, call.address)
    };
    let captured = if captured > CAPTURE_MAX as u64 { CAPTURE_MAX as u64 } else { captured };
    let kind = if call.out { KIND_DATA_OUT } else { KIND_DATA_IN };
    // SAFETY: as above; `captured` bytes behind the head were written by `copy` or `gather`.
    let record = unsafe {
        head.write(Data {
            header: emit::header(now, pid_tgid, kind),
            fd,
            class,
            len: result,
            captured: captured as u32,
            pad: 0,
        });
        core::slice::from_raw_parts(scratch.cast::<u8>(), size_of::<Data>() + captured as usize)
    };
    emit::data(record);
}

/// Copies up to `len` bytes to `payload + offset`; gives what was copied: all or, when the memory is not readable, nothing.
#[inline(always)]
fn copy(payload: *mut u8, offset: u64, len: u64, address: u64) -> u64 {
    let len = if len > CAPTURE_MAX as u64 { CAPTURE_MAX as u64 } else { len };
    // SAFETY: offset < CAPTURE_MAX and len <= CAPTURE_MAX, and the scratch holds twice that behind `payload`.
    let failed = unsafe { probe_read_user(payload.add(offset as usize).cast(), len as u32, address as *const _) };
    if failed == 0 { len } else { 0 }
}

#[inline(always)]
fn gather(payload: *mut u8, wanted: u64, array: u64, count: u64) -> u64 {
    let mut at = 0;
    for index in 0..PIECES_MAX {
        if index >= count || at >= wanted || at >= CAPTURE_MAX as u64 {
            break;
        }
        let piece = (array + index * size_of::<Iovec>() as u64) as *const Iovec;
        // SAFETY: the helper checks the address.
        let Ok(piece) = (unsafe { bpf_probe_read_user(piece) }) else { break };
        let left = wanted - at;
        let len = if piece.len < left { piece.len } else { left };
        if len == 0 {
            continue;
        }
        // A piece that cannot be read ends the capture: what follows would be out of place.
        let copied = copy(payload, at & (CAPTURE_MAX as u64 - 1), len, piece.base);
        if copied == 0 {
            break;
        }
        at += copied;
    }
    at
}
