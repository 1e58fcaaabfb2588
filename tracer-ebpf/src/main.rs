//! The eBPF programs. On the host this is an empty binary so that `cargo check` covers the workspace.
//!
//! Enters: raw tracepoints and uprobes. Leaves: the records of [`tracer_ebpf::wire`] in two rings. Nothing is written to a
//! target; a process that is not in `TARGETS` costs one map lookup a system call. No kernel struct is assumed: only
//! tracepoint arguments, the uapi layout of x86-64 registers, and a few field offsets that user space takes from BTF.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics), allow(internal_features))]

#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod probes;
#[cfg(target_arch = "bpf")]
mod table;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses an object in which this can be reached.
    loop {}
}

/// `bpf_probe_read_*` and ring buffers are for GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
