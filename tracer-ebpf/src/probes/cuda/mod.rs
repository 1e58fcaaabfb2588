//! Calls of the CUDA libraries, in the threads of traced processes.
//!
//! [`launch`]: kernels and graphs, at the driver, or at the runtime where no driver is mapped. [`moves`]: copies and sets. [`nccl`]:
//! collectives. [`call`]: all else. A thread's sums are in `THREADS`, which only its own programs write; that look-up is the filter as well,
//! so a launch costs one more for its function.

mod call;
mod capture;
mod launch;
mod memory;
mod moves;
mod nccl;

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::{bpf_get_attach_cookie, bpf_probe_read_user};
use tracer_ebpf::wire::call::cookie_function;
use tracer_ebpf::wire::cuda::{
    BURST_MAX, Burst, COLLECTIVES, COPIES, Call, KIND_CUDA_BURST, KIND_CUDA_CALL, PER_THREAD, Process, QUIET, Sums,
    Thread, VARIANT,
};
use tracer_ebpf::wire::map::NO_EXIST;
use tracer_ebpf::wire::ring;

use crate::maps::{PROCESSES, Pending, THREADS};
use crate::{emit, filter};

/// The current thread's sums; nothing when its process is not traced, or there is no room for it.
#[inline(always)]
fn thread(pid_tgid: u64) -> Option<*mut Thread> {
    if let Some(thread) = THREADS.get_ptr_mut(pid_tgid) {
        return Some(thread);
    }
    filter::target((pid_tgid >> 32) as u32)?;
    let sums = Sums {
        first: 0,
        last: 0,
        launches: 0,
        graph_launches: 0,
        copies: [0; COPIES],
        copy_bytes: [0; COPIES],
        sets: 0,
        set_bytes: 0,
        waits: 0,
        wait_ns: 0,
        captured: 0,
    };
    if THREADS.insert(pid_tgid, Thread { sums, captures: 0 }, 0).is_err() {
        emit::count_drop(ring::DROPS_CUDA);
    }
    THREADS.get_ptr_mut(pid_tgid)
}

/// The current process's sums, which many threads write; nothing when it is not traced, or there is no room for it.
#[inline(always)]
fn process(pid_tgid: u64) -> Option<*mut Process> {
    let tgid = (pid_tgid >> 32) as u32;
    if let Some(process) = PROCESSES.get_ptr_mut(tgid) {
        return Some(process);
    }
    filter::target(tgid)?;
    let process = Process { live: 0, captures: 0, collectives: [0; COLLECTIVES], collective_bytes: [0; COLLECTIVES] };
    // Another thread may be faster.
    let _ = PROCESSES.insert(tgid, process, NO_EXIST);
    let process = PROCESSES.get_ptr_mut(tgid);
    if process.is_none() {
        emit::count_drop(ring::DROPS_CUDA);
    }
    process
}

/// A process is gone.
#[inline(always)]
pub fn ended(tgid: u32) {
    if let Some(process) = PROCESSES.get_ptr_mut(tgid) {
        capture::process_ended(process);
    }
}

/// Which probe it is: the cookie; the call, without the flag of the per-thread stream; and that.
#[inline(always)]
fn point(ctx: &impl EbpfContext) -> (u64, u32, bool) {
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let function = cookie_function(cookie);
    (cookie, function & !PER_THREAD, function & PER_THREAD != 0)
}

/// Tells of a call, in the ring `RING`; `capture`: the number of the one that it is a node of.
#[inline(always)]
fn record<const RING: u32>(pid_tgid: u64, at: u64, call: u32, capture: u32, of: Pending) {
    let Some(mut room) = emit::room::<Call, RING>() else { return };
    let Pending { entered, a, b, stream, caller } = of;
    let header = emit::header(at, pid_tgid, KIND_CUDA_CALL);
    room.write(Call { header, entered, call: call & (VARIANT - 1), capture, a, b, stream, caller });
    emit::submit::<Call, RING>(room, true);
}

/// The thread calls something now: the burst before is told of when this is no part of it.
#[inline(always)]
fn calls(thread: *mut Thread, pid_tgid: u64, now: u64) -> &'static mut Sums {
    // SAFETY: a map's value, which only this thread's programs write; it is not taken out while the thread lives.
    let sums = unsafe { &mut (*thread).sums };
    if sums.last == 0 {
        sums.first = now;
    } else if now - sums.last > QUIET || now - sums.first > BURST_MAX {
        if let Some(mut room) = emit::room::<Burst, { ring::LAUNCHES }>() {
            let record = room.as_mut_ptr();
            // SAFETY: the room is a record's.
            unsafe {
                (*record).header = emit::header(now, pid_tgid, KIND_CUDA_BURST);
                (*record).sums = *sums;
            }
            emit::submit::<Burst, { ring::LAUNCHES }>(room, true);
        }
        sums.first = now;
    }
    sums.last = now;
    sums
}

/// What a call is given, and where its stack stands.
#[derive(Clone, Copy)]
struct Registers {
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    r8: u64,
    r9: u64,
    rsp: u64,
    rbp: u64,
}

/// The registers at a probe, each read by itself: of two places that read different ones the compiler makes one with an address that it
/// chooses, which the verifier refuses.
#[inline(always)]
fn registers(regs: *const pt_regs) -> Registers {
    // SAFETY: the kernel's copy, valid while the program runs.
    unsafe {
        Registers {
            rdi: read_volatile(&raw const (*regs).rdi),
            rsi: read_volatile(&raw const (*regs).rsi),
            rdx: read_volatile(&raw const (*regs).rdx),
            rcx: read_volatile(&raw const (*regs).rcx),
            r8: read_volatile(&raw const (*regs).r8),
            r9: read_volatile(&raw const (*regs).r9),
            rsp: read_volatile(&raw const (*regs).rsp),
            rbp: read_volatile(&raw const (*regs).rbp),
        }
    }
}

/// Reads the target's memory; 0 where it is not there.
#[inline(always)]
fn word(address: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const u64) }.unwrap_or(0)
}
