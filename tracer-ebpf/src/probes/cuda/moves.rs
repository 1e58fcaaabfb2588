//! Copies and sets of the runtime: counted, and recorded at the level of kernels. The probe's cookie says where the arguments are.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid, helpers::bpf_probe_read_user, macros::uprobe, programs::ProbeContext,
};
use tracer_ebpf::wire::cuda::{
    COPIES, COPY_DEFAULT, COPY_PEER, CUDA_COPY, CUDA_COPY_2D, CUDA_COPY_2D_ASYNC, CUDA_COPY_3D, CUDA_COPY_3D_ASYNC,
    CUDA_COPY_3D_BATCH, CUDA_COPY_3D_BATCH_12, CUDA_COPY_3D_PEER, CUDA_COPY_3D_PEER_ASYNC, CUDA_COPY_ARRAY,
    CUDA_COPY_ARRAY_2D, CUDA_COPY_ARRAY_2D_ASYNC, CUDA_COPY_ARRAY_ASYNC, CUDA_COPY_ARRAYS, CUDA_COPY_ARRAYS_2D,
    CUDA_COPY_ASYNC, CUDA_COPY_BATCH, CUDA_COPY_BATCH_12, CUDA_COPY_PEER, CUDA_COPY_PEER_ASYNC, CUDA_COPY_SYMBOL,
    CUDA_COPY_SYMBOL_ASYNC, CUDA_SET, CUDA_SET_2D, CUDA_SET_2D_ASYNC, CUDA_SET_3D, CUDA_SET_3D_ASYNC, CUDA_SET_ASYNC,
    LEVEL_KERNELS, Sums, VARIANT,
};
use tracer_ebpf::wire::ring;

use super::{Registers, calls, capture, point, record, registers, thread, word};
use crate::emit;
use crate::maps::{Pending, is_capturing, level};

/// What a call moves.
struct Move {
    kind: u32,
    copies: u64,
    bytes: u64,
    stream: u64,
}

/// `struct cudaExtent`: bytes of a row (elements, where an array is part of it), rows, layers.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extent {
    width: u64,
    height: u64,
    depth: u64,
}

/// Offsets in `struct cudaMemcpy3DParms` and `struct cudaMemcpy3DPeerParms` (driver_types.h).
const PARMS_EXTENT: u64 = 128;
const PARMS_KIND: u64 = 152;
const PEER_EXTENT: u64 = 144;
/// `struct cudaMemcpy3DBatchOp`: its size, and where its extent is.
const OPERATION: u64 = 112;
const OPERATION_EXTENT: u64 = 80;

/// Sizes of a batch that are read at a time, and most such reads: 4,096 copies. What is beyond is counted as lost.
const CHUNK: usize = 16;
const CHUNKS: u64 = 256;
/// Most copies of a batch of operations.
const OPERATIONS: u64 = 256;

#[inline(always)]
fn volume(at: u64) -> u64 {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(at as *const Extent) } {
        Ok(Extent { width, height, depth }) => width * height * depth,
        Err(_) => 0,
    }
}

#[uprobe]
pub fn cuda_move(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let (_, function, per_thread) = point(&ctx);
    let stack = regs.rsp + 8;
    let one = |kind: u64, bytes: u64, stream: u64| Move { kind: kind as u32, copies: 1, bytes, stream };
    let peer = u64::from(COPY_PEER);
    let moved = match function {
        CUDA_COPY => one(regs.rcx, regs.rdx, 0),
        CUDA_COPY_ASYNC => one(regs.rcx, regs.rdx, regs.r8),
        CUDA_COPY_2D => one(word(stack), regs.r8 * regs.r9, 0),
        CUDA_COPY_2D_ASYNC => one(word(stack), regs.r8 * regs.r9, word(stack + 8)),
        CUDA_COPY_PEER => one(peer, regs.r8, 0),
        CUDA_COPY_PEER_ASYNC => one(peer, regs.r8, regs.r9),
        CUDA_COPY_SYMBOL => one(regs.r8, regs.rdx, 0),
        CUDA_COPY_SYMBOL_ASYNC => one(regs.r8, regs.rdx, regs.r9),
        CUDA_COPY_ARRAY => one(regs.r9, regs.r8, 0),
        CUDA_COPY_ARRAY_ASYNC => one(regs.r9, regs.r8, word(stack)),
        CUDA_COPY_ARRAY_2D => one(word(stack + 8), regs.r9 * word(stack), 0),
        CUDA_COPY_ARRAY_2D_ASYNC => one(word(stack + 8), regs.r9 * word(stack), word(stack + 16)),
        CUDA_COPY_ARRAYS => one(word(stack + 8), word(stack), 0),
        CUDA_COPY_ARRAYS_2D => one(word(stack + 16), word(stack) * word(stack + 8), 0),
        CUDA_COPY_3D => one(word(regs.rdi + PARMS_KIND), volume(regs.rdi + PARMS_EXTENT), 0),
        CUDA_COPY_3D_ASYNC => one(word(regs.rdi + PARMS_KIND), volume(regs.rdi + PARMS_EXTENT), regs.rsi),
        CUDA_COPY_3D_PEER => one(peer, volume(regs.rdi + PEER_EXTENT), 0),
        CUDA_COPY_3D_PEER_ASYNC => one(peer, volume(regs.rdi + PEER_EXTENT), regs.rsi),
        CUDA_SET => one(0, regs.rdx, 0),
        CUDA_SET_ASYNC => one(0, regs.rdx, regs.rcx),
        CUDA_SET_2D => one(0, regs.rcx * regs.r8, 0),
        CUDA_SET_2D_ASYNC => one(0, regs.rcx * regs.r8, regs.r9),
        // A `cudaPitchedPtr` and then a `cudaExtent` by value.
        CUDA_SET_3D => one(0, volume(stack + 32), 0),
        CUDA_SET_3D_ASYNC => one(0, volume(stack + 32), regs.rsi),
        _ => return 0,
    };
    count(regs, pid_tgid, function, per_thread, &moved);
    0
}

