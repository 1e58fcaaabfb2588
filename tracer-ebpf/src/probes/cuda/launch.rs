//! Launches of kernels and graphs.
//!
//! At the level of steps nothing of the target's memory is read but at a function's first launch, and while anything is captured.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user, generated::bpf_probe_read_user_str},
    macros::uprobe,
    programs::ProbeContext,
};
use tracer_ebpf::wire::cuda::{
    API_DRIVER, API_RUNTIME, CUDA_GRAPH_LAUNCH, FLAG_CAPTURED, FLAG_RUNTIME, Function, FunctionKey, KIND_CUDA_FUNCTION,
    KIND_CUDA_LAUNCH, LEVEL_KERNELS, Launch, NAME_AT, NAME_MAX,
};
use tracer_ebpf::wire::map::NO_EXIST;
use tracer_ebpf::wire::ring;

use super::{Registers, calls, capture, point, registers, thread, word};
use crate::emit;
use crate::maps::{FUNCTIONS, NAMES_AT, Pending, add, epoch, is_capturing, level, sample};

/// A thread sees to the reader every so many launches; a quarter of the ring holds 13,000. A power of two.
const LOOK_EVERY: u64 = 64;

/// Where and how a kernel is launched.
struct Shape {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: u64,
}

/// Of a launch whose arguments cannot be read.
const NO_SHAPE: Shape = Shape { grid: [0; 3], block: [0; 3], shared: 0, stream: 0 };

/// Both launch configurations: `CUlaunchConfig` (cuda.h) and `cudaLaunchConfig_t` (driver_types.h, whose size of shared memory is 8 bytes).
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    pad: u32,
    stream: u64,
}

/// The arguments behind the sixth: on the stack, above the return address.
#[inline(always)]
fn on_stack<const WORDS: usize>(regs: Registers) -> [u64; WORDS] {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user((regs.rsp + 8) as *const [u64; WORDS]) }.unwrap_or([0; WORDS])
}

/// `cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, stream, …)`, and the cooperative one.
#[uprobe]
pub fn cuda_launch(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    launch(&ctx, regs, API_DRIVER, regs.rdi, || {
        let [block_z, shared, stream] = on_stack(regs);
        Shape {
            grid: [regs.rsi as u32, regs.rdx as u32, regs.rcx as u32],
            block: [regs.r8 as u32, regs.r9 as u32, block_z as u32],
            shared: shared as u32,
            stream,
        }
    })
}

/// `cudaLaunchKernel(func, grid, block, args, shared, stream)`, and the cooperative one; a `dim3` by value takes a register and a half.
#[uprobe]
pub fn cuda_runtime_launch(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    launch(&ctx, regs, API_RUNTIME, regs.rdi, || {
        let [shared, stream] = on_stack(regs);
        Shape {
            grid: [regs.rsi as u32, (regs.rsi >> 32) as u32, regs.rdx as u32],
            block: [regs.rcx as u32, (regs.rcx >> 32) as u32, regs.r8 as u32],
            shared: shared as u32,
            stream,
        }
    })
}

/// `cuLaunchKernelEx(config, f, …)`.
#[uprobe]
pub fn cuda_launch_ex(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    launch(&ctx, regs, API_DRIVER, regs.rsi, || configured(regs))
}

/// `cudaLaunchKernelExC(config, func, …)`.
#[uprobe]
pub fn cuda_runtime_launch_ex(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    launch(&ctx, regs, API_RUNTIME, regs.rsi, || configured(regs))
}

#[inline(always)]
fn configured(regs: Registers) -> Shape {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(regs.rdi as *const Config) } {
        Ok(Config { grid, block, shared, stream, .. }) => Shape { grid, block, shared, stream },
        Err(_) => NO_SHAPE,
    }
}

#[inline(always)]
fn launch(ctx: &ProbeContext, regs: Registers, api: u32, function: u64, shape: impl Fn() -> Shape) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let now = emit::now();
    let key = FunctionKey { process: (pid_tgid >> 32) as u32, epoch: epoch(), function, api, pad: 0 };
    let sums = calls(thread, pid_tgid, now);
    let mut captured = None;
    if is_capturing() {
        let (_, _, per_thread) = point(ctx);
        captured = capture::of(capture::stream(pid_tgid, shape().stream, per_thread));
    }
    let mut weight = 1;
    if let Some(capture) = captured {
        sums.captured += 1;
        first_of(regs, pid_tgid, now, key, 0);
        // A graph's contents are worth a record at any level.
        record::<{ ring::RARE }>(pid_tgid, now, key, shape(), FLAG_CAPTURED, capture.node(), true);
        return 0;
    }
    sums.launches += 1;
    let seen = sums.launches;
    count(regs, pid_tgid, now, key);
    if level() >= LEVEL_KERNELS {
        let every = u64::from(sample());
        if every > 1 {
            if seen % every != 0 {
                return 0;
            }
            weight = every as u32;
        }
        record::<{ ring::LAUNCHES }>(pid_tgid, now, key, shape(), 0, weight, seen & (LOOK_EVERY - 1) == 0);
    }
    0
}

