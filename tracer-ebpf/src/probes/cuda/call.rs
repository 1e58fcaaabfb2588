//! Calls of the CUDA runtime and of NCCL that are no launches. The probe's cookie says which.

use aya_ebpf::{
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::wire::call::cookie_function;
use tracer_ebpf::wire::cuda::{
    COPIES, COPY_DEFAULT, COPY_PEER, CUDA_ALLOC, CUDA_CAPTURE_BEGIN, CUDA_CAPTURE_END, CUDA_COPY, CUDA_COPY_2D,
    CUDA_COPY_2D_ASYNC, CUDA_COPY_ASYNC, CUDA_COPY_PEER, CUDA_COPY_PEER_ASYNC, CUDA_EVENT_RECORD, CUDA_EXEC_DESTROY,
    CUDA_EXEC_UPDATE, CUDA_FREE, CUDA_HOST_ALLOC, CUDA_HOST_FREE, CUDA_INSTANTIATE, CUDA_SET, CUDA_SET_ASYNC,
    CUDA_STREAM_WAIT, CUDA_UNLOAD, CUDA_WAIT_DEVICE, CUDA_WAIT_EVENT, CUDA_WAIT_STREAM, Call, FLAG_CAPTURED,
    KIND_CUDA_CALL, LEVEL_KERNELS, NCCL_ALL_GATHER, NCCL_ALL_REDUCE, NCCL_ALL_TO_ALL, NCCL_BROADCAST, NCCL_RECV,
    NCCL_REDUCE, NCCL_REDUCE_SCATTER, NCCL_SEND, VARIANT,
};

use super::{Registers, calls, capture, registers, thread, word};
use crate::emit;
use crate::maps::{CallKey, PENDING, Pending, level, next_epoch};

/// Bytes of an element, by `ncclDataType_t` (nccl.h): int8, uint8, int32, uint32, int64, uint64, float16, float32, float64, bfloat16,
/// float8e4m3, float8e5m2.
const fn element(datatype: u32) -> u64 {
    match datatype {
        0 | 1 | 10 | 11 => 1,
        6 | 9 => 2,
        2 | 3 | 7 => 4,
        4 | 5 | 8 => 8,
        _ => 0,
    }
}

#[inline(always)]
fn record(pid_tgid: u64, at: u64, call: u32, flags: u32, of: Pending) {
    let Some(mut room) = emit::launch_room::<Call>() else { return };
    let Pending { entered, a, b, stream, caller } = of;
    let header = emit::header(at, pid_tgid, KIND_CUDA_CALL);
    room.write(Call { header, entered, call: call & (VARIANT - 1), flags, a, b, stream, caller });
    emit::launched(room, true);
}

#[inline(always)]
fn function(ctx: &impl aya_ebpf::EbpfContext) -> (u64, u32) {
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    (cookie, cookie_function(cookie))
}

/// Copies and sets: counted, and recorded at the level of kernels.
#[uprobe]
pub fn cuda_move(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let (_, function) = function(&ctx);
    let now = emit::now();
    // Kind, bytes, stream.
    let (kind, bytes, stream) = match function {
        CUDA_COPY => (regs.rcx as u32, regs.rdx, 0),
        CUDA_COPY_ASYNC => (regs.rcx as u32, regs.rdx, regs.r8),
        CUDA_COPY_2D => (word(regs.rsp + 8) as u32, regs.r8 * regs.r9, 0),
        CUDA_COPY_2D_ASYNC => (word(regs.rsp + 8) as u32, regs.r8 * regs.r9, word(regs.rsp + 16)),
        CUDA_COPY_PEER => (COPY_PEER, regs.r8, 0),
        CUDA_COPY_PEER_ASYNC => (COPY_PEER, regs.r8, regs.r9),
        CUDA_SET => (0, regs.rdx, 0),
        CUDA_SET_ASYNC => (0, regs.rdx, regs.rcx),
        _ => return 0,
    };
    let is_copy = function & (VARIANT - 1) == CUDA_COPY;
    let kind = if kind < COPIES as u32 { kind } else { COPY_DEFAULT };
    let sums = calls(thread, pid_tgid, now);
    let captured = capture::is_any(thread) && capture::of(thread, pid_tgid, stream).is_some();
    if captured {
        // A node of a graph.
    } else if is_copy {
        let kind = kind as usize & 7;
        if kind < COPIES {
            sums.copies[kind] += 1;
            sums.copy_bytes[kind] += bytes;
        }
    } else {
        sums.sets += 1;
        sums.set_bytes += bytes;
    }
    if captured || level() >= LEVEL_KERNELS {
        let flags = if captured { FLAG_CAPTURED } else { 0 };
        let (a, caller) = (u64::from(kind), word(regs.rsp));
        record(pid_tgid, now, function, flags, Pending { entered: now, a, b: bytes, stream, caller });
    }
    0
}

/// What is rare, and recorded at its entry; events, which only move captures; the unloading of modules.
#[uprobe]
pub fn cuda_call(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let (_, function) = function(&ctx);
    let now = emit::now();
    let mut of = Pending { entered: now, a: regs.rdi, b: 0, stream: 0, caller: word(regs.rsp) };
    match function {
        CUDA_EVENT_RECORD | CUDA_STREAM_WAIT => {
            if capture::is_any(thread) {
                event(thread, pid_tgid, function, &regs);
            }
            return 0;
        }
        CUDA_FREE => of.stream = regs.rsi,
        CUDA_HOST_FREE | CUDA_EXEC_DESTROY => {}
        CUDA_EXEC_UPDATE => of.b = regs.rsi,
        CUDA_CAPTURE_BEGIN => {
            of.stream = regs.rdi;
            match capture::begin(thread, pid_tgid, regs.rdi) {
                Some(number) => of.a = u64::from(number),
                None => return 0,
            }
        }
        CUDA_UNLOAD => {
            next_epoch();
        }
        _ => return 0,
    }
    record(pid_tgid, now, function, 0, of);
    0
}

/// `cudaEventRecord(event, stream)` and `cudaStreamWaitEvent(stream, event, …)` of a thread that captures.
#[inline(always)]
fn event(thread: *mut tracer_ebpf::wire::cuda::Thread, pid_tgid: u64, function: u32, regs: &Registers) {
    if function == CUDA_EVENT_RECORD {
        if let Some(number) = capture::of(thread, pid_tgid, regs.rsi) {
            capture::recorded(pid_tgid, regs.rdi, number);
        }
    } else {
        capture::joined(thread, pid_tgid, regs.rdi, regs.rsi);
    }
}

/// Collectives, at their entry.
#[uprobe]
pub fn nccl_call(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let (_, function) = function(&ctx);
    let now = emit::now();
    // Count, data type, communicator, stream.
    let (count, datatype, communicator, stream) = match function {
        NCCL_ALL_REDUCE | NCCL_REDUCE_SCATTER | NCCL_BROADCAST => (regs.rdx, regs.rcx, regs.r9, word(regs.rsp + 8)),
        NCCL_REDUCE => (regs.rdx, regs.rcx, word(regs.rsp + 8), word(regs.rsp + 16)),
        NCCL_ALL_GATHER | NCCL_ALL_TO_ALL => (regs.rdx, regs.rcx, regs.r8, regs.r9),
        NCCL_SEND | NCCL_RECV => (regs.rsi, regs.rdx, regs.r8, regs.r9),
        _ => return 0,
    };
    calls(thread, pid_tgid, now);
    let captured = capture::is_any(thread) && capture::of(thread, pid_tgid, stream).is_some();
    let flags = if captured { FLAG_CAPTURED } else { 0 };
    let (a, caller) = (count * element(datatype as u32), word(regs.rsp));
    record(pid_tgid, now, function, flags, Pending { entered: now, a, b: communicator, stream, caller });
    0
}

/// The entry of a call whose return says something.
#[uprobe]
pub fn cuda_entry(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let (cookie, function) = function(&ctx);
    let now = emit::now();
    // Of those with an out-parameter, its address is in `a`.
    let mut of = Pending { entered: now, a: regs.rdi, b: regs.rsi, stream: 0, caller: word(regs.rsp) };
    match function {
        CUDA_WAIT_STREAM => of.stream = regs.rdi,
        CUDA_CAPTURE_END => {
            of.stream = regs.rdi;
            of.a = regs.rsi;
            of.b = u64::from(capture::end(thread, pid_tgid, regs.rdi));
        }
        _ => {}
    }
    if is_wait(function) {
        calls(thread, pid_tgid, now);
    }
    let _ = PENDING.insert(CallKey { thread: pid_tgid, cookie }, of, 0);
    0
}

#[inline(always)]
fn is_wait(function: u32) -> bool {
    matches!(function, CUDA_WAIT_STREAM | CUDA_WAIT_EVENT | CUDA_WAIT_DEVICE)
}

#[uretprobe]
pub fn cuda_return(ctx: RetProbeContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let (cookie, function) = function(&ctx);
    let key = CallKey { thread: pid_tgid, cookie };
    // SAFETY: a value that only this thread writes.
    let Some(mut of) = (unsafe { PENDING.get(key) }).copied() else { return 0 };
    let _ = PENDING.remove(key);
    let now = emit::now();
    if is_wait(function) {
        // SAFETY: a map's value that only this thread's programs write.
        let sums = unsafe { &mut (*thread).sums };
        sums.waits += 1;
        sums.wait_ns += now - of.entered;
        sums.last = now;
        if level() < LEVEL_KERNELS {
            return 0;
        }
        if function != CUDA_WAIT_EVENT {
            of.a = 0;
        }
        of.b = 0;
    } else {
        // What failed gave nothing.
        // SAFETY: the kernel's copy of the registers, valid while the program runs.
        if unsafe { (*ctx.regs).rax } as u32 != 0 {
            return 0;
        }
        match function {
            CUDA_ALLOC | CUDA_HOST_ALLOC | CUDA_INSTANTIATE | CUDA_CAPTURE_END => of.a = word(of.a),
            _ => return 0,
        }
    }
    record(pid_tgid, now, function, 0, of);
    0
}
