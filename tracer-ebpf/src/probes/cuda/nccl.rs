//! Collectives of NCCL: counted for their process, and told of.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::wire::cuda::{
    COLLECTIVES, NCCL_ALL_GATHER, NCCL_ALL_REDUCE, NCCL_ALL_TO_ALL, NCCL_BCAST, NCCL_BROADCAST, NCCL_GATHER, NCCL_RECV,
    NCCL_REDUCE, NCCL_REDUCE_SCATTER, NCCL_SCATTER, NCCL_SEND, VARIANT,
};
use tracer_ebpf::wire::ring;

use super::{calls, capture, point, process, record, registers, thread, word};
use crate::emit;
use crate::maps::{CallKey, PENDING, Pending, add, is_capturing};

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

/// The key under which a thread is inside `ncclBcast`.
#[inline(always)]
fn inside(pid_tgid: u64) -> CallKey {
    CallKey { thread: pid_tgid, cookie: NCCL_BCAST as u64 }
}

/// Collectives, at their entry.
#[uprobe]
pub fn nccl_call(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let (_, function, _) = point(&ctx);
    let now = emit::now();
    // Count, data type, communicator, stream.
    let (count, datatype, communicator, stream) = match function {
        NCCL_ALL_REDUCE | NCCL_REDUCE_SCATTER | NCCL_BROADCAST | NCCL_GATHER | NCCL_SCATTER => {
            (regs.rdx, regs.rcx, regs.r9, word(regs.rsp + 8))
        }
        NCCL_REDUCE => (regs.rdx, regs.rcx, word(regs.rsp + 8), word(regs.rsp + 16)),
        NCCL_ALL_GATHER | NCCL_ALL_TO_ALL => (regs.rdx, regs.rcx, regs.r8, regs.r9),
        NCCL_SEND | NCCL_RECV | NCCL_BCAST => (regs.rsi, regs.rdx, regs.r8, regs.r9),
        _ => return 0,
    };
    let of =
        Pending { entered: now, a: count * element(datatype as u32), b: communicator, stream, caller: word(regs.rsp) };
    if function == NCCL_BCAST {
        let _ = PENDING.insert(inside(pid_tgid), of, 0);
    } else if function == NCCL_BROADCAST && PENDING.get_ptr_mut(inside(pid_tgid)).is_some() {
        // It was counted when `ncclBcast` was entered, which goes on to this.
        return 0;
    }
    calls(thread, pid_tgid, now);
    // Of one in a graph the kernel that it launches is the node.
    if is_capturing() && capture::of(capture::stream(pid_tgid, stream, false)).is_some() {
        return 0;
    }
    let kind = ((function & (VARIANT - 1)) - NCCL_ALL_REDUCE) as usize;
    if let Some(process) = process(pid_tgid)
        && kind < COLLECTIVES
    {
        // SAFETY: elements of a map's value, of 8 bytes.
        unsafe {
            add((&raw mut (*process).collectives).cast::<u64>().add(kind), 1);
            add((&raw mut (*process).collective_bytes).cast::<u64>().add(kind), of.a);
        }
    }
    record::<{ ring::RARE }>(pid_tgid, now, function, 0, of);
    0
}

/// `ncclBcast` returns.
#[uretprobe]
pub fn nccl_return(_ctx: RetProbeContext) -> u32 {
    let _ = PENDING.remove(inside(bpf_get_current_pid_tgid()));
    0
}
