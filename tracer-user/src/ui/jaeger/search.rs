//! What a search of Jaeger's asks for, and whether a span is it.
//!
//! Enters: a query. Leaves: whether a piece of a trace matches: one span of it that does in every respect. Refused: what Jaeger refuses,
//! in its words. `error=true` finds spans that failed and `error=false` those that did not, as Jaeger has it since 2.14; in 1.76's memory
//! store neither finds anything.

use std::collections::BTreeMap;

use hyper::StatusCode;

use super::form::{as_text, end_ns};
use super::go;
use super::{Error, Piece};
use crate::export::otlp::spans::Origin;
use crate::output::{Span, SpanStatus, TraceId};
use crate::ui::query::Query;

const DEFAULT_LIMIT: i64 = 100;
/// Traces of a search at most. Jaeger: as many as its store may hold.
const MAX_LIMIT: i64 = 100_000;
/// How far back a search looks that does not say: two days, ns.
const LOOKBACK: u64 = 2 * 86_400 * 1_000_000_000;
/// The tag that is no attribute.
const ERROR: &str = "error";

pub(super) struct Search<'a> {
    pub(super) service: &'a str,
    operation: Option<&'a str>,
    /// Unix ns, both ends of when a span begins.
    from_ns: i128,
    to_ns: i128,
    /// ns; 0 where nothing is asked.
    min: i128,
    max: i128,
    tags: BTreeMap<String, String>,
    pub(super) limit: usize,
}

/// As a client's fault.
fn bad(why: impl Into<String>) -> Error {
    Error::new(StatusCode::BAD_REQUEST, why)
}

impl<'a> Search<'a> {
    pub(super) fn of(query: &'a Query, now_ns: u64) -> Result<Self, Error> {
        let time = |name: &str, default: u64| match query.text(name) {
            None => Ok(i128::from(default)),
            Some(text) => micros(name, text),
        };
        let from_ns = time("start", now_ns.saturating_sub(LOOKBACK))?;
        let to_ns = time("end", now_ns)?;
        let tags = tags(query)?;
        let limit = query.text("limit").map(go::integer).transpose().map_err(bad)?.unwrap_or(DEFAULT_LIMIT);
        let duration = |name: &str| {
            let ns = query.text(name).map(go::duration).transpose();
            ns.map(|ns| i128::from(ns.unwrap_or(0)))
                .map_err(|why| bad(format!("unable to parse param '{name}': {why}")))
        };
        let (min, max) = (duration("minDuration")?, duration("maxDuration")?);
        let Some(service) = query.text("service") else { return Err(bad("parameter 'service' is required")) };
        if min != 0 && max != 0 && max < min {
            return Err(bad("'maxDuration' should be greater than 'minDuration'"));
        }
        if !(1..=MAX_LIMIT).contains(&limit) {
            let why = "search depth must be greater than 0 and less than max traces";
            return Err(Error::new(StatusCode::INTERNAL_SERVER_ERROR, why));
        }
        let (operation, limit) = (query.text("operation"), limit as usize);
        Ok(Self { service, operation, from_ns, to_ns, min, max, tags, limit })
    }

    /// One of its spans is what is looked for.
    pub(super) fn has(&self, piece: &Piece, origin: &Origin, max_spans: usize) -> bool {
        if piece.service_name() != self.service {
            return false;
        }
        let mut asked: Vec<(&str, &str)> = self.tags.iter().map(|(key, value)| (&**key, &**value)).collect();
        // What the resource says, all of its spans say.
        if asked.iter().any(|(key, _)| *key != ERROR) {
            let known = super::form::resource_texts(piece.server(), piece.service(), origin);
            asked.retain(|(key, value)| !known.iter().any(|(has, text)| has == key && text == value));
        }
        match piece {
            Piece::Request(trace) => trace.spans.iter().any(|span| self.is(span, &asked)),
            // To draw all is only worth it where one may match.
            Piece::Step(step) => step.spans(max_spans).iter().any(|span| self.is(span, &asked)),
        }
    }

    fn is(&self, span: &Span, tags: &[(&str, &str)]) -> bool {
        let start = i128::from(span.start_ns);
        let took = i128::from(end_ns(span).saturating_sub(span.start_ns));
        self.operation.is_none_or(|operation| operation == span.name)
            && (self.from_ns..=self.to_ns).contains(&start)
            && (self.min == 0 || took >= self.min)
            && (self.max == 0 || took <= self.max)
            && tags.iter().all(|(key, value)| has_tag(span, key, value))
    }
}

fn has_tag(span: &Span, key: &str, value: &str) -> bool {
    if key == ERROR {
        return go::boolean(value).is_ok_and(|failed| failed == matches!(span.status, SpanStatus::Error(_)));
    }
    let events = span.events.iter().flat_map(|event| &event.attributes);
    span.attributes.iter().chain(events).any(|(known, has)| *known == key && as_text(has) == value)
}

fn micros(name: &str, text: &str) -> Result<i128, Error> {
    let micros = go::integer(text).map_err(|why| bad(format!("unable to parse param '{name}': {why}")))?;
    Ok(i128::from(micros) * 1_000)
}

/// `tag=key:value`, any number of them, and `tags=` with an object.
fn tags(query: &Query) -> Result<BTreeMap<String, String>, Error> {
    let mut tags = BTreeMap::new();
    for tag in query.all("tag") {
        let pair = tag.split_once(':');
        let (key, value) =
            pair.ok_or_else(|| bad(format!("malformed 'tag' parameter, expecting key:value, received: {tag}")))?;
        tags.insert(key.to_owned(), value.to_owned());
    }
    for text in query.all("tags").filter(|text| !text.is_empty()) {
        let more: Option<BTreeMap<String, String>> = serde_json::from_str(text)
            .map_err(|why| bad(format!("malformed 'tags' parameter, cannot unmarshal JSON: {why}")))?;
        tags.extend(more.unwrap_or_default());
    }
    Ok(tags)
}

/// A trace id as Jaeger reads it: up to 32 digits, and zeros before them.
pub(super) fn trace_id(text: &str) -> Result<TraceId, Error> {
    if text.len() > 32 {
        return Err(bad(format!("TraceID cannot be longer than 32 hex characters: {text}")));
    }
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
    let number = number.ok_or_else(|| bad(format!("strconv.ParseUint: parsing {text:?}: invalid syntax")))?;
    Ok(TraceId(number.to_be_bytes()))
}
