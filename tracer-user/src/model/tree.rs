//! The span tree of a finished request.
//!
//! Enters: a [`Finished`] request. Leaves: its spans, parents before children, children inside their parents. What is not known
//! is left out; the root says why. At most `max_spans`; what is over is counted on the root.

use std::sync::Arc;

use super::exchange::Ending;
use super::fold::{Folded, Piece};
use super::generation::{Generation, StepRef};
use super::keys::{attribute, event, span};
use super::record::{Finished, last_sign, resolve};
use super::{exchange::Exchange, root, trace_ids};
use crate::clock::Clock;
use crate::input::{EventNanos, Server};
use crate::output::{Outcome, Service, Span, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, Trace, TraceId, Value};

/// Slow decode steps of one request that are shown one by one (with the folded runs between them about 150 spans).
const OUTLIERS: usize = 60;

/// How a span's times are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provenance {
    Observed,
    Inferred,
}

impl Provenance {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Inferred => "inferred",
        }
    }
}

/// Where the tree goes.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub trace_id: TraceId,
    pub root_id: SpanId,
    /// The caller's span, when a `traceparent` came with the request.
    pub parent: Option<SpanId>,
    /// Tells requests apart that share a remote trace.
    salt: u64,
}

/// Where the tree of `finished` goes: into the caller's trace, or one of its own.
pub fn place(finished: &Finished<'_>, run: u64) -> Place {
    match (finished.exchange, finished.generations.first()) {
        (Some(exchange), _) => place_of(exchange, run),
        (None, Some(generation)) => {
            let stamp = generation.arrival.unwrap_or(generation.seen);
            let own = trace_ids::generation_trace(run, &generation.id, stamp);
            Place::new(own, stamp, generation.traceparent.as_deref())
        }
        (None, None) => Place::new(trace_ids::generation_trace(run, "", 0), 0, None),
    }
}

/// Where the tree of a request goes, which is known from its head on.
pub fn place_of(exchange: &Exchange, run: u64) -> Place {
    let salt = trace_ids::exchange_salt(exchange.end, exchange.started, exchange.place);
    Place::new(trace_ids::exchange_trace(run, salt), salt, exchange.head.traceparent.as_deref())
}

impl Place {
    fn new(own: TraceId, salt: u64, header: Option<&str>) -> Self {
        let remote = header.and_then(trace_ids::traceparent);
        let trace_id = remote.map_or(own, |parent| parent.trace);
        let root_id = trace_ids::span(trace_id, salt, span::REQUEST, 0);
        Self { trace_id, root_id, parent: remote.map(|remote| remote.span), salt }
    }
}

/// Builds the tree.
pub fn build(
    finished: &Finished<'_>,
    place: Place,
    run: u64,
    clock: &Clock,
    server: &Arc<Server>,
    max_spans: usize,
) -> (Trace, u64) {
    let mut tree = Tree { place, run, clock, spans: Vec::new(), dropped: 0, max_spans: max_spans.max(1), bounds: None };
    tree.root(finished, server);
    tree.front_end(finished);
    let many = finished.generations.len() > 1;
    for (index, generation) in finished.generations.iter().enumerate() {
        let parent = if many {
            let Some(id) = tree.generation(generation, index, finished.exchange) else { continue };
            id
        } else {
            place.root_id
        };
        tree.engine_phases(generation, index, parent, finished.generations.len());
        tree.beams(generation);
    }
    tree.detokenize(finished);
    tree.written(finished);
    let merit = root::merit(finished, &tree.spans[0]);
    let dropped = tree.dropped;
    if dropped > 0 {
        tree.spans[0].attributes.push((attribute::SPANS_DROPPED, int(dropped)));
    }
    (Trace { server: Arc::clone(server), service: Service::Requests, spans: tree.spans, merit }, dropped)
}

struct Tree<'a> {
    place: Place,
    run: u64,
    clock: &'a Clock,
    spans: Vec<Span>,
    dropped: u64,
    max_spans: usize,
    /// The root's times. Engine times that are placed by an estimate are kept inside them.
    bounds: Option<(EventNanos, EventNanos)>,
}

