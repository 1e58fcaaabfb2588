//! What every record starts with.

/// First bytes of every record.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// `bpf_ktime_get_ns()` (`CLOCK_MONOTONIC`), ns, when the program was entered.
    pub at: u64,
    /// Thread-group id in the initial pid namespace.
    pub process: u32,
    /// Thread id in the initial pid namespace.
    pub thread: u32,
    /// Which record this is: a `KIND_*` of this crate. Anything else is refused by the reader.
    pub kind: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<Header>() == 24);
