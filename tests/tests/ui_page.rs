//! The live view's page in a real browser: what it shows is what the access log says, whatever the log says.
//!
//! ```text
//! made-up log ─▶ inferspan replay --ui ─▶ access log ┐
//! hand-made requests ─▶ store ─▶ Ui ───▶ page ───────┴▶ Chromium ─▶ what was seen
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use inferspan::export::Pressure;
use inferspan::export::kept::Kept;
use inferspan::export::sink::Sink;
use inferspan::output::{AccessRecord, Outcome, SpanId, Trace, Value as Of};
use inferspan::store::Limits;
use inferspan::telemetry::Telemetry;
use inferspan::ui::{Shown, Ui};
use inferspan_harness::browser::Browser;
use inferspan_harness::folder::Folder;
use inferspan_harness::process::Process;
use inferspan_tests::judge::binary;
use inferspan_tests::madeup::{self, Plan};
use inferspan_tests::outputs;
use serde_json::{Value, json};

/// Requests of the log that the table is read from.
const REQUESTS: usize = 2_000;
/// Spans of a trace at most, as `--max-spans` has it when it is not given.
const MAX_SPANS: usize = 2_000;
/// How long the page may take until it shows rows, ms.
const LOAD_MS: f64 = 1_000.0;
/// How long a request may take until it is shown, and its spans opened, ms: what a person takes for at once.
const AT_ONCE_MS: f64 = 1_000.0;

const HOSTILE: [&str; 6] = [
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=alert(1)>",
    "</title></style><svg onload=alert(2)>",
    "javascript:alert(3)//${alert(4)}{{7*7}}",
    "report\u{202e}gnp.exe\u{202c}\u{200b}",
    "__proto__",
];

/// A log that is replayed and served, and its access log.
struct Replay {
    _process: Process,
    folder: Folder,
    url: String,
}

impl Replay {
    fn start(name: &'static str, plan: &Plan) -> Self {
        let folder = Folder::scratch(name).unwrap();
        let log = folder.path().join("log.jsonl");
        madeup::write(plan, BufWriter::new(File::create(&log).unwrap())).unwrap();
        let mut command = Command::new(binary());
        command.arg("replay").arg(&log).args(["--ui", "127.0.0.1:0", "--access-log"]).arg(folder.path().join("access"));
        let mut process = Process::start("replay", &mut command, folder.path()).unwrap();
        // A build without optimisation on a busy machine.
        let limit = std::time::Instant::now() + Duration::from_mins(2);
        let url = loop {
            let said = fs::read_to_string(&process.errors).unwrap();
            let served = said.lines().find_map(|line| line.split_once("live view at ")).map(|(_, rest)| rest);
            if let Some((url, _)) = served.and_then(|rest| rest.split_once(';')) {
                break url.to_owned();
            }
            process.check_running().unwrap();
            assert!(std::time::Instant::now() < limit, "no view is served: {said}");
            std::thread::sleep(Duration::from_millis(50));
        };
        Self { _process: process, folder, url }
    }

    /// The records of the access log, by their requests.
    fn access(&self) -> HashMap<String, Value> {
        let text = fs::read_to_string(self.folder.path().join("access")).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.map(|record| (key(&record), record)).collect()
    }
}

fn plan(open: usize, requests: usize, tokens: u32) -> Plan {
    Plan {
        open,
        requests,
        tokens,
        prompt: 50,
        stream: true,
        per_message: 0,
        waiting: 0,
        both_ends: true,
        http: true,
        blank: false,
    }
}

fn key(record: &Value) -> String {
    format!("{}/{}", record["trace_id"].as_str().unwrap(), record["span_id"].as_str().unwrap())
}

/// Hand-made requests, served from this process.
fn serve(requests: Vec<(Trace, AccessRecord)>) -> (Ui, String) {
    let kept = Kept::new(Limits { age_ns: u64::MAX, notable_age_ns: u64::MAX, ..Limits::default() });
    let mut sink: Box<dyn Sink> = kept.sink(Pressure::Wait).unwrap();
    for (trace, record) in requests {
        sink.access(&Arc::new(record));
        sink.request(&Arc::new(trace));
    }
    sink.step(&outputs::step(1));
    assert_eq!(sink.finish(), None);
    let ui = Ui::start("127.0.0.1:0", Shown::live(kept, Arc::<Telemetry>::default(), MAX_SPANS)).unwrap();
    let url = format!("http://{}/", ui.address());
    (ui, url)
}

fn quiet(seen: &Value) {
    assert_eq!(seen["complaints"], json!([]), "the page or the browser complained");
}

