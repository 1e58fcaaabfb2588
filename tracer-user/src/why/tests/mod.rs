//! Trees of requests, drawn in ms, and what is said of them.

use std::sync::Arc;

use super::*;
use crate::engine::SchedulerStats;
use crate::input::Server;
use crate::model::keys::{attribute, event, span};
use crate::output::{Merit, Outcome, Service, Span, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, Value};

mod cuda;
mod engine;
mod front_end;
mod hostile;
mod ranks;

pub(crate) const MS: u64 = 1_000_000;

/// A request and what goes on around it.
pub(super) struct Scene {
    pub(super) trace: Trace,
    pub(super) around: Around,
    next: u8,
}

pub(crate) fn bare(id: u8, parent: Option<u8>, name: &'static str, from_ms: u64, to_ms: u64) -> Span {
    Span {
        trace_id: TraceId([1; 16]),
        span_id: SpanId([id; 8]),
        parent: parent.map(|id| SpanId([id; 8])),
        parent_is_remote: false,
        trace_state: None,
        name,
        kind: SpanKind::Internal,
        start_ns: from_ms * MS,
        end_ns: to_ms * MS,
        status: SpanStatus::Unset,
        attributes: vec![(attribute::PROVENANCE, Value::Str("observed".into()))],
        events: Vec::new(),
        links: Vec::new(),
    }
}

/// Steps have ids by their ends.
fn step_id(end_ms: u64) -> (TraceId, SpanId) {
    (TraceId(u128::from(end_ms).to_be_bytes()), SpanId(end_ms.to_be_bytes()))
}

impl Scene {
    /// A request from 0 to `to_ms` on engine 0 that went well.
    pub(super) fn new(to_ms: u64) -> Self {
        let mut root = bare(0, None, span::REQUEST, 0, to_ms);
        root.attributes.push((attribute::ENGINE_INDEX, Value::Int(0)));
        let merit = Merit { outcome: Some(Outcome::Length), ..Merit::default() };
        let trace = Trace { server: Arc::new(Server::default()), service: Service::Requests, spans: vec![root], merit };
        Self { trace, around: Around::default(), next: 1 }
    }

    pub(super) fn root(&mut self) -> &mut Span {
        &mut self.trace.spans[0]
    }

    pub(super) fn span(&mut self, name: &'static str, from_ms: u64, to_ms: u64) -> &mut Span {
        let id = self.next;
        self.next += 1;
        let parent = match name {
            span::DECODE_STEP | span::DECODE_STEPS => {
                self.trace.spans.iter().find(|of| of.name == span::DECODE).map_or(0, |of| of.span_id.0[0])
            }
            _ => 0,
        };
        self.trace.spans.push(bare(id, Some(parent), name, from_ms, to_ms));
        self.trace.spans.last_mut().unwrap()
    }

    pub(super) fn wait(&mut self, from_ms: u64, to_ms: u64, reason: &str) -> &mut Span {
        let wait = self.span(span::QUEUE, from_ms, to_ms);
        wait.attributes.push((attribute::REASON, Value::Str(reason.into())));
        wait
    }

    /// Of a prompt of so many tokens, that ended with the step that ended then.
    pub(super) fn prefill(&mut self, from_ms: u64, to_ms: u64, tokens: i64) -> &mut Span {
        let prefill = self.span(span::PREFILL, from_ms, to_ms);
        prefill.attributes.push((attribute::PROMPT_TOKENS, Value::Int(tokens)));
        let (trace, id) = step_id(to_ms);
        prefill.links.push(SpanLink::to(trace, id));
        prefill
    }

    pub(super) fn decode(&mut self, from_ms: u64, to_ms: u64, tokens: i64) {
        let first = SpanEvent { name: event::FIRST_TOKEN, at_ns: from_ms * MS, attributes: Vec::new() };
        self.root().events.push(first);
        self.root().attributes.push((attribute::OUTPUT_TOKENS, Value::Int(tokens)));
        self.span(span::DECODE, from_ms, to_ms).attributes.push((attribute::TOKENS, Value::Int(tokens)));
    }

    pub(super) fn decode_step(&mut self, k: i64, from_ms: u64, to_ms: u64) {
        self.span(span::DECODE_STEP, from_ms, to_ms).attributes.push((attribute::STEP, Value::Int(k)));
    }

