//! Collectives of NCCL.

use tracer_ebpf::wire::cuda as wire;

use super::driver::RUNS_THE_MODEL;
use super::{At, Family, Find, Library, Point, Program, Scope};
use crate::attach::Level;
use crate::attach::code::once_each;
use crate::attach::exports::Exports;
use crate::input::Probe;

pub static COLLECTIVES: Family = Family {
    what: "NCCL",
    without: "collectives are not seen",
    probe: Probe::Cuda,
    library: Library::Soname(|soname| soname == "libnccl.so.2"),
    roles: RUNS_THE_MODEL,
    scope: Scope::Process,
    level: Level::Steps,
    needs_messages: false,
    unless: None,
    points: Find::Exports(points),
    hidden: "it exports none of the functions that are probed",
};

const CALL: &[Program] = &[Program { name: "nccl_call", at: At::Quickest }];

const POINTS: [(&str, u32); 8] = [
    ("ncclAllReduce", wire::NCCL_ALL_REDUCE),
    ("ncclAllGather", wire::NCCL_ALL_GATHER),
    ("ncclReduceScatter", wire::NCCL_REDUCE_SCATTER),
    ("ncclBroadcast", wire::NCCL_BROADCAST),
    ("ncclReduce", wire::NCCL_REDUCE),
    ("ncclSend", wire::NCCL_SEND),
    ("ncclRecv", wire::NCCL_RECV),
    ("ncclAlltoAll", wire::NCCL_ALL_TO_ALL),
];

fn points(exports: &Exports) -> Option<Vec<Point>> {
    let found = POINTS.iter().filter_map(|(symbol, call)| exports.point(CALL, *call, symbol));
    exports.has("ncclGetVersion").then(|| once_each(found.collect()))
}
