//! Socket records, and the classes of descriptors that decide what is captured.

use super::header::Header;

/// A socket was accepted ([`Socket`]).
pub const KIND_OPENED: u32 = 1;
/// A read returned 0 (the peer closed its writing side), or a call said that the connection is reset ([`Socket`]).
pub const KIND_PEER_CLOSED: u32 = 2;
/// A descriptor that is a socket, or was never classified, was closed ([`Socket`]).
pub const KIND_CLOSED: u32 = 3;
/// Bytes were read or received ([`Data`], edge-free ring).
pub const KIND_DATA_IN: u32 = 4;
/// Bytes were written or sent ([`Data`], edge-free ring).
pub const KIND_DATA_OUT: u32 = 5;
/// An address of a TCP socket became known ([`Address`]).
pub const KIND_ADDRESS: u32 = 6;

/// Nobody has said yet what the descriptor is.
pub const CLASS_UNKNOWN: u32 = 0;
/// Not a stream socket: nothing of it leaves the kernel.
pub const CLASS_IGNORED: u32 = 1;
/// A TCP socket.
pub const CLASS_TCP: u32 = 2;
/// A unix stream socket.
pub const CLASS_UNIX: u32 = 3;
/// How many classes there are.
pub const CLASSES: usize = 4;

/// Index of a class's capture cap in the `CAPS` global: two a class, in and out.
pub const fn cap_index(class: u32, out: bool) -> usize {
    class as usize * 2 + out as usize
}

/// Hard limit of a captured payload, bytes; a cap above it is lowered to it.
pub const CAPTURE_MAX: usize = 16 * 1024;

/// `accept`, end of stream and `close`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Socket {
    pub header: Header,
    pub fd: u32,
    /// `CLASS_*` as the kernel side knew it at the event.
    pub class: u32,
}

const _: () = assert!(size_of::<Socket>() == 32);

/// One successful data call; `captured` payload bytes follow the struct.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Data {
    pub header: Header,
    pub fd: u32,
    /// `CLASS_*` as the kernel side knew it at the event.
    pub class: u32,
    /// The call's result: bytes it moved.
    pub len: u64,
    /// Bytes of payload that follow; ≤ `len`, ≤ [`CAPTURE_MAX`].
    pub captured: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<Data>() == 48);

/// [`Address::side`]: the socket's own address.
pub const SIDE_LOCAL: u32 = 0;
/// [`Address::side`]: the peer's address.
pub const SIDE_PEER: u32 = 1;

/// An address that `accept`, `getpeername` or `getsockname` handed to the process.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Address {
    pub header: Header,
    pub fd: u32,
    /// `SIDE_*`.
    pub side: u32,
    /// `AF_INET` (2) or `AF_INET6` (10), host order.
    pub family: u16,
    /// Host order.
    pub port: u16,
    pub pad: u32,
    /// Network order; the first 4 bytes for IPv4.
    pub octets: [u8; 16],
}

const _: () = assert!(size_of::<Address>() == 56);
