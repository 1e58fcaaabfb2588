//! Launches at the CUDA driver: all of them pass here, whoever makes them.
//!
//! A statically linked runtime, cuBLAS, NCCL and Triton take the addresses of these very exports (`cuGetProcAddress_v2` gives them), so
//! that nothing is missed and nothing is seen twice. The driver's memory functions are not probed: UCX patches them in memory.

use tracer_ebpf::wire::cuda::{CUDA_CAPTURE_BEGIN, CUDA_CAPTURE_END, CUDA_EXEC_DESTROY, CUDA_INSTANTIATE, CUDA_UNLOAD};

use super::{At, Family, Find, Library, Program, Scope};
use crate::attach::Level;
use crate::attach::code::once_each;
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
    points: Find::Exports(points),
    hidden: "it exports no launch function",
};

/// What runs the model. Front ends map CUDA as well, and launch nothing.
pub(super) const RUNS_THE_MODEL: &[Role] = &[Role::Engine, Role::Worker];

const fn entry(name: &'static str) -> [Program; 1] {
    [Program { name, at: At::Quickest }]
}

const LAUNCH: &[Program] = &entry("cuda_launch");
const LAUNCH_EX: &[Program] = &entry("cuda_launch_ex");
const GRAPH: &[Program] = &entry("cuda_graph_launch");
const CALL: &[Program] = &entry("cuda_call");
const TIMED: &[Program] =
    &[Program { name: "cuda_entry", at: At::Quickest }, Program { name: "cuda_return", at: At::Return }];

/// Symbols, what runs there, and as which call.
const POINTS: [(&str, &[Program], u32); 19] = [
    ("cuLaunchKernel", LAUNCH, 0),
    ("cuLaunchKernel_ptsz", LAUNCH, 0),
    ("cuLaunchKernelEx", LAUNCH_EX, 0),
    ("cuLaunchKernelEx_ptsz", LAUNCH_EX, 0),
    ("cuLaunchCooperativeKernel", LAUNCH, 0),
    ("cuLaunchCooperativeKernel_ptsz", LAUNCH, 0),
    ("cuGraphLaunch", GRAPH, 0),
    ("cuGraphLaunch_ptsz", GRAPH, 0),
    // Handles may be given out again behind these.
    ("cuModuleUnload", CALL, CUDA_UNLOAD),
    ("cuLibraryUnload", CALL, CUDA_UNLOAD),
    ("cuCtxDestroy_v2", CALL, CUDA_UNLOAD),
    // Those of a program that has no runtime; of the runtime's own calls both are seen, and count once.
    ("cuStreamBeginCapture_v2", CALL, CUDA_CAPTURE_BEGIN),
    ("cuStreamBeginCapture_v2_ptsz", CALL, CUDA_CAPTURE_BEGIN),
    ("cuStreamEndCapture", TIMED, CUDA_CAPTURE_END),
    ("cuStreamEndCapture_ptsz", TIMED, CUDA_CAPTURE_END),
    ("cuGraphInstantiateWithFlags", TIMED, CUDA_INSTANTIATE),
    ("cuGraphInstantiateWithParams", TIMED, CUDA_INSTANTIATE),
    ("cuGraphInstantiateWithParams_ptsz", TIMED, CUDA_INSTANTIATE),
    ("cuGraphExecDestroy", CALL, CUDA_EXEC_DESTROY),
];

fn points(exports: &Exports) -> Option<Vec<super::Point>> {
    // TileLang's stub exports launches, and is none.
    let is_driver = ["cuInit", "cuDriverGetVersion", "cuGetProcAddress_v2"].iter().all(|name| exports.has(name));
    let found = POINTS.iter().filter_map(|(symbol, programs, call)| exports.point(programs, *call, symbol));
    is_driver.then(|| once_each(found.collect()))
}
