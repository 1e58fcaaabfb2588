//! Records of sockets.

use std::mem::{offset_of, size_of};

use tracer_ebpf::wire::net::{self, Data, Range, Socket};

use super::{Fields, Record, Refused};
use crate::input::{Direction, End, What};

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

/// Nothing for a record of another family.
pub(super) fn decode(kind: u32, fields: Fields<'_>) -> Option<Result<Record, Refused>> {
    match kind {
        net::KIND_OPENED | net::KIND_PEER_CLOSED | net::KIND_CLOSED | net::KIND_BLOCKED | net::KIND_UNBLOCKED => {
            Some(socket(fields, kind))
        }
        net::KIND_DATA_IN | net::KIND_DATA_OUT => Some(data(fields, kind)),
        net::KIND_RECEIVED => Some(fields.process().map(|process| Record::Received { process })),
        net::KIND_CLOSED_RANGE => Some(closed_range(fields)),
        _ => None,
    }
}

fn closed_range(fields: Fields<'_>) -> Result<Record, Refused> {
    fields.at_least(size_of::<Range>())?;
    Ok(Record::ClosedRange {
        at: fields.at()?,
        process: fields.process()?,
        thread: fields.thread()?,
        first: fields.u32(offset_of!(Range, first))?,
        last: fields.u32(offset_of!(Range, last))?,
    })
}

/// A socket opened, ended or was closed, or a write to it was refused.
fn socket(fields: Fields<'_>, kind: u32) -> Result<Record, Refused> {
    fields.at_least(size_of::<Socket>())?;
    let fd = fields.u32(offset_of!(Socket, fd))?;
    let class = class(fields.u32(offset_of!(Socket, class))?)?;
    let end = End::of_descriptor(fields.process()?, fd);
    let what = match kind {
        net::KIND_OPENED => What::Opened { end },
        net::KIND_PEER_CLOSED => What::PeerClosed { end },
        net::KIND_BLOCKED => What::Blocked { end },
        net::KIND_UNBLOCKED => What::Unblocked { end },
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

fn class(wire: u32) -> Result<Class, Refused> {
    Class::of_wire(wire).ok_or(Refused::Field("class", u64::from(wire)))
}

#[cfg(test)]
mod tests {
    use super::super::{decode, tests::header};
    use super::*;
    use crate::input::Event;

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
    fn unknown_classes_are_refused() {
        let mut bytes = header(net::KIND_CLOSED);
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(77u32.to_ne_bytes());
        bytes.extend([0; 24]);
        assert_eq!(decode(&bytes), Err(Refused::Field("class", 77)));
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
    fn a_refused_write_and_the_whole_one_behind_it_are_told_of_their_connection() {
        let end = End::of_descriptor(42, 7);
        for (kind, what) in [(net::KIND_BLOCKED, What::Blocked { end }), (net::KIND_UNBLOCKED, What::Unblocked { end })]
        {
            let mut bytes = header(kind);
            bytes.extend(7u32.to_ne_bytes());
            bytes.extend(net::CLASS_HTTP.to_ne_bytes());
            for word in [900u64, 10, 20] {
                bytes.extend(word.to_ne_bytes());
            }
            let event = Event { at: 1_000, process: 42, thread: 43, what };
            assert_eq!(decode(&bytes), Ok(Record::Descriptor { event, class: Class::Http, lifetime: 900 }));
        }
    }
}
