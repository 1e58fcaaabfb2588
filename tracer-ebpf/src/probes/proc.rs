//! Fork, exec and exit of traced processes.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_ebpf::wire::proc::{Forked, KIND_EXECUTED, KIND_EXITED, KIND_FORKED, Process};
use tracer_ebpf::wire::ring;
use tracer_ebpf::wire::target::{
    CAPTURE, KNOWN, OFFSET_SIGNAL_LIVE, OFFSET_TASK_PID, OFFSET_TASK_SIGNAL, OFFSET_TASK_TGID,
};

use crate::{
    emit, filter,
    maps::{self, TARGETS},
    table,
};

use super::cuda;

/// A child's descriptors below this get their parent's classes; above, user space looks. Bounds the work of a fork.
const INHERITED_MAX: u32 = 64;

/// A new task exists and has not run yet, so its first system call is seen. Arguments: parent, child (`task_struct *`).
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(flags) = filter::target((pid_tgid >> 32) as u32) else { return 0 };
    let task = ctx.arg::<u64>(1);
    // SAFETY: the helper checks the address; the offsets are those of this kernel's BTF.
    let (pid, tgid) = unsafe {
        let Ok(pid) = bpf_probe_read_kernel((task + maps::offset::<OFFSET_TASK_PID>()) as *const u32) else { return 0 };
        let Ok(tgid) = bpf_probe_read_kernel((task + maps::offset::<OFFSET_TASK_TGID>()) as *const u32) else {
            return 0;
        };
        (pid, tgid)
    };
    if pid != tgid {
        return 0; // a thread
    }
    // What lies above the bound is not known until user space has looked.
    let _ = TARGETS.insert(tgid, flags & !KNOWN, 0);
    let now = emit::now();
    if flags & CAPTURE != 0 {
        let mut refused = 0;
        let mut entry = table::fresh(now);
        for fd in 0..INHERITED_MAX {
            refused += table::inherit((pid_tgid >> 32) as u32, tgid, fd, &mut entry);
        }
        emit::count_drops(ring::DROPS_DESCRIPTORS, refused);
    }
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::info!(&ctx, "{} forked {}", (pid_tgid >> 32) as u32, tgid);
    emit::edge(&Forked { header: emit::header(now, pid_tgid, KIND_FORKED), child: tgid, pad: 0 });
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if filter::target((pid_tgid >> 32) as u32).is_some() {
        emit::edge(&Process { header: emit::header(emit::now(), pid_tgid, KIND_EXECUTED) });
    }
    0
}

/// Fires for every task. The process ends with its last thread: its leader may end before the others (`pthread_exit` in `main`),
/// and does when another thread calls `exec`. Where the kernel's BTF does not say how to count, the leader's end is taken.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if filter::target(tgid).is_none() {
        return 0;
    }
    let is_last = match live_threads() {
        Some(live) => live == 0,
        None => tgid == pid_tgid as u32,
    };
    // Of two threads that end at once, both may see 0; one of them removes.
    if is_last && TARGETS.remove(tgid).is_ok() {
        cuda::ended(tgid);
        emit::edge(&Process { header: emit::header(emit::now(), pid_tgid, KIND_EXITED) });
    }
    0
}

/// Threads of this process that have not begun to end.
#[inline(always)]
fn live_threads() -> Option<u32> {
    if maps::offset::<OFFSET_TASK_SIGNAL>() == 0 || maps::offset::<OFFSET_SIGNAL_LIVE>() == 0 {
        return None;
    }
    // SAFETY: the helpers check addresses; the offsets are those of this kernel's BTF.
    unsafe {
        let task = bpf_get_current_task();
        let signal = bpf_probe_read_kernel((task + maps::offset::<OFFSET_TASK_SIGNAL>()) as *const u64).ok()?;
        bpf_probe_read_kernel((signal + maps::offset::<OFFSET_SIGNAL_LIVE>()) as *const u32).ok()
    }
}
