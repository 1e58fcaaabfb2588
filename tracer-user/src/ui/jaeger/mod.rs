//! Jaeger's query API, as Jaeger's UI and Grafana's data source ask it.
//!
//! Enters: a request's path and query. Leaves: what Jaeger 1.76 with its memory store would answer had it been sent every trace: requests
//! as traces of their server's service, engine steps as those of `<service>-engine`. Invariant: an answer holds at most [`MAX_BYTES`] and
//! a trace; what is left out for that is told in its `errors`. Nothing is written: what Jaeger takes by POST is not taken.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};

use self::search::Search;
use super::query::Query;
use super::{JSON, Shown};
use crate::export::otlp::spans::service_name;
use crate::input::Server;
use crate::output::{EngineStep, Service, Span, Trace, TraceId};
use crate::sanitise;
use crate::serve::{PLAIN, Response, answer};

mod form;
mod go;
mod search;

/// Spans of one trace in an answer, or a few more: some 100 MB of JSON.
const MAX_SPANS: usize = 50_000;
/// Of an answer with traces, before the last of them.
const MAX_BYTES: usize = 32 << 20;
/// What `/api/dependencies` looks back at where nothing is said: a day, ms.
const DEPENDENCY_LOOKBACK: i64 = 86_400_000;

/// Why there is no answer, in Jaeger's form.
pub(super) struct Error {
    status: StatusCode,
    why: String,
}

impl Error {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

/// A part of a trace: several requests may share one that a caller began.
pub(super) enum Piece {
    Request(Arc<Trace>),
    Step(Arc<EngineStep>),
}

impl Piece {
    fn server(&self) -> &Server {
        match self {
            Self::Request(trace) => &trace.server,
            Self::Step(step) => &step.server,
        }
    }

    fn service(&self) -> Service {
        match self {
            Self::Request(_) => Service::Requests,
            Self::Step(_) => Service::Engine,
        }
    }

    fn service_name(&self) -> String {
        service_name(self.server(), self.service())
    }

    fn trace_id(&self) -> Option<TraceId> {
        match self {
            Self::Request(trace) => trace.spans.first().map(|root| root.trace_id),
            Self::Step(step) => Some(step.trace_id),
        }
    }

    fn spans(&self, max: usize) -> Cow<'_, [Span]> {
        match self {
            Self::Request(trace) => Cow::Borrowed(&trace.spans),
            Self::Step(step) => Cow::Owned(step.spans(max)),
        }
    }
}

/// What follows `/api/`.
pub(super) fn respond(shown: &Shown, path: &[&str], query: &Query) -> Response {
    let answered = match path {
        ["services"] => Ok(listed(shown.services().into_iter().map(Value::String).collect(), true)),
        ["operations"] => shown.operations(query),
        ["services", service, "operations"] => Ok(shown.operations_of(service)),
        ["traces"] => return shown.search(query).unwrap_or_else(|error| refused(&error)),
        ["traces", id] => return shown.trace(id, query).unwrap_or_else(|error| refused(&error)),
        ["dependencies"] => shown.dependencies(query),
        ["metrics", ..] => Err(Error::new(StatusCode::NOT_IMPLEMENTED, "metrics querying is currently disabled")),
        _ => Err(Error::new(StatusCode::NOT_FOUND, "no such part of the API is here")),
    };
    match answered {
        Ok(document) => answer(StatusCode::OK, JSON, sanitise::json(&document.to_string()).into_owned()),
        Err(error) => refused(&error),
    }
}

fn refused(error: &Error) -> Response {
    let errors = [json!({"code": error.status.as_u16(), "msg": error.why})];
    let document = json!({"data": null, "total": 0, "limit": 0, "offset": 0, "errors": errors});
    answer(error.status, PLAIN, format!("{}\n", sanitise::json(&document.to_string())))
}

/// `is_null`: nothing is `null` and not `[]`.
fn listed(data: Vec<Value>, is_null: bool) -> Value {
    let total = data.len();
    let data = if is_null && data.is_empty() { Value::Null } else { Value::Array(data) };
    json!({"data": data, "total": total, "limit": 0, "offset": 0, "errors": null})
}

