//! The floor of what a probe costs: an empty BPF program at one instruction of one process.
//!
//! Enters: `FILE OFFSET PID`. Leaves: `attached` on stdout; the probe stays until stdin is closed. Two instructions, two system calls,
//! nothing of Inferspan. Needs root.

use std::ffi::CString;
use std::io::Write as _;

use anyhow::{Context as _, Result, bail, ensure};

/// `struct bpf_insn`: code, registers, offset, immediate.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD` (include/uapi/linux/bpf.h); what follows is zero to the kernel.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `PERF_ATTR_SIZE_VER0` (include/uapi/linux/perf_event.h), up to `config1`.
#[repr(C)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint_type: u32,
    /// `uprobe_path`
    path: u64,
    /// `probe_offset`
    offset: u64,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [file, offset, pid] = words.as_slice() else { bail!("FILE OFFSET PID") };
    attach(file, offset.parse().context("OFFSET")?, pid.parse().context("PID")?)?;
    println!("attached");
    std::io::stdout().flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// The probe lives as long as this process.
fn attach(file: &str, offset: u64, pid: libc::pid_t) -> Result<()> {
    // r0 = 0; exit
    let instructions =
        [(0xb7, 0), (0x95, 0)].map(|(code, registers)| Instruction { code, registers, offset: 0, immediate: 0 });
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_KPROBE,
        instruction_count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the pointers in it live until the call returns.
    let program = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<ProgramLoad>()) };
    ensure!(program >= 0, "BPF_PROG_LOAD: {}", std::io::Error::last_os_error());
    let kind =
        std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").context("the kernel has no uprobes")?;
    let path = CString::new(file)?;
    let event = PerfEvent {
        kind: kind.trim().parse()?,
        size: size_of::<PerfEvent>() as u32,
        config: 0,
        sample_period: 0,
        sample_type: 0,
        read_format: 0,
        flags: 0,
        wakeup: 0,
        breakpoint_type: 0,
        path: path.as_ptr() as u64,
        offset,
    };
    // SAFETY: the path lives until the call returns; the rest are numbers.
    let event = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const event, pid, -1, -1, 0) };
    ensure!(event >= 0, "perf_event_open: {}", std::io::Error::last_os_error());
    let event = libc::c_int::try_from(event)?;
    for (request, argument) in [(PERF_EVENT_IOC_SET_BPF, program), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both take a number.
        let result = unsafe { libc::ioctl(event, request, argument) };
        ensure!(result == 0, "the probe cannot be enabled: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
