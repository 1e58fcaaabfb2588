//! Made-up CUDA calls of an engine with two ranks, as the pure side would say them.
//!
//! ```text
//! step 0    ├───────────────10 ms──────────────┤ step 1, 2, … follow
//! rank 0      launch launch copy graph collective ├─wait─┤   stream 0x0, 0x70
//! rank 1      launch launch copy graph collective ├─wait─┤
//! ```

use std::sync::Arc;

use inferspan::engine::SchedulerStats;
use inferspan::input::Role;
use inferspan::output::cuda::{Class, CollectiveKind, CopyKind, CudaCall, CudaWhat, KernelName, NamedBy, WaitOf};
use inferspan::output::{EngineStep, Output, ServerProcess, SpanId, TraceId, UnixNanos};

use crate::outputs::{EPOCH_NS, server};

const MS: u64 = 1_000_000;
/// Processes of the ranks of engine 0.
pub const RANKS: [u32; 2] = [5000, 5001];
/// Calls of a rank in a step, but for those that say its memory.
pub const CALLS: usize = 6;
/// A handle that a 53-bit number does not hold.
pub const STREAM: u64 = 0xffff_8000_1234_5678;

pub fn kernel(n: usize) -> Arc<KernelName> {
    let short = ["flash_fwd_kernel", "ampere_gemm_128x64"][n % 2];
    Arc::new(KernelName {
        name: format!("_ZN{}{short}Ev", short.len()),
        demangled: format!("void ns::{short}<float>(int)"),
        short: short.to_owned(),
        class: [Class::Attention, Class::Gemm][n % 2],
        named_by: NamedBy::Symbol,
    })
}

pub fn step_id(n: u8) -> (TraceId, SpanId) {
    (TraceId([0xe0, n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]), SpanId([0xe1, n, 2, 3, 4, 5, 6, 7]))
}

pub fn step(n: u8) -> EngineStep {
    let start_ns = EPOCH_NS + u64::from(n) * 10 * MS;
    EngineStep {
        cuda: None,
        server: server(),
        trace_id: step_id(n).0,
        span_id: step_id(n).1,
        engine: 0,
        start_ns,
        end_ns: start_ns + 10 * MS,
        requests: 3,
        tokens: 3,
        first_tokens: 0,
        prefill_tokens: 0,
        decode_tokens: 3,
        batch: Box::default(),
        stats: Some(SchedulerStats {
            running: 3,
            waiting: u64::from(n),
            kv_cache_usage: 0.25,
            ..SchedulerStats::default()
        }),
    }
}

/// The calls of a rank in step `n`, in order.
pub fn calls(n: u8, rank: u32) -> Vec<CudaCall> {
    let process = RANKS[rank as usize];
    let at = step(n).start_ns + MS + u64::from(rank) * 1000;
    let launch =
        |k| CudaWhat::Launch { kernel: kernel(k), grid: [128, 2, 1], block: [256, 1, 1], shared: 49_152, weight: 1 };
    let whats = [
        (launch(0), Some(0), None),
        (launch(1), Some(STREAM), None),
        (CudaWhat::Copy { kind: CopyKind::HostToDevice, bytes: 4096 }, Some(0), None),
        (
            CudaWhat::GraphLaunch {
                graph: 0xabc,
                nodes: Some(412),
                kernels: vec![(kernel(0), 300), (kernel(1), 112)],
                changed: n == 1,
                replays: u64::from(n) + 1,
            },
            Some(STREAM),
            None,
        ),
        (
            CudaWhat::Collective { kind: CollectiveKind::AllReduce, bytes: 1 << 20, communicator: 0xdef },
            Some(STREAM),
            None,
        ),
        (CudaWhat::Wait { of: WaitOf::Stream }, Some(STREAM), Some(5 * MS)),
        (CudaWhat::Memory { live: (1 << 34) + u64::from(n), peak: 1 << 35 }, None, None),
    ];
    let calls = whats.into_iter().enumerate().map(|(k, (what, stream, lasts))| {
        let start = at + k as u64 * 100_000;
        CudaCall {
            server: server(),
            process,
            thread: process + 7,
            engine: Some(0),
            rank: Some(rank),
            start: UnixNanos(start),
            end: lasts.map(|lasts| UnixNanos(start + lasts)),
            stream,
            step: Some(step_id(n)),
            what,
        }
    });
    calls.collect()
}

/// A server with an engine of two ranks that makes `steps` steps.
pub fn all(steps: u8) -> Vec<Output> {
    let process =
        |process, role, engine| Output::Process(Box::new(ServerProcess { server: server(), process, role, engine }));
    let mut outputs = vec![process(4242, Role::Api, None), process(4300, Role::Engine, Some(0))];
    outputs.extend(RANKS.map(|rank| process(rank, Role::Worker, None)));
    for n in 0..steps {
        for rank in 0..RANKS.len() as u32 {
            outputs.extend(calls(n, rank).into_iter().map(|call| Output::Cuda(Box::new(call))));
        }
        // A step is known to be one when it is over.
        outputs.push(Output::Step(Box::new(step(n))));
    }
    outputs
}