impl Shown {
    /// Everything that is kept, requests before steps, newest first.
    fn pieces(&self) -> Vec<Piece> {
        let store = self.kept.store();
        let requests = store.requests().rev().map(|request| Piece::Request(Arc::clone(&request.trace)));
        let mut pieces: Vec<Piece> = requests.collect();
        let mut steps: Vec<Arc<EngineStep>> =
            store.steps().engines().flat_map(|(_, steps)| steps.iter().map(|step| store.steps().whole(step))).collect();
        drop(store);
        steps.sort_by_key(|step| std::cmp::Reverse(step.end_ns));
        pieces.extend(steps.into_iter().map(Piece::Step));
        pieces
    }

    /// The pieces of a trace.
    fn of_trace(&self, id: TraceId) -> Vec<Piece> {
        let store = self.kept.store();
        let requests = store.of_trace(id).map(|request| Piece::Request(Arc::clone(&request.trace)));
        let steps = store.steps().of_trace(id).map(|step| Piece::Step(store.steps().whole(step)));
        requests.chain(steps).collect()
    }

    fn services(&self) -> BTreeSet<String> {
        let mut services: BTreeSet<String> = BTreeSet::new();
        // Most are the server's of the one before.
        let mut last = None;
        for piece in &self.pieces() {
            let its = (std::ptr::from_ref(piece.server()), piece.service());
            if last.replace(its) != Some(its) {
                services.insert(piece.service_name());
            }
        }
        services
    }

    fn operations(&self, query: &Query) -> Result<Value, Error> {
        let Some(service) = query.text("service") else {
            return Err(Error::new(StatusCode::BAD_REQUEST, "parameter 'service' is required"));
        };
        let wanted = query.text("spanKind");
        let all = self.operations_named(service);
        let all = all.into_iter().filter(|(_, kind)| wanted.is_none_or(|wanted| wanted == *kind));
        Ok(listed(all.map(|(name, kind)| json!({"name": name, "spanKind": kind})).collect(), false))
    }

    fn operations_of(&self, service: &str) -> Value {
        let service = percent_decoded(service);
        let names: BTreeSet<&str> = self.operations_named(&service).into_iter().map(|(name, _)| name).collect();
        listed(names.into_iter().map(Value::from).collect(), true)
    }

    fn operations_named(&self, service: &str) -> BTreeSet<(&'static str, &'static str)> {
        let mut all = BTreeSet::new();
        for piece in self.pieces() {
            if piece.service_name() == service {
                match &piece {
                    Piece::Request(trace) => all.extend(form::operations(trace.spans.iter())),
                    Piece::Step(step) => all.extend(form::operations(step.spans(self.max_spans).iter())),
                }
            }
        }
        all
    }

