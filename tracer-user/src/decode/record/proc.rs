//! Records of the life of processes.

use std::mem::{offset_of, size_of};

use tracer_ebpf::wire::proc::{self, Forked, Process};

use super::{Fields, Record, Refused};
use crate::input::What;

/// Nothing for a record of another family.
pub(super) fn decode(kind: u32, fields: Fields<'_>) -> Option<Result<Record, Refused>> {
    match kind {
        proc::KIND_FORKED => Some(forked(fields)),
        proc::KIND_EXECUTED => Some(life(fields, What::Executed)),
        proc::KIND_EXITED => Some(life(fields, What::Exited)),
        _ => None,
    }
}

fn forked(fields: Fields<'_>) -> Result<Record, Refused> {
    fields.at_least(size_of::<Forked>())?;
    let child = fields.u32(offset_of!(Forked, child))?;
    fields.event(What::Forked { child }).map(Record::Event)
}

fn life(fields: Fields<'_>, what: What) -> Result<Record, Refused> {
    fields.at_least(size_of::<Process>())?;
    fields.event(what).map(Record::Event)
}

#[cfg(test)]
mod tests {
    use super::super::{decode, tests::header};
    use super::*;
    use crate::input::Event;

    #[test]
    fn a_fork_names_its_child() {
        let mut bytes = header(proc::KIND_FORKED);
        bytes.extend(77u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        let event = Event { at: 1_000, process: 42, thread: 43, what: What::Forked { child: 77 } };
        assert_eq!(decode(&bytes), Ok(Record::Event(event)));
        assert!(matches!(decode(&bytes[..28]), Err(Refused::Short(28))));
    }
}
