//! Collectives of NCCL.

use tracer_ebpf::wire::cuda as wire;

use super::driver::RUNS_THE_MODEL;
use super::{At, Family, Find, Library, Program, Row, Scope, entry, exported};
use crate::attach::Level;
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
    likeness: Some("ncclAllReduce"),
    names_kernels: false,
    points: Find::Exports(|exports| Some(exported(exports, POINTS))),
    hidden: "it exports none of the functions that are probed",
};

const CALL: &[Program] = &entry("nccl_call");
/// It may go on to `ncclBroadcast`, which does not count until it returns.
const BCAST: &[Program] =
    &[Program { name: "nccl_call", at: At::Quickest }, Program { name: "nccl_return", at: At::Return }];

const POINTS: &[Row] = &[
    ("ncclAllReduce", CALL, wire::NCCL_ALL_REDUCE),
    ("ncclAllGather", CALL, wire::NCCL_ALL_GATHER),
    ("ncclReduceScatter", CALL, wire::NCCL_REDUCE_SCATTER),
    ("ncclBroadcast", CALL, wire::NCCL_BROADCAST),
    ("ncclBcast", BCAST, wire::NCCL_BCAST),
    ("ncclReduce", CALL, wire::NCCL_REDUCE),
    ("ncclSend", CALL, wire::NCCL_SEND),
    ("ncclRecv", CALL, wire::NCCL_RECV),
    ("ncclAlltoAll", CALL, wire::NCCL_ALL_TO_ALL),
    ("ncclGather", CALL, wire::NCCL_GATHER),
    ("ncclScatter", CALL, wire::NCCL_SCATTER),
];
