//! Jaeger's query API of the live view, side by side with a real Jaeger that was sent the same traces: whatever is asked, the answers
//! agree, up to the order of what has none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;
use std::io::BufWriter;
use std::sync::Arc;

use inferspan::export::flags::OutputArgs;
use inferspan::export::otlp::spans::Origin;
use inferspan::export::{Pressure, Sinks};
use inferspan::input::Server;
use inferspan::output::{Merit, Outcome, Output, Service, SpanLink, SpanStatus, Trace, TraceId, Value as Of};
use inferspan::sample::policy::EngineSteps;
use inferspan::source::syscall_log::SyscallLog;
use inferspan::ui::{Shown, Time, Ui};
use inferspan_harness::folder::Folder;
use inferspan_harness::http;
use inferspan_harness::jaeger::Jaeger;
use inferspan_tests::madeup::{Plan, write};
use inferspan_tests::{outputs, pipeline};
use serde_json::{Value, json};

/// All time that there is, and more traces than there are.
const ALL: &str = "start=1&end=4102444800000000&limit=9000";

/// What a made-up server and a real one did, as outputs.
fn served() -> Vec<Output> {
    let plan = Plan {
        open: 8,
        requests: 40,
        tokens: 20,
        prompt: 50,
        stream: true,
        per_message: 0,
        waiting: 2,
        both_ends: false,
        http: true,
        blank: false,
    };
    let folder = Folder::scratch("ui-jaeger").unwrap();
    let file = folder.path().join("log.jsonl");
    write(&plan, BufWriter::new(std::fs::File::create(&file).unwrap())).unwrap();
    let mut log = SyscallLog::open(&file).unwrap();
    let events: Vec<_> = std::iter::from_fn(|| log.next_event().unwrap()).collect();
    let mut outputs = Vec::new();
    for events in [events, pipeline::events("v0.32_preempt.jsonl.gz"), pipeline::events("v0.11.0_run.jsonl.gz")] {
        let made = pipeline::run(&events);
        outputs.extend(made.steps.into_iter().map(|step| Output::Step(Box::new(step))));
        outputs.extend(made.traces.into_iter().map(Output::Trace));
    }
    outputs
}