    fn search(&self, query: &Query) -> Result<Response, Error> {
        let ids = query.all("traceID").map(search::trace_id).collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|error| Error { why: format!("cannot parse traceID param: {}", error.why), ..error })?;
        if !ids.is_empty() {
            return Ok(self.traces(ids.into_iter(), true));
        }
        let now_ns = self.now_ns(self.kept.store().newest_ns());
        let search = Search::of(query, now_ns)?;
        let mut found = BTreeSet::new();
        let mut ids = Vec::new();
        for piece in self.pieces() {
            if ids.len() == search.limit {
                break;
            }
            let Some(id) = piece.trace_id() else { continue };
            if !found.contains(&id) && search.has(&piece, &self.origin, self.max_spans) {
                found.insert(id);
                ids.push(id);
            }
        }
        Ok(self.traces(ids.into_iter(), false))
    }

    fn trace(&self, id: &str, query: &Query) -> Result<Response, Error> {
        let id = search::trace_id(id)?;
        for name in ["start", "end"] {
            if let Some(Err(why)) = query.text(name).map(go::integer) {
                return Err(Error::new(StatusCode::BAD_REQUEST, format!("unable to parse param '{name}': {why}")));
            }
        }
        if let Some(Err(why)) = query.text("raw").map(go::boolean) {
            return Err(Error::new(StatusCode::BAD_REQUEST, format!("unable to parse param 'raw': {why}")));
        }
        if self.of_trace(id).is_empty() {
            return Err(Error::new(StatusCode::NOT_FOUND, "trace not found"));
        }
        Ok(self.traces([id].into_iter(), false))
    }

    /// These traces. `tells_missing`: of one that is not kept it is told.
    fn traces(&self, ids: impl Iterator<Item = TraceId>, tells_missing: bool) -> Response {
        let mut body = br#"{"data":["#.to_vec();
        let (mut count, mut left_out, mut errors) = (0_u64, 0_u64, Vec::new());
        for id in ids {
            if body.len() > MAX_BYTES {
                left_out += 1;
                continue;
            }
            let pieces = self.of_trace(id);
            if pieces.is_empty() {
                if tells_missing {
                    errors.push(json!({"msg": "trace not found", "traceID": form::trace_id(id)}));
                }
                continue;
            }
            let mut drawn: Vec<Cow<'_, [Span]>> = Vec::new();
            let mut spans = 0;
            for piece in &pieces {
                // All requests of a run may be of one trace, where a caller says so.
                if spans > MAX_SPANS {
                    break;
                }
                drawn.push(piece.spans(self.max_spans));
                spans += drawn.last().map_or(0, |of| of.len());
            }
            if drawn.len() < pieces.len() {
                let cut = pieces.len() - drawn.len();
                errors.push(json!({"msg": format!("{cut} requests of a trace are left out: it is too large"), "traceID": form::trace_id(id)}));
            }
            let pieces: Vec<(&Piece, &[Span])> = pieces.iter().zip(drawn.iter().map(|of| &**of)).collect();
            if count > 0 {
                body.push(b',');
            }
            // Into memory, and of what has no maps but with text for keys: nothing fails.
            let _ = serde_json::to_writer(&mut body, &form::trace(&pieces, &self.origin));
            count += 1;
        }
        if left_out > 0 {
            errors.push(
                json!({"msg": format!("{left_out} traces are left out: the answer is too large; ask for fewer")}),
            );
        }
        let errors = if errors.is_empty() { Value::Null } else { Value::Array(errors) };
        body.extend_from_slice(format!(r#"],"total":0,"limit":0,"offset":0,"errors":{errors}}}"#).as_bytes());
        let body = String::from_utf8_lossy(&body);
        answer(StatusCode::OK, JSON, sanitise::json(&body).into_owned())
    }

    fn dependencies(&self, query: &Query) -> Result<Value, Error> {
        let number = |name: &str| {
            let parsed = query.text(name).map(go::integer).transpose();
            parsed.map_err(|why| Error::new(StatusCode::BAD_REQUEST, format!("unable to parse param '{name}': {why}")))
        };
        let now_ns = self.now_ns(self.kept.store().newest_ns());
        let end = number("endTs")?.map_or(i128::from(now_ns), |ms| i128::from(ms) * 1_000_000);
        let start = end - i128::from(number("lookback")?.unwrap_or(DEPENDENCY_LOOKBACK)) * 1_000_000;
        let service = query.text("service");
        let mut traces: BTreeMap<TraceId, Vec<Piece>> = BTreeMap::new();
        for piece in self.pieces() {
            if let Some(id) = piece.trace_id() {
                traces.entry(id).or_default().push(piece);
            }
        }
        let mut all = BTreeMap::new();
        for pieces in traces.into_values() {
            let drawn: Vec<(&Piece, Cow<'_, [Span]>)> =
                pieces.iter().map(|piece| (piece, piece.spans(self.max_spans))).collect();
            let spans = || drawn.iter().flat_map(|(_, spans)| &**spans);
            let is_within = spans().map(|span| i128::from(span.start_ns)).min().is_some_and(|at| at > start)
                && spans().map(|span| i128::from(span.end_ns)).max().is_some_and(|at| at < end);
            if is_within {
                form::dependencies(&drawn, &mut all);
            }
        }
        let is_asked = |of: &(String, String)| service.is_none_or(|service| of.0 == service || of.1 == service);
        let all = all.into_iter().filter(|(of, _)| is_asked(of));
        let link = |((parent, child), calls)| json!({"parent": parent, "child": child, "callCount": calls});
        let data: Vec<Value> = all.map(link).collect();
        Ok(json!({"data": data, "total": 0, "limit": 0, "offset": 0, "errors": null}))
    }
}

/// A part of a path.
fn percent_decoded(text: &str) -> String {
    form_urlencoded::parse(text.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}