/// `12.3 ms` is these seconds, to its last digit.
fn is(text: &Value, seconds: &Value) -> bool {
    let text = text.as_str().unwrap().trim_start_matches('~');
    let Some(seconds) = seconds.as_f64() else { return text == "–" };
    let Some((number, unit)) = text.split_once(' ') else { return false };
    let unit = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        _ => return false,
    };
    let places = number.split_once('.').map_or(0, |(_, places)| places.len());
    let last = 0.1_f64.powi(i32::try_from(places).unwrap()) * unit;
    (number.replace(',', "").parse::<f64>().unwrap() * unit - seconds).abs() <= last * 0.501
}

#[test]
fn a_table_of_2000_requests_is_the_access_log_and_is_there_within_a_second() {
    // 20 at a time, 30 tokens each: 2,000 rows on 40 pages
    let Some(browser) = Browser::from_env() else { return };
    let replay = Replay::start("ui-page-table", &plan(20, REQUESTS, 30));
    let seen = browser.run(&replay.url, "table", [""; 0]).unwrap();
    quiet(&seen);
    let mut access = replay.access();
    assert_eq!(access.len(), REQUESTS);
    let rows = seen["rows"].as_array().unwrap();
    assert_eq!(rows.len(), REQUESTS);
    let mut ends: Vec<String> = Vec::new();
    for row in rows {
        let record = access.remove(row["key"].as_str().unwrap()).expect("a row of a request of the log, once");
        for (column, of) in [("id", "request_id"), ("path", "path"), ("model", "model"), ("outcome", "outcome")] {
            assert_eq!(row[column], record[of], "{record}");
        }
        let seconds = &record["seconds"];
        assert!(is(&row["e2e"], &seconds["e2e"]) && is(&row["ttft"], &seconds["ttft"]), "{row} {record}");
        let tokens = |of: &str| record[of].to_string();
        assert_eq!((&row["in"], &row["out"]), (&json!(tokens("prompt_tokens")), &json!(tokens("output_tokens"))));
        assert_eq!(row["bars"], 6, "parse, tokenize, queue, prefill, decode, detokenize: {row}");
        // To the millisecond, cut.
        let time = record["time"].as_str().unwrap();
        assert_eq!(row["time"].as_str().unwrap(), &time[11..23], "{record}");
        ends.push(time.to_owned());
    }
    assert!(ends.is_sorted_by(|newer, older| newer >= older), "newest first");
    let loaded = seen["loaded_ms"].as_f64().unwrap();
    eprintln!("rows of {REQUESTS} requests after {loaded:.0} ms");
    assert!(loaded < LOAD_MS, "{loaded} ms");
    assert_eq!(seen["drawn"], 5, "a plot a card");
    let whole = seen["cards"]["Whole request"].as_str().unwrap();
    assert!(whole.starts_with("Whole request: 2,000 seen; half within 15"), "{whole}");
    let status = seen["status"].as_str().unwrap();
    assert!(status.contains("lost nothing") && status.contains("kept 2,000 requests"), "{status}");
}

