//! Hand-made outputs, as the pure side would make them: a request's tree, the engine step it is linked to, its access record
//! and metrics. With every kind of attribute, an event, a link, a remote parent, an error.

use std::sync::Arc;

use inferspan::engine::SchedulerStats;
use inferspan::input::Server;
use inferspan::output::{
    AccessRecord, EngineStep, FinishReason, GenerationRecord, GenerationSeconds, Incomplete, Labels, Merit, Metric,
    Outcome, Output, RequestSeconds, Service, Span, SpanEvent, SpanId, SpanKind, SpanLink, SpanStatus, Trace, TraceId,
    UnixNanos, Value,
};

/// 2026-11-24T00:00:00Z, unix ns: when the hand-made requests start.
pub const EPOCH_NS: u64 = 1_795_478_400_000_000_000;

const MS: u64 = 1_000_000;

pub fn server() -> Arc<Server> {
    Arc::new(Server {
        service: "vllm".into(),
        model: "Qwen/Qwen3-8B".into(),
        engine: "vllm".into(),
        engine_version: Some("0.32.0".into()),
        container_id: Some("3f4a".repeat(16)),
        pid: 4242,
        start_ticks: 99,
    })
}

/// [`Server::instance`] of [`server`].
pub const SERVER: &str = "vllm-3f4a3f4a3f4a";

pub fn labels() -> Labels {
    Labels { server: SERVER.into(), model: "Qwen/Qwen3-8B".into(), engine: 0 }
}

