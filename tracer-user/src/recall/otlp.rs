//! Spans out of a line of OTLP/JSON.
//!
//! Enters: a line of at most [`MAX_LINE`] bytes. Leaves: spans with the server that they are of, in their order. Invariant: what a line takes
//! is bounded by its length: it has at most [`MAX_OPENED`] objects and lists, which are counted before any of them is made. Refused, and
//! counted: lines that are none; spans of other programs; spans without ids, or that end before they begin; keys that are not known here, and
//! attributes over [`MAX_ATTRIBUTES`].

use std::sync::Arc;

use super::json::{self, KeyValue, Number, span_id, trace_id};
use super::words;
use crate::input::Server;
use crate::model::keys::span;
use crate::output::{Span, SpanEvent, SpanKind, SpanLink, SpanStatus, Value};

/// Longest line, bytes. A collector's batch of 8,192 spans is about 8 MB.
pub(super) const MAX_LINE: usize = 32 << 20;
/// Most objects and lists of a line, each of which is some struct here (a list may stand for an object) and takes up to 400 bytes: a span of
/// ours has about 60 of the one and 5 of the other, so that a collector's batch of 8,192 has 532,480.
pub(super) const MAX_OPENED: usize = 600_000;
/// Attributes of a span, an event or a link that are kept: ours have 60 at most.
const MAX_ATTRIBUTES: usize = 256;
/// `SPAN_KIND_SERVER` and `STATUS_CODE_ERROR` of OTLP.
const SERVER: i32 = 2;
const ERROR: i32 = 2;
/// Set in a span's flags where its parent lies in another process.
const PARENT_IS_REMOTE: u32 = 0x200;
/// The name of the scope that spans of ours are in.
const SCOPE: &str = env!("CARGO_PKG_NAME");
/// What the engine's service is called, behind the server's.
const ENGINE: &str = "-engine";

/// What was not used of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Unused {
    /// Lines that are no export request of traces, or have too many objects and lists.
    pub lines: u64,
    /// Lines over the limit.
    pub long_lines: u64,
    /// Spans of other programs.
    pub foreign: u64,
    /// Spans that cannot be: without ids, or with times that go backwards.
    pub impossible: u64,
    /// Attributes and events that are not known here, or are too many.
    pub unknown: u64,
}

/// A span, and whose it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Read {
    pub server: Arc<Server>,
    /// Version of who wrote it.
    pub writer: Option<Arc<str>>,
    pub span: Span,
}

/// The spans of a line.
pub(super) fn spans(line: &[u8], unused: &mut Unused) -> Vec<Read> {
    if memchr::memchr2_iter(b'{', b'[', line).take(MAX_OPENED + 1).count() > MAX_OPENED {
        unused.lines += 1;
        return Vec::new();
    }
    let Ok(request) = serde_json::from_slice::<json::Request<'_>>(line) else {
        unused.lines += 1;
        return Vec::new();
    };
    let mut out = Vec::new();
    for of_resource in request.resource_spans {
        let server = Arc::new(server(of_resource.resource.attributes));
        let engines = engines(&server);
        for of_scope in of_resource.scope_spans {
            let json::Scope { name, version } = of_scope.scope;
            if !name.is_empty() && name != SCOPE {
                unused.foreign += of_scope.spans.len() as u64;
                continue;
            }
            let writer = (!version.is_empty()).then(|| Arc::from(&*version));
            let spans = of_scope.spans.into_iter().filter_map(|span| convert(span, unused));
            let server_of = |span: &Span| Arc::clone(if is_of_engine(span) { &engines } else { &server });
            out.extend(spans.map(|span| Read { server: server_of(&span), writer: writer.clone(), span }));
        }
    }
    out
}

/// The server that a resource describes, as far as it says.
fn server(attributes: Vec<KeyValue<'_>>) -> Server {
    let mut server = Server::default();
    for KeyValue { key, value } in attributes {
        match (&*key, value) {
            ("service.name", json::Value::String(name)) => server.service = name.into_owned(),
            ("service.version", json::Value::String(version)) => server.engine_version = Some(version.into_owned()),
            ("container.id", json::Value::String(id)) => server.container_id = Some(id.into_owned()),
            ("process.pid", json::Value::Int(pid)) => server.pid = u32::try_from(pid).unwrap_or(0),
            _ => {}
        }
    }
    server
}

/// The same server without what its engine's service is called by.
fn engines(server: &Arc<Server>) -> Arc<Server> {
    match server.service.strip_suffix(ENGINE) {
        Some(service) => Arc::new(Server { service: service.to_owned(), ..(**server).clone() }),
        None => Arc::clone(server),
    }
}

fn is_of_engine(span: &Span) -> bool {
    span.name == span::ENGINE_STEP || span.name == span::CUDA_LAUNCH
}

