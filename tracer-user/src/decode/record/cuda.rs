//! Records of calls of the CUDA libraries.

use std::mem::{offset_of, size_of};

use tracer_ebpf::wire::cuda::{self as wire, Burst, Function, Launch as LaunchRecord, Mapped};

use super::{Fields, Record, Refused};
use crate::input::What;
use crate::input::cuda::{Api, Call, CallKind, CollectiveKind, CopyKind, FunctionKey, Launch, Seen, Sums, WaitOf};

/// Nothing for a record of another family.
pub(super) fn decode(kind: u32, fields: Fields<'_>) -> Option<Result<Record, Refused>> {
    match kind {
        wire::KIND_CUDA_BURST => Some(seen(fields, burst)),
        wire::KIND_CUDA_FUNCTION => Some(seen(fields, function)),
        wire::KIND_CUDA_LAUNCH => Some(seen(fields, launch)),
        wire::KIND_CUDA_CALL => Some(call(fields)),
        wire::KIND_MAPPED => Some(mapped(fields)),
        _ => None,
    }
}

fn seen(fields: Fields<'_>, read: fn(Fields<'_>) -> Result<Seen, Refused>) -> Result<Record, Refused> {
    let seen = read(fields)?;
    fields.event(What::Cuda(Box::new(seen))).map(Record::Event)
}

fn mapped(fields: Fields<'_>) -> Result<Record, Refused> {
    fields.at_least(size_of::<Mapped>())?;
    fields.event(What::Mapped).map(Record::Event)
}

/// The kernel's sums as they are in its map and in records.
pub fn sums(of: &wire::Sums) -> Sums {
    let wire::Sums { first, last, launches, graph_launches, .. } = *of;
    let wire::Sums { copies, copy_bytes, sets, set_bytes, waits, wait_ns, captured, .. } = *of;
    Sums { first, last, launches, graph_launches, copies, copy_bytes, sets, set_bytes, waits, wait_ns, captured }
}

fn burst(fields: Fields<'_>) -> Result<Seen, Refused> {
    fields.at_least(size_of::<Burst>())?;
    let base = offset_of!(Burst, sums);
    let word = |at: usize| fields.u64(base + at);
    let array = |at: usize| -> Result<[u64; wire::COPIES], Refused> {
        let mut values = [0; wire::COPIES];
        for (index, value) in values.iter_mut().enumerate() {
            *value = word(at + 8 * index)?;
        }
        Ok(values)
    };
    Ok(Seen::Burst(Sums {
        first: word(offset_of!(wire::Sums, first))?,
        last: word(offset_of!(wire::Sums, last))?,
        launches: word(offset_of!(wire::Sums, launches))?,
        graph_launches: word(offset_of!(wire::Sums, graph_launches))?,
        copies: array(offset_of!(wire::Sums, copies))?,
        copy_bytes: array(offset_of!(wire::Sums, copy_bytes))?,
        sets: word(offset_of!(wire::Sums, sets))?,
        set_bytes: word(offset_of!(wire::Sums, set_bytes))?,
        waits: word(offset_of!(wire::Sums, waits))?,
        wait_ns: word(offset_of!(wire::Sums, wait_ns))?,
        captured: word(offset_of!(wire::Sums, captured))?,
    }))
}

/// The kernel's key as it is in its map and in records.
pub fn key(of: &wire::FunctionKey) -> Result<FunctionKey, Refused> {
    let api = match of.api {
        wire::API_DRIVER => Api::Driver,
        wire::API_RUNTIME => Api::Runtime,
        other => return Err(Refused::Field("api", u64::from(other))),
    };
    Ok(FunctionKey { process: of.process, epoch: of.epoch, function: of.function, api })
}

fn key_at(fields: Fields<'_>, base: usize) -> Result<FunctionKey, Refused> {
    key(&wire::FunctionKey {
        process: fields.u32(base + offset_of!(wire::FunctionKey, process))?,
        epoch: fields.u32(base + offset_of!(wire::FunctionKey, epoch))?,
        function: fields.u64(base + offset_of!(wire::FunctionKey, function))?,
        api: fields.u32(base + offset_of!(wire::FunctionKey, api))?,
        pad: 0,
    })
}

fn function(fields: Fields<'_>) -> Result<Seen, Refused> {
    fields.at_least(size_of::<Function>())?;
    let mut callers = [0; wire::CALLERS];
    for (index, caller) in callers.iter_mut().enumerate() {
        *caller = fields.u64(offset_of!(Function, callers) + 8 * index)?;
    }
    let len = fields.u32(offset_of!(Function, name_len))? as usize;
    if len >= wire::NAME_MAX {
        return Err(Refused::Field("name_len", len as u64));
    }
    let name = offset_of!(Function, name);
    let bytes = fields.0.get(name..name + len).ok_or(Refused::Short(fields.0.len()))?;
    let is_name = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic);
    let text = is_name.then(|| String::from_utf8_lossy(bytes).into_owned());
    Ok(Seen::Function { key: key_at(fields, offset_of!(Function, key))?, callers, text })
}