/// A tree with all that is hard to tell: odd text, numbers at their ends, spans that take no time or lie outside of their parents, a trace
/// id that begins with zeros.
fn odd() -> Trace {
    let mut trace = outputs::request(9);
    let id = TraceId([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    trace.spans.iter_mut().for_each(|span| span.trace_id = id);
    let [root, tokenize, queue, prefill, decode, step, ..] = &mut trace.spans[..] else { panic!("seven spans") };
    for (key, value) in [
        ("text.html", Of::Str("<script>alert(1)</script> & \"quoted\"".into())),
        ("text.list", Of::StrList(vec!["a<b>&c".into(), "\u{2028}\u{202e}\u{1b}[2J".into(), "".into()])),
        ("text.long", Of::Str("é".repeat(3_000).into())),
        ("text.odd", Of::Str("\u{202e}\u{feff}\u{1b}[31m\u{0}\n".into())),
        ("int.most", Of::Int(i64::MAX)),
        ("int.least", Of::Int(i64::MIN)),
        ("int.safe", Of::Int((1 << 53) - 1)),
        ("int.unsafe", Of::Int(1 << 53)),
        ("float.small", Of::Float(1e-7)),
        ("float.large", Of::Float(1e21)),
        ("float.whole", Of::Float(-3.0)),
        ("float.sum", Of::Float(0.1 + 0.2)),
        ("bool", Of::Bool(false)),
    ] {
        root.attributes.push((key, value));
    }
    root.events[0].attributes.push(("a", Of::Str("first by name".into())));
    root.links.push(SpanLink {
        attributes: vec![("why", Of::Bool(true))],
        ..SpanLink::to(outputs::step_trace_id(1), outputs::span_id(1, 100))
    });
    tokenize.end_ns = tokenize.start_ns;
    queue.start_ns = root.start_ns - 2_200_001;
    (prefill.start_ns, prefill.end_ns) = (root.start_ns - 3_600_000_000_000, root.end_ns + 5);
    (decode.start_ns, decode.end_ns) = (root.end_ns + 1_234, root.end_ns + 61_000_001_234);
    step.status = SpanStatus::Error("engine_error");
    trace
}

/// Another server's request in the trace of request 1, whose caller asked both.
fn second_server() -> Trace {
    let server = Server { service: "judge & co".into(), pid: 77, ..Server::default() };
    let mut root = outputs::request(3).spans.swap_remove(0);
    (root.trace_id, root.parent) = (outputs::request_trace_id(1), Some(outputs::span_id(1, 0)));
    let merit = Merit { outcome: Some(Outcome::Stop), seconds: 0.1, parent_sampled: None };
    Trace { server: Arc::new(server), service: Service::Requests, spans: vec![root], merit }
}

/// Sends it all to `jaeger`, and shows the same.
fn shown(jaeger: &Jaeger) -> Ui {
    let args = OutputArgs {
        otlp: Some(jaeger.otlp_grpc.clone()),
        engine_steps: EngineSteps::All,
        access_log: Some("/dev/null".into()),
        ..OutputArgs::default()
    };
    let mut sinks = Sinks::open(&args, Arc::default(), Pressure::Wait).unwrap();
    let kept = sinks.keep(Pressure::Wait).unwrap();
    let mut outputs = served();
    outputs.extend([1, 2].into_iter().flat_map(outputs::all));
    outputs.extend([odd(), second_server()].map(Output::Trace));
    sinks.push(&mut outputs);
    assert_eq!(sinks.finish().failures, Vec::<String>::new());
    let origin = Origin::of_this_process(false);
    let shown = Shown { kept, telemetry: Arc::default(), origin, time: Time::Newest, max_spans: args.max_spans };
    Ui::start("127.0.0.1:0", shown).unwrap()
}

/// Status and document; what has no order is sorted, and processes stand where they are named.
fn asked(base: &str, path: &str) -> (u16, Value) {
    let (status, body) = http::get(&format!("{base}{path}")).unwrap();
    let mut document: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {status} {body}"));
    if let Some(data) = document["data"].as_array_mut() {
        data.iter_mut().filter(|of| of["spans"].is_array()).for_each(sort);
        data.sort_by_cached_key(Value::to_string);
    }
    (status, document)
}

fn sort(trace: &mut Value) {
    let processes = trace["processes"].take();
    let spans = trace["spans"].as_array_mut().unwrap();
    for span in spans.iter_mut() {
        span["processID"] = processes[span["processID"].as_str().unwrap()].clone();
    }
    spans.sort_by_cached_key(|span| (span["spanID"].to_string(), span.to_string()));
    let used: BTreeSet<String> = spans.iter().map(|span| span["processID"].to_string()).collect();
    assert_eq!(processes.as_object().unwrap().len(), used.len(), "each is named");
}

fn queries() -> Vec<String> {
    let mut queries: Vec<String> = [
        "services",
        "operations",
        "operations?service=nope",
        "operations?service=vllm&spanKind=server",
        "operations?service=vllm&spanKind=client",
        "services/nope/operations",
        "services/judge%20%26%20co/operations",
        "dependencies?endTs=4102444800000&lookback=4102444800000",
        "dependencies?endTs=4102444800000&lookback=4102444800000&service=judge%20%26%20co",
        "dependencies?endTs=4102444800000&lookback=1000",
        "dependencies?endTs=x",
        "metrics/minstep",
        "metrics/calls?service=vllm",
        "traces",
        "traces?service=nope",
        "traces?service=vllm&limit=0",
        "traces?service=vllm&limit=-1",
        "traces?service=vllm&limit=x",
        "traces?service=vllm&limit=99999999999999999999",
        "traces?service=vllm&start=x",
        "traces?service=vllm&end=x",
        "traces?service=vllm&minDuration=5",
        "traces?service=vllm&minDuration=5y",
        "traces?service=vllm&maxDuration=-",
        "traces?service=vllm&minDuration=5s&maxDuration=1s",
        "traces?service=vllm&tag=x",
        "traces?service=vllm&start=1&end=2",
        "traces?traceID=abc&traceID=102030405060708",
        "traces?traceID=xyz",
        "traces/abc",
        "traces/xyz",
        "traces/102030405060708",
        "traces/00000000000000000102030405060708",
        "traces/000000000000000001020304050607080",
        "traces/102030405060708?raw=x",
        "traces/102030405060708?start=x",
    ]
    .map(|path| format!("/api/{path}"))
    .into();
    for service in ["vllm", "vllm-engine", "judge%20%26%20co"] {
        queries.push(format!("/api/operations?service={service}"));
        queries.push(format!("/api/services/{service}/operations"));
        for filter in FILTERS {
            queries.push(format!("/api/traces?service={service}&{ALL}{filter}"));
        }
    }
    queries
}

const FILTERS: [&str; 27] = [
    "",
    "&operation=decode",
    "&operation=engine_step",
    "&operation=nope",
    "&operation=prefill&minDuration=3ms",
    "&operation=tokenize&maxDuration=1ns",
    "&minDuration=10ms",
    "&maxDuration=5ms",
    "&minDuration=50ms&maxDuration=0.12s",
    "&minDuration=1m1s",
    "&tags=%7B%22inferspan.outcome%22%3A%22length%22%7D",
    "&tags=%7B%22inferspan.outcome%22%3A%22length%22%2C%22http.response.status_code%22%3A%22200%22%7D",
    "&tags=null",
    "&tag=inferspan.outcome:unknown",
    "&tag=service.instance.id:vllm",
    "&tag=service.name:vllm-engine",
    "&tag=inferspan.engine.index:0&operation=prefill",
    "&tag=gen_ai.request.stream:true",
    "&tag=gen_ai.response.finish_reasons:%5B%22length%22%5D",
    "&tag=gen_ai.request.temperature:0",
    "&tag=float.sum:0.30000000000000004",
    "&tag=float.whole:-3",
    "&tag=text.html:%3Cscript%3Ealert(1)%3C%2Fscript%3E%20%26%20%22quoted%22",
    "&tag=text.list:%5B%22a%5Cu003cb%5Cu003e%5Cu0026c%22%2C%22%5Cu2028%E2%80%AE%5Cu001b%5B2J%22%2C%22%22%5D",
    "&tag=tokens:1",
    "&tag=span.kind:server",
    "&tag=process.pid:77",
];

#[test]
fn whatever_is_asked_the_answers_are_those_of_a_real_jaeger() {
    let Some(jaeger) = Jaeger::start() else { return };
    let ui = shown(&jaeger);
    let own = format!("http://{}", ui.address());
    let mut found = 0;
    for path in queries() {
        let (theirs, ours) = (asked(&jaeger.query, &path), asked(&own, &path));
        assert_eq!(ours, theirs, "{path}");
        found += usize::from(theirs.1["data"].as_array().is_some_and(|data| !data.is_empty()));
    }
    assert!(found > 40, "{found} have something");
    let ids = |service: &str| {
        let (_, all) = asked(&own, &format!("/api/traces?service={service}&{ALL}"));
        let id = |trace: &Value| trace["traceID"].as_str().unwrap().to_owned();
        all["data"].as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    let (requests, steps) = (ids("vllm"), ids("vllm-engine"));
    assert!(requests.len() > 50 && steps.len() > 300, "{} requests, {} steps", requests.len(), steps.len());
    for id in requests.iter().chain(&steps) {
        let path = format!("/api/traces/{id}");
        assert_eq!(asked(&own, &path), asked(&jaeger.query, &path), "{id}");
    }
    // How many, where fewer are asked for than there are.
    let some = |base: &str| asked(base, "/api/traces?service=vllm-engine&start=1&end=4102444800000000&limit=7").1;
    assert_eq!(
        (some(&own)["data"].as_array().unwrap().len(), some(&jaeger.query)["data"].as_array().unwrap().len()),
        (7, 7)
    );
}

#[test]
fn failed_spans_are_found_by_their_error_as_jaeger_has_it_since_it_was_mended() {
    // Jaeger 1.76's memory store finds none, by either; 2.14 finds them.
    let mut sinks = Sinks::open(
        &OutputArgs { access_log: Some("/dev/null".into()), ..OutputArgs::default() },
        Arc::default(),
        Pressure::Wait,
    )
    .unwrap();
    let kept = sinks.keep(Pressure::Wait).unwrap();
    let mut well = outputs::request(2);
    well.spans.iter_mut().for_each(|span| span.status = SpanStatus::Unset);
    sinks.push(&mut vec![Output::Trace(outputs::request(1)), Output::Trace(well)]);
    sinks.finish();
    let shown =
        Shown { kept, telemetry: Arc::default(), origin: Origin::default(), time: Time::Newest, max_spans: 2_000 };
    let ui = Ui::start("127.0.0.1:0", shown).unwrap();
    let found = |tags: &str| {
        let path = format!("/api/traces?service=vllm&{ALL}&operation=detokenize&tags={tags}");
        let (_, answer) = asked(&format!("http://{}", ui.address()), &path);
        answer["data"].as_array().unwrap().iter().map(|trace| trace["traceID"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(found("%7B%22error%22%3A%22true%22%7D"), [json!(outputs::request_trace_id(1).to_string())]);
    assert_eq!(found("%7B%22error%22%3A%22false%22%7D"), [json!(outputs::request_trace_id(2).to_string())]);
}
