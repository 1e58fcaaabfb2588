//! The CUDA runtime: copies, waits, memory, captures, graphs; and launches where no driver is mapped.
//!
//! A runtime that is linked statically into another library has no exports, and shows nothing here.

use tracer_ebpf::wire::cuda as wire;

use super::driver::{DRIVER, RUNS_THE_MODEL};
use super::{CALL, Family, Find, Library, Point, Program, RETURNING, Row, Scope, entry, exported};
use crate::attach::Level;
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
    likeness: Some("cudaLaunchKernel"),
    names_kernels: false,
    points: Find::Exports(|exports| find(exports, LAUNCH_POINTS)),
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
    likeness: Some("cudaMemcpyAsync"),
    names_kernels: false,
    points: Find::Exports(|exports| find(exports, CALL_POINTS)),
    hidden: "it exports none of the functions that are probed",
};

fn is_runtime(soname: &str) -> bool {
    soname.starts_with("libcudart.so.")
}

fn find(exports: &Exports, rows: &[Row]) -> Option<Vec<Point>> {
    let mut points = exported(exports, rows);
    if exports.soname() == Some("libcudart.so.12") {
        // Its calls of many copies have a `failIdx` before the flags and the stream, which 13 has not.
        for point in &mut points {
            match point.function & !wire::PER_THREAD {
                wire::CUDA_COPY_BATCH => point.function ^= wire::CUDA_COPY_BATCH ^ wire::CUDA_COPY_BATCH_12,
                wire::CUDA_COPY_3D_BATCH => point.function ^= wire::CUDA_COPY_3D_BATCH ^ wire::CUDA_COPY_3D_BATCH_12,
                _ => {}
            }
        }
    }
    exports.has("cudaRuntimeGetVersion").then_some(points)
}

const LAUNCH: &[Program] = &entry("cuda_runtime_launch");
const LAUNCH_EX: &[Program] = &entry("cuda_runtime_launch_ex");
const GRAPH: &[Program] = &entry("cuda_graph_launch");
const MOVE: &[Program] = &entry("cuda_move");
const BATCH: &[Program] = &entry("cuda_move_batch");
const BATCH_3D: &[Program] = &entry("cuda_move_3d_batch");

/// `__cudaLaunchKernel` jumps to `cudaLaunchKernel`: one point sees both.
const LAUNCH_POINTS: &[Row] = &[
    ("cudaLaunchKernel", LAUNCH, 0),
    ("cudaLaunchKernel_ptsz", LAUNCH, 0),
    ("cudaLaunchKernelExC", LAUNCH_EX, 0),
    ("cudaLaunchKernelExC_ptsz", LAUNCH_EX, 0),
    ("cudaLaunchCooperativeKernel", LAUNCH, 0),
    ("cudaLaunchCooperativeKernel_ptsz", LAUNCH, 0),
    ("cudaGraphLaunch", GRAPH, 0),
    ("cudaGraphLaunch_ptsz", GRAPH, 0),
    // Behind these another function may be registered at the same address, or have the same handle.
    ("__cudaUnregisterFatBinary", CALL, wire::CUDA_UNLOAD),
    ("cudaLibraryUnload", CALL, wire::CUDA_UNLOAD),
    ("cudaDeviceReset", CALL, wire::CUDA_UNLOAD),
];