fn launch(fields: Fields<'_>) -> Result<Seen, Refused> {
    fields.at_least(size_of::<LaunchRecord>())?;
    let flags = u32::from(fields.u16(offset_of!(LaunchRecord, flags))?);
    let number = fields.u32(offset_of!(LaunchRecord, number))?;
    let is_captured = flags & wire::FLAG_CAPTURED != 0;
    let (grid, block) = (offset_of!(LaunchRecord, grid), offset_of!(LaunchRecord, block));
    Ok(Seen::Launch(Launch {
        key: FunctionKey {
            process: fields.process()?,
            epoch: fields.u32(offset_of!(LaunchRecord, epoch))?,
            function: fields.u64(offset_of!(LaunchRecord, function))?,
            api: if flags & wire::FLAG_RUNTIME == 0 { Api::Driver } else { Api::Runtime },
        },
        stream: fields.u64(offset_of!(LaunchRecord, stream))?,
        grid: [fields.u32(grid)?, fields.u32(grid + 4)?, fields.u32(grid + 8)?],
        block: [fields.u16(block)?, fields.u16(block + 2)?, fields.u16(block + 4)?].map(u32::from),
        shared: fields.u32(offset_of!(LaunchRecord, shared))?,
        capture: is_captured.then_some(number),
        weight: if is_captured { 1 } else { number.max(1) },
    }))
}

fn call(fields: Fields<'_>) -> Result<Record, Refused> {
    fields.at_least(size_of::<wire::Call>())?;
    let (a, b) = (fields.u64(offset_of!(wire::Call, a))?, fields.u64(offset_of!(wire::Call, b))?);
    let stream = fields.u64(offset_of!(wire::Call, stream))?;
    let collective = |kind| CallKind::Collective { kind, bytes: a, communicator: b };
    let what = match fields.u32(offset_of!(wire::Call, call))? {
        wire::CUDA_COPY => {
            let kind = usize::try_from(a).ok().and_then(|kind| CopyKind::ALL.get(kind));
            CallKind::Copy { kind: *kind.ok_or(Refused::Field("copy", a))?, bytes: b }
        }
        wire::CUDA_SET => CallKind::Set { bytes: b },
        wire::CUDA_WAIT_STREAM => CallKind::Wait { of: WaitOf::Stream },
        wire::CUDA_WAIT_EVENT => CallKind::Wait { of: WaitOf::Event },
        wire::CUDA_WAIT_DEVICE => CallKind::Wait { of: WaitOf::Device },
        wire::CUDA_ALLOC => CallKind::Alloc { address: a, bytes: b, live: stream },
        wire::CUDA_FREE => CallKind::Free { address: a, bytes: b, live: stream },
        wire::CUDA_HOST_ALLOC => CallKind::HostAlloc { address: a, bytes: b },
        wire::CUDA_HOST_FREE => CallKind::HostFree { address: a },
        wire::CUDA_CAPTURE_BEGIN => CallKind::CaptureBegin { number: a as u32, into: b },
        wire::CUDA_CAPTURE_END => CallKind::CaptureEnd { graph: a, number: b as u32, nodes: (b >> 32) as u32 },
        wire::CUDA_INSTANTIATE => CallKind::Instantiate { exec: a, graph: b },
        wire::CUDA_EXEC_DESTROY => CallKind::ExecDestroy { exec: a },
        wire::CUDA_EXEC_UPDATE => CallKind::ExecUpdate { exec: a },
        wire::CUDA_GRAPH_DESTROY => CallKind::GraphDestroy { graph: a },
        wire::CUDA_GRAPH_LAUNCH => CallKind::GraphLaunch { exec: a },
        wire::CUDA_UNLOAD => CallKind::Unload,
        wire::NCCL_ALL_REDUCE => collective(CollectiveKind::AllReduce),
        wire::NCCL_ALL_GATHER => collective(CollectiveKind::AllGather),
        wire::NCCL_REDUCE_SCATTER => collective(CollectiveKind::ReduceScatter),
        wire::NCCL_BROADCAST => collective(CollectiveKind::Broadcast),
        wire::NCCL_REDUCE => collective(CollectiveKind::Reduce),
        wire::NCCL_SEND => collective(CollectiveKind::Send),
        wire::NCCL_RECV => collective(CollectiveKind::Recv),
        wire::NCCL_ALL_TO_ALL => collective(CollectiveKind::AllToAll),
        wire::NCCL_GATHER => collective(CollectiveKind::Gather),
        wire::NCCL_SCATTER => collective(CollectiveKind::Scatter),
        other => return Err(Refused::Field("call", u64::from(other))),
    };
    let entered = fields.u64(offset_of!(wire::Call, entered))?;
    let call = Call {
        what,
        entered,
        // Of memory this is no stream.
        stream: if matches!(what, CallKind::Alloc { .. } | CallKind::Free { .. }) { 0 } else { stream },
        caller: fields.u64(offset_of!(wire::Call, caller))?,
        capture: Some(fields.u32(offset_of!(wire::Call, capture))?).filter(|number| *number != 0),
    };
    let event = fields.event(What::Cuda(Box::new(Seen::Call(call))))?;
    if entered > event.at {
        return Err(Refused::Field("entered", entered));
    }
    Ok(Record::Event(event))
}

