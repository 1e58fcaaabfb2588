//! What leaves of CUDA: the totals of a step, single calls, and a row a kernel.

use std::sync::Arc;

use super::{SpanId, TraceId, UnixNanos};
use crate::input::Server;
pub use crate::input::cuda::{Class, CollectiveKind, CopyKind, KernelName, MemoryOf, NamedBy, WaitOf};

/// What the processes of an engine called in one of its steps.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepCuda {
    pub launches: u64,
    pub graph_launches: u64,
    /// By [`CopyKind`].
    pub copies: [u64; 6],
    pub copy_bytes: [u64; 6],
    pub sets: u64,
    pub set_bytes: u64,
    pub waits: u64,
    /// Time in waits, of all threads together, ns.
    pub wait_ns: u64,
    /// Time of the step in which nothing was enqueued or waited for, of the process with the most of it, ns.
    pub gap_ns: u64,
    /// Most graph launches of one process.
    pub graphs_of_one: u64,
    /// Processes that called anything.
    pub processes: u32,
    /// Between the first calls of the first and of the last of them, ns.
    pub skew_ns: u64,
    /// Collectives that its processes entered outside of graphs; by how much the last rank was behind the first in the one with the most of
    /// it, ns, where all entered the same; and the rank that came last mostly.
    pub collectives: u64,
    pub collective_skew_ns: Option<u64>,
    pub straggler: Option<u32>,
    /// It is not sure which of these calls are the step's, and which a neighbour's: the engine schedules ahead.
    pub estimated: bool,
    /// The engine used graphs for batches like this one, and did not here.
    pub fell_back: bool,
    /// Launches by kernel, most frequent first; empty where launches are not told one by one.
    pub top: Vec<(Arc<KernelName>, u64)>,
    /// Launches, in order; at most [`Self::MAX_KERNELS`], at the level of kernels. They are most of what a step takes, and shared.
    pub kernels: Arc<Vec<CudaCall>>,
    /// They were told one by one, and are kept no more.
    pub kernels_let_go: bool,
    /// Graphs that were launched, most frequent first; at most [`Self::MAX_GRAPHS`], at the level of kernels.
    pub graphs: Vec<StepGraph>,
    /// Nothing says when the step began: its first call stands for that.
    pub begins_with_call: bool,
}

/// A graph that a step launched.
#[derive(Debug, Clone, PartialEq)]
pub struct StepGraph {
    /// Handle of the instantiated graph.
    pub graph: u64,
    /// Of the process that launched it, where there are several.
    pub rank: Option<u32>,
    pub launches: u64,
    /// As those of [`CudaWhat::GraphLaunch`].
    pub nodes: Option<u32>,
    pub kernels: Vec<(Arc<KernelName>, u64)>,
    pub changed: bool,
}

/// How a step launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One graph a process.
    Graph,
    /// Several graphs, and kernels between them.
    Piecewise,
    /// Kernels alone.
    Eager,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Piecewise => "piecewise",
            Self::Eager => "eager",
        }
    }
}

impl StepCuda {
    /// Launches that are kept to draw one by one.
    pub const MAX_KERNELS: usize = 2000;
    /// Graphs that are kept to be named: one a piece of a model in each rank.
    pub const MAX_GRAPHS: usize = 64;

    /// Keeps the totals and the most frequent kernels alone. Gives how many launches were let go.
    pub fn let_go(&mut self) -> usize {
        let launches = std::mem::take(&mut self.kernels).len();
        self.kernels_let_go |= launches > 0;
        launches
    }

    pub fn is_empty(&self) -> bool {
        let moved = self.copies.iter().sum::<u64>() + self.sets;
        self.launches + self.graph_launches + self.waits + moved == 0
    }

    /// `None` where nothing was launched.
    pub fn mode(&self) -> Option<Mode> {
        match (self.graphs_of_one, self.launches) {
            (0, 0) => None,
            (0, _) => Some(Mode::Eager),
            (1, _) => Some(Mode::Graph),
            _ => Some(Mode::Piecewise),
        }
    }
}

/// One call of a CUDA library that was seen, as it leaves. A bar is a call of the CPU: never work of the GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct CudaCall {
    pub server: Arc<Server>,
    pub process: u32,
    pub thread: u32,
    /// Index of the engine that the process works for, and its rank among that engine's workers.
    pub engine: Option<u32>,
    pub rank: Option<u32>,
    /// When the call was entered; `end` when it returned, of those whose return is seen (waits).
    pub start: UnixNanos,
    pub end: Option<UnixNanos>,
    /// The stream's handle (0: default), where the call names one.
    pub stream: Option<u64>,
    /// The step that made it.
    pub step: Option<(TraceId, SpanId)>,
    pub what: CudaWhat,
}

#[derive(Debug, Clone, PartialEq)]
pub enum CudaWhat {
    /// `grid` in blocks, `block` in threads, `shared` in bytes; `weight`: launches that it stands for.
    Launch {
        kernel: Arc<KernelName>,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        weight: u32,
    },
    /// `nodes` where its capture was seen, and its most frequent `kernels` with how many of each; `changed`: it may hold something else
    /// by now; `replays`: how often it was launched before, and now.
    GraphLaunch {
        graph: u64,
        nodes: Option<u32>,
        kernels: Vec<(Arc<KernelName>, u64)>,
        changed: bool,
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
    /// Device memory of the process after an allocation or a free, bytes.
    Memory {
        live: u64,
        peak: u64,
    },
}

/// Memory of a kind, bytes: what is held, and was held at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryHeld {
    pub live: u64,
    pub peak: u64,
}

/// A library of a process allocates device memory and frees none.
#[derive(Debug, Clone, PartialEq)]
pub struct Growing {
    pub server: Arc<Server>,
    pub process: u32,
    /// File name; `unknown` where it has none.
    pub library: Arc<str>,
    /// Bytes that it holds, and by how many that grew in the last `seconds`.
    pub live: u64,
    pub by: u64,
    pub seconds: f64,
}

/// A kernel of a process, for `--kernels-out`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRow {
    pub server: Arc<Server>,
    pub process: u32,
    pub name: Arc<KernelName>,
    /// Captures are none.
    pub launches: u64,
    /// The most frequent shape; `None` where launches are not told one by one.
    pub shape: Option<KernelShape>,
    /// Streams that it was launched in; `None` as above.
    pub streams: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelShape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes.
    pub shared: u32,
}