/// Trace id of request `n`, as text.
pub fn request_trace_id(n: u8) -> TraceId {
    TraceId([0xa0, n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
}

/// Trace id of the engine step that served request `n`.
pub fn step_trace_id(n: u8) -> TraceId {
    TraceId([0xb0, n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
}

/// Span id `index` of request (or step) `n`.
pub fn span_id(n: u8, index: u8) -> SpanId {
    SpanId([0xc0, n, index, 3, 4, 5, 6, 7])
}

/// The caller's span that request `n` came with.
pub fn remote_parent(n: u8) -> SpanId {
    SpanId([0xd0, n, 2, 3, 4, 5, 6, 7])
}

fn span(trace_id: TraceId, n: u8, index: u8, parent: Option<u8>, name: &'static str, from_ms: u64, to_ms: u64) -> Span {
    let start_ns = EPOCH_NS + u64::from(n) * 1_000 * MS + from_ms * MS;
    Span {
        trace_id,
        span_id: span_id(n, index),
        parent: parent.map(|index| span_id(n, index)),
        parent_is_remote: false,
        trace_state: None,
        name,
        kind: SpanKind::Internal,
        start_ns,
        end_ns: start_ns + (to_ms - from_ms) * MS,
        status: SpanStatus::Unset,
        attributes: vec![("inferspan.provenance", Value::Str("observed".into()))],
        events: vec![],
        links: vec![],
    }
}

/// The tree of request `n` (200 ms, 7 spans).
pub fn request(n: u8) -> Trace {
    let id = request_trace_id(n);
    let mut root = span(id, n, 0, None, "inference_request", 0, 200);
    root.kind = SpanKind::Server;
    root.parent = Some(remote_parent(n));
    root.parent_is_remote = true;
    root.trace_state = Some("vendor=value".into());
    root.attributes.extend([
        ("http.request.method", Value::Str("POST".into())),
        ("url.path", Value::Str("/v1/completions".into())),
        ("http.response.status_code", Value::Int(200)),
        ("gen_ai.operation.name", Value::Str("text_completion".into())),
        ("gen_ai.request.model", Value::Str("Qwen/Qwen3-8B".into())),
        ("gen_ai.request.stream", Value::Bool(true)),
        ("gen_ai.response.finish_reasons", Value::StrList(vec!["length".into(), "stop".into()])),
        ("gen_ai.usage.input_tokens", Value::Int(12)),
        ("gen_ai.usage.output_tokens", Value::Int(3)),
        ("gen_ai.latency.e2e", Value::Float(0.2)),
        ("inferspan.outcome", Value::Str("length".into())),
    ]);
    root.events.push(SpanEvent {
        name: "first_token",
        at_ns: root.start_ns + 60 * MS,
        attributes: vec![("tokens", Value::Int(1))],
    });
    let tokenize = span(id, n, 1, Some(0), "tokenize", 1, 4);
    let queue = span(id, n, 2, Some(0), "queue_wait", 5, 20);
    let prefill = span(id, n, 3, Some(0), "prefill", 20, 60);
    let decode = span(id, n, 4, Some(0), "decode", 60, 190);
    let mut step = span(id, n, 5, Some(4), "decode_step", 60, 125);
    step.attributes.push(("inferspan.step", Value::Int(1)));
    step.links.push(SpanLink {
        trace_id: step_trace_id(n),
        span_id: span_id(n, 100),
        attributes: vec![("inferspan.link", Value::Str("engine_step".into()))],
    });
    let mut detokenize = span(id, n, 6, Some(0), "detokenize", 190, 199);
    // So that an error is seen too.
    detokenize.status = SpanStatus::Error("engine_error");
    let merit = Merit { outcome: Some(Outcome::Length), seconds: 0.2, parent_sampled: Some(true) };
    let spans = vec![root, tokenize, queue, prefill, decode, step, detokenize];
    Trace { server: server(), service: Service::Requests, spans, merit }
}

/// The engine step that request `n` is linked to.
pub fn step(n: u8) -> EngineStep {
    let start_ns = EPOCH_NS + u64::from(n) * 1_000 * MS + 60 * MS;
    let stats = SchedulerStats { running: 3, waiting: 1, kv_cache_usage: 0.25, prefix_queries: 12, prefix_hits: 8 };
    EngineStep {
        cuda: None,
        server: server(),
        trace_id: step_trace_id(n),
        span_id: span_id(n, 100),
        engine: 0,
        start_ns,
        end_ns: start_ns + 65 * MS,
        requests: 3,
        tokens: 3,
        first_tokens: 0,
        prefill_tokens: 0,
        decode_tokens: 3,
        batch: Box::default(),
        stats: Some(stats),
    }
}

/// The access record of request `n`.
pub fn access(n: u8) -> AccessRecord {
    let seconds = RequestSeconds {
        parse: Some(0.001),
        tokenize: Some(0.003),
        queue: Some(0.015),
        prefill: Some(0.04),
        decode: Some(0.13),
        detokenize: Some(0.002),
        ttft: Some(0.06),
        ttft_engine: Some(0.055),
        e2e: Some(0.2),
    };
    AccessRecord {
        v: 1,
        // 2026-11-24T00:00:00.2Z
        time: UnixNanos(1_795_478_400_200_000_000),
        trace_id: request_trace_id(n),
        span_id: span_id(n, 0),
        request_id: Some(format!("cmpl-{n}")),
        method: Some("POST".into()),
        path: Some("/v1/completions".into()),
        status: Some(200),
        model: Some("Qwen/Qwen3-8B".into()),
        stream: Some(true),
        outcome: Outcome::Length,
        finish_reasons: vec![FinishReason::Length],
        prompt_tokens: Some(12),
        cached_tokens: Some(8),
        output_tokens: Some(3),
        preemptions: Some(1),
        incomplete: Incomplete::default(),
        server: SERVER.into(),
        seconds,
        generations: vec![GenerationRecord {
            engine_request_id: format!("cmpl-{n}-0"),
            finish_reason: Some(FinishReason::Length),
            prompt_tokens: Some(12),
            cached_tokens: Some(8),
            output_tokens: 3,
            preemptions: 1,
            seconds: GenerationSeconds { queue: Some(0.015), prefill: Some(0.04), decode: Some(0.13) },
        }],
    }
}

/// The metrics that request `n` moves.
pub fn metrics(n: u8) -> Vec<Metric> {
    let (trace_id, span_id) = (request_trace_id(n), span_id(n, 0));
    vec![
        Metric::Scheduler {
            labels: labels(),
            running: 3,
            waiting: 1,
            kv_cache_usage: 0.25,
            prefix_queries: 12,
            prefix_hits: 8,
        },
        Metric::Prompt { labels: labels(), tokens: 12, cached: 8 },
        Metric::Tokens { labels: labels(), tokens: 1, inter_token: None },
        Metric::Tokens { labels: labels(), tokens: 2, inter_token: Some(0.065) },
        Metric::Preempted { labels: labels(), count: 1 },
        Metric::FirstToken { labels: labels(), ttft_engine: 0.055, trace_id, span_id },
        Metric::UsageDiffers { labels: labels() },
        Metric::CudaLibraryMemory { labels: labels(), library: "libc10_cuda.so".into(), live: 4096 },
        Metric::Step { labels: labels(), seconds: 0.065 },
        Metric::Generation {
            labels: labels(),
            finish_reason: FinishReason::Length,
            trace_id,
            span_id,
            queue: Some(0.015),
            prefill: Some(0.04),
            decode: Some(0.13),
            inference: Some(0.17),
        },
        Metric::Request {
            labels: labels(),
            outcome: Outcome::Length,
            operation: "text_completion",
            provider: "vllm".into(),
            error_type: None,
            trace_id,
            span_id,
            seconds: access(n).seconds,
            time_per_output_token: Some(0.07),
        },
    ]
}

/// Everything that request `n` says, in order.
pub fn all(n: u8) -> Vec<Output> {
    let mut all = vec![Output::Step(Box::new(step(n))), Output::Trace(request(n)), Output::Access(Box::new(access(n)))];
    all.extend(metrics(n).into_iter().map(Output::Metric));
    all
}
