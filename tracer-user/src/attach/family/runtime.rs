//! The CUDA runtime: copies, waits, memory, captures, graphs; and launches where no driver is mapped.
//!
//! A runtime that is linked statically into another library has no exports, and shows nothing here.

use tracer_ebpf::wire::cuda as wire;

use super::driver::{DRIVER, RUNS_THE_MODEL};
use super::{At, Family, Find, Library, Point, Program, Scope};
use crate::attach::Level;
use crate::attach::code::once_each;
use crate::attach::exports::Exports;
use crate::input::Probe;

/// Launches at the runtime: on a host without a driver (tests), never besides it.
pub static LAUNCHES: Family = Family {
    what: "launches of the CUDA runtime",
    without: "launches are not seen",
    probe: Probe::Cuda,
    library: Library::Soname(is_runtime),
    roles: RUNS_THE_MODEL,
    scope: Scope::Process,
    level: Level::Steps,
    needs_messages: false,
    unless: Some(&DRIVER),
    points: Find::Exports(|exports| find(exports, &LAUNCH_POINTS)),
    hidden: "it exports no launch function",
};

pub static CALLS: Family = Family {
    what: "CUDA runtime",
    without: "copies, waits and memory are not seen",
    probe: Probe::Cuda,
    library: Library::Soname(is_runtime),
    roles: RUNS_THE_MODEL,
    scope: Scope::Process,
    level: Level::Steps,
    needs_messages: false,
    unless: None,
    points: Find::Exports(|exports| find(exports, &CALL_POINTS)),
    hidden: "it exports none of the functions that are probed",
};

fn is_runtime(soname: &str) -> bool {
    soname.starts_with("libcudart.so.")
}

type Row = (&'static str, &'static [Program], u32);

fn find(exports: &Exports, rows: &[Row]) -> Option<Vec<Point>> {
    let found = rows.iter().filter_map(|(symbol, programs, call)| exports.point(programs, *call, symbol));
    exports.has("cudaRuntimeGetVersion").then(|| once_each(found.collect()))
}

const fn entry(name: &'static str) -> [Program; 1] {
    [Program { name, at: At::Quickest }]
}

const LAUNCH: &[Program] = &entry("cuda_runtime_launch");
const LAUNCH_EX: &[Program] = &entry("cuda_runtime_launch_ex");
const GRAPH: &[Program] = &entry("cuda_graph_launch");
const MOVE: &[Program] = &entry("cuda_move");
const CALL: &[Program] = &entry("cuda_call");
const TIMED: &[Program] =
    &[Program { name: "cuda_entry", at: At::Quickest }, Program { name: "cuda_return", at: At::Return }];

/// `__cudaLaunchKernel` jumps to `cudaLaunchKernel`: one point sees both.
const LAUNCH_POINTS: [Row; 8] = [
    ("cudaLaunchKernel", LAUNCH, 0),
    ("cudaLaunchKernel_ptsz", LAUNCH, 0),
    ("cudaLaunchKernelExC", LAUNCH_EX, 0),
    ("cudaLaunchKernelExC_ptsz", LAUNCH_EX, 0),
    ("cudaLaunchCooperativeKernel", LAUNCH, 0),
    ("cudaLaunchCooperativeKernel_ptsz", LAUNCH, 0),
    ("cudaGraphLaunch", GRAPH, 0),
    ("cudaGraphLaunch_ptsz", GRAPH, 0),
];

const CALL_POINTS: [Row; 49] = [
    ("cudaMemcpy", MOVE, wire::CUDA_COPY),
    ("cudaMemcpy_ptds", MOVE, wire::CUDA_COPY),
    ("cudaMemcpyAsync", MOVE, wire::CUDA_COPY_ASYNC),
    ("cudaMemcpyAsync_ptsz", MOVE, wire::CUDA_COPY_ASYNC),
    ("cudaMemcpy2D", MOVE, wire::CUDA_COPY_2D),
    ("cudaMemcpy2D_ptds", MOVE, wire::CUDA_COPY_2D),
    ("cudaMemcpy2DAsync", MOVE, wire::CUDA_COPY_2D_ASYNC),
    ("cudaMemcpy2DAsync_ptsz", MOVE, wire::CUDA_COPY_2D_ASYNC),
    ("cudaMemcpyPeer", MOVE, wire::CUDA_COPY_PEER),
    ("cudaMemcpyPeerAsync", MOVE, wire::CUDA_COPY_PEER_ASYNC),
    ("cudaMemset", MOVE, wire::CUDA_SET),
    ("cudaMemset_ptds", MOVE, wire::CUDA_SET),
    ("cudaMemsetAsync", MOVE, wire::CUDA_SET_ASYNC),
    ("cudaMemsetAsync_ptsz", MOVE, wire::CUDA_SET_ASYNC),
    ("cudaStreamSynchronize", TIMED, wire::CUDA_WAIT_STREAM),
    ("cudaStreamSynchronize_ptsz", TIMED, wire::CUDA_WAIT_STREAM),
    ("cudaEventSynchronize", TIMED, wire::CUDA_WAIT_EVENT),
    ("cudaDeviceSynchronize", TIMED, wire::CUDA_WAIT_DEVICE),
    ("cudaEventRecord", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaEventRecord_ptsz", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaEventRecordWithFlags", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaEventRecordWithFlags_ptsz", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaStreamWaitEvent", CALL, wire::CUDA_STREAM_WAIT),
    ("cudaStreamWaitEvent_ptsz", CALL, wire::CUDA_STREAM_WAIT),
    ("cudaMalloc", TIMED, wire::CUDA_ALLOC),
    ("cudaMallocAsync", TIMED, wire::CUDA_ALLOC),
    ("cudaMallocAsync_ptsz", TIMED, wire::CUDA_ALLOC),
    ("cudaMallocManaged", TIMED, wire::CUDA_ALLOC),
    ("cudaFree", CALL, wire::CUDA_FREE),
    ("cudaFreeAsync", CALL, wire::CUDA_FREE),
    ("cudaFreeAsync_ptsz", CALL, wire::CUDA_FREE),
    ("cudaHostAlloc", TIMED, wire::CUDA_HOST_ALLOC),
    ("cudaMallocHost", TIMED, wire::CUDA_HOST_ALLOC),
    ("cudaFreeHost", CALL, wire::CUDA_HOST_FREE),
    ("cudaStreamBeginCapture", CALL, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginCapture_ptsz", CALL, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginCaptureToGraph", CALL, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginCaptureToGraph_ptsz", CALL, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginRecaptureToGraph", CALL, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginRecaptureToGraph_ptsz", CALL, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamEndCapture", TIMED, wire::CUDA_CAPTURE_END),
    ("cudaStreamEndCapture_ptsz", TIMED, wire::CUDA_CAPTURE_END),
    ("cudaGraphInstantiate", TIMED, wire::CUDA_INSTANTIATE),
    ("cudaGraphInstantiateWithFlags", TIMED, wire::CUDA_INSTANTIATE),
    ("cudaGraphInstantiateWithParams", TIMED, wire::CUDA_INSTANTIATE),
    ("cudaGraphInstantiateWithParams_ptsz", TIMED, wire::CUDA_INSTANTIATE),
    ("cudaGraphExecDestroy", CALL, wire::CUDA_EXEC_DESTROY),
    ("cudaGraphExecUpdate", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecKernelNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
];
