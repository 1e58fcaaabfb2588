//! Made-up files of traces: requests whose every phase takes as long as a test says.
//!
//! Enters: [`Timed`] requests. Leaves: a file as `--traces-out` writes it. Nothing is random.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use inferspan::export::otlp::spans::{self, Origin};
use inferspan::export::otlp_file;
use inferspan::input::Server;
use inferspan::model::keys::{attribute, event, span};
use inferspan::output::{
    Merit, Outcome, Service, Span, SpanEvent, SpanId, SpanKind, SpanStatus, Trace, TraceId, Value,
};

use crate::outputs::EPOCH_NS;

/// A request. Times are seconds; a phase that takes none has no span.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    pub model: String,
    pub id: String,
    /// After the first of the file.
    pub start: f64,
    pub outcome: Outcome,
    pub parse: f64,
    pub tokenize: f64,
    pub queue: f64,
    pub prefill: f64,
    /// Between one token and the next.
    pub per_token: f64,
    pub detokenize: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
}

impl Default for Timed {
    fn default() -> Self {
        Self {
            model: "m".into(),
            id: "cmpl-1".into(),
            start: 0.0,
            outcome: Outcome::Length,
            parse: 0.001,
            tokenize: 0.002,
            queue: 0.01,
            prefill: 0.05,
            per_token: 0.02,
            detokenize: 0.001,
            prompt_tokens: 100,
            cached_tokens: 20,
            output_tokens: 11,
        }
    }
}

/// A number from 0 to 1 that is another one for each `n` and `of`, evenly.
pub fn spread(n: u64, of: u64) -> f64 {
    // Splitmix64's last steps.
    let mixed = (n ^ of << 32).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ mixed >> 31) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Writes them, a line each.
pub fn write(path: &Path, requests: impl Iterator<Item = Timed>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let (scope, origin) = (spans::scope(), Origin::default());
    let server = Arc::new(Server { service: "vllm".into(), pid: 4242, ..Server::default() });
    let mut line = Vec::new();
    for (number, request) in (1_u64..).zip(requests) {
        line.clear();
        otlp_file::write(&tree(number, &request, &server), &scope, &origin, &mut line)?;
        line.push(b'\n');
        file.write_all(&line)?;
    }
    file.flush()
}

fn tree(number: u64, of: &Timed, server: &Arc<Server>) -> Trace {
    let mut trace_id = [7; 16];
    trace_id[8..].copy_from_slice(&number.to_be_bytes());
    let start = EPOCH_NS + ns(of.start);
    let decode = of.per_token * (of.output_tokens - 1) as f64;
    let phases = [
        (span::PARSE, of.parse),
        (span::TOKENIZE, of.tokenize),
        (span::QUEUE, of.queue),
        (span::PREFILL, of.prefill),
        (span::DECODE, decode),
        (span::DETOKENIZE, of.detokenize),
    ];
    let mut tree = Tree { trace_id: TraceId(trace_id), number, spans: Vec::new() };
    let whole: u64 = phases.iter().map(|(_, took)| ns(*took)).sum();
    tree.push(span::REQUEST, None, (start, start + whole), root(of, decode, whole));
    let mut at = start;
    for (name, took) in phases.into_iter().filter(|(_, took)| *took > 0.0) {
        let id = tree.push(name, Some(1), (at, at + ns(took)), Vec::new());
        at += ns(took);
        if name == span::PREFILL {
            tree.spans[0].events.push(SpanEvent { name: event::FIRST_TOKEN, at_ns: at, attributes: Vec::new() });
        }
        if name == span::DECODE {
            let count = i64::try_from(of.output_tokens - 1).unwrap_or(i64::MAX);
            let each = Value::Float(of.per_token);
            let folded = vec![
                (attribute::STEP_COUNT, Value::Int(count)),
                (attribute::STEP_MIN, each.clone()),
                (attribute::STEP_P50, each.clone()),
                (attribute::STEP_MAX, each),
            ];
            tree.push(span::DECODE_STEPS, Some(id), (at - ns(took), at), folded);
        }
    }
    Trace { server: Arc::clone(server), service: Service::Requests, spans: tree.spans, merit: Merit::default() }
}

fn root(of: &Timed, decode: f64, whole: u64) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::Str(text.into());
    let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    vec![
        (attribute::HTTP_METHOD, text("POST")),
        (attribute::URL_PATH, text("/v1/completions")),
        (attribute::REQUEST_MODEL, text(&of.model)),
        (attribute::RESPONSE_ID, text(&of.id)),
        (attribute::ENGINE_REQUEST_ID, text(&of.id)),
        (attribute::ENGINE_INDEX, int(0)),
        (attribute::INPUT_TOKENS, int(of.prompt_tokens)),
        (attribute::CACHED_TOKENS, int(of.cached_tokens)),
        (attribute::OUTPUT_TOKENS, int(of.output_tokens)),
        (attribute::LATENCY_QUEUE, Value::Float(of.queue)),
        (attribute::LATENCY_PREFILL, Value::Float(of.prefill)),
        (attribute::LATENCY_DECODE, Value::Float(decode)),
        (attribute::LATENCY_E2E, Value::Float(whole as f64 / 1e9)),
        (attribute::OUTCOME, text(of.outcome.name())),
    ]
}

fn ns(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

struct Tree {
    trace_id: TraceId,
    number: u64,
    spans: Vec<Span>,
}

impl Tree {
    /// A span, and its number; the root's is 1.
    fn push(
        &mut self,
        name: &'static str,
        parent: Option<u64>,
        (start_ns, end_ns): (u64, u64),
        attributes: Vec<(&'static str, Value)>,
    ) -> u64 {
        let id = |place: u64| SpanId((self.number << 8 | place).to_be_bytes());
        let place = self.spans.len() as u64 + 1;
        self.spans.push(Span {
            trace_id: self.trace_id,
            span_id: id(place),
            parent: parent.map(id),
            parent_is_remote: false,
            trace_state: None,
            name,
            kind: if parent.is_none() { SpanKind::Server } else { SpanKind::Internal },
            start_ns,
            end_ns,
            status: SpanStatus::Unset,
            attributes,
            events: Vec::new(),
            links: Vec::new(),
        });
        place
    }
}
