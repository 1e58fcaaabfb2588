//! Spans out of a line of OTLP/JSON.
//!
//! Enters: a line of at most [`MAX_LINE`] bytes. Leaves: spans with the server that they are of, in their order. Invariant: what a line takes
//! is bounded by its length: it has at most [`MAX_OBJECTS`] objects, which are counted before any of them is made. Refused, and counted:
//! lines that are none; spans of other programs; spans without ids, or that end before they begin; keys that are not known here.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{self as proto, status::StatusCode};

use super::words;
use crate::input::Server;
use crate::model::keys::span;
use crate::output::{Span, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, TraceId, Value};

/// Longest line, bytes. A collector's batch of 8,192 spans is about 8 MB.
pub(super) const MAX_LINE: usize = 32 << 20;
/// Most objects of a line: a span of ours has about 60, so that a collector's batch of 8,192 has 491,520; each takes up to 350 bytes.
pub(super) const MAX_OBJECTS: usize = 600_000;
/// Set in a span's flags where its parent lies in another process.
const PARENT_IS_REMOTE: u32 = 0x200;
/// The name of the scope that spans of ours are in.
const SCOPE: &str = env!("CARGO_PKG_NAME");
/// What the engine's service is called, behind the server's.
const ENGINE: &str = "-engine";

/// What was not used of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Unused {
    /// Lines that are no export request of traces, or have too many objects.
    pub lines: u64,
    /// Lines over the limit.
    pub long_lines: u64,
    /// Spans of other programs.
    pub foreign: u64,
    /// Spans that cannot be: without ids, or with times that go backwards.
    pub impossible: u64,
    /// Attributes and events that are not known here.
    pub unknown: u64,
}

/// A span, and whose it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Read {
    pub server: Arc<Server>,
    /// Version of who wrote it.
    pub writer: Option<String>,
    pub span: Span,
}

/// The spans of a line.
pub(super) fn spans(line: &[u8], unused: &mut Unused) -> Vec<Read> {
    if memchr::memchr_iter(b'{', line).take(MAX_OBJECTS + 1).count() > MAX_OBJECTS {
        unused.lines += 1;
        return Vec::new();
    }
    let Ok(request) = serde_json::from_slice::<ExportTraceServiceRequest>(line) else {
        unused.lines += 1;
        return Vec::new();
    };
    let mut out = Vec::new();
    for of_resource in request.resource_spans {
        let server = Arc::new(server(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default()));
        for of_scope in of_resource.scope_spans {
            let (name, version) = of_scope.scope.map(|scope| (scope.name, scope.version)).unwrap_or_default();
            if !name.is_empty() && name != SCOPE {
                unused.foreign += of_scope.spans.len() as u64;
                continue;
            }
            let writer = (!version.is_empty()).then_some(version);
            let spans = of_scope.spans.into_iter().filter_map(|span| convert(span, unused));
            out.extend(spans.map(|span| Read { server: of(&server, &span), writer: writer.clone(), span }));
        }
    }
    out
}

/// The server that a resource describes, as far as it says.
fn server(attributes: Vec<KeyValue>) -> Server {
    let mut server = Server::default();
    for KeyValue { key, value, .. } in attributes {
        match (key.as_str(), value.and_then(|value| value.value)) {
            ("service.name", Some(Any::StringValue(name))) => server.service = name,
            ("service.version", Some(Any::StringValue(version))) => server.engine_version = Some(version),
            ("container.id", Some(Any::StringValue(id))) => server.container_id = Some(id),
            ("process.pid", Some(Any::IntValue(pid))) => server.pid = u32::try_from(pid).unwrap_or(0),
            _ => {}
        }
    }
    server
}

/// The same server without what its engine's service is called by.
fn of(server: &Arc<Server>, span: &Span) -> Arc<Server> {
    let is_engines = span.name == span::ENGINE_STEP || span.name == span::CUDA_LAUNCH;
    match server.service.strip_suffix(ENGINE).filter(|_| is_engines) {
        Some(service) => Arc::new(Server { service: service.to_owned(), ..(**server).clone() }),
        None => Arc::clone(server),
    }
}

