//! Requests: those that are open, and those that are over, newest first.

use serde_json::{Value, json};

use super::query::Query;
use super::{Shown, ns, seconds};
use crate::core::view::Stage;
use crate::input::EventNanos;
use crate::model::keys::{attribute, span};
use crate::output::{AccessRecord, Span, Trace, Value as Of};
use crate::store::Request;
use crate::store::now::OpenRequest;

/// Rows that are told where no `limit` is asked for, and at most.
const ROWS: usize = 200;
const MAX_ROWS: usize = 10_000;

/// What is looked for.
struct Wanted<'a> {
    outcome: Option<&'a str>,
    model: Option<&'a str>,
    path: Option<&'a str>,
    id: Option<&'a str>,
    /// Seconds.
    slower: f64,
}

impl<'a> Wanted<'a> {
    fn of(query: &'a Query) -> Result<Self, String> {
        Ok(Self {
            outcome: query.text("outcome"),
            model: query.text("model"),
            path: query.text("path"),
            id: query.text("id"),
            slower: query.number("slower")?.unwrap_or(0.0),
        })
    }

    fn has(&self, request: &Request) -> bool {
        let Some(root) = request.trace.spans.first() else { return false };
        let record = request.record.as_deref();
        let is = |wanted: Option<&str>, has: Option<&str>| wanted.is_none_or(|wanted| Some(wanted) == has);
        let holds = |wanted: Option<&str>, text: Option<&String>| {
            wanted.is_none_or(|wanted| text.is_some_and(|text| text.contains(wanted)))
        };
        is(self.outcome, record.map(|record| record.outcome.name()))
            && is(self.model, record.and_then(|record| record.model.as_deref()))
            && holds(self.path, record.and_then(|record| record.path.as_ref()))
            && self.id.is_none_or(|id| is_called(id, root, record))
            && seconds(root.end_ns.saturating_sub(root.start_ns)) >= self.slower
    }

    fn has_open(&self, request: &OpenRequest, now: EventNanos) -> bool {
        let is =
            |wanted: Option<&str>, text: &Option<String>| wanted.is_none_or(|wanted| Some(wanted) == text.as_deref());
        let holds = |wanted: Option<&str>, text: &Option<String>| {
            wanted.is_none_or(|wanted| text.as_deref().is_some_and(|text| text.contains(wanted)))
        };
        // How it ends is not known yet.
        self.outcome.is_none()
            && is(self.model, &request.model)
            && holds(self.path, &request.route)
            && holds(self.id, &request.id)
            && seconds(now.saturating_sub(request.since)) >= self.slower
    }
}

/// A part of an id that the client or an engine knows it by, or the beginning of its trace id.
fn is_called(id: &str, root: &Span, record: Option<&AccessRecord>) -> bool {
    let own = record.and_then(|record| record.request_id.as_deref());
    let engine = record.into_iter().flat_map(|record| &record.generations).map(|of| of.engine_request_id.as_str());
    own.into_iter().chain(engine).any(|known| known.contains(id))
        || root.trace_id.to_string().starts_with(&id.to_ascii_lowercase())
}

impl Shown {
    pub(super) fn requests(&self, query: &Query) -> Result<Value, String> {
        let wanted = Wanted::of(query)?;
        let limit = query.number("limit")?.unwrap_or(ROWS).min(MAX_ROWS);
        let now = self.open_now();
        let over: Vec<Request> = self.kept.store().requests().rev().cloned().collect();
        let mut total = 0;
        let mut rows = Vec::new();
        for request in over.iter().filter(|request| wanted.has(request)) {
            total += 1;
            if rows.len() < limit {
                rows.push(row(request));
            }
        }
        let open = now.map(|now| {
            let rows = now.servers.iter().flat_map(|server| {
                let wanted = &wanted;
                let its = server.open.iter().filter(move |request| wanted.has_open(request, server.now));
                its.map(|request| open(request, server.now, &server.server))
            });
            rows.take(limit).collect::<Vec<Value>>()
        });
        Ok(json!({"open": open, "total": total, "requests": rows}))
    }
}

/// A request that is over: its record, and the parts of it.
pub(super) fn row(request: &Request) -> Value {
    let mut row = record(request);
    row["start_ns"] = request.trace.spans.first().map_or(Value::Null, |root| ns(root.start_ns));
    row["phases"] = Value::Array(phases(&request.trace));
    row
}

/// The access log's record; where there is none, as much of it as the tree says.
pub fn record(request: &Request) -> Value {
    let known = request.record.as_deref().and_then(|record| serde_json::to_value(record).ok());
    known.unwrap_or_else(|| match request.trace.spans.first() {
        Some(root) => json!({"trace_id": root.trace_id, "span_id": root.span_id}),
        None => json!({}),
    })
}

/// The parts of a request that lie directly below it, as they came.
fn phases(trace: &Trace) -> Vec<Value> {
    let Some(root) = trace.spans.first() else { return Vec::new() };
    let parts = trace.spans.iter().filter(|part| part.parent == Some(root.span_id));
    let part = |part: &Span| {
        json!({
            "name": part.name,
            "start_s": apart(root.start_ns, part.start_ns),
            "seconds": seconds(part.end_ns.saturating_sub(part.start_ns)),
            "provenance": provenance(part),
        })
    };
    parts.map(part).collect()
}

/// From one time to another, seconds; negative where that is earlier.
fn apart(from: u64, to: u64) -> f64 {
    if to >= from { seconds(to - from) } else { -seconds(from - to) }
}

fn provenance(of: &Span) -> Option<&str> {
    of.attributes.iter().find_map(|(key, value)| match value {
        Of::Str(text) if *key == attribute::PROVENANCE => Some(&**text),
        _ => None,
    })
}

fn open(of: &OpenRequest, now: EventNanos, server: &str) -> Value {
    json!({
        "id": of.id,
        "route": of.route,
        "model": of.model,
        "server": server,
        "stage": stage(of.stage),
        "age_s": seconds(now.saturating_sub(of.since)),
        "phases": open_phases(of, now),
        "preemptions": of.preemptions,
        "prompt_tokens": of.prompt_tokens,
        "output_tokens": of.output_tokens,
        "engine": of.engine,
        "lost": of.lost,
    })
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::FrontEnd => "front_end",
        Stage::Waiting => "waiting",
        Stage::Producing => "producing",
        Stage::Finishing => "finishing",
    }
}

/// How far it has come; the last part goes on.
fn open_phases(of: &OpenRequest, now: EventNanos) -> Vec<Value> {
    let marks = [
        ("front_end", Some(of.since)),
        (span::QUEUE, of.sent),
        (span::PREFILL, of.scheduled),
        (span::DECODE, of.first_token),
    ];
    let known: Vec<(&str, EventNanos)> = marks.into_iter().filter_map(|(name, at)| Some((name, at?))).collect();
    let ends = known.iter().skip(1).map(|(_, at)| *at).chain([now]);
    let phase = |((name, start), end): (&(&str, EventNanos), EventNanos)| {
        json!({
            "name": name,
            "start_s": seconds(start.saturating_sub(of.since)),
            "seconds": seconds(end.saturating_sub(*start)),
        })
    };
    known.iter().zip(ends).map(phase).collect()
}
