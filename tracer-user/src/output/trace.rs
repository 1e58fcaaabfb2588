//! Trees of spans.

use std::sync::Arc;

use super::{Outcome, SpanId, TraceId};
use crate::input::Server;

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

impl SpanLink {
    /// A link that says no more.
    pub fn to(trace_id: TraceId, span_id: SpanId) -> Self {
        Self { trace_id, span_id, attributes: Vec::new() }
    }
}
