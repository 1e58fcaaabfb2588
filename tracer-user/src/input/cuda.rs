//! What is seen of the CUDA libraries.
//!
//! Counts ([`Sums`], [`Seen::Counts`]) are totals since the thread or the function was first seen, so that one that is lost loses nothing
//! but the time it tells. All else is one record a call.

use serde::{Deserialize, Serialize};
use tracer_ebpf::wire::cuda::{CALLERS, COLLECTIVES, COPIES};

use super::EventNanos;
pub use crate::kernel::class::Class;

/// Something that was seen of the CUDA libraries in the event's thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Seen {
    /// What the thread has called so far; its newest burst lies in `sums.first..=sums.last`.
    Burst(Sums),
    /// A function was launched that was not launched before.
    Function {
        key: FunctionKey,
        /// Return addresses, the innermost first; 0 where one was not read.
        callers: [u64; CALLERS],
        /// What stands where a handle has its name; `None` where that is no text.
        text: Option<String>,
    },
    Launch(Launch),
    Call(Call),
    /// How often functions were launched so far; those that have moved.
    Counts(Vec<(FunctionKey, u64)>),
    /// The thread is gone; its totals were told.
    ThreadEnded,
    /// What the process holds, and has sent.
    Process(OfProcess),
    /// What a GPU did: a record of CUPTI's. Nothing makes them yet; see docs/architecture.md.
    Activity(Activity),
}

/// What a process holds now, and has sent since it was first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OfProcess {
    /// Device memory that it allocated since, now and at most, bytes.
    pub live: u64,
    pub peak: u64,
    /// By [`CollectiveKind`], outside of captures.
    pub collectives: [u64; COLLECTIVES],
    pub collective_bytes: [u64; COLLECTIVES],
}

/// One record of CUPTI's activity API: exact times of the GPU. On the event clock, as whoever reads the records converts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    pub kind: ActivityKind,
    /// Joins it to the call that enqueued it; all of one graph's launch have the same.
    pub correlation: u32,
    pub start: EventNanos,
    /// ≥ `start`.
    pub end: EventNanos,
    /// CUPTI's numbers, no handles.
    pub device: u32,
    pub stream: u32,
    /// Of what a graph did: CUPTI's id of the graph and of its node.
    pub graph_node: Option<(u32, u64)>,
    /// A kernel's, mangled.
    pub name: Option<String>,
    /// Of copies and sets.
    pub bytes: Option<u64>,
}

/// Totals of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sums {
    pub first: EventNanos,
    pub last: EventNanos,
    pub launches: u64,
    pub graph_launches: u64,
    /// By [`CopyKind`].
    pub copies: [u64; COPIES],
    pub copy_bytes: [u64; COPIES],
    pub sets: u64,
    pub set_bytes: u64,
    pub waits: u64,
    pub wait_ns: u64,
    /// Launches into a capture; in no other sum.
    pub captured: u64,
}

/// Who gave the handle of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Api {
    /// `CUfunction` or `CUkernel`.
    Driver,
    /// The address of the host's function, or a handle.
    Runtime,
}

/// A function of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FunctionKey {
    pub process: u32,
    /// Moves on when a module is unloaded: a handle may mean another function then.
    pub epoch: u32,
    pub function: u64,
    pub api: Api,
}

/// One launch of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    pub key: FunctionKey,
    pub stream: u64,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes.
    pub shared: u32,
    /// The number of the capture of its process that it is a node of.
    pub capture: Option<u32>,
    /// Launches that it stands for.
    pub weight: u32,
}

/// Another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub what: CallKind,
    /// The event's time where only the entry is seen.
    pub entered: EventNanos,
    pub stream: u64,
    /// Where it returns to.
    pub caller: u64,
    /// The number of the capture of its process that it is a node of: no work.
    #[serde(default)]
    pub capture: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallKind {
    Copy { kind: CopyKind, bytes: u64 },
    Set { bytes: u64 },
    Wait { of: WaitOf },
    // `live`: device memory that the process holds behind it, bytes.
    Alloc { address: u64, bytes: u64, live: u64 },
    // `bytes`: 0 where it was allocated before the attach.
    Free { address: u64, bytes: u64, live: u64 },
    HostAlloc { address: u64, bytes: u64 },
    HostFree { address: u64 },
    // `into`: the graph that it goes into; 0 for a new one.
    CaptureBegin { number: u32, into: u64 },
    // `nodes`: as many were enqueued, whether or not they were told.
    CaptureEnd { graph: u64, number: u32, nodes: u32 },
    Instantiate { exec: u64, graph: u64 },
    ExecDestroy { exec: u64 },
    ExecUpdate { exec: u64 },
    GraphDestroy { graph: u64 },
    GraphLaunch { exec: u64 },
    Unload,
    Collective { kind: CollectiveKind, bytes: u64, communicator: u64 },
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($word:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($word),* }

        impl $name {
            /// All, in the order of the enum.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$word),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$word => $text),* }
            }
        }
    };
}

words! {
    /// `cudaMemcpyKind`, and copies between devices.
    CopyKind {
        HostToHost = "h2h",
        HostToDevice = "h2d",
        DeviceToHost = "d2h",
        DeviceToDevice = "d2d",
        // `cudaMemcpyDefault`: the addresses say it, and what they are is not known here.
        Unknown = "unknown",
        PeerToPeer = "p2p",
    }
}

words! {
    /// What a thread waits for.
    WaitOf { Stream = "stream", Event = "event", Device = "device" }
}

words! {
    CollectiveKind {
        AllReduce = "all_reduce",
        AllGather = "all_gather",
        ReduceScatter = "reduce_scatter",
        Broadcast = "broadcast",
        Reduce = "reduce",
        Send = "send",
        Recv = "recv",
        AllToAll = "all_to_all",
        Gather = "gather",
        Scatter = "scatter",
    }
}

words! {
    /// Where memory lies that is had through CUDA.
    MemoryOf { Device = "device", Host = "host" }
}

words! {
    /// What a GPU did.
    ActivityKind { Kernel = "kernel", Copy = "copy", Set = "set" }
}

words! {
    /// How a name was found.
    NamedBy {
        // What the driver's handle says.
        Handle = "handle",
        // The table of the library that registers the function, by its address, by the variable that keeps its handle, by its launch site.
        Registration = "registration",
        HandleVariable = "handle_variable",
        LaunchSite = "launch_site",
        Symbol = "symbol",
        // It has none: the library that launched it, and where.
        Caller = "caller",
    }
}

/// What a launched function is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelName {
    /// As it was compiled: mangled. `unknown:<library>+<offset>` where nothing says it.
    pub name: String,
    pub demangled: String,
    /// Without template arguments and parameters.
    pub short: String,
    pub class: Class,
    pub named_by: NamedBy,
}
