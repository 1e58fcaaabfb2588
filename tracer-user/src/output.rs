//! Everything that leaves the pure side: span trees, access records and metric updates, as plain data.
//!
//! Exporters translate these; they add nothing. Times of spans are wall-clock unix ns, durations are seconds. Nothing here
//! holds a prompt, an output or a header value other than trace context and request id.

use std::sync::Arc;

use serde::Serialize;

use crate::engine::SchedulerStats;
use crate::input::{Delivered, End, Lost, Server};

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
    /// Something was lost or could not be used; counted, and told at the end.
    Lost(Lost),
    /// Events came from the probes; counted.
    Delivered(Delivered),
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
    pub prefills: u64,
    pub stats: Option<SchedulerStats>,
}

/// What a connection speaks, as its first bytes said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub end: End,
    pub speaks: Speaks,
}

/// How much of a connection is worth capturing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A finished tree. Parents come before their children.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    pub server: Arc<Server>,
    /// Which service the spans belong to.
    pub service: Service,
    pub spans: Vec<Span>,
    pub merit: Merit,
}

/// What a sampler decides by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Merit {
    /// `None`: it was still open when the run ended.
    pub outcome: Option<Outcome>,
    /// First request byte to last response byte (or as much of it as was seen), seconds.
    pub seconds: f64,
    /// The sampled flag of the `traceparent` that came with the request.
    pub parent_sampled: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `service.name` = [`Server::service`]: requests.
    Requests,
    /// `service.name` = `<service>-engine`: engine steps.
    Engine,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// `None` for the root of a new trace; may name a span of somebody else's (`traceparent`).
    pub parent: Option<SpanId>,
    /// The parent lies in another process (it came by `traceparent`).
    pub parent_is_remote: bool,
    /// W3C `tracestate` that came with the request, to be passed on unchanged.
    pub trace_state: Option<String>,
    pub name: &'static str,
    pub kind: SpanKind,
    pub start_ns: u64,
    /// ≥ `start_ns`.
    pub end_ns: u64,
    pub status: SpanStatus,
    pub attributes: Vec<(&'static str, Value)>,
    pub events: Vec<SpanEvent>,
    pub links: Vec<SpanLink>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    Server,
    Internal,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanStatus {
    Unset,
    /// With what went wrong, a low-cardinality word.
    Error(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    StrList(Vec<Arc<str>>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct SpanEvent {
    pub name: &'static str,
    pub at_ns: u64,
    pub attributes: Vec<(&'static str, Value)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SpanLink {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub attributes: Vec<(&'static str, Value)>,
}

/// One line of the access log, to the letter of docs/signals.md.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessRecord {
    /// Schema version, 1.
    pub v: u32,
    /// When the request was over, RFC 3339 with ns, UTC.
    pub time: String,
    pub trace_id: String,
    pub span_id: String,
    pub request_id: Option<String>,
    pub method: Option<String>,
    pub path: Option<String>,
    pub status: Option<u16>,
    pub model: Option<String>,
    pub stream: Option<bool>,
    pub outcome: Outcome,
    pub finish_reasons: Vec<FinishReason>,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub preemptions: Option<u64>,
    /// Why something is missing, comma-separated words; `null` when the tree is whole.
    pub incomplete: Option<String>,
    /// [`Server::instance`].
    pub server: String,
    pub seconds: RequestSeconds,
    pub generations: Vec<GenerationRecord>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct RequestSeconds {
    pub parse: Option<f64>,
    pub tokenize: Option<f64>,
    pub queue: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
    pub detokenize: Option<f64>,
    /// First request byte read → first token's arrival in the front end.
    pub ttft: Option<f64>,
    /// The front end's own arrival stamp → when it takes up the first token: as vLLM counts it.
    pub ttft_engine: Option<f64>,
    pub e2e: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationRecord {
    pub engine_request_id: String,
    pub finish_reason: Option<FinishReason>,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub output_tokens: u64,
    pub preemptions: u64,
    pub seconds: GenerationSeconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct GenerationSeconds {
    pub queue: Option<f64>,
    pub prefill: Option<f64>,
    pub decode: Option<f64>,
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

/// Why a generation ended: vLLM's `FinishReason`, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    Stop,
    Length,
    Abort,
    Error,
    Repetition,
}

impl FinishReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Repetition => "repetition",
        }
    }
}

/// Labels of our own series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    /// [`Server::instance`].
    pub server: Arc<str>,
    /// `unknown` until the name is known; see [`Metric::ModelKnown`].
    pub model: Arc<str>,
    /// Engine index (data-parallel rank).
    pub engine: u32,
}

/// A change of a metric. Histograms take one observation a `Some`.
#[derive(Debug, Clone, PartialEq)]
pub enum Metric {
    /// An HTTP request is over.
    Request {
        labels: Labels,
        outcome: Outcome,
        /// `gen_ai.operation.name`.
        operation: &'static str,
        /// `gen_ai.provider.name`: [`Server::engine`].
        provider: Arc<str>,
        /// `error.type` when the outcome is no success: a status code, or a word.
        error_type: Option<Arc<str>>,
        /// For the exemplars.
        trace_id: TraceId,
        span_id: SpanId,
        seconds: RequestSeconds,
        /// (e2e − ttft) / (output tokens − 1).
        time_per_output_token: Option<f64>,
    },
    /// An engine request is over. The times are those that vLLM's own histograms take, and only where vLLM takes them.
    Generation {
        labels: Labels,
        finish_reason: FinishReason,
        trace_id: TraceId,
        span_id: SpanId,
        queue: Option<f64>,
        prefill: Option<f64>,
        decode: Option<f64>,
        inference: Option<f64>,
    },
    /// A prompt was prefilled: its tokens, and how many of them came from the prefix cache.
    Prompt {
        labels: Labels,
        tokens: u64,
        cached: u64,
    },
    /// Tokens reached the front end; `inter_token`: seconds since the previous ones of that generation.
    Tokens {
        labels: Labels,
        tokens: u64,
        inter_token: Option<f64>,
    },
    Preempted {
        labels: Labels,
        count: u64,
    },
    /// What the scheduler said after a step; queries and hits are deltas, in tokens.
    Scheduler {
        labels: Labels,
        running: u64,
        waiting: u64,
        kv_cache_usage: f64,
        prefix_queries: u64,
        prefix_hits: u64,
    },
    /// An engine step took this long.
    Step {
        labels: Labels,
        seconds: f64,
    },
    /// The first token of a generation reached the front end, this long after the front end's arrival stamp.
    FirstToken {
        labels: Labels,
        ttft_engine: f64,
        trace_id: TraceId,
        span_id: SpanId,
    },
    /// The response's own `usage` contradicts what was counted.
    UsageDiffers {
        labels: Labels,
    },
    /// What was counted for `server` under the model `unknown` is this model's: its series go over to that name.
    ModelKnown {
        server: Arc<str>,
        model: Arc<str>,
    },
}
