//! Everything that enters the pure side.
//!
//! A stream of [`Input`]s is the whole nondeterminism of a run: `attach` and `replay` differ only in who makes them, and
//! the same stream gives the same output, byte for byte. Nothing here is written to; the pure rooms read it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub mod cuda;
pub mod gpu;

/// A point on the event clock, ns. Live: `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`). Syscall log: the log's wall clock, unix ns.
pub type EventNanos = u64;

/// One thing the pure side is told, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// A probe saw something.
    Event(Event),
    /// Something learned outside the event stream (`/proc`, ELF, clocks, a log's header).
    Fact(Fact),
    /// Time passed without an event; timers fire on it.
    Tick(EventNanos),
    /// Records were lost; what was open at `at` is no longer complete.
    Lost(Lost),
    /// So many events came from the probes since this was last said: the tracer's own account.
    Delivered(Delivered),
    /// What the driver of the machine's GPUs says now; nothing when it does not answer any more.
    Gpus(Option<Arc<gpu::Gpus>>),
    /// All servers together hold too much: these of this server's are to let go. Whoever runs the cores says so, from what they hold.
    Relieve(Vec<Holder>),
}

/// What holds bytes until something is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Holder {
    /// A connection, of messages whose end has not come.
    Connection(End),
    /// A request that is open, by the core's key.
    Request(u64),
}

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When: at the exit of the call for reads and receives; for writes at the exit live, at the entry in a syscall log.
    pub at: EventNanos,
    /// Thread-group id in the tracer's pid namespace; 0 when the source does not know it (a syscall log).
    pub process: u32,
    /// Thread id; 0 when unknown.
    pub thread: u32,
    pub what: What,
}

impl What {
    /// The kind of probe that saw it.
    pub fn probe(&self) -> Probe {
        match self {
            Self::Data { .. }
            | Self::Opened { .. }
            | Self::PeerClosed { .. }
            | Self::Closed { .. }
            | Self::Blocked { .. }
            | Self::Unblocked { .. } => Probe::Syscall,
            Self::Call { function: Function::Encode, .. } => Probe::Tokenizer,
            Self::Call { function: Function::Decode | Function::Clock, .. } => Probe::FrontEnd,
            Self::Forked { .. } | Self::Executed | Self::Exited | Self::Mapped => Probe::Process,
            Self::Cuda(_) => Probe::Cuda,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// Bytes crossed a socket: one successful data syscall, or a piece of one. A call that is captured in several pieces, or
    /// of which only the head and the tail are, gives several of these, in order.
    Data {
        end: End,
        direction: Direction,
        /// Bytes of the stream that this piece covers, ≥ 1.
        len: u64,
        /// The first bytes of them; shorter than `len` when the capture cap cut them.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        /// The piece is the first of its call.
        starts: bool,
        /// Bytes that this direction of the connection moved before this piece, where the source counts them (live): a jump
        /// says that records were lost, and how many bytes they covered.
        offset: Option<u64>,
    },
    /// A socket was accepted: `end` starts a new lifetime.
    Opened { end: End },
    /// The peer closed its writing side (a read returned 0), or is gone (`ECONNRESET`, `EPIPE`).
    PeerClosed { end: End },
    /// The descriptor was closed: `end`'s lifetime is over. `moved`: how many bytes each direction (in, out) moved in it, where
    /// the source counts them (live); more than was seen says that the last records were lost.
    Closed { end: End, moved: Option<(u64, u64)> },
    /// A probed library function was called at `entered`. A timed one has returned now; of the others only the entry is seen.
    /// `stack`: where its stack stood, of those; the same place of a program calls with the same one.
    Call {
        function: Function,
        entered: EventNanos,
        #[serde(default)]
        stack: u32,
    },
    /// A thread group forked `child` (a new thread group).
    Forked { child: u32 },
    /// The thread group replaced its image.
    Executed,
    /// The thread group is gone; every end it held is closed.
    Exited,
    /// The thread group mapped a file as executable.
    Mapped,
    /// Something of the CUDA libraries.
    Cuda(Box<cuda::Seen>),
    /// A write to a client's connection was refused (`EAGAIN`) or took a part of its bytes, and the one before was not; live only.
    Blocked { end: End },
    /// The first write behind that which took all its bytes.
    Unblocked { end: End },
}

impl What {
    /// The end of a connection that it is about.
    pub fn end(&self) -> Option<End> {
        match *self {
            Self::Data { end, .. }
            | Self::Opened { end }
            | Self::PeerClosed { end }
            | Self::Closed { end, .. }
            | Self::Blocked { end }
            | Self::Unblocked { end } => Some(end),
            _ => None,
        }
    }
}

/// One end of a connection, unique among the ends that are alive. Live: `tgid << 32 | fd`. Syscall log: a hash of the `sock` text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct End(pub u64);

impl End {
    /// The end that `fd` names in the process `tgid`.
    pub fn of_descriptor(tgid: u32, fd: u32) -> Self {
        Self(u64::from(tgid) << 32 | u64::from(fd))
    }
}

/// Seen from the process that made the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// read, readv, recvfrom, recvmsg
    In,
    /// write, writev, sendto, sendmsg
    Out,
}

/// Library functions that are probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Function {
    /// `PyTokenizer.encode`, `encode_batch`, `encode_batch_fast`; timed.
    Encode,
    /// A front end's msgpack decoder: it gets to a message that it received.
    Decode,
    /// A front end reads the wall clock.
    Clock,
}

