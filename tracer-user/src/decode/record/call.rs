//! Records of calls of probed functions.

use std::mem::{offset_of, size_of};

use tracer_ebpf::wire::call::{self, Call};

use super::{Fields, Record, Refused};
use crate::input::{Function, What};

/// Nothing for a record of another family.
pub(super) fn decode(kind: u32, fields: Fields<'_>) -> Option<Result<Record, Refused>> {
    (kind == call::KIND_CALL).then(|| function_call(fields))
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
    let stack = fields.u32(offset_of!(Call, stack))?;
    let event = fields.event(What::Call { function, entered, stack })?;
    if entered > event.at {
        return Err(Refused::Field("entered", entered));
    }
    Ok(Record::Event(event))
}

#[cfg(test)]
mod tests {
    use super::super::{decode, tests::header};
    use super::*;

    #[test]
    fn a_call_that_returns_before_it_is_entered_is_refused() {
        let mut bytes = header(call::KIND_CALL);
        bytes.extend(1_001u64.to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        assert_eq!(decode(&bytes), Err(Refused::Field("entered", 1_001)));
    }
}
