//! What the live view serves: its own API is the access log's, at the size that users run; and who is answered, and how.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inferspan::export::flags::OutputArgs;
use inferspan::export::kept::Kept;
use inferspan::export::otlp::spans::Origin;
use inferspan::export::{Pressure, Sinks};
use inferspan::output::{AccessRecord, Output, Trace};
use inferspan::sanitise::is_unsafe;
use inferspan::store::Limits;
use inferspan::ui::{Shown, Time, Ui};
use inferspan_harness::folder::Folder;
use inferspan_harness::http;
use inferspan_harness::process::{Process, Signal};
use inferspan_tests::judge::binary;
use inferspan_tests::madeup::{Account, Plan, write};
use inferspan_tests::outputs;
use serde_json::{Value, json};

const REQUESTS: usize = 2_000;

/// Outputs, kept and shown.
fn show(outputs: Vec<Output>) -> Ui {
    let args = OutputArgs { access_log: Some("/dev/null".into()), ..OutputArgs::default() };
    let mut sinks = Sinks::open(&args, Arc::default(), Pressure::Wait).unwrap();
    let kept = sinks.keep(Pressure::Wait).unwrap();
    sinks.push(&mut { outputs });
    sinks.finish();
    let (telemetry, origin) = (Arc::default(), Origin::default());
    Ui::start("127.0.0.1:0", Shown { kept, telemetry, origin, time: Time::Newest, max_spans: 2_000 }).unwrap()
}

#[test]
fn who_waits_for_what_is_open_keeps_nobody_else_waiting() {
    // 8 ask what is open, and nobody looks │ a request that is over is asked for ─ answered ─ the 8: that it is not known
    let kept = Kept::new(Limits { age_ns: u64::MAX, notable_age_ns: u64::MAX, ..Limits::default() });
    let mut sink = kept.sink(Pressure::Wait).unwrap();
    sink.access(&Arc::new(outputs::access(1)));
    sink.request(&Arc::new(outputs::request(1)));
    assert_eq!(sink.finish(), None);
    let ui = Ui::start("127.0.0.1:0", Shown::live(kept, Arc::default(), 2_000)).unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let asked = || get(ui.address(), "/ui/api/overview");
        let waiting: Vec<_> = (0..8).map(|_| scope.spawn(asked)).collect();
        std::thread::sleep(Duration::from_millis(200));
        let key = format!("{}/{}", outputs::request_trace_id(1), outputs::span_id(1, 0));
        assert!(get(ui.address(), &format!("/ui/api/request/{key}"))["spans"].is_array());
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "after {:?}", started.elapsed());
        for waiting in waiting {
            let overview = waiting.join().unwrap();
            assert_eq!((&overview["servers"], &overview["open_count"]), (&json!([]), &Value::Null));
        }
    });
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

/// A request as the core says it: its record, then its tree.
fn request(n: u8, change: impl FnOnce(&mut AccessRecord, &mut Trace)) -> Vec<Output> {
    let (mut record, mut trace) = (outputs::access(n), outputs::request(n));
    change(&mut record, &mut trace);
    vec![Output::Access(Box::new(record)), Output::Trace(trace)]
}

