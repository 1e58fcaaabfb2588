//! Everything that leaves the pure side: span trees, access records and metric updates, as plain data.
//!
//! Exporters translate these; they add nothing. Times of spans are wall-clock unix ns, durations are seconds. Nothing here
//! holds a prompt, an output or a header value other than trace context and request id.

mod access;
pub mod cuda;
mod metric;
mod trace;

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

pub use crate::engine::FinishReason;
use crate::engine::SchedulerStats;
use crate::input::gpu::Gpus;
use crate::input::{Delivered, End, Lost, Role, Server};
pub use access::{AccessRecord, GenerationRecord, GenerationSeconds, Incomplete, Missing, RequestSeconds};
pub use cuda::{CollectiveKind, CopyKind, CudaCall, CudaWhat, KernelName, WaitOf};
pub use metric::{Labels, Metric};
pub use trace::{Merit, Service, Span, SpanEvent, SpanKind, SpanLink, SpanStatus, Trace, Value};

/// One thing the pure side says, in order.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "metrics are the most of them, and a box each would cost more than the space"
)]
pub enum Output {
    /// A finished tree of spans: one request, or one engine step.
    Trace(Trace),
    /// An HTTP request is over (or a generation whose HTTP side was not seen).
    Access(Box<AccessRecord>),
    /// Metrics move.
    Metric(Metric),
    /// An engine step is over.
    Step(Box<EngineStep>),
    /// A call of a CUDA library.
    Cuda(Box<CudaCall>),
    /// A kernel of a process that is over, or at the end of the run.
    Kernel(Box<cuda::KernelRow>),
    /// A library allocates device memory and frees none.
    Growing(Box<cuda::Growing>),
    /// A process of the server, or more of one that was told of.
    Process(Box<ServerProcess>),
    /// Something was lost or could not be used; counted, and told at the end.
    Lost(Lost),
    /// Events came from the probes; counted.
    Delivered(Delivered),
    /// What the driver of the machine's GPUs says now; nothing when it does not answer any more.
    Gpus(Option<Arc<Gpus>>),
    /// What a connection turned out to be, for the source.
    Verdict(Verdict),
}

/// One iteration of an engine, compact: most are never exported. [`EngineStep::span`] draws it.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineStep {
    pub server: Arc<Server>,
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub engine: u32,
    pub start_ns: u64,
    /// ≥ `start_ns`.
    pub end_ns: u64,
    /// Requests that it gave something for, their tokens, and how many of them it gave the first token.
    pub requests: u64,
    pub tokens: u64,
    pub first_tokens: u64,
    /// Tokens of the prompts whose computation ended in it, without cached ones; and tokens of requests that had given some before.
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    /// The root spans of the requests that it gave something for, as far as they are known; at most [`Self::MAX_LINKS`].
    pub batch: Box<[(TraceId, SpanId)]>,
    pub stats: Option<SchedulerStats>,
    /// What it did with CUDA; `None` where that is not seen.
    pub cuda: Option<Box<cuda::StepCuda>>,
}

impl EngineStep {
    /// Requests that a step links to: 32,768 steps are kept for requests to come.
    pub const MAX_LINKS: usize = 32;
}

/// A process of a server: what it is there for, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProcess {
    pub server: Arc<Server>,
    pub process: u32,
    pub role: Role,
    /// The engine whose outputs it sends.
    pub engine: Option<u32>,
}

/// What a connection speaks, as its first bytes said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub end: End,
    pub speaks: Speaks,
}

/// How much of a connection is worth capturing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Speaks {
    /// HTTP/1.1 with clients: head and tail of each call.
    Http,
    /// An engine's messages: whole.
    Engine,
    /// Nothing that is read here: nothing.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(pub [u8; 16]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(pub [u8; 8]);

impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl std::fmt::Display for SpanId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A point on the wall clock, unix ns; shown and serialised as RFC 3339 with nanoseconds, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixNanos(pub u64);

impl std::fmt::Display for UnixNanos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{time:.9}")
    }
}

impl Serialize for UnixNanos {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// How a request ended; `inferspan.outcome` and the `outcome` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Stop,
    Length,
    /// The client went away, or the request was cancelled.
    Abort,
    /// 5xx, an engine error, a broken response, a connection that the server closed unasked.
    Error,
    /// 4xx.
    Rejected,
    /// The end was not seen.
    Unknown,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }
}