/// `cudaMemcpyBatchAsync(to, from, sizes, count, attributes, indices, attributes' count, [failed,] stream)`.
#[uprobe]
pub fn cuda_move_batch(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let (_, function, per_thread) = point(&ctx);
    let stream = match function {
        CUDA_COPY_BATCH => word(regs.rsp + 16),
        CUDA_COPY_BATCH_12 => word(regs.rsp + 24),
        _ => return 0,
    };
    let (sizes, copies) = (regs.rdx, regs.rcx);
    let mut bytes = 0;
    let mut read = 0;
    for _ in 0..CHUNKS {
        if read + CHUNK as u64 > copies {
            break;
        }
        // SAFETY: the helper checks the address.
        let Ok(chunk) = (unsafe { bpf_probe_read_user((sizes + read * 8) as *const [u64; CHUNK]) }) else { break };
        for size in chunk {
            bytes += size;
        }
        read += CHUNK as u64;
    }
    for _ in 0..CHUNK {
        if read >= copies {
            break;
        }
        bytes += word(sizes + read * 8);
        read += 1;
    }
    if read < copies {
        emit::count_drops(ring::DROPS_CUDA, copies - read);
    }
    count(regs, pid_tgid, function, per_thread, &Move { kind: COPY_DEFAULT, copies: read, bytes, stream });
    0
}

/// `cudaMemcpy3DBatchAsync(count, operations, [failed,] flags, stream)`.
#[uprobe]
pub fn cuda_move_3d_batch(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let (_, function, per_thread) = point(&ctx);
    let stream = match function {
        CUDA_COPY_3D_BATCH => regs.rcx,
        CUDA_COPY_3D_BATCH_12 => regs.r8,
        _ => return 0,
    };
    let mut bytes = 0;
    let mut read = 0;
    for _ in 0..OPERATIONS {
        if read >= regs.rdi {
            break;
        }
        bytes += volume(regs.rsi + read * OPERATION + OPERATION_EXTENT);
        read += 1;
    }
    if read < regs.rdi {
        emit::count_drops(ring::DROPS_CUDA, regs.rdi - read);
    }
    count(regs, pid_tgid, function, per_thread, &Move { kind: COPY_DEFAULT, copies: read, bytes, stream });
    0
}

/// Counts it, or the node that it is.
#[inline(always)]
fn count(regs: Registers, pid_tgid: u64, function: u32, per_thread: bool, moved: &Move) {
    let Some(thread) = thread(pid_tgid) else { return };
    let now = emit::now();
    let sums = calls(thread, pid_tgid, now);
    let is_copy = function & (VARIANT - 1) == CUDA_COPY;
    let kind = if moved.kind < COPIES as u32 { moved.kind } else { COPY_DEFAULT };
    let of = Pending { entered: now, a: u64::from(kind), b: moved.bytes, stream: moved.stream, caller: word(regs.rsp) };
    if is_capturing()
        && let Some(capture) = capture::of(capture::stream(pid_tgid, moved.stream, per_thread))
    {
        record::<{ ring::RARE }>(pid_tgid, now, function, capture.node(), of);
        return;
    }
    if is_copy {
        add(sums, kind, moved);
    } else {
        sums.sets += 1;
        sums.set_bytes += moved.bytes;
    }
    if level() >= LEVEL_KERNELS {
        record::<{ ring::LAUNCHES }>(pid_tgid, now, function, 0, of);
    }
}

#[inline(always)]
fn add(sums: &mut Sums, kind: u32, moved: &Move) {
    let kind = kind as usize;
    // SAFETY: a local. Read back, because the compiler knows the bound already and leaves the comparison out, and the verifier does not.
    let kind = unsafe { core::ptr::read_volatile(&raw const kind) } & 7;
    if kind < COPIES {
        sums.copies[kind] += moved.copies;
        sums.copy_bytes[kind] += moved.bytes;
    }
}