fn convert(from: json::Span<'_>, unused: &mut Unused) -> Option<Span> {
    let Some(name) = words::span(&from.name) else {
        unused.foreign += 1;
        return None;
    };
    let ids = trace_id(&from.trace_id).zip(span_id(&from.id));
    let parent = span_id(&from.parent);
    let is_parent_fine = parent.is_some() || from.parent.bytes().all(|digit| digit == b'0');
    let (Number(start_ns), Number(end_ns)) = (from.start_time_unix_nano, from.end_time_unix_nano);
    let Some((trace_id, span_id)) = ids.filter(|_| is_parent_fine && start_ns <= end_ns) else {
        unused.impossible += 1;
        return None;
    };
    Some(Span {
        trace_id,
        span_id,
        parent,
        parent_is_remote: from.flags & PARENT_IS_REMOTE != 0,
        trace_state: (!from.trace_state.is_empty()).then(|| from.trace_state.into_owned()),
        name,
        kind: if from.kind == SERVER { SpanKind::Server } else { SpanKind::Internal },
        start_ns,
        end_ns,
        // The one word that the core says.
        status: if from.status.code == ERROR { SpanStatus::Error("error") } else { SpanStatus::Unset },
        attributes: attributes(from.attributes, unused),
        events: from.events.into_iter().filter_map(|event| convert_event(event, unused)).collect(),
        links: from.links.into_iter().filter_map(|link| convert_link(link, unused)).collect(),
    })
}

fn convert_event(from: json::Event<'_>, unused: &mut Unused) -> Option<SpanEvent> {
    let Some(name) = words::event(&from.name) else {
        unused.unknown += 1;
        return None;
    };
    Some(SpanEvent { name, at_ns: from.time_unix_nano.0, attributes: attributes(from.attributes, unused) })
}

fn convert_link(from: json::Link<'_>, unused: &mut Unused) -> Option<SpanLink> {
    let Some((trace_id, span_id)) = trace_id(&from.trace_id).zip(span_id(&from.span_id)) else {
        unused.unknown += 1;
        return None;
    };
    Some(SpanLink { trace_id, span_id, attributes: attributes(from.attributes, unused) })
}

/// What is known of `from`: the rest is counted.
fn attributes(from: Vec<KeyValue<'_>>, unused: &mut Unused) -> Vec<(&'static str, Value)> {
    let mut out = Vec::with_capacity(from.len().min(MAX_ATTRIBUTES));
    for KeyValue { key, value } in from {
        match words::attribute(&key).filter(|_| out.len() < MAX_ATTRIBUTES).zip(convert_value(value)) {
            Some(pair) => out.push(pair),
            None => unused.unknown += 1,
        }
    }
    out
}

fn convert_value(from: json::Value<'_>) -> Option<Value> {
    match from {
        json::Value::String(text) => Some(Value::Str(text.into())),
        json::Value::Bool(value) => Some(Value::Bool(value)),
        json::Value::Int(value) => Some(Value::Int(value)),
        json::Value::Double(value) => Some(Value::Float(value)),
        json::Value::Array(list) => {
            let text = |value| match value {
                json::Value::String(text) => Some(text.into()),
                _ => None,
            };
            list.into_iter().map(text).collect::<Option<Vec<_>>>().map(Value::StrList)
        }
        json::Value::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(spans: &str) -> String {
        format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{spans}]}}]}}]}}")
    }

    #[test]
    fn a_line_of_more_lists_or_objects_than_spans_have_is_refused_unread() {
        // {"resourceSpans":[{"scopeSpans":[{"spans":[[],[],[], …
        for each in ["[]", "{}"] {
            let mut unused = Unused::default();
            let line = line_of(&vec![each; MAX_OPENED].join(","));
            assert_eq!(spans(line.as_bytes(), &mut unused), [], "{each}");
            assert_eq!(unused, Unused { lines: 1, ..Unused::default() }, "{each}: no span was made to be thrown away");
        }
        let mut unused = Unused::default();
        assert_eq!(spans(line_of("[],[]").as_bytes(), &mut unused), []);
        assert_eq!(unused, Unused { foreign: 2, ..Unused::default() }, "a few of them are spans that are none");
    }

    #[test]
    fn attributes_over_the_most_are_counted() {
        let attribute = format!("{{\"key\":\"{}\",\"value\":{{\"intValue\":1}}}}", crate::model::keys::attribute::STEP);
        let attributes = vec![attribute; MAX_ATTRIBUTES + 3].join(",");
        let ids = format!("\"traceId\":\"{}\",\"spanId\":\"{}\"", "1".repeat(32), "2".repeat(16));
        let span = format!("{{{ids},\"name\":\"{}\",\"attributes\":[{attributes}]}}", span::PREFILL);
        let mut unused = Unused::default();
        let read = spans(line_of(&span).as_bytes(), &mut unused);
        assert_eq!((read[0].span.attributes.len(), unused.unknown), (MAX_ATTRIBUTES, 3));
    }
}