#[inline(always)]
fn record<const RING: u32>(
    pid_tgid: u64,
    now: u64,
    key: FunctionKey,
    shape: Shape,
    flags: u32,
    number: u32,
    look: bool,
) {
    let Some(mut room) = emit::room::<Launch, RING>() else { return };
    let Shape { grid, block, shared, stream } = shape;
    let flags = if key.api == API_RUNTIME { flags | FLAG_RUNTIME } else { flags };
    let record = room.as_mut_ptr();
    // Field by field: as a whole it would be put together on the stack and copied.
    // SAFETY: the room is a record's.
    unsafe {
        (*record).header = emit::header(now, pid_tgid, KIND_CUDA_LAUNCH);
        (*record).function = key.function;
        (*record).stream = stream;
        (*record).epoch = key.epoch;
        (*record).flags = flags as u16;
        (*record).block = [threads(block[0]), threads(block[1]), threads(block[2])];
        (*record).grid = grid;
        (*record).shared = shared;
        (*record).number = number;
    }
    emit::submit::<Launch, RING>(room, look);
}

/// Threads of a block in a direction, as a record has them.
#[inline(always)]
fn threads(count: u32) -> u16 {
    if count > 0xffff { 0xffff } else { count as u16 }
}

/// `cuGraphLaunch(exec, stream)` and `cudaGraphLaunch(exec, stream)`.
#[uprobe]
pub fn cuda_graph_launch(ctx: ProbeContext) -> u32 {
    let regs = registers(ctx.regs);
    let pid_tgid = bpf_get_current_pid_tgid();
    let Some(thread) = thread(pid_tgid) else { return 0 };
    let now = emit::now();
    let (exec, stream) = (regs.rdi, regs.rsi);
    let sums = calls(thread, pid_tgid, now);
    let of = Pending { entered: now, a: exec, b: 0, stream, caller: word(regs.rsp) };
    if is_capturing() {
        let (_, _, per_thread) = point(&ctx);
        if let Some(capture) = capture::of(capture::stream(pid_tgid, stream, per_thread)) {
            sums.captured += 1;
            super::record::<{ ring::RARE }>(pid_tgid, now, CUDA_GRAPH_LAUNCH, capture.node(), of);
            return 0;
        }
    }
    sums.graph_launches += 1;
    if level() >= LEVEL_KERNELS {
        super::record::<{ ring::LAUNCHES }>(pid_tgid, now, CUDA_GRAPH_LAUNCH, 0, of);
    }
    0
}

/// Counts a launch; tells of the function when it is the first.
#[inline(always)]
fn count(regs: Registers, pid_tgid: u64, now: u64, key: FunctionKey) {
    if let Some(launches) = FUNCTIONS.get_ptr_mut(key) {
        add(launches, 1);
    } else {
        first_of(regs, pid_tgid, now, key, 1);
    }
}

/// How far behind a handle of the process the address of its name is.
#[inline(always)]
fn names_at(process: u32) -> u32 {
    // SAFETY: a u32 that is written as a whole.
    unsafe { NAMES_AT.get(process) }.copied().unwrap_or(NAME_AT)
}

/// A function that may be new: it gets its entry, with so many launches, and a record.
#[inline(always)]
fn first_of(regs: Registers, pid_tgid: u64, now: u64, key: FunctionKey, launches: u64) {
    if launches == 0 && FUNCTIONS.get_ptr_mut(key).is_some() {
        return;
    }
    if FUNCTIONS.insert(key, launches, NO_EXIST).is_err() {
        // Another thread was faster, or there is no room.
        match FUNCTIONS.get_ptr_mut(key) {
            Some(counted) if launches > 0 => add(counted, launches),
            Some(_) => {}
            None => emit::count_drop(ring::DROPS_CUDA),
        }
        return;
    }
    let Some(mut room) = emit::room::<Function, { ring::RARE }>() else { return };
    let record = room.as_mut_ptr();
    let frame = regs.rbp;
    let (first, second) = (word(frame), word(frame + 8));
    let third = word(first + 8);
    let fourth = word(word(first) + 8);
    // SAFETY: the room is a record's; the helper checks the address that it reads from.
    unsafe {
        (*record).header = emit::header(now, pid_tgid, KIND_CUDA_FUNCTION);
        (*record).key = key;
        (*record).callers = [word(regs.rsp), second, third, fourth];
        (*record).pad = 0;
        let name = (&raw mut (*record).name).cast();
        let name_at = names_at(key.process);
        let text = word(key.function + u64::from(name_at));
        let len = bpf_probe_read_user_str(name, NAME_MAX as u32, text as *const _);
        // With its end.
        (*record).name_len = if text != 0 && len > 1 { len as u32 - 1 } else { 0 };
    }
    emit::submit::<Function, { ring::RARE }>(room, true);
}
