//! Ring bytes to events, one file a family.
//!
//! Enters: one ring record, bytes of unknown length and kind. Leaves: a [`Record`]. Fields are read one by one at the wire's offsets; an
//! unknown kind, a short record or a length that does not add up is refused.

mod call;
pub mod cuda;
pub mod net;
mod proc;

use std::mem::{offset_of, size_of};

use tracer_ebpf::wire::header::Header;

use crate::input::{Event, EventNanos, What};
use net::Class;

/// The families: each knows its kinds.
const FAMILIES: [Decode; 4] = [net::decode, call::decode, proc::decode, cuda::decode];

/// Nothing for a record of another family.
type Decode = fn(u32, Fields<'_>) -> Option<Result<Record, Refused>>;

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

/// When a record was made, without decoding the rest.
pub fn time_of(bytes: &[u8]) -> Option<u64> {
    Fields(bytes).u64(offset_of!(Header, at)).ok()
}

/// Decodes one ring record.
pub fn decode(bytes: &[u8]) -> Result<Record, Refused> {
    let fields = Fields(bytes);
    fields.at_least(size_of::<Header>())?;
    let kind = fields.u32(offset_of!(Header, kind))?;
    FAMILIES.iter().find_map(|family| family(kind, fields)).unwrap_or(Err(Refused::Kind(kind)))
}

/// Reads fields in the machine's byte order at wire offsets.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Refused> {
        let bytes = self.0.get(at..at + N).ok_or(Refused::Short(self.0.len()))?;
        bytes.try_into().map_err(|_| Refused::Short(self.0.len()))
    }

    fn u16(&self, at: usize) -> Result<u16, Refused> {
        self.array(at).map(u16::from_ne_bytes)
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

    fn at(self) -> Result<EventNanos, Refused> {
        self.u64(offset_of!(Header, at))
    }

    fn process(self) -> Result<u32, Refused> {
        self.u32(offset_of!(Header, process))
    }

    fn thread(self) -> Result<u32, Refused> {
        self.u32(offset_of!(Header, thread))
    }

    fn event(self, what: What) -> Result<Event, Refused> {
        Ok(Event { at: self.at()?, process: self.process()?, thread: self.thread()?, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header at 1,000 ns of thread 43 in process 42.
    pub(super) fn header(kind: u32) -> Vec<u8> {
        let mut bytes = 1_000u64.to_ne_bytes().to_vec();
        for word in [42u32, 43, kind, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn unknown_kinds_are_refused() {
        assert_eq!(decode(&header(999)), Err(Refused::Kind(999)));
    }

    #[test]
    fn no_truncation_of_any_record_panics() {
        let mut long = header(0);
        long.resize(24 + 40 + 64, 0);
        for kind in [1, 16, 17, 18, 32, 33, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73] {
            long[16..20].copy_from_slice(&u32::to_ne_bytes(kind));
            for len in 0..long.len() {
                let _ = decode(&long[..len]);
            }
        }
    }
}