    pub(super) fn step(&mut self, from_ms: u64, to_ms: u64, requests: u64) -> &mut EngineStep {
        self.around.steps.push(Arc::new(step(from_ms, to_ms, requests)));
        Arc::get_mut(self.around.steps.last_mut().unwrap()).unwrap()
    }

    /// Usual steps of `each_ms` from `from_ms` to `to_ms`.
    pub(super) fn steps(&mut self, from_ms: u64, to_ms: u64, each_ms: u64, requests: u64) {
        let mut at = from_ms;
        while at + each_ms <= to_ms {
            self.step(at, at + each_ms, requests);
            at += each_ms;
        }
    }

    pub(super) fn float(&mut self, key: &'static str, seconds: f64) {
        self.root().attributes.push((key, Value::Float(seconds)));
    }

    /// Its client took no bytes for so long, and for so much of it behind the last token.
    pub(super) fn blocked(&mut self, seconds: f64, behind_last_token: f64) {
        self.float(attribute::BLOCKED, seconds);
        self.float(attribute::BLOCKED_AFTER, behind_last_token);
    }

    pub(super) fn verdict(&self) -> Verdict {
        let verdict = explain(&self.trace, &self.around);
        let shares: f64 = verdict.causes.iter().map(|cause| cause.share).sum();
        assert!(shares <= 1.000_001, "{verdict:?}");
        verdict
    }

    /// What is blamed, with how many ms each, in order.
    pub(super) fn blamed(&self) -> Vec<(Kind, u64)> {
        let whole = |cause: &Cause| (cause.kind, (cause.seconds * 1e3).round() as u64);
        self.verdict().causes.iter().map(whole).collect()
    }

    pub(super) fn evidence(&self) -> String {
        self.verdict().causes.first().map(|cause| cause.evidence.clone()).unwrap_or_default()
    }
}

pub(super) fn step(from_ms: u64, to_ms: u64, requests: u64) -> EngineStep {
    let (trace_id, span_id) = step_id(to_ms);
    EngineStep {
        server: Arc::new(Server::default()),
        trace_id,
        span_id,
        engine: 0,
        start_ns: from_ms * MS,
        end_ns: to_ms * MS,
        requests,
        tokens: requests,
        first_tokens: 0,
        prefill_tokens: 0,
        decode_tokens: requests,
        batch: Box::default(),
        stats: None,
        cuda: None,
    }
}

#[allow(clippy::unnecessary_wraps, reason = "it is what a step has")]
pub(super) fn stats(running: u64, waiting: u64, kv_cache_usage: f64) -> Option<SchedulerStats> {
    Some(SchedulerStats { running, waiting, kv_cache_usage, ..SchedulerStats::default() })
}

/// 10 ms to its first token, then 99 tokens of 10 ms each: nothing is wrong.
pub(super) fn normal() -> Scene {
    let mut scene = Scene::new(1_001);
    scene.span(span::PARSE, 0, 1);
    scene.span(span::TOKENIZE, 1, 2);
    scene.wait(2, 3, "admission");
    scene.prefill(3, 10, 20);
    scene.decode(10, 1_000, 100);
    scene.step(0, 10, 4).prefill_tokens = 20;
    scene.steps(10, 1_000, 10, 4);
    scene.span(span::DETOKENIZE, 1_000, 1_001);
    scene
}

#[test]
fn a_normal_request_gave_many_tokens() {
    let scene = normal();
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
    assert_eq!(scene.evidence(), "100 tokens, 10 ms each, in batches of 4");
    let verdict = scene.verdict();
    assert_eq!(
        text::paragraph(&scene.trace, &verdict),
        "why 01010101…: 1.00 s; nothing went wrong: 990 ms went into 100 tokens, 10 ms each, in batches of 4. Not seen: how \
         full the engine was: its scheduler keeps no statistics; what its steps did with CUDA."
    );
}

#[test]
fn a_request_of_a_few_ms_is_not_judged() {
    // 0 queued 3 ├ prefill ┤ 4
    let mut scene = Scene::new(4);
    scene.wait(0, 3, "admission");
    scene.prefill(3, 4, 2_000);
    assert_eq!(scene.blamed(), []);
    let verdict = scene.verdict();
    assert!(text::paragraph(&scene.trace, &verdict).contains("4.0 ms; nothing stands out."), "{verdict:?}");
}

#[test]
fn kinds_are_called_as_json_calls_them() {
    for kind in [Kind::Queued, Kind::PrefillOfOthers, Kind::SlowTokenizer, Kind::FrontEndLate, Kind::ManyTokens] {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}
