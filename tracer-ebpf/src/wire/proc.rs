//! Life of a traced process.

use super::header::Header;

/// A traced process forked a new thread group ([`Forked`]).
pub const KIND_FORKED: u32 = 16;
/// A traced process replaced its image ([`Process`]).
pub const KIND_EXECUTED: u32 = 17;
/// A traced process is gone ([`Process`]).
pub const KIND_EXITED: u32 = 18;

/// `exec` and exit.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pub header: Header,
}

const _: () = assert!(size_of::<Process>() == 24);

/// The header's process forked `child`, which is traced from here on.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Forked {
    pub header: Header,
    /// Thread-group id in the initial pid namespace.
    pub child: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<Forked>() == 32);