fn convert(from: proto::Span, unused: &mut Unused) -> Option<Span> {
    let Some(name) = words::span(&from.name) else {
        unused.foreign += 1;
        return None;
    };
    let ids = trace_id(&from.trace_id).zip(span_id(&from.span_id));
    let parent = span_id(&from.parent_span_id);
    let is_parent_fine = parent.is_some() || from.parent_span_id.iter().all(|byte| *byte == 0);
    let Some((trace_id, span_id)) =
        ids.filter(|_| is_parent_fine && from.start_time_unix_nano <= from.end_time_unix_nano)
    else {
        unused.impossible += 1;
        return None;
    };
    let is_error = from.status.is_some_and(|status| status.code == StatusCode::Error as i32);
    Some(Span {
        trace_id,
        span_id,
        parent,
        parent_is_remote: from.flags & PARENT_IS_REMOTE != 0,
        trace_state: (!from.trace_state.is_empty()).then_some(from.trace_state),
        name,
        kind: if from.kind == proto::span::SpanKind::Server as i32 { SpanKind::Server } else { SpanKind::Internal },
        start_ns: from.start_time_unix_nano,
        end_ns: from.end_time_unix_nano,
        // The one word that the core says.
        status: if is_error { SpanStatus::Error("error") } else { SpanStatus::Unset },
        attributes: attributes(from.attributes, unused),
        events: from.events.into_iter().filter_map(|event| convert_event(event, unused)).collect(),
        links: from.links.into_iter().filter_map(|link| convert_link(link, unused)).collect(),
    })
}

fn convert_event(from: proto::span::Event, unused: &mut Unused) -> Option<SpanEvent> {
    let Some(name) = words::event(&from.name) else {
        unused.unknown += 1;
        return None;
    };
    Some(SpanEvent { name, at_ns: from.time_unix_nano, attributes: attributes(from.attributes, unused) })
}

fn convert_link(from: proto::span::Link, unused: &mut Unused) -> Option<SpanLink> {
    let Some((trace_id, span_id)) = trace_id(&from.trace_id).zip(span_id(&from.span_id)) else {
        unused.unknown += 1;
        return None;
    };
    Some(SpanLink { trace_id, span_id, attributes: attributes(from.attributes, unused) })
}

/// What is known of `from`: the rest is counted.
fn attributes(from: Vec<KeyValue>, unused: &mut Unused) -> Vec<(&'static str, Value)> {
    let mut out = Vec::with_capacity(from.len());
    for KeyValue { key, value, .. } in from {
        match words::attribute(&key).zip(value.and_then(convert_value)) {
            Some(pair) => out.push(pair),
            None => unused.unknown += 1,
        }
    }
    out
}

fn convert_value(from: AnyValue) -> Option<Value> {
    match from.value? {
        Any::StringValue(text) => Some(Value::Str(text.into())),
        Any::BoolValue(value) => Some(Value::Bool(value)),
        Any::IntValue(value) => Some(Value::Int(value)),
        Any::DoubleValue(value) => Some(Value::Float(value)),
        Any::ArrayValue(list) => {
            let text = |value: AnyValue| match value.value {
                Some(Any::StringValue(text)) => Some(text.into()),
                _ => None,
            };
            list.values.into_iter().map(text).collect::<Option<Vec<_>>>().map(Value::StrList)
        }
        Any::KvlistValue(_) | Any::BytesValue(_) | Any::StringValueStrindex(_) => None,
    }
}

/// `None` for what is no id, and for the one that means none.
fn trace_id(bytes: &[u8]) -> Option<TraceId> {
    <[u8; 16]>::try_from(bytes).ok().filter(|id| *id != [0; 16]).map(TraceId)
}

fn span_id(bytes: &[u8]) -> Option<SpanId> {
    <[u8; 8]>::try_from(bytes).ok().filter(|id| *id != [0; 8]).map(SpanId)
}
