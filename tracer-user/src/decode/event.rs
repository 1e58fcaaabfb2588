//! Ring bytes to events.
//!
//! Enters: one ring record, bytes of unknown length and kind. Leaves: an [`Event`] with the descriptor class that the kernel
//! side knew. Fields are read one by one at the wire's offsets; an unknown kind, a short record or a length
//! that does not add up is refused.

use std::mem::{offset_of, size_of};

use tracer_ebpf::wire::call::{self, Call};
use tracer_ebpf::wire::header::Header;
use tracer_ebpf::wire::net::{self, Data, Range, Socket};
use tracer_ebpf::wire::proc::{self, Forked, Process};

use crate::input::{Direction, End, Event, EventNanos, Function, What};

/// What the kernel side knew about a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Unknown,
    Ignored,
    /// What it speaks is open.
    Tcp,
    /// What it speaks is open.
    Unix,
    Engine,
    Http,
}

impl Class {
    pub fn of_wire(class: u32) -> Option<Self> {
        Some(match class {
            net::CLASS_UNKNOWN => Self::Unknown,
            net::CLASS_IGNORED => Self::Ignored,
            net::CLASS_TCP => Self::Tcp,
            net::CLASS_UNIX => Self::Unix,
            net::CLASS_ENGINE => Self::Engine,
            net::CLASS_HTTP => Self::Http,
            _ => return None,
        })
    }

    pub fn to_wire(self) -> u32 {
        match self {
            Self::Unknown => net::CLASS_UNKNOWN,
            Self::Ignored => net::CLASS_IGNORED,
            Self::Tcp => net::CLASS_TCP,
            Self::Unix => net::CLASS_UNIX,
            Self::Engine => net::CLASS_ENGINE,
            Self::Http => net::CLASS_HTTP,
        }
    }
}

/// One decoded ring record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// An event that concerns no descriptor.
    Event(Event),
    /// An event of a descriptor, with the class and the lifetime of it that the kernel side knew.
    Descriptor { event: Event, class: Class, lifetime: u64 },
    /// The process received descriptors from another.
    Received { process: u32 },
    /// All descriptors from `first` to `last` were closed.
    ClosedRange { at: EventNanos, process: u32, thread: u32, first: u32, last: u32 },
}

/// Why a record was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("record of {0} bytes is too short")]
    Short(usize),
    #[error("unknown record kind {0}")]
    Kind(u32),
    #[error("field {0} holds {1}")]
    Field(&'static str, u64),
}

