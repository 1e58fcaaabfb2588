//! Calls of CUDA libraries, as they leave.
//!
//! All that is known of them is what the CPU did: when a call was entered, by whom, and what it asked for. Nothing here says when the GPU
//! did the work, or for how long.

use std::sync::Arc;

use super::{SpanId, TraceId, UnixNanos};
use crate::input::Server;

/// One call of a CUDA library that was seen, as it leaves. A bar is a call of the CPU: never work of the GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct CudaCall {
    pub server: Arc<Server>,
    pub process: u32,
    pub thread: u32,
    /// Index of the engine whose step it belongs to, and the process's rank among the engine's workers.
    pub engine: Option<u32>,
    pub rank: Option<u32>,
    /// When the call was entered; `end` when it returned, of those whose return is seen (waits).
    pub start: UnixNanos,
    pub end: Option<UnixNanos>,
    /// The stream handle (0: default), where the call names one.
    pub stream: Option<u64>,
    /// The step that made it.
    pub step: Option<(TraceId, SpanId)>,
    pub what: CudaWhat,
}

/// What a call asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum CudaWhat {
    /// `kernel`: its names; `grid`, `block` in threads; `shared` bytes.
    Launch {
        kernel: Arc<KernelName>,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
    },
    /// `nodes` of the graph, where they were counted; `replays`: how often it was launched so far, this time included.
    GraphLaunch {
        graph: u64,
        nodes: Option<u32>,
        replays: u64,
    },
    Copy {
        kind: CopyKind,
        bytes: u64,
    },
    Set {
        bytes: u64,
    },
    Wait {
        of: WaitOf,
    },
    Collective {
        kind: CollectiveKind,
        bytes: u64,
        communicator: u64,
    },
    /// The process's device memory after a malloc or free, bytes.
    Memory {
        live: u64,
        peak: u64,
    },
}

/// What a kernel is called, and how that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelName {
    /// As the library has it.
    pub name: String,
    pub demangled: String,
    /// For people: without namespaces, arguments and template parameters.
    pub short: String,
    /// What it does (`gemm`, `attention`, …).
    pub class: &'static str,
    /// Where the name is from.
    pub named_by: &'static str,
    /// The file it is in.
    pub library: Option<String>,
}

/// From where to where a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CopyKind {
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
    HostToHost,
    PeerToPeer,
    Unknown,
}

impl CopyKind {
    pub const ALL: [Self; 6] = [
        Self::HostToDevice,
        Self::DeviceToHost,
        Self::DeviceToDevice,
        Self::HostToHost,
        Self::PeerToPeer,
        Self::Unknown,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::HostToDevice => "h2d",
            Self::DeviceToHost => "d2h",
            Self::DeviceToDevice => "d2d",
            Self::HostToHost => "h2h",
            Self::PeerToPeer => "p2p",
            Self::Unknown => "unknown",
        }
    }
}

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WaitOf {
    Stream,
    Event,
    Device,
}

impl WaitOf {
    pub const ALL: [Self; 3] = [Self::Stream, Self::Event, Self::Device];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Event => "event",
            Self::Device => "device",
        }
    }
}

/// What ranks do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CollectiveKind {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    Reduce,
    Send,
    Recv,
    AllToAll,
}

impl CollectiveKind {
    pub const ALL: [Self; 8] = [
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::Broadcast,
        Self::Reduce,
        Self::Send,
        Self::Recv,
        Self::AllToAll,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::Send => "send",
            Self::Recv => "recv",
            Self::AllToAll => "all_to_all",
        }
    }
}