#[test]
fn a_request_of_10000_tokens_opens_at_once_and_its_steps_lead_to_the_strip() {
    // one request, a token a step: first steps, last steps, and folds between them
    let Some(browser) = Browser::from_env() else { return };
    let replay = Replay::start("ui-page-long", &plan(1, 1, 10_000));
    let access = replay.access();
    let (key, record) = access.iter().next().unwrap();
    assert_eq!(record["output_tokens"], 10_000);
    let seen = browser.run(&replay.url, "request", [key]).unwrap();
    quiet(&seen);
    let rows: Vec<&str> = seen["rows"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    assert!(rows[0].contains("request"), "{rows:?}");
    for phase in ["tokenize", "queue", "prefill", "decode", "step 1 ", "step 9999"] {
        assert!(rows.iter().any(|row| row.contains(phase)), "{phase} is missing: {rows:?}");
    }
    assert!(rows.len() <= 200, "{} rows", rows.len());
    let values = seen["values"].as_str().unwrap();
    assert!(values.contains("1 requests") && values.contains("decode tokens"), "{values}");
    assert!(seen["facts"].as_str().unwrap().contains("output10,000"), "{}", seen["facts"]);
    for time in ["shown_ms", "open_ms"] {
        assert!(seen[time].as_f64().unwrap() < AT_ONCE_MS, "{time}: {seen}");
    }
}

/// A request whose decode has so many steps, of a millisecond each.
fn with_steps(steps: u16) -> (Trace, AccessRecord) {
    let mut trace = outputs::request(1);
    let step = trace.spans[5].clone();
    trace.spans.truncate(5);
    for number in 0..steps {
        let mut span = step.clone();
        let [high, low] = number.to_be_bytes();
        span.span_id = SpanId([0xee, high, low, 1, 1, 1, 1, 1]);
        span.start_ns += u64::from(number) * 1_000_000;
        span.end_ns = span.start_ns + 1_000_000;
        for (_, value) in span.attributes.iter_mut().filter(|(key, _)| *key == "inferspan.step") {
            *value = Of::Int(i64::from(number) + 1);
        }
        trace.spans.push(span);
    }
    (trace, outputs::access(1))
}

#[test]
fn a_request_of_2000_spans_opens_at_once() {
    // decode: 1,995 steps, which are closed at first
    let Some(browser) = Browser::from_env() else { return };
    let (_ui, url) = serve(vec![with_steps(1_995)]);
    let key = format!("{}/{}", outputs::request_trace_id(1), outputs::span_id(1, 0));
    let seen = browser.run(&url, "request", [key]).unwrap();
    quiet(&seen);
    assert_eq!(seen["closed"], 5, "{seen}");
    assert_eq!(seen["rows"].as_array().unwrap().len(), 2_000);
    for time in ["shown_ms", "open_ms"] {
        assert!(seen[time].as_f64().unwrap() < AT_ONCE_MS, "{time}: {}", seen[time]);
    }
    assert!(seen["values"].as_str().unwrap().contains("3 decode tokens"), "the linked step: {}", seen["values"]);
}

/// Requests 0 to 7, of which each differs in one thing from the others.
fn different() -> Vec<(Trace, AccessRecord)> {
    (0..8)
        .map(|n| {
            let (mut trace, mut record) = (outputs::request(n), outputs::access(n));
            match n {
                1 => (record.outcome, trace.merit.outcome) = (Outcome::Abort, Some(Outcome::Abort)),
                2 => record.model = Some("other/model".into()),
                3 => record.path = Some("/v1/embeddings".into()),
                4 => {
                    trace.spans[0].end_ns += 5_000_000_000;
                    record.seconds.e2e = Some(5.2);
                }
                _ => {}
            }
            (trace, record)
        })
        .collect()
}

#[test]
fn each_filter_leaves_what_passes_it_and_its_address_does_the_same() {
    // eight requests: aborted, of another model, of another path, slow, and four alike
    let Some(browser) = Browser::from_env() else { return };
    let (_ui, url) = serve(different());
    let filters = ["outcome=abort", "model=other/model", "path=embed", "slower=4", "id=cmpl-5", "id=no such id"];
    let seen = browser.run(&url, "filters", filters).unwrap();
    quiet(&seen);
    let wanted: [&[u8]; 6] = [&[1], &[2], &[3], &[4], &[5], &[]];
    let answers = seen["answers"].as_array().unwrap();
    for ((filter, wanted), answer) in filters.iter().zip(wanted).zip(answers) {
        let wanted: Vec<String> =
            wanted.iter().map(|n| format!("{}/{}", outputs::request_trace_id(*n), outputs::span_id(*n, 0))).collect();
        let rows: Vec<&Value> = answer["rows"].as_array().unwrap().iter().map(|row| &row["key"]).collect();
        assert_eq!(json!(rows), json!(wanted), "{filter}");
        assert_eq!(answer["again"], json!(wanted), "{filter} by its address {}", answer["hash"]);
        let said = answer["said"].as_str().unwrap();
        // Nobody told of what is open.
        assert_eq!(said, format!("not known which are open, {} over", wanted.len()), "{filter}");
    }
}

#[test]
fn hostile_names_are_text_and_nothing_of_them_runs() {
    // six hostile strings, and one of 10 kB: as id, path, model, server, and in attributes and events
    let Some(browser) = Browser::from_env() else { return };
    let long = "A".repeat(10_000);
    let names: Vec<&str> = HOSTILE.into_iter().chain([long.as_str()]).collect();
    let hostile = |(n, name): (usize, &&str)| {
        let n = u8::try_from(n).unwrap();
        let (mut trace, mut record) = (outputs::request(n), outputs::access(n));
        let text = || Some((*name).to_owned());
        (record.request_id, record.path, record.model, record.method) = (text(), text(), text(), text());
        (*name).clone_into(&mut record.server);
        trace.spans[0].attributes.push(("gen_ai.response.id", Of::Str((*name).into())));
        trace.spans[0].events[0].attributes.push(("name", Of::Str((*name).into())));
        (trace, record)
    };
    let (_ui, url) = serve(names.iter().enumerate().map(hostile).collect());
    let seen = browser.run(&url, "texts", [""; 0]).unwrap();
    quiet(&seen);
    assert_eq!((&seen["foreign"], &seen["styled"]), (&json!([]), &json!(false)));
    let texts: String = seen["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    for name in HOSTILE {
        let as_shown = name.replace('\u{202e}', "\\u{202e}").replace('\u{202c}', "\\u{202c}");
        assert!(texts.contains(&as_shown.replace('\u{200b}', "\\u{200b}")), "{name:?} is not shown");
    }
    assert!(!texts.contains(['\u{202e}', '\u{200b}']), "what turns the text is written out");
    assert!(texts.contains(&long), "an attribute is shown whole");
    // Its 10 kB stand nowhere in the table.
    let rows = seen["rows"].as_array().unwrap();
    assert_eq!(rows.len(), names.len());
    assert!(rows.iter().all(|row| row.to_string().len() < 2_000), "{rows:?}");
}

#[test]
fn keys_alone_open_a_request_and_lead_back() {
    // j ↓ k j: the second row · Enter · Tab to the waterfall · ↓↓↓ · Esc · / · s · p · ?
    let Some(browser) = Browser::from_env() else { return };
    let (_ui, url) = serve(different());
    let seen = browser.run(&url, "keyboard", [""; 0]).unwrap();
    quiet(&seen);
    // The newest is on top: the first press takes the first row.
    let second = format!("#/request/{}/{}", outputs::request_trace_id(6), outputs::span_id(6, 0));
    assert_eq!((&seen["row"], &seen["opened"]), (&json!(second), &json!(second)));
    assert_eq!((&seen["heading"], &seen["tree"]), (&json!("request-title"), &json!("wf-row")));
    assert_eq!(seen["span"], "prefill", "the third below the root");
    assert_eq!(seen["back"], json!(["#/", second]), "where it was left");
    assert_eq!((&seen["filter"], &seen["paused"]), (&json!("id"), &json!("paused")));
    assert!(seen["empty"].as_str().unwrap().contains("passes the filter"), "{seen}");
    assert_eq!(seen["step"][0], "steps-strip");
    assert!(seen["step"][1].as_str().unwrap().contains("3 decode tokens"), "{seen}");
    assert_eq!((&seen["help"], &seen["closed"]), (&json!(true), &json!(true)));
}

#[test]
fn a_phone_scrolls_down_only_and_themes_follow_the_system_and_the_switch() {
    let Some(browser) = Browser::from_env() else { return };
    let (_ui, url) = serve(different());
    let key = format!("{}/{}", outputs::request_trace_id(1), outputs::span_id(1, 0));
    let seen = browser.run(&url, "phone", [&key]).unwrap();
    quiet(&seen);
    assert_eq!((&seen["live"], &seen["request"]), (&json!(0), &json!(0)), "wider than 360 px");
    assert!(seen["bar"].as_u64().unwrap() >= 60 && seen["track"].as_u64().unwrap() >= 150, "{seen}");
    let seen = browser.run(&url, "themes", [""; 0]).unwrap();
    quiet(&seen);
    assert_ne!(seen["light"], seen["dark"]);
    assert_eq!((&seen["switched"], &seen["kept"]), (&seen["dark"], &seen["dark"]));
}

#[test]
fn axe_finds_nothing_serious() {
    // both views × light and dark × wide and narrow
    let Some(browser) = Browser::from_env() else { return };
    let (_ui, url) = serve(different());
    let key = format!("{}/{}", outputs::request_trace_id(1), outputs::span_id(1, 0));
    let seen = browser.run(&url, "axe", [key]).unwrap();
    quiet(&seen);
    assert_eq!(seen["found"], json!([]));
}

/// What is served is what the licence note says, byte for byte.
#[test]
fn files_of_others_are_those_that_the_note_names() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-user/src/ui/page/vendor"));
    let note = fs::read_to_string(folder.join("README.md")).unwrap();
    let mut named = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "js" || ending == "css") {
            let sum = Command::new("sha256sum").arg(&path).output().unwrap().stdout;
            let sum = String::from_utf8(sum).unwrap();
            let line = note.lines().find(|line| line.contains(path.file_name().unwrap().to_str().unwrap())).unwrap();
            assert!(line.contains(&sum[..64]), "{}: {sum}", path.display());
            named += 1;
        }
    }
    assert_eq!(named, 2);
}
