//! Socket records, and the table of descriptors that decides what is captured.

use super::header::Header;

// 1 to 6 were records of another layout.

/// A socket was accepted ([`Socket`]).
pub const KIND_OPENED: u32 = 64;
/// A read returned 0 (the peer closed its writing side), or a call said that the connection is reset ([`Socket`]).
pub const KIND_PEER_CLOSED: u32 = 65;
/// A descriptor that is a socket, or was never classified, was closed ([`Socket`]).
pub const KIND_CLOSED: u32 = 66;
/// Bytes were read or received ([`Data`], ring of payloads).
pub const KIND_DATA_IN: u32 = 67;
/// Bytes were written or sent ([`Data`], ring of payloads).
pub const KIND_DATA_OUT: u32 = 68;
/// The process received descriptors over a unix socket: their numbers are to be looked up ([`Range`], both 0).
pub const KIND_RECEIVED: u32 = 69;
/// `close_range` closed all descriptors from `first` to `last` ([`Range`]).
pub const KIND_CLOSED_RANGE: u32 = 70;
/// A write to a client's connection was refused (`EAGAIN`) or took a part of its bytes, and the one before was not ([`Socket`]).
pub const KIND_BLOCKED: u32 = 71;
/// The first write behind that which took all its bytes; told before its payload ([`Socket`]).
pub const KIND_UNBLOCKED: u32 = 72;

/// Nobody has said yet what the descriptor is.
pub const CLASS_UNKNOWN: u32 = 0;
/// Not a stream socket, or one that speaks nothing that is read here: nothing of it leaves the kernel.
pub const CLASS_IGNORED: u32 = 1;
/// A TCP socket of which nobody has said yet what it speaks.
pub const CLASS_TCP: u32 = 2;
/// A unix stream socket of which nobody has said yet what it speaks.
pub const CLASS_UNIX: u32 = 3;
/// A stream socket that carries an engine's messages.
pub const CLASS_ENGINE: u32 = 4;
/// A stream socket that carries HTTP.
pub const CLASS_HTTP: u32 = 5;
/// How many classes there are.
pub const CLASSES: usize = 6;

/// Whether user space may still have something to say of a descriptor of this class.
pub const fn is_open(class: u32) -> bool {
    matches!(class, CLASS_UNKNOWN | CLASS_TCP | CLASS_UNIX)
}

/// Whether a descriptor of this class may be a client's connection, of which it is told when its writes are refused.
pub const fn may_be_client(class: u32) -> bool {
    matches!(class, CLASS_TCP | CLASS_HTTP)
}

/// [`Descriptor::state`]: the last write was refused, or took a part of its bytes.
pub const STATE_BLOCKED: u32 = 1;

/// Index of a capture cap in the `CAPS` global: four a class, head and tail of each direction.
pub const fn cap_index(class: u32, out: bool, tail: bool) -> usize {
    class as usize * 4 + out as usize * 2 + tail as usize
}

/// Elements of the `CAPS` global: a power of two above every [`cap_index`].
pub const CAPS: usize = 32;

/// Bytes of a call's head that are captured of a descriptor of which nobody has said what it is.
pub const UNKNOWN_CAP: u32 = 256;

/// Most payload of one record, bytes. A longer call takes several.
pub const CAPTURE_MAX: usize = 16 * 1024;

/// Most bytes of a call's head that are captured; a cap above it is lowered to it.
pub const HEAD_MAX: u32 = 1 << 20;

/// What is known of a descriptor: the value of the table.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// `CLASS_*`.
    pub class: u32,
    /// `STATE_*`.
    pub state: u32,
    /// When it was created or first seen, on the records' clock: tells the lifetimes of one number apart, and in order.
    pub lifetime: u64,
    /// Bytes that were read or received since.
    pub moved_in: u64,
    /// Bytes that were written or sent since.
    pub moved_out: u64,
}

const _: () = assert!(size_of::<Descriptor>() == 32);

/// What user space says of a descriptor. The kernel side alone writes the table's counters, so it is told beside the table
/// and takes it over at the descriptor's next call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The lifetime that is meant.
    pub lifetime: u64,
    /// `CLASS_*`.
    pub class: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<Told>() == 16);

/// `accept`, end of stream, `close`, and writes that are refused.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Socket {
    pub header: Header,
    pub fd: u32,
    /// `CLASS_*` as the kernel side knew it at the event.
    pub class: u32,
    /// [`Descriptor::lifetime`].
    pub lifetime: u64,
    /// Bytes moved in this lifetime so far, counted whether or not their records found room.
    pub moved_in: u64,
    pub moved_out: u64,
}

const _: () = assert!(size_of::<Socket>() == 56);

/// [`Data::flags`]: the first piece of its call.
pub const FLAG_STARTS: u32 = 1;

/// A piece of a stream: of one successful data call, all, or a part. `captured` payload bytes follow the struct.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Data {
    pub header: Header,
    pub fd: u32,
    /// `CLASS_*` as the kernel side knew it at the event.
    pub class: u32,
    /// Bytes of the stream that the piece covers, ≥ 1.
    pub len: u64,
    /// Bytes of payload that follow, the first of the piece; ≤ `len`, ≤ [`CAPTURE_MAX`]. The rest was cut.
    pub captured: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// [`Descriptor::lifetime`].
    pub lifetime: u64,
    /// Bytes that this direction moved in this lifetime before the piece.
    pub offset: u64,
}

const _: () = assert!(size_of::<Data>() == 64);

/// A range of descriptor numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub header: Header,
    pub first: u32,
    /// Included.
    pub last: u32,
}

const _: () = assert!(size_of::<Range>() == 32);
