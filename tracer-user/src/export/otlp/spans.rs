//! From our span trees to OpenTelemetry's types. The only place that knows both.
//!
//! Enters: a [`Trace`]. Leaves: `SpanData`, as the OTLP exporter takes it, and the attributes of its resource. Nothing is
//! added but what OpenTelemetry wants of every span: the sampled flag, the scope, the resource. Text longer than
//! [`MAX_TEXT`] is cut.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::input::Server;
use crate::output::{self, Service, Trace};
use crate::proc::Proc;
use crate::recording::Header;

/// Bytes of one string attribute; a back end's own limit is usually higher (Jaeger none, Tempo 2,048 by default).
const MAX_TEXT: usize = 2048;

/// What a run adds to every resource.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// `host.name`; `None` in a replay, whose host is not the server's.
    pub host: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`, parsed. What we know ourselves wins.
    pub extra: Vec<(String, String)>,
}

impl Origin {
    /// The origin of this process; `live` when the traced server runs on this host.
    pub fn of_this_process(live: bool) -> Self {
        let host = live
            .then(|| Proc::this().kernel_value("kernel/hostname"))
            .flatten()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty());
        let extra = std::env::var("OTEL_RESOURCE_ATTRIBUTES").map(|list| parse_attributes(&list)).unwrap_or_default();
        Self { host, extra }
    }
}

impl Origin {
    /// The origin that a recording names; what this process's environment says of the resource is put over it.
    pub fn of_recording(header: &Header) -> Self {
        let own = Self::of_this_process(false).extra;
        let recorded = header.resource.iter().filter(|(key, _)| own.iter().all(|(known, _)| known != key));
        Self { host: header.host.clone(), extra: recorded.cloned().chain(own.clone()).collect() }
    }
}

/// `key=value,key=value` with percent-encoded values, as the OpenTelemetry specification has it; a pair without `=` is skipped.
fn parse_attributes(list: &str) -> Vec<(String, String)> {
    list.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), percent_decode(value.trim())))
        .filter(|(key, _)| !key.is_empty())
        .collect()
}

pub(super) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = (byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        if let Some(decoded) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(decoded);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The resource of one service of `server`, sorted by key so that a replay writes the same bytes.
pub fn resource(server: &Server, service: Service, origin: &Origin) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("service.name", service_name(server, service)),
        KeyValue::new("service.instance.id", cut(&server.instance()).to_owned()),
        KeyValue::new("telemetry.distro.name", env!("CARGO_PKG_NAME")),
        KeyValue::new("telemetry.distro.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("telemetry.sdk.language", "rust"),
        KeyValue::new("telemetry.sdk.name", env!("CARGO_PKG_NAME")),
        KeyValue::new("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    if let Some(version) = &server.engine_version {
        attributes.push(KeyValue::new("service.version", cut(version).to_owned()));
    }
    if server.pid != 0 {
        attributes.push(KeyValue::new("process.pid", i64::from(server.pid)));
    }
    if let Some(container) = &server.container_id {
        attributes.push(KeyValue::new("container.id", cut(container).to_owned()));
    }
    if let Some(host) = &origin.host {
        attributes.push(KeyValue::new("host.name", cut(host).to_owned()));
    }
    for (key, value) in &origin.extra {
        if !attributes.iter().any(|known| known.key.as_str() == key) {
            attributes.push(KeyValue::new(key.clone(), value.clone()));
        }
    }
    attributes.sort_by(|a, b| a.key.as_str().cmp(b.key.as_str()));
    attributes
}

/// The name of one service of `server`.
pub fn service_name(server: &Server, service: Service) -> String {
    let name = match cut(&server.service) {
        // The specification's name for a service that does not know its own.
        "" => "unknown_service",
        name => name,
    };
    match service {
        Service::Requests => name.to_owned(),
        Service::Engine => format!("{name}-engine"),
    }
}

/// The scope that all our spans are in.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(env!("CARGO_PKG_NAME")).with_version(env!("CARGO_PKG_VERSION")).build()
}

/// The spans of `trace`, in its order.
pub fn spans(trace: &Trace, scope: &InstrumentationScope) -> Vec<SpanData> {
    trace.spans.iter().map(|span| convert(span, scope)).collect()
}

fn convert(span: &output::Span, scope: &InstrumentationScope) -> SpanData {
    let state = span.trace_state.as_deref().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let mut events = SpanEvents::default();
    events.events = span
        .events
        .iter()
        .map(|event| Event::new(event.name, time(event.at_ns), attributes(&event.attributes), 0))
        .collect();
    let mut links = SpanLinks::default();
    links.links = span
        .links
        .iter()
        .map(|link| {
            let context = context(link.trace_id, link.span_id, TraceState::default());
            Link::new(context, attributes(&link.attributes), 0)
        })
        .collect();
    SpanData {
        span_context: context(span.trace_id, span.span_id, state),
        parent_span_id: span.parent.map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.0)),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.kind {
            output::SpanKind::Server => SpanKind::Server,
            output::SpanKind::Internal => SpanKind::Internal,
        },
        name: span.name.into(),
        start_time: time(span.start_ns),
        end_time: time(span.end_ns),
        attributes: attributes(&span.attributes),
        dropped_attributes_count: 0,
        events,
        links,
        status: match span.status {
            output::SpanStatus::Unset => Status::Unset,
            output::SpanStatus::Error(what) => Status::error(what),
        },
        instrumentation_scope: scope.clone(),
    }
}

fn context(trace: output::TraceId, span: output::SpanId, state: TraceState) -> SpanContext {
    SpanContext::new(TraceId::from_bytes(trace.0), SpanId::from_bytes(span.0), TraceFlags::SAMPLED, false, state)
}

fn time(unix_ns: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(unix_ns)
}

fn attributes(attributes: &[(&'static str, output::Value)]) -> Vec<KeyValue> {
    attributes.iter().map(|(key, value)| KeyValue::new(*key, convert_value(value))).collect()
}

fn convert_value(value: &output::Value) -> Value {
    match value {
        output::Value::Bool(value) => Value::Bool(*value),
        output::Value::Int(value) => Value::I64(*value),
        output::Value::Float(value) => Value::F64(*value),
        output::Value::Str(value) => Value::String(cut(value).to_owned().into()),
        output::Value::StrList(values) => {
            Value::Array(Array::String(values.iter().map(|value| StringValue::from(cut(value).to_owned())).collect()))
        }
    }
}

/// The longest start of `text` that is whole characters and at most [`MAX_TEXT`] bytes.
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(attributes: &[KeyValue]) -> Vec<(String, String)> {
        attributes.iter().map(|pair| (pair.key.to_string(), pair.value.to_string())).collect()
    }

    #[test]
    fn the_engine_service_has_a_name_of_its_own() {
        let server = Server { service: "vllm".into(), ..Server::default() };
        assert_eq!(service_name(&server, Service::Requests), "vllm");
        assert_eq!(service_name(&server, Service::Engine), "vllm-engine");
        assert_eq!(service_name(&Server::default(), Service::Requests), "unknown_service");
    }

    #[test]
    fn resource_attributes_of_the_environment_fill_in_but_do_not_override() {
        let server =
            Server { service: "vllm".into(), pid: 7, engine_version: Some("0.32.0".into()), ..Server::default() };
        let extra = parse_attributes("service.name=other, deployment.environment.name = prod%20eu ,junk,=x,k=a=b");
        let attributes = names(&resource(&server, Service::Requests, &Origin { host: Some("h".into()), extra }));
        let find = |key: &str| attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!(find("service.name"), Some("vllm"));
        assert_eq!(find("service.version"), Some("0.32.0"));
        assert_eq!(find("process.pid"), Some("7"));
        assert_eq!(find("service.instance.id"), Some("vllm-7"));
        assert_eq!(find("host.name"), Some("h"));
        assert_eq!(find("deployment.environment.name"), Some("prod eu"));
        assert_eq!(find("k"), Some("a=b"));
        assert_eq!(find("container.id"), None);
        assert!(attributes.is_sorted());
    }

    #[test]
    fn percent_decoding_keeps_what_is_no_escape() {
        assert_eq!(percent_decode("a%2Cb%zz%"), "a,b%zz%");
        assert_eq!(percent_decode("%é1"), "%é1");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let text = "é".repeat(2000);
        assert_eq!(cut(&text).len(), 2048);
        assert_eq!(cut(&format!("x{text}")).len(), 2047);
    }
}