pub(super) type Attributes = Vec<(&'static str, Value)>;

impl Tree<'_> {
    fn time(&self, at: EventNanos) -> u64 {
        let at = match self.bounds {
            Some((from, to)) if self.clock.engine_is_estimated() => at.clamp(from, to.max(from)),
            _ => at,
        };
        self.clock.unix(at)
    }

    fn push(
        &mut self,
        name: &'static str,
        index: u64,
        parent: SpanId,
        (from, to): (EventNanos, EventNanos),
        provenance: Provenance,
        mut attributes: Attributes,
    ) -> Option<&mut Span> {
        if self.spans.len() >= self.max_spans {
            self.dropped += 1;
            return None;
        }
        attributes.insert(0, (attribute::PROVENANCE, text(provenance.name())));
        let (start_ns, end_ns) = (self.time(from), self.time(to));
        self.spans.push(Span {
            trace_id: self.place.trace_id,
            span_id: trace_ids::span(self.place.trace_id, self.place.salt, name, index),
            parent: Some(parent),
            parent_is_remote: false,
            trace_state: None,
            name,
            kind: SpanKind::Internal,
            start_ns,
            end_ns: end_ns.max(start_ns),
            status: SpanStatus::Unset,
            attributes,
            events: Vec::new(),
            links: Vec::new(),
        });
        self.spans.last_mut()
    }

    fn link(&self, step: StepRef) -> SpanLink {
        let trace_id = trace_ids::step_trace(self.run, step.engine, step.stamp);
        SpanLink::to(trace_id, trace_ids::span(trace_id, 0, span::ENGINE_STEP, 0))
    }

    fn root(&mut self, finished: &Finished<'_>, server: &Server) {
        // Where the HTTP side was not seen, a probe may have seen the tokenizer before anything else.
        let first_sign = |g: &&Generation| {
            let heard = g.arrival.unwrap_or(g.seen).min(g.seen);
            g.encode.map_or(heard, |(from, _)| from.min(heard))
        };
        let first_sign = finished.generations.iter().map(first_sign).min();
        let last_signs = finished.generations.iter().map(|g| last_sign(g)).max();
        let start = finished.exchange.map(|e| e.started).or(first_sign).unwrap_or(0);
        let end = match finished.exchange {
            Some(Exchange { ending: Some((at, Ending::Complete)), .. }) => *at,
            // The engine goes on until it hears of it.
            Some(exchange) => {
                let at = exchange.ending.map(|e| e.0).or(exchange.last_write).unwrap_or(start);
                last_signs.map_or(at, |last| at.max(last))
            }
            None => last_signs.unwrap_or(start),
        };
        let outcome = finished.outcome();
        let error = outcome == Some(Outcome::Error);
        let mut attributes = root::attributes(finished, server);
        if error {
            attributes.push((attribute::ERROR_TYPE, Value::Str(finished.error_type())));
        }
        self.bounds = Some((start, end));
        let start_ns = self.clock.unix(start);
        let events = root::events(finished, |at| self.time(at));
        self.spans.push(Span {
            trace_id: self.place.trace_id,
            span_id: self.place.root_id,
            parent: self.place.parent,
            parent_is_remote: self.place.parent.is_some(),
            trace_state: self.place.parent.and(finished.exchange.and_then(|e| e.head.tracestate.clone())),
            name: span::REQUEST,
            kind: SpanKind::Server,
            start_ns,
            // The wall clock may have been set back meanwhile.
            end_ns: self.clock.unix(end.max(start)).max(start_ns),
            status: if error { SpanStatus::Error("error") } else { SpanStatus::Unset },
            attributes,
            events,
            links: Vec::new(),
        });
    }

    fn front_end(&mut self, finished: &Finished<'_>) {
        let root = self.place.root_id;
        let known = |observed| if observed { Provenance::Observed } else { Provenance::Inferred };
        if let Some(parsing) = finished.parsing() {
            self.push(span::PARSE, 0, root, (parsing.from, parsing.to), known(parsing.observed), Vec::new());
        }
        if let Some(tokenizing) = finished.tokenizing() {
            let tokens = finished.generations.first().and_then(|g| g.prompt_tokens);
            let attributes = tokens.map(|n| (attribute::PROMPT_TOKENS, int(n))).into_iter().collect();
            self.push(
                span::TOKENIZE,
                0,
                root,
                (tokenizing.from, tokenizing.to),
                known(tokenizing.observed),
                attributes,
            );
        }
    }

    fn generation(&mut self, generation: &Generation, index: usize, exchange: Option<&Exchange>) -> Option<SpanId> {
        let from = generation.added.or(generation.queued).unwrap_or(generation.seen);
        let mut attributes: Attributes = vec![
            (attribute::INDEX, int(index as u64)),
            (attribute::ENGINE_REQUEST_ID, Value::Str(Arc::clone(&generation.id))),
            (attribute::ENGINE_INDEX, int(u64::from(generation.engine))),
            (attribute::TOKENS, int(generation.output_tokens)),
            (attribute::PREEMPTIONS, int(generation.preemptions)),
        ];
        if let Some(reason) = resolve(generation, exchange) {
            attributes.push((attribute::FINISH_REASON, Value::Str(reason.name().into())));
        }
        let times = (from, last_sign(generation));
        let root = self.place.root_id;
        self.push(span::GENERATION, index as u64, root, times, Provenance::Observed, attributes).map(|s| s.span_id)
    }

    fn engine_phases(&mut self, generation: &Generation, index: usize, parent: SpanId, generations: usize) {
        let base = (index as u64) << 32;
        for (n, wait) in generation.waits.iter().enumerate() {
            let reason = if wait.by_preemption { "preemption" } else { "admission" };
            let mut attributes = vec![(attribute::REASON, Value::Str(reason.into()))];
            if let Some(load) = wait.load {
                attributes.push((attribute::QUEUE_WAITING, int(load.waiting())));
                attributes.push((attribute::QUEUE_RUNNING, int(load.running())));
                attributes.push((attribute::QUEUE_MAX_RUNNING, int(load.max_running)));
                attributes.push((attribute::QUEUE_KV_USAGE, Value::Float(load.kv_cache_usage)));
            }
            self.push(span::QUEUE, base | n as u64, parent, (wait.from, wait.to), Provenance::Observed, attributes);
        }
        let Some(first) = generation.first else { return };
        if let Some(scheduled) = generation.scheduled.filter(|&s| s <= first.at) {
            self.prefill(generation, base, parent, (scheduled, first.at), first.step);
        }
        let Some(last) = generation.last.filter(|last| last.at > first.at) else { return };
        let attributes = vec![(attribute::TOKENS, int(generation.output_tokens))];
        let times = (first.at, last.at);
        let Some(decode) = self.push(span::DECODE, base, parent, times, Provenance::Observed, attributes) else {
            return;
        };
        let decode = decode.span_id;
        for piece in generation.timeline.pieces(OUTLIERS / generations.max(1)) {
            self.decode_piece(generation, base, decode, piece);
        }
    }

    fn prefill(
        &mut self,
        generation: &Generation,
        base: u64,
        parent: SpanId,
        times: (EventNanos, EventNanos),
        step: StepRef,
    ) {
        let mut attributes = Attributes::new();
        if let Some(n) = generation.prompt_tokens {
            attributes.push((attribute::PROMPT_TOKENS, int(n)));
        }
        if let Some(n) = generation.cached_tokens {
            attributes.push((attribute::CACHED, int(n)));
        }
        let link = self.link(step);
        let chunks: Vec<SpanEvent> = generation
            .chunks
            .iter()
            .map(|&at| SpanEvent { name: event::PREFILL_CHUNK, at_ns: self.time(at), attributes: Vec::new() })
            .collect();
        if let Some(prefill) = self.push(span::PREFILL, base, parent, times, Provenance::Observed, attributes) {
            prefill.links = vec![link];
            prefill.events = chunks;
        }
    }

    fn decode_piece(&mut self, generation: &Generation, base: u64, decode: SpanId, piece: Piece) {
        match piece {
            Piece::Step { k, from, to, tokens, stamp } => {
                let attributes = vec![(attribute::STEP, int(k)), (attribute::TOKENS, int(u64::from(tokens)))];
                let link = self.link(StepRef { engine: generation.engine, stamp });
                if let Some(step) =
                    self.push(span::DECODE_STEP, base | k, decode, (from, to), Provenance::Observed, attributes)
                {
                    step.links = vec![link];
                }
            }
            Piece::Folded(Folded { first, last, from, to, min, p50, max }) => {
                let mut attributes = vec![(attribute::FIRST_STEP, int(first)), (attribute::LAST_STEP, int(last))];
                attributes.extend(aggregate(last - first + 1, min, p50, max));
                self.push(span::DECODE_STEPS, base | first, decode, (from, to), Provenance::Observed, attributes);
            }
        }
    }

    /// The further engine requests of a beam search, as one span.
    fn beams(&mut self, generation: &Generation) {
        let Some((beams, from)) = generation.beams.as_ref().and_then(|beams| Some((beams, beams.from?))) else {
            return;
        };
        let mut attributes = vec![(attribute::TOKENS, int(beams.output_tokens))];
        attributes.extend(aggregate(beams.count, beams.min, beams.p50(), beams.max));
        let root = self.place.root_id;
        self.push(span::GENERATIONS, 0, root, (from, beams.to), Provenance::Observed, attributes);
    }

    /// Where only the HTTP side is seen: from the first words written to the last.
    fn written(&mut self, finished: &Finished<'_>) {
        let Some(exchange) = finished.exchange.filter(|_| finished.http_only) else { return };
        let Some(times) = exchange.first_text.zip(exchange.last_text).filter(|(first, last)| first < last) else {
            return;
        };
        let attributes = exchange.usage.completion_tokens.map(|n| (attribute::TOKENS, int(n))).into_iter().collect();
        self.push(span::DECODE, 0, self.place.root_id, times, Provenance::Inferred, attributes);
    }

    fn detokenize(&mut self, finished: &Finished<'_>) {
        let Some(times) = finished.detokenizing() else { return };
        let mut attributes = Attributes::new();
        if let Some(exchange) = finished.exchange.filter(|e| e.detokenize_total > 0) {
            attributes.push((attribute::DETOKENIZE_TOTAL, Value::Float(exchange.detokenize_total as f64 / 1e9)));
        }
        self.push(span::DETOKENIZE, 0, self.place.root_id, times, Provenance::Observed, attributes);
    }
}

/// What is told of things that are folded into one span; times in ns.
fn aggregate(count: u64, min: u64, p50: u64, max: u64) -> [(&'static str, Value); 4] {
    let seconds = |ns: u64| Value::Float(ns as f64 / 1e9);
    [
        (attribute::STEP_COUNT, int(count)),
        (attribute::STEP_MIN, seconds(min)),
        (attribute::STEP_P50, seconds(p50)),
        (attribute::STEP_MAX, seconds(max)),
    ]
}

pub(super) fn int(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

pub(super) fn text(s: &str) -> Value {
    Value::Str(Arc::from(s))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
