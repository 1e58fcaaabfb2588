//! Traces in the form that Jaeger's UI reads.
//!
//! Enters: pieces of a trace. Leaves: its JSON. Invariant: what Jaeger 1.76 answers after it took the same spans by OTLP, up to the order
//! of what has none; that is its µs, its names of types, what it makes of links and statuses, and its warnings.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Piece;
use super::go;
use crate::export::otlp::spans::{Origin, cut, resource, scope};
use crate::input::Server;
use crate::output::{Service, Span, SpanEvent, SpanId, SpanKind, SpanStatus, TraceId, UnixNanos, Value};

/// Integers that JavaScript takes as they are.
const SAFE: i64 = (1 << 53) - 1;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told<'a> {
    #[serde(rename = "traceID")]
    trace_id: String,
    spans: Vec<ToldSpan<'a>>,
    processes: BTreeMap<String, Process>,
    warnings: Option<()>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToldSpan<'a> {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
    operation_name: &'a str,
    references: Vec<Reference>,
    start_time: u64,
    duration: u64,
    tags: Vec<Tag>,
    logs: Vec<Log>,
    #[serde(rename = "processID")]
    process_id: String,
    warnings: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: &'static str,
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tag {
    key: String,
    #[serde(rename = "type")]
    kind: &'static str,
    value: serde_json::Value,
}

#[derive(Serialize)]
struct Log {
    timestamp: u64,
    fields: Vec<Tag>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: String,
    tags: Vec<Tag>,
}

/// Jaeger's way to write a trace id: half of it where the first half says nothing.
pub(super) fn trace_id(id: TraceId) -> String {
    let text = id.to_string();
    text.strip_prefix("0000000000000000").map_or_else(|| text.clone(), str::to_owned)
}

/// A trace, of the spans that its pieces have.
pub(super) fn trace<'a>(pieces: &[(&Piece, &'a [Span])], origin: &Origin) -> Told<'a> {
    let known: BTreeMap<SpanId, &Span> =
        pieces.iter().flat_map(|(_, spans)| spans.iter()).map(|span| (span.span_id, span)).collect();
    let mut processes: Vec<Process> = Vec::new();
    let mut told = Vec::new();
    for (piece, spans) in pieces {
        let process = process(piece.server(), piece.service(), origin);
        let number = processes.iter().position(|other| *other == process).unwrap_or_else(|| {
            processes.push(process);
            processes.len() - 1
        });
        told.extend(spans.iter().map(|span| told_span(span, number + 1, &known)));
    }
    Told {
        trace_id: told.first().map(|span| span.trace_id.clone()).unwrap_or_default(),
        spans: told,
        processes: (1..).zip(processes).map(|(number, process)| (format!("p{number}"), process)).collect(),
        warnings: None,
    }
}

fn told_span<'a>(span: &'a Span, process: usize, known: &BTreeMap<SpanId, &Span>) -> ToldSpan<'a> {
    let parent = span.parent.map(|parent| reference("CHILD_OF", span.trace_id, parent));
    let links = span.links.iter().map(|link| reference("FOLLOWS_FROM", link.trace_id, link.span_id));
    let warnings = warnings(span, known);
    ToldSpan {
        trace_id: trace_id(span.trace_id),
        span_id: span.span_id.to_string(),
        operation_name: span.name,
        references: parent.into_iter().chain(links).collect(),
        start_time: span.start_ns / 1_000,
        duration: end_ns(span).saturating_sub(span.start_ns) / 1_000,
        tags: tags_of(span),
        logs: span.events.iter().map(log).collect(),
        process_id: format!("p{process}"),
        warnings: (!warnings.is_empty()).then_some(warnings),
    }
}

fn reference(ref_type: &'static str, trace: TraceId, span: SpanId) -> Reference {
    Reference { ref_type, trace_id: trace_id(trace), span_id: span.to_string() }
}

/// The span's own, and what Jaeger makes of its kind, status, state and scope.
fn tags_of(span: &Span) -> Vec<Tag> {
    let mut tags: Vec<Tag> = span.attributes.iter().map(|(key, value)| tag(key, value)).collect();
    let scope = scope();
    tags.push(text("otel.scope.name", scope.name()));
    tags.extend(scope.version().map(|version| text("otel.scope.version", version)));
    let kind = match span.kind {
        SpanKind::Server => "server",
        SpanKind::Internal => "internal",
    };
    tags.push(text("span.kind", kind));
    if let SpanStatus::Error(what) = span.status {
        tags.push(tag("error", &Value::Bool(true)));
        tags.push(text("otel.status_code", "ERROR"));
        tags.push(text("otel.status_description", what));
    }
    tags.extend(span.trace_state.as_deref().map(|state| text("w3c.tracestate", state)));
    tags.sort_by(|one, other| one.key.cmp(&other.key));
    tags
}

fn log(event: &SpanEvent) -> Log {
    let mut fields: Vec<Tag> = event.attributes.iter().map(|(key, value)| tag(key, value)).collect();
    fields.sort_by(|one, other| one.key.cmp(&other.key));
    fields.insert(0, text("event", event.name));
    Log { timestamp: event.at_ns / 1_000, fields }
}