/// Reads little-endian fields at wire offsets.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Refused> {
        let bytes = self.0.get(at..at + N).ok_or(Refused::Short(self.0.len()))?;
        bytes.try_into().map_err(|_| Refused::Short(self.0.len()))
    }

    fn u32(&self, at: usize) -> Result<u32, Refused> {
        self.array(at).map(u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Refused> {
        self.array(at).map(u64::from_ne_bytes)
    }

    fn at_least(&self, size: usize) -> Result<(), Refused> {
        if self.0.len() < size { Err(Refused::Short(self.0.len())) } else { Ok(()) }
    }
}

/// When a record was made, without decoding the rest.
pub fn time_of(bytes: &[u8]) -> Option<u64> {
    Fields(bytes).u64(offset_of!(Header, at)).ok()
}

/// Decodes one ring record.
pub fn decode(bytes: &[u8]) -> Result<Record, Refused> {
    let fields = Fields(bytes);
    fields.at_least(size_of::<Header>())?;
    match fields.u32(offset_of!(Header, kind))? {
        kind @ (net::KIND_OPENED | net::KIND_PEER_CLOSED | net::KIND_CLOSED) => socket(fields, kind),
        kind @ (net::KIND_DATA_IN | net::KIND_DATA_OUT) => data(fields, kind),
        net::KIND_RECEIVED => Ok(Record::Received { process: fields.process()? }),
        net::KIND_CLOSED_RANGE => {
            fields.at_least(size_of::<Range>())?;
            Ok(Record::ClosedRange {
                at: fields.u64(offset_of!(Header, at))?,
                process: fields.process()?,
                thread: fields.u32(offset_of!(Header, thread))?,
                first: fields.u32(offset_of!(Range, first))?,
                last: fields.u32(offset_of!(Range, last))?,
            })
        }
        proc::KIND_FORKED => {
            fields.at_least(size_of::<Forked>())?;
            let child = fields.u32(offset_of!(Forked, child))?;
            fields.event(What::Forked { child }).map(Record::Event)
        }
        kind @ (proc::KIND_EXECUTED | proc::KIND_EXITED) => {
            fields.at_least(size_of::<Process>())?;
            let what = if kind == proc::KIND_EXECUTED { What::Executed } else { What::Exited };
            fields.event(what).map(Record::Event)
        }
        call::KIND_CALL => function_call(fields),
        other => Err(Refused::Kind(other)),
    }
}

impl Fields<'_> {
    fn process(self) -> Result<u32, Refused> {
        self.u32(offset_of!(Header, process))
    }

    fn event(self, what: What) -> Result<Event, Refused> {
        Ok(Event {
            at: self.u64(offset_of!(Header, at))?,
            process: self.process()?,
            thread: self.u32(offset_of!(Header, thread))?,
            what,
        })
    }
}

/// A socket opened, ended or was closed.
fn socket(fields: Fields<'_>, kind: u32) -> Result<Record, Refused> {
    fields.at_least(size_of::<Socket>())?;
    let fd = fields.u32(offset_of!(Socket, fd))?;
    let class = class(fields.u32(offset_of!(Socket, class))?)?;
    let end = End::of_descriptor(fields.process()?, fd);
    let what = match kind {
        net::KIND_OPENED => What::Opened { end },
        net::KIND_PEER_CLOSED => What::PeerClosed { end },
        _ => {
            let moved = (fields.u64(offset_of!(Socket, moved_in))?, fields.u64(offset_of!(Socket, moved_out))?);
            What::Closed { end, moved: Some(moved) }
        }
    };
    let lifetime = fields.u64(offset_of!(Socket, lifetime))?;
    Ok(Record::Descriptor { event: fields.event(what)?, class, lifetime })
}

/// Bytes crossed a socket.
fn data(fields: Fields<'_>, kind: u32) -> Result<Record, Refused> {
    let fd = fields.u32(offset_of!(Data, fd))?;
    let class = class(fields.u32(offset_of!(Data, class))?)?;
    let len = fields.u64(offset_of!(Data, len))?;
    let captured = u64::from(fields.u32(offset_of!(Data, captured))?);
    if len == 0 {
        return Err(Refused::Field("len", len));
    }
    if captured > len || captured > net::CAPTURE_MAX as u64 {
        return Err(Refused::Field("captured", captured));
    }
    let start = size_of::<Data>();
    let payload = fields.0.get(start..start + captured as usize).ok_or(Refused::Short(fields.0.len()))?;
    let what = What::Data {
        end: End::of_descriptor(fields.process()?, fd),
        direction: if kind == net::KIND_DATA_IN { Direction::In } else { Direction::Out },
        len,
        bytes: payload.to_vec(),
        starts: fields.u32(offset_of!(Data, flags))? & net::FLAG_STARTS != 0,
        offset: Some(fields.u64(offset_of!(Data, offset))?),
    };
    let lifetime = fields.u64(offset_of!(Data, lifetime))?;
    Ok(Record::Descriptor { event: fields.event(what)?, class, lifetime })
}