#[cfg(test)]
mod tests {
    use super::super::{decode, tests::header};
    use super::*;
    use crate::input::Event;

    fn words(kind: u32, words: &[u64]) -> Vec<u8> {
        let mut bytes = header(kind);
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    fn what(bytes: &[u8]) -> Result<Seen, Refused> {
        match decode(bytes)? {
            Record::Event(Event { what: What::Cuda(seen), .. }) => Ok(*seen),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_copy_says_its_kind_and_bytes() {
        // entered 900 · copy (in no capture) · kind 2, 4096 bytes · stream 7 · caller 9
        let copy = words(wire::KIND_CUDA_CALL, &[900, u64::from(wire::CUDA_COPY), 2, 4096, 7, 9]);
        let expected = Call {
            what: CallKind::Copy { kind: CopyKind::DeviceToHost, bytes: 4096 },
            entered: 900,
            stream: 7,
            caller: 9,
            capture: None,
        };
        assert_eq!(what(&copy), Ok(Seen::Call(expected)));
        let unknown = words(wire::KIND_CUDA_CALL, &[900, u64::from(wire::CUDA_COPY), 6, 1, 0, 0]);
        assert_eq!(what(&unknown), Err(Refused::Field("copy", 6)));
    }

    #[test]
    fn memory_and_captures_say_what_was_counted() {
        let kind = |call: u32, capture: u64, a: u64, b: u64, stream: u64| match what(&words(
            wire::KIND_CUDA_CALL,
            &[900, u64::from(call) | capture << 32, a, b, stream, 9],
        )) {
            Ok(Seen::Call(call)) => (call.what, call.stream, call.capture),
            other => panic!("{other:?}"),
        };
        let alloc = CallKind::Alloc { address: 0x7000, bytes: 512, live: 4096 };
        assert_eq!(kind(wire::CUDA_ALLOC, 0, 0x7000, 512, 4096), (alloc, 0, None));
        let end = CallKind::CaptureEnd { graph: 5, number: 7, nodes: 3 };
        assert_eq!(kind(wire::CUDA_CAPTURE_END, 0, 5, 3 << 32 | 7, 1), (end, 1, None));
        assert_eq!(kind(wire::CUDA_SET, 7, 0, 8, 1), (CallKind::Set { bytes: 8 }, 1, Some(7)));
    }

    #[test]
    fn a_launch_says_its_function_and_shape() {
        let launch = |flags: u64| {
            // function · stream · epoch 3, flags, block 4 5 6 · grid 7 8 9 · 0xc000 bytes, number 2
            let fields: [u64; 6] =
                [0xf00, 7, 3 | flags << 32 | 4 << 48, 5 | 6 << 16 | 7 << 32, 8 | 9 << 32, 0xc000 | 2 << 32];
            what(&words(wire::KIND_CUDA_LAUNCH, &fields))
        };
        let key = FunctionKey { process: 42, epoch: 3, function: 0xf00, api: Api::Driver };
        let (grid, block) = ([7, 8, 9], [4, 5, 6]);
        let plain = Launch { key, stream: 7, grid, block, shared: 0xc000, capture: None, weight: 2 };
        assert_eq!(launch(0), Ok(Seen::Launch(plain)));
        let captured = Launch { capture: Some(2), weight: 1, ..plain };
        assert_eq!(launch(u64::from(wire::FLAG_CAPTURED)), Ok(Seen::Launch(captured)));
        let runtime = Launch { key: FunctionKey { api: Api::Runtime, ..key }, ..plain };
        assert_eq!(launch(u64::from(wire::FLAG_RUNTIME)), Ok(Seen::Launch(runtime)));
    }

    #[test]
    fn a_name_that_is_no_text_is_none() {
        let record = |name: &[u8]| {
            let mut bytes = words(wire::KIND_CUDA_FUNCTION, &[42, 0xf00, 0, 1, 2, 3, 4, name.len() as u64]);
            bytes.extend(name);
            bytes.resize(size_of::<Function>(), 0xAA);
            bytes
        };
        let text = |bytes: &[u8]| match what(bytes) {
            Ok(Seen::Function { text, .. }) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(&record(b"_Z3addPf")).as_deref(), Some("_Z3addPf"));
        assert_eq!(text(&record(b"\x7fELF")), None);
        assert_eq!(text(&record(b"")), None);
    }

    #[test]
    fn no_truncation_of_a_record_of_cuda_panics() {
        for kind in wire::KIND_CUDA_BURST..=wire::KIND_CUDA_CALL {
            let long = words(kind, &[1; 150]);
            for len in 0..long.len() {
                let _ = decode(&long[..len]);
            }
        }
    }
}
