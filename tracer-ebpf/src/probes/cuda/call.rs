//! Calls of the CUDA libraries that move nothing: waits, memory, events, captures, graphs, modules. The probe's cookie says which.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::wire::cuda::{
    CUDA_ALLOC, CUDA_ALLOC_3D, CUDA_ALLOC_PITCH, CUDA_CAPTURE_BEGIN, CUDA_CAPTURE_BEGIN_INTO, CUDA_CAPTURE_END,
    CUDA_EVENT_RECORD, CUDA_EXEC_DESTROY, CUDA_EXEC_UPDATE, CUDA_FREE, CUDA_GRAPH_DESTROY, CUDA_HOST_ALLOC,
    CUDA_HOST_FREE, CUDA_HOST_REGISTER, CUDA_INSTANTIATE, CUDA_STREAM_WAIT, CUDA_UNLOAD, CUDA_WAIT_DEVICE,
    CUDA_WAIT_EVENT, CUDA_WAIT_STREAM, LEVEL_KERNELS, Thread,
};
use tracer_ebpf::wire::ring;

use super::{Registers, calls, capture, memory, point, record, registers, thread, word};
use crate::emit;
use crate::maps::{CallKey, PENDING, Pending, is_capturing, level, next_epoch};

/// `cudaErrorStreamCaptureWrongThread` and the driver's: another thread must end the capture, which goes on.
const WRONG_THREAD: u32 = 908;

/// What is rare, and recorded at its entry; events, which only move captures; the unloading of modules.
#[uprobe]
pub fn cuda_call(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    if thread(pid_tgid).is_none() {
        return 0;
    }
    let (_, function, per_thread) = point(&ctx);
    let now = emit::now();
    let mut of = Pending { entered: now, a: regs.rdi, b: 0, stream: 0, caller: word(regs.rsp) };
    match function {
        CUDA_EVENT_RECORD | CUDA_STREAM_WAIT => {
            if is_capturing() {
                event(pid_tgid, function, per_thread, &regs);
            }
            return 0;
        }
        CUDA_FREE => (of.b, of.stream) = memory::freed(pid_tgid, regs.rdi),
        CUDA_HOST_FREE | CUDA_EXEC_DESTROY | CUDA_GRAPH_DESTROY => {}
        CUDA_EXEC_UPDATE => of.b = regs.rsi,
        CUDA_UNLOAD => next_epoch(),
        _ => return 0,
    }
    record::<{ ring::RARE }>(pid_tgid, now, function, 0, of);
    0
}

/// `cudaEventRecord(event, stream)` and `cudaStreamWaitEvent(stream, event, …)` while anything is captured.
#[inline(always)]
fn event(pid_tgid: u64, function: u32, per_thread: bool, regs: &Registers) {
    if function == CUDA_EVENT_RECORD {
        capture::recorded(capture::stream(pid_tgid, regs.rsi, per_thread), regs.rdi);
    } else {
        capture::joined(capture::stream(pid_tgid, regs.rdi, per_thread), regs.rsi);
    }
}

/// The entry of a call whose return says something.
#[uprobe]
pub fn cuda_entry(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let (cookie, function, _) = point(&ctx);
    let now = emit::now();
    // Of those with an out-parameter, its address is in `a`.
    let mut of = Pending { entered: now, a: regs.rdi, b: regs.rsi, stream: 0, caller: word(regs.rsp) };
    match function {
        CUDA_WAIT_STREAM | CUDA_CAPTURE_BEGIN => (of.b, of.stream) = (0, regs.rdi),
        CUDA_CAPTURE_BEGIN_INTO => of.stream = regs.rdi,
        CUDA_CAPTURE_END => (of.a, of.stream) = (regs.rsi, regs.rdi),
        // `cudaMallocPitch(address, pitch, width, height)`: height, where its pitch will be.
        CUDA_ALLOC_PITCH => (of.b, of.stream) = (regs.rcx, regs.rsi),
        // `cudaMalloc3D(pitched, extent)`: the extent by value, of which the pitch replaces the width.
        CUDA_ALLOC_3D => (of.b, of.stream) = (word(regs.rsp + 16) * word(regs.rsp + 24), regs.rdi + 8),
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
    let (cookie, function, per_thread) = point(&ctx);
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
        if level() >= LEVEL_KERNELS {
            if function != CUDA_WAIT_EVENT {
                of.a = 0;
            }
            of.b = 0;
            record::<{ ring::LAUNCHES }>(pid_tgid, now, function, 0, of);
        }
        return 0;
    }
    // SAFETY: the kernel's copy of the registers, valid while the program runs.
    let error = unsafe { (*ctx.regs).rax } as u32;
    if returned(thread, pid_tgid, function, per_thread, error, &mut of) {
        record::<{ ring::RARE }>(pid_tgid, now, function, 0, of);
    }
    0
}

/// A call that is no wait has come back; whether it is to be told of. What failed gave nothing.
#[inline(always)]
fn returned(thread: *mut Thread, pid_tgid: u64, function: u32, per_thread: bool, error: u32, of: &mut Pending) -> bool {
    if function == CUDA_CAPTURE_END {
        if error == WRONG_THREAD {
            return false;
        }
        let Some((number, nodes)) = capture::ended(pid_tgid, capture::stream(pid_tgid, of.stream, per_thread)) else {
            return false;
        };
        of.a = word(of.a);
        of.b = nodes << 32 | u64::from(number);
        return error == 0;
    }
    if error != 0 {
        return false;
    }
    match function {
        CUDA_ALLOC | CUDA_ALLOC_PITCH | CUDA_ALLOC_3D => {
            if function != CUDA_ALLOC {
                of.b *= word(of.stream);
            }
            of.a = word(of.a);
            of.stream = memory::allocated(pid_tgid, of.a, of.b);
        }
        CUDA_HOST_ALLOC | CUDA_INSTANTIATE => of.a = word(of.a),
        CUDA_HOST_REGISTER => {}
        CUDA_CAPTURE_BEGIN | CUDA_CAPTURE_BEGIN_INTO => {
            let stream = capture::stream(pid_tgid, of.stream, per_thread);
            let Some(number) = capture::begun(thread, pid_tgid, stream) else { return false };
            of.a = u64::from(number);
        }
        _ => return false,
    }
    true
}