const CALL_POINTS: &[Row] = &[
    ("cudaMemcpy", MOVE, wire::CUDA_COPY),
    ("cudaMemcpy_ptds", MOVE, wire::CUDA_COPY),
    ("cudaMemcpyAsync", MOVE, wire::CUDA_COPY_ASYNC),
    ("cudaMemcpyAsync_ptsz", MOVE, wire::CUDA_COPY_ASYNC),
    ("cudaMemcpy2D", MOVE, wire::CUDA_COPY_2D),
    ("cudaMemcpy2D_ptds", MOVE, wire::CUDA_COPY_2D),
    ("cudaMemcpy2DAsync", MOVE, wire::CUDA_COPY_2D_ASYNC),
    ("cudaMemcpy2DAsync_ptsz", MOVE, wire::CUDA_COPY_2D_ASYNC),
    ("cudaMemcpy3D", MOVE, wire::CUDA_COPY_3D),
    ("cudaMemcpy3D_ptds", MOVE, wire::CUDA_COPY_3D),
    ("cudaMemcpy3DAsync", MOVE, wire::CUDA_COPY_3D_ASYNC),
    ("cudaMemcpy3DAsync_ptsz", MOVE, wire::CUDA_COPY_3D_ASYNC),
    ("cudaMemcpyPeer", MOVE, wire::CUDA_COPY_PEER),
    ("cudaMemcpyPeerAsync", MOVE, wire::CUDA_COPY_PEER_ASYNC),
    ("cudaMemcpy3DPeer", MOVE, wire::CUDA_COPY_3D_PEER),
    ("cudaMemcpy3DPeer_ptds", MOVE, wire::CUDA_COPY_3D_PEER),
    ("cudaMemcpy3DPeerAsync", MOVE, wire::CUDA_COPY_3D_PEER_ASYNC),
    ("cudaMemcpy3DPeerAsync_ptsz", MOVE, wire::CUDA_COPY_3D_PEER_ASYNC),
    ("cudaMemcpyToSymbol", MOVE, wire::CUDA_COPY_SYMBOL),
    ("cudaMemcpyToSymbol_ptds", MOVE, wire::CUDA_COPY_SYMBOL),
    ("cudaMemcpyToSymbolAsync", MOVE, wire::CUDA_COPY_SYMBOL_ASYNC),
    ("cudaMemcpyToSymbolAsync_ptsz", MOVE, wire::CUDA_COPY_SYMBOL_ASYNC),
    ("cudaMemcpyFromSymbol", MOVE, wire::CUDA_COPY_SYMBOL),
    ("cudaMemcpyFromSymbol_ptds", MOVE, wire::CUDA_COPY_SYMBOL),
    ("cudaMemcpyFromSymbolAsync", MOVE, wire::CUDA_COPY_SYMBOL_ASYNC),
    ("cudaMemcpyFromSymbolAsync_ptsz", MOVE, wire::CUDA_COPY_SYMBOL_ASYNC),
    ("cudaMemcpyToArray", MOVE, wire::CUDA_COPY_ARRAY),
    ("cudaMemcpyToArray_ptds", MOVE, wire::CUDA_COPY_ARRAY),
    ("cudaMemcpyToArrayAsync", MOVE, wire::CUDA_COPY_ARRAY_ASYNC),
    ("cudaMemcpyToArrayAsync_ptsz", MOVE, wire::CUDA_COPY_ARRAY_ASYNC),
    ("cudaMemcpy2DToArray", MOVE, wire::CUDA_COPY_ARRAY_2D),
    ("cudaMemcpy2DToArray_ptds", MOVE, wire::CUDA_COPY_ARRAY_2D),
    ("cudaMemcpy2DToArrayAsync", MOVE, wire::CUDA_COPY_ARRAY_2D_ASYNC),
    ("cudaMemcpy2DToArrayAsync_ptsz", MOVE, wire::CUDA_COPY_ARRAY_2D_ASYNC),
    ("cudaMemcpyFromArray", MOVE, wire::CUDA_COPY_ARRAY),
    ("cudaMemcpyFromArray_ptds", MOVE, wire::CUDA_COPY_ARRAY),
    ("cudaMemcpyFromArrayAsync", MOVE, wire::CUDA_COPY_ARRAY_ASYNC),
    ("cudaMemcpyFromArrayAsync_ptsz", MOVE, wire::CUDA_COPY_ARRAY_ASYNC),
    ("cudaMemcpy2DFromArray", MOVE, wire::CUDA_COPY_ARRAY_2D),
    ("cudaMemcpy2DFromArray_ptds", MOVE, wire::CUDA_COPY_ARRAY_2D),
    ("cudaMemcpy2DFromArrayAsync", MOVE, wire::CUDA_COPY_ARRAY_2D_ASYNC),
    ("cudaMemcpy2DFromArrayAsync_ptsz", MOVE, wire::CUDA_COPY_ARRAY_2D_ASYNC),
    ("cudaMemcpyArrayToArray", MOVE, wire::CUDA_COPY_ARRAYS),
    ("cudaMemcpyArrayToArray_ptds", MOVE, wire::CUDA_COPY_ARRAYS),
    ("cudaMemcpy2DArrayToArray", MOVE, wire::CUDA_COPY_ARRAYS_2D),
    ("cudaMemcpy2DArrayToArray_ptds", MOVE, wire::CUDA_COPY_ARRAYS_2D),
    ("cudaMemcpyBatchAsync", BATCH, wire::CUDA_COPY_BATCH),
    ("cudaMemcpyBatchAsync_ptsz", BATCH, wire::CUDA_COPY_BATCH),
    ("cudaMemcpy3DBatchAsync", BATCH_3D, wire::CUDA_COPY_3D_BATCH),
    ("cudaMemcpy3DBatchAsync_ptsz", BATCH_3D, wire::CUDA_COPY_3D_BATCH),
    ("cudaMemset", MOVE, wire::CUDA_SET),
    ("cudaMemset_ptds", MOVE, wire::CUDA_SET),
    ("cudaMemsetAsync", MOVE, wire::CUDA_SET_ASYNC),
    ("cudaMemsetAsync_ptsz", MOVE, wire::CUDA_SET_ASYNC),
    ("cudaMemset2D", MOVE, wire::CUDA_SET_2D),
    ("cudaMemset2D_ptds", MOVE, wire::CUDA_SET_2D),
    ("cudaMemset2DAsync", MOVE, wire::CUDA_SET_2D_ASYNC),
    ("cudaMemset2DAsync_ptsz", MOVE, wire::CUDA_SET_2D_ASYNC),
    ("cudaMemset3D", MOVE, wire::CUDA_SET_3D),
    ("cudaMemset3D_ptds", MOVE, wire::CUDA_SET_3D),
    ("cudaMemset3DAsync", MOVE, wire::CUDA_SET_3D_ASYNC),
    ("cudaMemset3DAsync_ptsz", MOVE, wire::CUDA_SET_3D_ASYNC),
    ("cudaStreamSynchronize", RETURNING, wire::CUDA_WAIT_STREAM),
    ("cudaStreamSynchronize_ptsz", RETURNING, wire::CUDA_WAIT_STREAM),
    ("cudaEventSynchronize", RETURNING, wire::CUDA_WAIT_EVENT),
    ("cudaDeviceSynchronize", RETURNING, wire::CUDA_WAIT_DEVICE),
    ("cudaThreadSynchronize", RETURNING, wire::CUDA_WAIT_DEVICE),
    ("cudaEventRecord", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaEventRecord_ptsz", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaEventRecordWithFlags", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaEventRecordWithFlags_ptsz", CALL, wire::CUDA_EVENT_RECORD),
    ("cudaStreamWaitEvent", CALL, wire::CUDA_STREAM_WAIT),
    ("cudaStreamWaitEvent_ptsz", CALL, wire::CUDA_STREAM_WAIT),
    ("cudaMalloc", RETURNING, wire::CUDA_ALLOC),
    ("cudaMallocAsync", RETURNING, wire::CUDA_ALLOC),
    ("cudaMallocAsync_ptsz", RETURNING, wire::CUDA_ALLOC),
    ("cudaMallocFromPoolAsync", RETURNING, wire::CUDA_ALLOC),
    ("cudaMallocFromPoolAsync_ptsz", RETURNING, wire::CUDA_ALLOC),
    ("cudaMallocManaged", RETURNING, wire::CUDA_ALLOC),
    ("cudaMallocPitch", RETURNING, wire::CUDA_ALLOC_PITCH),
    ("cudaMalloc3D", RETURNING, wire::CUDA_ALLOC_3D),
    ("cudaFree", CALL, wire::CUDA_FREE),
    ("cudaFreeAsync", CALL, wire::CUDA_FREE),
    ("cudaFreeAsync_ptsz", CALL, wire::CUDA_FREE),
    ("cudaHostAlloc", RETURNING, wire::CUDA_HOST_ALLOC),
    ("cudaMallocHost", RETURNING, wire::CUDA_HOST_ALLOC),
    ("cudaHostRegister", RETURNING, wire::CUDA_HOST_REGISTER),
    ("cudaFreeHost", CALL, wire::CUDA_HOST_FREE),
    ("cudaHostUnregister", CALL, wire::CUDA_HOST_FREE),
    ("cudaStreamBeginCapture", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginCapture_ptsz", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginCaptureToGraph", RETURNING, wire::CUDA_CAPTURE_BEGIN_INTO),
    ("cudaStreamBeginCaptureToGraph_ptsz", RETURNING, wire::CUDA_CAPTURE_BEGIN_INTO),
    ("cudaStreamBeginRecaptureToGraph", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamBeginRecaptureToGraph_ptsz", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cudaStreamEndCapture", RETURNING, wire::CUDA_CAPTURE_END),
    ("cudaStreamEndCapture_ptsz", RETURNING, wire::CUDA_CAPTURE_END),
    ("cudaGraphInstantiate", RETURNING, wire::CUDA_INSTANTIATE),
    ("cudaGraphInstantiateWithFlags", RETURNING, wire::CUDA_INSTANTIATE),
    ("cudaGraphInstantiateWithParams", RETURNING, wire::CUDA_INSTANTIATE),
    ("cudaGraphInstantiateWithParams_ptsz", RETURNING, wire::CUDA_INSTANTIATE),
    ("cudaGraphDestroy", CALL, wire::CUDA_GRAPH_DESTROY),
    ("cudaGraphExecDestroy", CALL, wire::CUDA_EXEC_DESTROY),
    ("cudaGraphExecUpdate", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecKernelNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecMemcpyNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecMemcpyNodeSetParams1D", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecMemcpyNodeSetParamsToSymbol", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecMemcpyNodeSetParamsFromSymbol", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecMemsetNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecChildGraphNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphExecNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cudaGraphNodeSetEnabled", CALL, wire::CUDA_EXEC_UPDATE),
];