/// Sends `head` and a blank line; the answer's head, in small letters, and body.
fn ask(address: SocketAddr, head: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "{head}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

fn get(address: SocketAddr, path: &str) -> Value {
    let (_, body) = http::get(&format!("http://{address}{path}")).unwrap();
    serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"))
}

/// A made-up log that is replayed, its access log, and its view.
struct Replay {
    process: Process,
    /// The newest last.
    access: Vec<Value>,
    account: Account,
    address: SocketAddr,
    _folder: Folder,
}

impl Replay {
    fn start() -> Self {
        let plan = Plan {
            open: 24,
            requests: REQUESTS,
            tokens: 8,
            prompt: 50,
            stream: true,
            per_message: 0,
            waiting: 3,
            both_ends: false,
            http: true,
            blank: false,
        };
        let folder = Folder::scratch("ui").unwrap();
        let at = |name: &str| folder.path().join(name);
        let account = write(&plan, BufWriter::new(File::create(at("log.jsonl")).unwrap())).unwrap();
        let mut command = Command::new(binary());
        command.arg("replay").arg(at("log.jsonl")).arg("--access-log").arg(at("access")).args(["--ui", "127.0.0.1:0"]);
        let mut process = Process::start("replay", &mut command, folder.path()).unwrap();
        let started = Instant::now();
        let address = loop {
            process.check_running().unwrap();
            assert!(started.elapsed() < Duration::from_mins(2), "{}", process.tail(5));
            let said = fs::read_to_string(&process.errors).unwrap();
            let told = said.lines().find_map(|line| line.strip_prefix("inferspan: live view at http://"));
            if let Some((address, _)) = told.and_then(|rest| rest.split_once('/')) {
                break address.parse().unwrap();
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let access = fs::read_to_string(at("access")).unwrap();
        let access = access.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { process, access, account, address, _folder: folder }
    }
}

/// The record of a row: what the row says beyond it is left out.
fn record(row: &Value) -> Value {
    let mut record = row.clone();
    let fields = record.as_object_mut().unwrap();
    assert!(fields.remove("start_ns").is_some_and(|ns| ns.is_string()));
    assert!(fields.remove("phases").is_some_and(|phases| phases.is_array()));
    record
}

#[test]
fn what_is_told_is_the_access_log_and_is_told_within_a_second() {
    let mut replay = Replay::start();
    let address = replay.address;
    let newest_first: Vec<&Value> = replay.access.iter().rev().collect();
    assert!(newest_first.len() >= REQUESTS);

    // The page asks both, and for the first rows. The best of some: other tests run beside this one.
    let times = (0..5).map(|_| {
        let started = Instant::now();
        get(address, "/ui/api/overview");
        assert_eq!(get(address, "/ui/api/requests")["requests"].as_array().unwrap().len(), 200);
        started.elapsed()
    });
    let best = times.min().unwrap();
    eprintln!("overview and requests: {best:?}");
    assert!(best < Duration::from_secs(1), "{best:?}");

    let all = get(address, "/ui/api/requests?limit=10000");
    assert_eq!((&all["schema"], &all["total"]), (&json!("inferspan.ui/1"), &json!(newest_first.len())));
    for (row, expected) in all["requests"].as_array().unwrap().iter().zip(&newest_first) {
        assert_eq!(&&record(row), expected);
    }
    check_filters(address, &newest_first);
    check_overview(&get(address, "/ui/api/overview"), &replay);
    for row in all["requests"].as_array().unwrap().iter().step_by(500) {
        check_request(address, row);
    }
    let steps = get(address, "/ui/api/steps?limit=50000");
    let steps = steps["steps"].as_array().unwrap();
    assert_eq!(steps.len() as u64, get(address, "/ui/api/overview")["store"]["steps"].as_u64().unwrap());
    let ends = |step: &Value| step["end_ns"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(steps.is_sorted_by_key(ends), "oldest first");
    let last = get(address, "/ui/api/steps?limit=3");
    assert_eq!(last["steps"].as_array().unwrap()[..], steps[steps.len() - 3..]);
    let (from, to) = (ends(&steps[100]), ends(&steps[110]));
    let some = get(address, &format!("/ui/api/steps?server=vllm&engine=0&from_ns={from}&to_ns={to}"));
    assert_eq!(some["steps"].as_array().unwrap()[..], steps[101..=110]);

    let status = replay.process.stop_with(Signal::INT, Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(0), "{}", replay.process.tail(5));
}

/// What a filter is to give.
type Wanted<'a> = Box<dyn Fn(&Value) -> bool + 'a>;

/// Each filter gives what the log has of it.
fn check_filters(address: SocketAddr, newest_first: &[&Value]) {
    let mut seconds: Vec<f64> = newest_first.iter().filter_map(|record| record["seconds"]["e2e"].as_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let one = &newest_first[700];
    let (id, trace) = (one["request_id"].as_str().unwrap(), one["trace_id"].as_str().unwrap());
    let filters: [(String, Wanted<'_>); 9] = [
        ("outcome=length".into(), Box::new(|record| record["outcome"] == "length")),
        ("outcome=unknown".into(), Box::new(|record| record["outcome"] == "unknown")),
        ("outcome=stop".into(), Box::new(|_| false)),
        ("model=tiny".into(), Box::new(|record| record["model"] == "tiny")),
        ("path=completions".into(), Box::new(|record| !record["path"].is_null())),
        (format!("id={id}"), Box::new(move |record| record["request_id"] == id)),
        (format!("id={}", &trace[..12]), Box::new(move |record| record["trace_id"] == trace)),
        (
            format!("slower={median}"),
            Box::new(move |record| record["seconds"]["e2e"].as_f64().is_some_and(|took| took >= median)),
        ),
        ("outcome=length&model=other".into(), Box::new(|_| false)),
    ];
    for (query, wanted) in filters {
        let expected: Vec<&Value> = newest_first.iter().copied().filter(|record| wanted(record)).collect();
        let told = get(address, &format!("/ui/api/requests?limit=10000&{query}"));
        let rows: Vec<Value> = told["requests"].as_array().unwrap().iter().map(record).collect();
        assert_eq!(rows.iter().collect::<Vec<_>>(), expected, "{query}");
        assert_eq!(told["total"], expected.len(), "{query}");
    }
}

/// The last minutes in numbers are those of the log.
fn check_overview(overview: &Value, replay: &Replay) {
    let count = |outcome: &str| replay.access.iter().filter(|record| record["outcome"] == outcome).count();
    assert_eq!(overview["outcomes"], json!({"length": REQUESTS, "unknown": count("unknown")}));
    assert_eq!(overview["models"], json!(["tiny"]));
    let sum = |field: &str| -> u64 {
        overview["series"].as_array().unwrap().iter().filter_map(|second| second[field].as_u64()).sum()
    };
    assert_eq!((sum("requests"), sum("failed")), (replay.access.len() as u64, count("unknown") as u64));
    assert_eq!(sum("output_tokens"), replay.account.generation_tokens);
    let mut times: Vec<f64> = replay.access.iter().filter_map(|record| record["seconds"]["ttft"].as_f64()).collect();
    times.sort_by(f64::total_cmp);
    let ttft = &overview["latency"]["ttft"];
    assert_eq!(ttft["count"], times.len());
    for (name, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        let exact = times[(share * times.len() as f64).ceil() as usize - 1];
        let told = ttft[name].as_f64().unwrap();
        assert!((told / exact - 1.0).abs() < 0.03, "{name}: {told} for {exact}");
    }
    let buckets = ttft["buckets"].as_array().unwrap().iter().map(|bucket| bucket[1].as_u64().unwrap());
    assert_eq!(buckets.sum::<u64>(), times.len() as u64);
    let gaps = replay.account.generation_tokens - REQUESTS as u64;
    assert_eq!(overview["latency"]["inter_token"]["count"], gaps);
    assert_eq!(overview["store"]["requests"], replay.access.len());
    assert_eq!((&overview["store"]["dropped_requests"], &overview["store"]["missed"]), (&json!(0), &json!(0)));
    assert!(overview["now_ns"].as_str().unwrap().parse::<u64>().unwrap() > 1 << 60);
    assert!(overview["tracer"]["memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(overview["servers"][0]["engines"][0]["engine"], 0);
}

/// A row's own page has the same record, and the spans that its phases are drawn from.
fn check_request(address: SocketAddr, row: &Value) {
    let (trace, span) = (row["trace_id"].as_str().unwrap(), row["span_id"].as_str().unwrap());
    let one = get(address, &format!("/ui/api/request/{trace}/{span}"));
    assert_eq!(one["record"], record(row));
    let spans = one["spans"].as_array().unwrap();
    assert_eq!((&spans[0]["span_id"], &spans[0]["start_ns"]), (&row["span_id"], &row["start_ns"]));
    let parts: Vec<&Value> =
        spans.iter().filter(|part| part["parent"] == row["span_id"]).map(|part| &part["name"]).collect();
    let phases: Vec<&Value> = row["phases"].as_array().unwrap().iter().map(|phase| &phase["name"]).collect();
    assert_eq!(phases, parts);
    let e2e = row["seconds"]["e2e"].as_f64().unwrap_or(f64::MAX);
    for phase in row["phases"].as_array().unwrap() {
        let (from, took) = (phase["start_s"].as_f64().unwrap(), phase["seconds"].as_f64().unwrap());
        assert!(from > -1e-3 && from + took < e2e + 1e-3, "{phase} of {e2e} s");
    }
    let step = spans.iter().flat_map(|span| span["links"].as_array().unwrap()).next();
    if let Some(link) = step {
        let steps = get(address, "/ui/api/steps?limit=50000");
        let is_it = |step: &&Value| step["trace_id"] == link["trace_id"] && step["span_id"] == link["span_id"];
        assert!(steps["steps"].as_array().unwrap().iter().find(is_it).is_some(), "{link}");
    }
    assert!(one["why"]["causes"].is_array() && one["why"]["unseen"].is_array(), "{}", one["why"]);
}

#[test]
fn every_answer_is_for_this_page_alone() {
    let ui = show(request(1, |_, _| ()));
    let address = ui.address();
    for (path, status) in [
        ("/", 200),
        ("/ui/index.html", 200),
        ("/ui/nothing.js", 404),
        ("/ui/../../etc/passwd", 404),
        ("/ui/api/overview", 200),
        ("/ui/api/requests?slower=x", 400),
        ("/ui/api/request/a/b", 404),
        ("/ui/api/nothing", 404),
        ("/api/services", 200),
        ("/api/traces", 400),
        ("/nothing", 404),
    ] {
        let (head, body) =
            ask(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example"));
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
        let policy = "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n";
        for header in
            [policy, "x-content-type-options: nosniff", "referrer-policy: no-referrer", "cache-control: no-store"]
        {
            assert!(head.contains(header), "{path} lacks {header}: {head}");
        }
        assert!(!head.contains("access-control"), "{path}: {head}");
        assert!(!body.is_empty(), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (head, _) = ask(address, &format!("{method} /api/traces HTTP/1.1\r\nhost: localhost"));
        assert!(head.starts_with("http/1.1 405") && head.contains("allow: get, head"), "{method}: {head}");
    }
    let (head, body) = ask(address, "HEAD / HTTP/1.1\r\nhost: localhost");
    assert!(head.starts_with("http/1.1 200") && body.is_empty(), "{head}");
}

#[test]
fn a_site_that_lets_its_own_name_lead_here_reads_nothing() {
    let ui = show(request(1, |_, _| ()));
    for path in ["/", "/ui/api/requests", "/api/traces?service=vllm"] {
        for host in ["localhost", "127.0.0.1:9465", "[::1]"] {
            let (head, _) = ask(ui.address(), &format!("GET {path} HTTP/1.1\r\nhost: {host}"));
            assert!(head.starts_with("http/1.1 200"), "{path} for {host}: {head}");
        }
        for host in ["evil.example", "localhost.evil.example:80", "192.168.0.1", ""] {
            let (head, body) = ask(ui.address(), &format!("GET {path} HTTP/1.1\r\nhost: {host}"));
            assert!(head.starts_with("http/1.1 421") && body.contains("--ui HOST:PORT"), "{host:?}: {head}\n{body}");
            assert!(!body.contains("cmpl-1"), "{body}");
        }
    }
}

#[test]
fn clients_that_say_nothing_keep_nobody_out_and_one_may_ask_again_and_again() {
    // 600 clients connect and say nothing, or half a line | a page asks 20 times over one connection, of which there are 256
    let ui = show(request(1, |_, _| ()));
    let _silent: Vec<TcpStream> = (0..600)
        .map(|number| {
            let mut stream = TcpStream::connect(ui.address()).unwrap();
            if number % 2 == 0 {
                // It may be closed already.
                let _ = stream.write_all(b"GET /ui/api/overview HTTP/1.1\r\nhost: loc");
            }
            stream
        })
        .collect();
    let mut stream = TcpStream::connect(ui.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for _ in 0..20 {
        let started = Instant::now();
        stream.write_all(b"GET /ui/api/overview HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        assert!(head.starts_with("http/1.1 200") && body.ends_with(b"}"), "{head}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[test]
fn whatever_a_target_calls_itself_reads_back_the_same_and_fools_no_terminal() {
    let odd = "<script>alert(1)</script>\u{1b}[2J\u{202e}\u{9b}\u{e0041}\u{0}\"\\";
    let outputs = request(1, |record, trace| {
        record.model = Some(odd.into());
        record.path = Some(format!("/{odd}"));
        record.request_id = Some(odd.repeat(50));
        trace.spans[0].attributes.push(("odd", inferspan::output::Value::Str(odd.into())));
    });
    let ui = show(outputs);
    let record = outputs::access(1);
    let one = format!("/ui/api/request/{}/{}", record.trace_id, record.span_id);
    let jaeger = format!("/api/traces/{}", record.trace_id);
    for path in ["/ui/api/overview", "/ui/api/requests", &one, &jaeger] {
        let (_, body) = http::get(&format!("http://{}{path}", ui.address())).unwrap();
        assert!(!body.chars().any(is_unsafe), "{path}: {body:?}");
        let document: Value = serde_json::from_str(&body).unwrap();
        let texts = [
            &document["models"][0],
            &document["requests"][0]["model"],
            &document["spans"][0]["attributes"]["odd"],
            document["data"][0]["spans"][0]["tags"].as_array().map_or(&Value::Null, |tags| {
                tags.iter().find(|tag| tag["key"] == "odd").map_or(&Value::Null, |tag| &tag["value"])
            }),
        ];
        assert!(texts.contains(&&json!(odd)), "{path}: {texts:?}");
    }
    let query =
        "/ui/api/requests?model=%3Cscript%3Ealert(1)%3C%2Fscript%3E%1B%5B2J%E2%80%AE%C2%9B%F3%A0%81%81%00%22%5C";
    assert_eq!(get(ui.address(), query)["total"], 1, "it is looked for by its name");
}
