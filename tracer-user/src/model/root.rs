//! What the root span of a request's tree says of it.
//!
//! Enters: a [`Finished`] request. Leaves: attributes and events, in the order in which they are drawn. What is not known is left out.

use std::sync::Arc;

use super::cuda;
use super::exchange::Exchange;
use super::generation::Generation;
use super::keys::{attribute, event};
use super::lags::Lagged;
use super::record::{Finished, words};
use super::trace_ids;
use super::tree::{Attributes, Provenance, int, text};
use crate::input::{EventNanos, Server};
use crate::output::{Merit, Span, SpanEvent, Value};

/// What is said of it as a whole.
pub(super) fn attributes(finished: &Finished<'_>, server: &Server) -> Attributes {
    let provenance = if finished.http_only { Provenance::Inferred } else { Provenance::Observed };
    let mut out: Attributes = vec![(attribute::PROVENANCE, text(provenance.name()))];
    let mut add = |key, value: Option<Value>| {
        if let Some(value) = value {
            out.push((key, value));
        }
    };
    let seconds = finished.seconds();
    let float = |x: Option<f64>| x.map(Value::Float);
    if let Some(exchange) = finished.exchange {
        add(attribute::HTTP_METHOD, Some(text(&exchange.head.method)));
        add(attribute::URL_PATH, Some(text(&exchange.head.path)));
        add(attribute::URL_SCHEME, Some(text("http")));
        add(attribute::HTTP_ROUTE, Some(text(exchange.operation.route)));
        add(attribute::HTTP_STATUS, exchange.status.map(|s| Value::Int(i64::from(s))));
        add(attribute::OPERATION, Some(text(exchange.operation.name)));
        add(attribute::REQUEST_CHOICES, exchange.fields.n.filter(|&n| n != 1).map(int));
        add(attribute::RESPONSE_MODEL, exchange.response_model.as_deref().map(text));
        let blocked = exchange.blocked.seen();
        add(attribute::HTTP_WAITED, exchange.waited().map(|ns| Value::Float(ns as f64 / 1e9)));
        add(attribute::BLOCKED, blocked.map(|(seconds, _)| Value::Float(seconds)));
        let after = finished.last_token().filter(|_| blocked.is_some()).map(|at| exchange.blocked.after(at));
        add(attribute::BLOCKED_AFTER, after.map(|ns| Value::Float(ns as f64 / 1e9)));
        add(attribute::BLOCKED_WRITES, blocked.map(|(_, times)| int(times)));
    }
    let generation = finished.generations.first();
    let fields = finished.exchange.map(|e| &e.fields);
    add(attribute::PROVIDER, Some(text(&server.engine)).filter(|_| !server.engine.is_empty()));
    add(attribute::REQUEST_MODEL, finished.model().map(text));
    add(attribute::REQUEST_STREAM, finished.stream().map(Value::Bool));
    let max_tokens = fields.and_then(|f| f.max_tokens).or(generation.and_then(|g| g.max_tokens));
    add(attribute::REQUEST_MAX_TOKENS, max_tokens.map(int));
    let temperature = fields.and_then(|f| f.temperature).or(generation.and_then(|g| g.temperature));
    add(attribute::REQUEST_TEMPERATURE, float(temperature));
    add(attribute::REQUEST_TOP_P, float(fields.and_then(|f| f.top_p).or(generation.and_then(|g| g.top_p))));
    let seed = fields.and_then(|f| f.seed).or(generation.and_then(|g| g.seed));
    add(attribute::REQUEST_SEED, seed.map(Value::Int));
    let is_structured = generation.is_some_and(|g| g.structured_output);
    add(attribute::STRUCTURED_OUTPUT, is_structured.then_some(Value::Bool(true)));
    add(attribute::RESPONSE_ID, finished.request_id().map(text));
    let reasons = finished.finish_reasons();
    add(attribute::FINISH_REASONS, (!reasons.is_empty()).then(|| Value::StrList(words(&reasons))));
    add(attribute::INPUT_TOKENS, finished.prompt_tokens().map(int));
    add(attribute::OUTPUT_TOKENS, finished.output_tokens().map(int));
    add(attribute::CACHED_TOKENS, finished.cached_tokens().map(int));
    add(attribute::LATENCY_QUEUE, float(seconds.queue));
    add(attribute::LATENCY_TTFT, float(seconds.ttft_engine));
    add(attribute::LATENCY_E2E, float(seconds.e2e));
    add(attribute::LATENCY_PREFILL, float(seconds.prefill));
    add(attribute::LATENCY_DECODE, float(seconds.decode));
    add(attribute::LATENCY_INFERENCE, float(finished.longest().and_then(Generation::inference_seconds)));
    add(attribute::OUTCOME, finished.outcome().map(|o| text(o.name())));
    let incomplete = finished.incomplete();
    add(attribute::INCOMPLETE, (!incomplete.is_whole()).then(|| text(&incomplete.to_string())));
    add(attribute::PREEMPTIONS, finished.preemptions().filter(|&n| n > 0).map(int));
    let Lagged { first, most, last } = finished.lagged();
    let as_seconds = |ns: Option<u64>| ns.map(|ns| Value::Float(ns as f64 / 1e9));
    add(attribute::FIRST_LAG, as_seconds(first));
    add(attribute::MAX_LAG, as_seconds(most));
    add(attribute::LAST_LAG, as_seconds(last));
    cuda::share(&finished.generations, &mut add);
    if let [generation] = finished.generations.as_slice() {
        add(attribute::ENGINE_REQUEST_ID, Some(Value::Str(Arc::clone(&generation.id))));
        add(attribute::ENGINE_INDEX, Some(int(u64::from(generation.engine))));
    }
    out
}

