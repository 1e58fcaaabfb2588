//! Traces in a real Jaeger, read back through its query API as its UI does: by gRPC, by HTTP, and from the trace file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::sync::Arc;

use inferspan::export::flags::OutputArgs;
use inferspan::export::{Pressure, Sinks};
use inferspan_harness::folder::Folder;
use inferspan_harness::http;
use inferspan_harness::jaeger::{Jaeger, StoredTrace, stored};
use inferspan_tests::outputs;
use serde_json::{Value, json};

/// Exports request `n` and its engine step to where `args` says.
fn export(args: OutputArgs, n: u8) {
    let args = OutputArgs { access_log: Some("/dev/null".into()), ..args };
    let mut sinks = Sinks::open(&args, Arc::default(), Pressure::Drop).unwrap();
    sinks.push(&mut outputs::all(n));
    let summary = sinks.finish();
    assert_eq!((summary.spans_exported, summary.spans_dropped, summary.failures), (8, 0, vec![]));
}

/// The stored trees of request `n` must be what was sent.
fn assert_stored(request: &StoredTrace, step: &StoredTrace, n: u8) {
    let sent = outputs::request(n);
    assert_eq!(request.spans.len(), sent.spans.len());
    for span in &sent.spans {
        let id = span.span_id.to_string();
        let stored = request.spans.iter().find(|stored| stored.span_id == id).unwrap();
        assert_eq!(stored.name, span.name);
        assert_eq!(stored.service, "vllm");
        // The UI's API leaves out a parent that is in no stored trace; the remote one is looked at below.
        if !span.parent_is_remote {
            assert_eq!(stored.parent, span.parent.map(|parent| parent.to_string()), "{}", span.name);
        }
        assert_eq!(stored.start_us, span.start_ns / 1000);
        assert_eq!(stored.duration_us, (span.end_ns - span.start_ns) / 1000);
        assert_eq!(stored.tag("inferspan.provenance"), Some(&json!("observed")));
    }

    let root = request.named("inference_request").next().unwrap();
    assert_eq!(root.parent, Some(outputs::remote_parent(n).to_string()));
    assert_eq!(root.tag("span.kind"), Some(&json!("server")));
    assert_eq!(root.tag("w3c.tracestate"), Some(&json!("vendor=value")));
    assert_eq!(root.tag("http.response.status_code"), Some(&json!(200)));
    assert_eq!(root.tag("gen_ai.request.stream"), Some(&json!(true)));
    assert_eq!(root.tag("gen_ai.latency.e2e"), Some(&json!(0.2)));
    assert_eq!(root.tag("gen_ai.response.finish_reasons"), Some(&json!(r#"["length","stop"]"#)));
    assert_eq!(root.tag("inferspan.outcome"), Some(&json!("length")));
    assert_eq!(root.tag("otel.scope.name"), Some(&json!("inferspan")));
    assert_eq!(root.resource("service.version"), Some(&json!("0.32.0")));
    assert_eq!(root.resource("process.pid"), Some(&json!(4242)));
    assert_eq!(root.resource("service.instance.id"), Some(&json!(outputs::SERVER)));
    assert_eq!(root.resource("telemetry.distro.name"), Some(&json!("inferspan")));
    let [event] = &root.events[..] else { panic!("one event, not {:?}", root.events) };
    assert_eq!((&*event.name, event.at_us), ("first_token", root.start_us + 60_000));
    assert_eq!(event.fields, [("tokens".to_owned(), json!(1))]);

    let decode_step = request.named("decode_step").next().unwrap();
    let step_span = (outputs::step_trace_id(n).to_string(), outputs::span_id(n, 100).to_string());
    assert_eq!(decode_step.links, std::slice::from_ref(&step_span));
    assert_eq!(decode_step.tag("inferspan.step"), Some(&json!(1)));

    let [span] = &step.spans[..] else { panic!("one span, not {:?}", step.spans) };
    assert_eq!((&step.trace_id, &span.span_id), (&step_span.0, &step_span.1));
    assert_eq!((&*span.name, &*span.service, &span.parent), ("engine_step", "vllm-engine", &None));
    assert_eq!(span.tag("inferspan.batch.requests"), Some(&json!(3)));
    let failed = request.named("detokenize").next().unwrap();
    assert_eq!(failed.tag("error"), Some(&json!(true)));
    assert_eq!(failed.tag("otel.status_description"), Some(&json!("engine_error")));
}

fn read_back(jaeger: &Jaeger, n: u8) -> (StoredTrace, StoredTrace) {
    let request = jaeger.trace(&outputs::request_trace_id(n).to_string(), 7).unwrap();
    let step = jaeger.trace(&outputs::step_trace_id(n).to_string(), 1).unwrap();
    (request, step)
}

#[test]
fn trees_arrive_in_jaeger_by_grpc_http_and_file() {
    let Some(jaeger) = Jaeger::start() else { return };

    export(OutputArgs { otlp: Some(jaeger.otlp_grpc.clone()), ..OutputArgs::default() }, 1);
    let (request, step) = read_back(&jaeger, 1);
    assert_stored(&request, &step, 1);

    export(OutputArgs { otlp: Some(jaeger.otlp_http.clone()), ..OutputArgs::default() }, 2);
    let (request, step) = read_back(&jaeger, 2);
    assert_stored(&request, &step, 2);

    let folder = Folder::scratch("traces").unwrap();
    let file = folder.path().join("traces.jsonl");
    export(OutputArgs { traces_out: Some(file.clone()), ..OutputArgs::default() }, 3);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 2, "a line a trace");
    for line in text.lines() {
        let (status, body) = http::post(&jaeger.otlp_http, "application/json", line.as_bytes()).unwrap();
        assert_eq!((status, &*body), (200, r#"{"partialSuccess":{}}"#));
    }
    let (request, step) = read_back(&jaeger, 3);
    assert_stored(&request, &step, 3);

    // What the UI's "upload" does with a file of lines: joins their resourceSpans and lets the server transform them.
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let joined: Vec<Value> = lines.flat_map(|line| line["resourceSpans"].as_array().unwrap().clone()).collect();
    let body = json!({ "resourceSpans": joined }).to_string();
    let (status, answer) =
        http::post(&format!("{}/api/transform", jaeger.query), "application/json", body.as_bytes()).unwrap();
    assert_eq!(status, 200, "{answer}");
    let traces = stored(&serde_json::from_str(&answer).unwrap());
    let find = |id: &str| traces.iter().find(|trace| trace.trace_id == id).unwrap();
    assert_stored(find(&outputs::request_trace_id(3).to_string()), find(&outputs::step_trace_id(3).to_string()), 3);

    assert_eq!(jaeger.services().unwrap(), ["vllm", "vllm-engine"]);
    assert_eq!(jaeger.traces("vllm").unwrap().len(), 3);
    assert_eq!(jaeger.traces("vllm-engine").unwrap().len(), 3);
}

#[test]
fn the_same_traces_give_the_same_file() {
    let folder = Folder::scratch("traces").unwrap();
    let files = [folder.path().join("a"), folder.path().join("b")];
    for file in &files {
        export(OutputArgs { traces_out: Some(file.clone()), ..OutputArgs::default() }, 1);
    }
    let [a, b] = files.map(|file| std::fs::read_to_string(file).unwrap());
    assert_eq!(a, b);
    let first: Value = serde_json::from_str(a.lines().next().unwrap()).unwrap();
    let span = &first["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], outputs::step_trace_id(1).to_string());
    assert_eq!(span["spanId"], outputs::span_id(1, 100).to_string());
    assert_eq!(span["startTimeUnixNano"], outputs::step(1).start_ns.to_string());
}
