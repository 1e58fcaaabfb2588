//! Calls of library functions: timed from entry to return, or their entry alone. The probe's cookie says which point it is, and of
//! which function.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::wire::call::{Call, KIND_CALL, cookie_function};

use crate::{
    emit, filter,
    maps::{CALLS, CallKey},
};

#[uprobe]
pub fn call_entry(ctx: ProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    if filter::target((thread >> 32) as u32).is_none() {
        return 0;
    }
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    // SAFETY: no arguments, no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let _ = CALLS.insert(CallKey { thread, cookie }, now, 0);
    0
}

#[uretprobe]
pub fn call_return(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    if filter::target((thread >> 32) as u32).is_none() {
        return 0;
    }
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let key = CallKey { thread, cookie };
    // SAFETY: a u64 value that only this thread writes.
    let Some(entered) = (unsafe { CALLS.get(key) }).copied() else { return 0 };
    let _ = CALLS.remove(key);
    // SAFETY: no arguments, no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let function = cookie_function(cookie);
    emit::edge(&Call { header: emit::header(now, thread, KIND_CALL), entered, function, stack: 0 });
    0
}

/// The entry of a function whose return is of no interest.
#[uprobe]
pub fn call_only(ctx: ProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    if filter::target((thread >> 32) as u32).is_none() {
        return 0;
    }
    // SAFETY: the context is this program's own.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let now = emit::now();
    emit::edge(&Call {
        header: emit::header(now, thread, KIND_CALL),
        entered: now,
        function: cookie_function(cookie),
        // SAFETY: the registers are the kernel's copy, valid while the program runs.
        stack: unsafe { (*ctx.regs).rsp } as u32,
    });
    0
}