/// A probed function was called.
fn function_call(fields: Fields<'_>) -> Result<Record, Refused> {
    fields.at_least(size_of::<Call>())?;
    let entered = fields.u64(offset_of!(Call, entered))?;
    let function = match fields.u32(offset_of!(Call, function))? {
        call::FUNCTION_ENCODE => Function::Encode,
        call::FUNCTION_DECODE => Function::Decode,
        call::FUNCTION_CLOCK => Function::Clock,
        other => return Err(Refused::Field("function", u64::from(other))),
    };
    let event = fields.event(What::Call { function, entered })?;
    if entered > event.at {
        return Err(Refused::Field("entered", entered));
    }
    Ok(Record::Event(event))
}

fn class(wire: u32) -> Result<Class, Refused> {
    Class::of_wire(wire).ok_or(Refused::Field("class", u64::from(wire)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32) -> Vec<u8> {
        let mut bytes = 1_000u64.to_ne_bytes().to_vec();
        for word in [42u32, 43, kind, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    fn data(kind: u32, len: u64, captured: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(kind);
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(net::CLASS_TCP.to_ne_bytes());
        bytes.extend(len.to_ne_bytes());
        bytes.extend(captured.to_ne_bytes());
        bytes.extend(net::FLAG_STARTS.to_ne_bytes());
        bytes.extend(900u64.to_ne_bytes());
        bytes.extend(55u64.to_ne_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_payload_keeps_its_true_length_when_it_was_cut() {
        let record = decode(&data(net::KIND_DATA_IN, 9000, 3, b"GETxx")).unwrap();
        let what = What::Data {
            end: End::of_descriptor(42, 7),
            direction: Direction::In,
            len: 9000,
            bytes: b"GET".to_vec(),
            starts: true,
            offset: Some(55),
        };
        let event = Event { at: 1_000, process: 42, thread: 43, what };
        assert_eq!(record, Record::Descriptor { event, class: Class::Tcp, lifetime: 900 });
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        assert_eq!(decode(&data(net::KIND_DATA_IN, 2, 3, b"GET")), Err(Refused::Field("captured", 3)));
        assert_eq!(decode(&data(net::KIND_DATA_OUT, 0, 0, b"")), Err(Refused::Field("len", 0)));
        assert!(matches!(decode(&data(net::KIND_DATA_IN, 90, 50, b"GET")), Err(Refused::Short(_))));
    }

    #[test]
    fn unknown_kinds_and_classes_are_refused() {
        assert_eq!(decode(&header(999)), Err(Refused::Kind(999)));
        let mut bytes = header(net::KIND_CLOSED);
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(77u32.to_ne_bytes());
        bytes.extend([0; 24]);
        assert_eq!(decode(&bytes), Err(Refused::Field("class", 77)));
    }

    #[test]
    fn a_call_that_returns_before_it_is_entered_is_refused() {
        let mut bytes = header(call::KIND_CALL);
        bytes.extend(1_001u64.to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        assert_eq!(decode(&bytes), Err(Refused::Field("entered", 1_001)));
    }

    #[test]
    fn a_close_says_how_much_was_moved() {
        let mut bytes = header(net::KIND_CLOSED);
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(net::CLASS_UNIX.to_ne_bytes());
        for word in [900u64, 10, 20] {
            bytes.extend(word.to_ne_bytes());
        }
        let what = What::Closed { end: End::of_descriptor(42, 7), moved: Some((10, 20)) };
        let event = Event { at: 1_000, process: 42, thread: 43, what };
        assert_eq!(decode(&bytes), Ok(Record::Descriptor { event, class: Class::Unix, lifetime: 900 }));
    }

    #[test]
    fn no_truncation_of_any_record_panics() {
        let mut long = data(net::KIND_DATA_OUT, 100, 64, &[0; 64]);
        for kind in [1, 16, 17, 18, 32, 33, 64, 65, 66, 67, 68, 69, 70, 71] {
            long[16..20].copy_from_slice(&u32::to_ne_bytes(kind));
            for len in 0..long.len() {
                let _ = decode(&long[..len]);
            }
        }
    }
}
