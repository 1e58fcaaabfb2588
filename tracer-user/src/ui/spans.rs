//! Spans as the page reads them.

use serde_json::{Map, Value, json};

use super::ns;
use crate::output::{Span, SpanStatus, Value as Of};

/// A span, with its times as digits.
pub fn span(of: &Span) -> Value {
    let status = match of.status {
        SpanStatus::Unset => None,
        SpanStatus::Error(what) => Some(what),
    };
    let event = |event: &crate::output::SpanEvent| json!({"name": event.name, "at_ns": ns(event.at_ns), "attributes": attributes(&event.attributes)});
    let link = |link: &crate::output::SpanLink| json!({"trace_id": link.trace_id, "span_id": link.span_id});
    json!({
        "span_id": of.span_id,
        "parent": of.parent,
        "name": of.name,
        "start_ns": ns(of.start_ns),
        "end_ns": ns(of.end_ns),
        "status": status,
        "attributes": attributes(&of.attributes),
        "events": of.events.iter().map(event).collect::<Vec<_>>(),
        "links": of.links.iter().map(link).collect::<Vec<_>>(),
    })
}

fn attributes(of: &[(&'static str, Of)]) -> Map<String, Value> {
    of.iter().map(|(key, value)| ((*key).to_owned(), plain(value))).collect()
}

fn plain(of: &Of) -> Value {
    match of {
        Of::Bool(value) => json!(value),
        Of::Int(value) => json!(value),
        Of::Float(value) => json!(value),
        Of::Str(value) => json!(value),
        Of::StrList(values) => json!(values),
    }
}
