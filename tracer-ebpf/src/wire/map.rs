//! Flags of the kernel's maps (include/uapi/linux/bpf.h), which both sides give.

/// `BPF_NOEXIST`: only where there is no such entry yet.
pub const NO_EXIST: u64 = 1;
/// `BPF_EXIST`: only where there is one.
pub const EXIST: u64 = 2;
