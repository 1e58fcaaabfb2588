//! Fork, exec and exit of traced processes.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_ebpf::wire::proc::{Forked, KIND_EXECUTED, KIND_EXITED, KIND_FORKED, Process};

use crate::{
    emit, filter,
    maps::{self, TARGETS},
};

/// A child's descriptors below this get their parent's classes; above, user space looks. Bounds the work of a fork.
const INHERITED_MAX: u32 = 256;

/// A new task exists and has not run yet, so its first system call is seen. Arguments: parent, child (`task_struct *`).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(flags) = filter::target((pid_tgid >> 32) as u32) else { return 0 };
    let task = ctx.arg::<u64>(1);
    // SAFETY: the helper checks the address; the offsets are those of this kernel's BTF.
    let (pid, tgid) = unsafe {
        let Ok(pid) = bpf_probe_read_kernel((task + maps::task_pid_offset()) as *const u32) else { return 0 };
        let Ok(tgid) = bpf_probe_read_kernel((task + maps::task_tgid_offset()) as *const u32) else { return 0 };
        (pid, tgid)
    };
    if pid != tgid {
        return 0; // a thread
    }
    let _ = TARGETS.insert(tgid, flags, 0);
    if flags & filter::CAPTURE != 0 {
        for fd in 0..INHERITED_MAX {
            filter::inherit((pid_tgid >> 32) as u32, tgid, fd);
        }
    }
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::info!(&ctx, "{} forked {}", (pid_tgid >> 32) as u32, tgid);
    emit::edge(&Forked { header: emit::header(bpf_time(), pid_tgid, KIND_FORKED), child: tgid, pad: 0 });
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if filter::target((pid_tgid >> 32) as u32).is_some() {
        emit::edge(&Process { header: emit::header(bpf_time(), pid_tgid, KIND_EXECUTED) });
    }
    0
}

/// Fires for every task; the leader's exit is taken for the process's. A leader that ends before its threads (`pthread_exit`
/// in `main`) ends the tracing of that process early.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if tgid == pid_tgid as u32 && filter::target(tgid).is_some() {
        let _ = TARGETS.remove(tgid);
        emit::edge(&Process { header: emit::header(bpf_time(), pid_tgid, KIND_EXITED) });
    }
    0
}

#[inline(always)]
fn bpf_time() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