/// Something learned outside the event stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    /// Who is traced; first input of a run, and again when discovery learns more.
    Server(Arc<Server>),
    /// A process of the server, with its role.
    Process { tgid: u32, role: Role },
    /// `event_ns` on the event clock was `unix_ns` on the wall clock. Repeated, so that drift is followed.
    Clock { event_ns: EventNanos, unix_ns: u64 },
    /// Add this to an engine timestamp (`time.monotonic()`, ns) to get event-clock ns. 0 live; estimated for a syscall log.
    EngineClock { offset_ns: i64 },
    /// Uprobes of this kind are attached in this process, so a missing `Call` means that none happened.
    Probed { tgid: u32, probe: Probe },
    /// A process is another one's child.
    Parent { tgid: u32, parent: u32 },
    /// The place of a worker among those of its engine (tensor and pipeline parallel), as its title says.
    Rank { tgid: u32, rank: u32 },
    /// The library (its file's name) that lies at a place which allocates.
    Caller { process: u32, address: u64, library: Arc<str> },
    /// What a launched function is called.
    Kernel { function: cuda::FunctionKey, name: Arc<cuda::KernelName> },
}

/// The traced server, as far as discovery knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Server {
    /// `service.name`; the engine's steps go to `<service>-engine`.
    pub service: String,
    /// Served model name; labels every metric. Empty: learned from the traffic.
    pub model: String,
    /// The engine, as `ls` shows it.
    pub engine: String,
    pub engine_version: Option<String>,
    pub container_id: Option<String>,
    /// The process named at attach, and its start time (clock ticks since boot): together the run's identity.
    pub pid: u32,
    pub start_ticks: u64,
}

impl Server {
    /// Tells servers apart that serve the same model: the service's name and its container, else its PID; the name alone where
    /// neither is known (a replay). The label and field `server`, and `service.instance.id`.
    pub fn instance(&self) -> String {
        let name = if self.service.is_empty() { "unknown_service" } else { &self.service };
        match &self.container_id {
            Some(container) => format!("{name}-{}", container.chars().take(12).collect::<String>()),
            None if self.pid != 0 => format!("{name}-{}", self.pid),
            None => name.to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Speaks HTTP to clients.
    Api,
    /// Schedules and runs the model.
    Engine,
    /// Runs the model for an engine.
    Worker,
    /// Spreads work over data-parallel engines.
    Coordinator,
    /// Belongs to the server and carries nothing that is traced.
    Other,
}

/// Kinds of probes; the `probe` label of `inferspan_events_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Probe {
    Cuda,
    FrontEnd,
    Process,
    Syscall,
    Tokenizer,
}

impl Probe {
    /// Every kind, in the order of the enum.
    pub const ALL: [Self; 5] = [Self::Cuda, Self::FrontEnd, Self::Process, Self::Syscall, Self::Tokenizer];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::FrontEnd => "front_end",
            Self::Process => "process",
            Self::Syscall => "syscall",
            Self::Tokenizer => "tokenizer",
        }
    }
}

/// Events that probes delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    pub probe: Probe,
    pub count: u64,
}

/// Records that did not make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub at: EventNanos,
    pub count: u64,
    pub stage: LossStage,
}

/// Where records were lost; the `stage` label of `inferspan_events_dropped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LossStage {
    /// The ring of request edges was full.
    EdgeRing,
    /// The ring of payloads was full.
    DataRing,
    /// The ring of CUDA calls was full. What is counted in the kernel is not lost by this.
    LaunchRing,
    /// The ring of rare CUDA calls was full: what graphs hold is not known any more.
    RareRing,
    /// The kernel's tables of CUDA threads, functions or memory were full: calls that are not counted.
    CudaTable,
    /// The user-space queue was full.
    Queue,
    /// A record did not decode.
    Decode,
    /// The kernel's table of descriptors was full: a connection that is not followed.
    Descriptors,
    /// The kernel's table of traced processes was full: a process that is not followed.
    Targets,
    /// An event of a descriptor that was gone before anybody could say what it was.
    Unclassified,
    /// A place in a connection's stream where records are missing.
    Gap,
    /// An engine message of which the middle was not captured.
    Cut,
    /// An engine message whose shape is not known, or that ends in its middle.
    Unreadable,
    /// A place where a ZMTP stream lost its framing.
    Desync,
    /// An HTTP message whose end was not seen.
    HttpEnd,
    /// What was let go because too much was open or held: a request that was finished early, a message of which the rest is passed over.
    Evicted,
    /// A connection that is not followed because there are too many.
    Connections,
}

impl LossStage {
    /// Every stage, in the order of the enum.
    pub const ALL: [Self; 17] = [
        Self::EdgeRing,
        Self::DataRing,
        Self::LaunchRing,
        Self::RareRing,
        Self::CudaTable,
        Self::Queue,
        Self::Decode,
        Self::Descriptors,
        Self::Targets,
        Self::Unclassified,
        Self::Gap,
        Self::Cut,
        Self::Unreadable,
        Self::Desync,
        Self::HttpEnd,
        Self::Evicted,
        Self::Connections,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EdgeRing => "edge_ring",
            Self::DataRing => "data_ring",
            Self::LaunchRing => "launch_ring",
            Self::RareRing => "rare_ring",
            Self::CudaTable => "cuda_table",
            Self::Queue => "queue",
            Self::Decode => "decode",
            Self::Descriptors => "descriptors",
            Self::Targets => "targets",
            Self::Unclassified => "unclassified",
            Self::Gap => "gap",
            Self::Cut => "cut",
            Self::Unreadable => "unreadable",
            Self::Desync => "desync",
            Self::HttpEnd => "http_end",
            Self::Evicted => "evicted",
            Self::Connections => "connections",
        }
    }
}