fn process(server: &Server, service: Service, origin: &Origin) -> Process {
    let mut service_name = String::new();
    let mut tags = Vec::new();
    for pair in resource(server, service, origin) {
        let key = pair.key.as_str();
        match &pair.value {
            opentelemetry::Value::String(value) if key == "service.name" => {
                value.as_str().clone_into(&mut service_name);
            }
            opentelemetry::Value::I64(value) => tags.push(tag(key, &Value::Int(*value))),
            other => tags.push(text(key, &other.as_str())),
        }
    }
    Process { service_name, tags }
}

fn text(key: &str, value: &str) -> Tag {
    Tag { key: key.to_owned(), kind: "string", value: value.into() }
}

fn tag(key: &str, value: &Value) -> Tag {
    let (kind, value) = match value {
        Value::Bool(value) => ("bool", (*value).into()),
        Value::Int(value) if value.unsigned_abs() > SAFE.unsigned_abs() => ("int64", value.to_string().into()),
        Value::Int(value) => ("int64", (*value).into()),
        Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e18 => ("float64", (*value as i64).into()),
        Value::Float(value) => ("float64", (*value).into()),
        Value::Str(value) => ("string", cut(value).into()),
        Value::StrList(_) => ("string", as_text(value).into()),
    };
    Tag { key: key.to_owned(), kind, value }
}

/// A value as a search compares it.
pub(super) fn as_text(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => go::float(*value),
        Value::Str(value) => cut(value).to_owned(),
        Value::StrList(values) => {
            let quoted: Vec<String> = values.iter().map(|value| go::quoted(cut(value))).collect();
            format!("[{}]", quoted.join(","))
        }
    }
}

/// The service, and what else is searched of a resource.
pub(super) fn resource_texts(server: &Server, service: Service, origin: &Origin) -> Vec<(String, String)> {
    let pairs = resource(server, service, origin);
    pairs.into_iter().map(|pair| (pair.key.as_str().to_owned(), pair.value.as_str().into_owned())).collect()
}

/// When a span ends for Jaeger, unix ns: none takes no time.
pub(super) fn end_ns(span: &Span) -> u64 {
    span.end_ns.max(span.start_ns.saturating_add(1))
}

/// What Jaeger says of spans that take no time, that lie outside of their parents, or whose parents are not there: it takes their hosts'
/// clocks to differ, and does nothing about it unless it is told to.
fn warnings(span: &Span, known: &BTreeMap<SpanId, &Span>) -> Vec<String> {
    let (told, end) = (UnixNanos(span.end_ns), end_ns(span));
    let short = (end != span.end_ns).then(|| {
        let (told, end) = (go::time(told), go::time(UnixNanos(end)));
        format!(
            "Negative duration detected, sanitizing end timestamp. Original end timestamp: {told}, adjusted to: {end}"
        )
    });
    let misplaced = span.parent.and_then(|parent| {
        let Some(parent) = known.get(&parent) else {
            return Some(format!("invalid parent span IDs={parent}; skipping clock skew adjustment"));
        };
        let delta = Some(skew(span, parent)).filter(|delta| *delta != 0)?;
        Some(format!("clock skew adjustment disabled; not applying calculated delta of {}", go::shown(delta)))
    });
    short.into_iter().chain(misplaced).collect()
}

/// By how much Jaeger would move a span, ns.
fn skew(child: &Span, parent: &Span) -> i64 {
    let took = |span: &Span| end_ns(span).saturating_sub(span.start_ns);
    let from = |at: u64, to: u64| i64::try_from(i128::from(to) - i128::from(at)).unwrap_or(0);
    if took(child) > took(parent) {
        return if child.start_ns < parent.start_ns { from(child.start_ns, parent.start_ns) } else { 0 };
    }
    if child.start_ns >= parent.start_ns && end_ns(child) <= end_ns(parent) {
        return 0;
    }
    let latency = (took(parent) - took(child)) / 2;
    from(child.start_ns, parent.start_ns.saturating_add(latency))
}

/// The parent's and the child's service of every span whose parent is there, and how often.
pub(super) fn dependencies(pieces: &[(&Piece, Cow<'_, [Span]>)], all: &mut BTreeMap<(String, String), u64>) {
    let mut services: BTreeMap<SpanId, &Piece> = BTreeMap::new();
    for (piece, spans) in pieces {
        services.extend(spans.iter().map(|span| (span.span_id, *piece)));
    }
    for (piece, spans) in pieces {
        for parent in spans.iter().filter_map(|span| services.get(&span.parent?)) {
            *all.entry((parent.service_name(), piece.service_name())).or_default() += 1;
        }
    }
}

/// Every operation of the spans, with its kind.
pub(super) fn operations<'a>(spans: impl Iterator<Item = &'a Span>) -> BTreeSet<(&'static str, &'static str)> {
    let kind = |span: &Span| if span.kind == SpanKind::Server { "server" } else { "internal" };
    spans.map(|span| (span.name, kind(span))).collect()
}
