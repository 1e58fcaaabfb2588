//! The span tree of a finished request.
//!
//! Enters: a [`Finished`] request. Leaves: its spans, parents before children, children inside their parents. What is not known
//! is left out; the root says why. At most `max_spans`; what is over is counted on the root.

use std::sync::Arc;

use super::cuda;
use super::exchange::Ending;
use super::fold::{Folded, Piece};
use super::generation::{Generation, StepRef};
use super::keys::{attribute, event, span};
use super::record::{Finished, last_sign, resolve, words};
use super::{exchange::Exchange, trace_ids};
use crate::clock::Clock;
use crate::input::{EventNanos, Server};
use crate::output::{
    Merit, Outcome, Service, Span, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, Trace, TraceId, Value,
};

/// Slow decode steps of one request that are shown one by one (with the folded runs between them about 150 spans).
const OUTLIERS: usize = 60;

/// How a span's times are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provenance {
    Observed,
    Inferred,
}

impl Provenance {
    fn name(self) -> &'static str {
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
    let merit = merit(finished, &tree.spans[0]);
    let dropped = tree.dropped;
    if dropped > 0 {
        tree.spans[0].attributes.push((attribute::SPANS_DROPPED, int(dropped)));
    }
    (Trace { server: Arc::clone(server), service: Service::Requests, spans: tree.spans, merit }, dropped)
}

fn merit(finished: &Finished<'_>, root: &Span) -> Merit {
    let traceparent = match (finished.exchange, finished.generations.first()) {
        (Some(exchange), _) => exchange.head.traceparent.as_deref(),
        (None, generation) => generation.and_then(|g| g.traceparent.as_deref()),
    };
    Merit {
        outcome: finished.outcome(),
        seconds: (root.end_ns - root.start_ns) as f64 / 1e9,
        parent_sampled: traceparent.and_then(trace_ids::traceparent).map(|parent| parent.sampled),
    }
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

type Attributes = Vec<(&'static str, Value)>;

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
        let first_sign = finished.generations.iter().map(|g| g.arrival.unwrap_or(g.seen).min(g.seen)).min();
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
        let mut attributes = root_attributes(finished, server);
        if error {
            attributes.push((attribute::ERROR_TYPE, Value::Str(finished.error_type())));
        }
        self.bounds = Some((start, end));
        let events = self.root_events(finished);
        self.spans.push(Span {
            trace_id: self.place.trace_id,
            span_id: self.place.root_id,
            parent: self.place.parent,
            parent_is_remote: self.place.parent.is_some(),
            trace_state: self.place.parent.and(finished.exchange.and_then(|e| e.head.tracestate.clone())),
            name: span::REQUEST,
            kind: SpanKind::Server,
            start_ns: self.clock.unix(start),
            end_ns: self.clock.unix(end.max(start)),
            status: if error { SpanStatus::Error("error") } else { SpanStatus::Unset },
            attributes,
            events,
            links: Vec::new(),
        });
    }

    fn root_events(&self, finished: &Finished<'_>) -> Vec<SpanEvent> {
        let mut events = Vec::new();
        let mut add = |name, at: EventNanos, attributes: Attributes| {
            events.push((at, SpanEvent { name, at_ns: self.time(at), attributes }));
        };
        if let Some(first) = finished.generations.iter().filter_map(|g| g.first).min_by_key(|t| t.received) {
            add(event::FIRST_TOKEN, first.received, Vec::new());
        } else if let Some(at) = finished.exchange.filter(|_| finished.http_only).and_then(|e| e.first_text) {
            add(event::FIRST_TOKEN, at, Vec::new());
        }
        for generation in &finished.generations {
            for (n, &at) in generation.preempted.iter().enumerate() {
                add(event::PREEMPTED, at, Vec::new());
                if let Some(wait) = generation.waits.get(n + 1) {
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
        if let Some(at) = finished.exchange.filter(|e| e.stream == Some(true)).and_then(|e| e.first_content) {
            add(event::FIRST_CONTENT, at, Vec::new());
        }
        events.sort_by_key(|(at, e)| (*at, e.name));
        events.into_iter().map(|(_, e)| e).collect()
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
            let reason = if n == 0 { "admission" } else { "preemption" };
            let attributes = vec![(attribute::REASON, Value::Str(reason.into()))];
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
            prefill.links.push(link);
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
                    step.links.push(link);
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

fn int(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn text(s: &str) -> Value {
    Value::Str(Arc::from(s))
}

fn root_attributes(finished: &Finished<'_>, server: &Server) -> Attributes {
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
    cuda::share(&finished.generations, &mut add);
    if let [generation] = finished.generations.as_slice() {
        add(attribute::ENGINE_REQUEST_ID, Some(Value::Str(Arc::clone(&generation.id))));
        add(attribute::ENGINE_INDEX, Some(int(u64::from(generation.engine))));
    }
    out
}