/// What happened to it, in order. `unix`: the wall time of an event time.
pub(super) fn events(finished: &Finished<'_>, unix: impl Fn(EventNanos) -> u64) -> Vec<SpanEvent> {
    let mut events = Vec::new();
    let mut add = |name, at: EventNanos, attributes: Attributes| {
        events.push((at, SpanEvent { name, at_ns: unix(at), attributes }));
    };
    if let Some(first) = finished.generations.iter().filter_map(|g| g.first).min_by_key(|t| t.received) {
        add(event::FIRST_TOKEN, first.received, Vec::new());
    } else if let Some(at) = finished.exchange.filter(|_| finished.http_only).and_then(|e| e.first_text) {
        add(event::FIRST_TOKEN, at, Vec::new());
    }
    for generation in &finished.generations {
        for (n, &at) in generation.preempted.iter().enumerate() {
            add(event::PREEMPTED, at, Vec::new());
            if let Some(wait) = generation.waits.iter().filter(|wait| wait.by_preemption).nth(n) {
                add(event::RESUMED, wait.to, Vec::new());
            }
        }
    }
    if let Some(exchange @ Exchange { ending: Some((at, ending)), .. }) = finished.exchange {
        if ending.is_clients() {
            add(event::CLIENT_DISCONNECTED, exchange.disconnected.unwrap_or(*at), Vec::new());
        } else if ending.is_servers() {
            add(event::SERVER_CLOSED, *at, Vec::new());
        }
    }
    if let Some(at) = finished.exchange.filter(|e| finished.cut_off && e.ending.is_none()).and_then(|e| e.disconnected)
    {
        add(event::CLIENT_DISCONNECTED, at, Vec::new());
    }
    if let Some(at) = finished.exchange.filter(|e| e.stream == Some(true)).and_then(|e| e.first_content) {
        add(event::FIRST_CONTENT, at, Vec::new());
    }
    events.sort_by_key(|(at, e)| (*at, e.name));
    events.into_iter().map(|(_, e)| e).collect()
}

/// What decides whether it is exported.
pub(super) fn merit(finished: &Finished<'_>, root: &Span) -> Merit {
    let traceparent = match (finished.exchange, finished.generations.first()) {
        (Some(exchange), _) => exchange.head.traceparent.as_deref(),
        (None, generation) => generation.and_then(|g| g.traceparent.as_deref()),
    };
    Merit {
        outcome: finished.outcome(),
        seconds: root.end_ns.saturating_sub(root.start_ns) as f64 / 1e9,
        parent_sampled: traceparent.and_then(trace_ids::traceparent).map(|parent| parent.sampled),
    }
}
