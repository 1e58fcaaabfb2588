//! Launches at the CUDA driver: all of them pass here, whoever makes them.
//!
//! A statically linked runtime, cuBLAS, NCCL and Triton take the addresses of these very exports (`cuGetProcAddress_v2` gives them), so
//! that nothing is missed and nothing is seen twice. The driver's memory functions are not probed: UCX patches them in memory.

use tracer_ebpf::wire::cuda as wire;

use super::{CALL, Family, Find, Library, Program, RETURNING, Row, Scope, entry, exported};
use crate::attach::Level;
use crate::attach::exports::Exports;
use crate::input::{Probe, Role};

pub static DRIVER: Family = Family {
    what: "CUDA driver",
    without: "launches are not seen",
    probe: Probe::Cuda,
    library: Library::Soname(|soname| soname == "libcuda.so.1"),
    roles: RUNS_THE_MODEL,
    // A breakpoint would be in every process of the host that uses a GPU.
    scope: Scope::Process,
    level: Level::Steps,
    needs_messages: false,
    unless: None,
    likeness: Some("cuLaunchKernel"),
    names_kernels: true,
    points: Find::Exports(points),
    hidden: "it exports no launch function",
};

/// What runs the model. Front ends map CUDA as well, and launch nothing.
pub(super) const RUNS_THE_MODEL: &[Role] = &[Role::Engine, Role::Worker];

const LAUNCH: &[Program] = &entry("cuda_launch");
const LAUNCH_EX: &[Program] = &entry("cuda_launch_ex");
const GRAPH: &[Program] = &entry("cuda_graph_launch");

/// Captures and graphs are those of a program that has no runtime as well; of the runtime's own calls both are seen, and count once.
const POINTS: &[Row] = &[
    ("cuLaunchKernel", LAUNCH, 0),
    ("cuLaunchKernel_ptsz", LAUNCH, 0),
    ("cuLaunchKernelEx", LAUNCH_EX, 0),
    ("cuLaunchKernelEx_ptsz", LAUNCH_EX, 0),
    ("cuLaunchCooperativeKernel", LAUNCH, 0),
    ("cuLaunchCooperativeKernel_ptsz", LAUNCH, 0),
    ("cuGraphLaunch", GRAPH, 0),
    ("cuGraphLaunch_ptsz", GRAPH, 0),
    // Handles may be given out again behind these.
    ("cuModuleUnload", CALL, wire::CUDA_UNLOAD),
    ("cuLibraryUnload", CALL, wire::CUDA_UNLOAD),
    ("cuCtxDestroy", CALL, wire::CUDA_UNLOAD),
    ("cuCtxDestroy_v2", CALL, wire::CUDA_UNLOAD),
    ("cuDevicePrimaryCtxReset", CALL, wire::CUDA_UNLOAD),
    ("cuDevicePrimaryCtxReset_v2", CALL, wire::CUDA_UNLOAD),
    ("cuDevicePrimaryCtxRelease", CALL, wire::CUDA_UNLOAD),
    ("cuDevicePrimaryCtxRelease_v2", CALL, wire::CUDA_UNLOAD),
    ("cuEventRecord", CALL, wire::CUDA_EVENT_RECORD),
    ("cuEventRecord_ptsz", CALL, wire::CUDA_EVENT_RECORD),
    ("cuEventRecordWithFlags", CALL, wire::CUDA_EVENT_RECORD),
    ("cuEventRecordWithFlags_ptsz", CALL, wire::CUDA_EVENT_RECORD),
    ("cuStreamWaitEvent", CALL, wire::CUDA_STREAM_WAIT),
    ("cuStreamWaitEvent_ptsz", CALL, wire::CUDA_STREAM_WAIT),
    ("cuStreamBeginCapture", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cuStreamBeginCapture_ptsz", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cuStreamBeginCapture_v2", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cuStreamBeginCapture_v2_ptsz", RETURNING, wire::CUDA_CAPTURE_BEGIN),
    ("cuStreamBeginCaptureToGraph", RETURNING, wire::CUDA_CAPTURE_BEGIN_INTO),
    ("cuStreamBeginCaptureToGraph_ptsz", RETURNING, wire::CUDA_CAPTURE_BEGIN_INTO),
    ("cuStreamEndCapture", RETURNING, wire::CUDA_CAPTURE_END),
    ("cuStreamEndCapture_ptsz", RETURNING, wire::CUDA_CAPTURE_END),
    ("cuGraphInstantiate", RETURNING, wire::CUDA_INSTANTIATE),
    ("cuGraphInstantiate_v2", RETURNING, wire::CUDA_INSTANTIATE),
    ("cuGraphInstantiateWithFlags", RETURNING, wire::CUDA_INSTANTIATE),
    ("cuGraphInstantiateWithParams", RETURNING, wire::CUDA_INSTANTIATE),
    ("cuGraphInstantiateWithParams_ptsz", RETURNING, wire::CUDA_INSTANTIATE),
    ("cuGraphDestroy", CALL, wire::CUDA_GRAPH_DESTROY),
    ("cuGraphExecDestroy", CALL, wire::CUDA_EXEC_DESTROY),
    ("cuGraphExecUpdate", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphExecUpdate_v2", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphExecKernelNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphExecKernelNodeSetParams_v2", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphExecMemcpyNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphExecMemsetNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphExecChildGraphNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphExecNodeSetParams", CALL, wire::CUDA_EXEC_UPDATE),
    ("cuGraphNodeSetEnabled", CALL, wire::CUDA_EXEC_UPDATE),
];

fn points(exports: &Exports) -> Option<Vec<super::Point>> {
    // TileLang's stub exports launches, and is none.
    let is_driver = ["cuInit", "cuDriverGetVersion", "cuGetProcAddress_v2"].iter().all(|name| exports.has(name));
    is_driver.then(|| exported(exports, POINTS))
}
