//! `inferspan report`: what it says of a file is what is in the file, in a terminal, as a page and as JSON.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use inferspan::export::terminal::units::width;
use inferspan::output::Outcome;
use inferspan::report::histogram;
use inferspan::sanitise::is_unsafe;
use inferspan_harness::folder::Folder;
use inferspan_tests::judge::binary;
use inferspan_tests::pipeline;
use inferspan_tests::timed::{self, Timed, spread};
use roxmltree::{Document, Node};
use serde_json::Value;

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recordings")
}

/// What `report` says of a file; it must succeed.
fn said(file: &Path, flags: &[&str]) -> String {
    let output = Command::new(binary()).arg("report").arg(file).args(flags).env("LC_ALL", "C.UTF-8").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(file: &Path) -> Value {
    let report: Value = serde_json::from_str(&said(file, &["--json"])).unwrap();
    assert_eq!(report["schema"], "inferspan.report/1");
    report
}

fn latency<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["latency"].as_array().unwrap().iter().find(|of| of["name"] == name).unwrap_or(&Value::Null)
}

fn near(found: &Value, expected: f64, within: f64) -> bool {
    found.as_f64().is_some_and(|found| (found / expected - 1.0).abs() <= within)
}

#[test]
fn quantiles_phases_and_counts_are_those_of_the_requests() {
    // 1,000 requests, one a 100 ms: prefill 1, 2 … 1,000 ms; 10, 20 … ms between tokens; every tenth aborted
    let folder = Folder::new("report-known").unwrap();
    let file = folder.path().join("traces.jsonl");
    let requests = (1..=1000_u32).map(|n| Timed {
        start: f64::from(n) / 10.0,
        prefill: f64::from(n) / 1e3,
        per_token: f64::from(n) / 1e4,
        outcome: if n % 10 == 0 { Outcome::Abort } else { Outcome::Stop },
        model: if n % 4 == 0 { "other".into() } else { "m".into() },
        ..Timed::default()
    });
    timed::write(&file, requests).unwrap();
    let report = json(&file);
    assert_eq!(report["requests"]["count"], 1000);
    let outcomes = serde_json::json!([{ "what": "stop", "count": 900 }, { "what": "abort", "count": 100 }]);
    assert_eq!(report["requests"]["outcomes"], outcomes);
    let models = report["requests"]["models"].as_array().unwrap();
    let models: Vec<_> = models.iter().map(|of| (of["model"].as_str().unwrap(), of["requests"].as_u64())).collect();
    assert_eq!(models, [("m", Some(750)), ("other", Some(250))]);
    let prefill = latency(&report, "prefill");
    for (key, exact) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)] {
        assert!(near(&prefill[key], exact, 1e-6), "{key}: {prefill}");
        // 1 ms of parsing, 2 of tokenising, 10 of waiting before it
        assert!(near(&latency(&report, "ttft")[key], exact + 0.013, 1e-6), "{key}");
        let between = latency(&report, "inter_token");
        assert!(near(&between[key], exact / 10.0, histogram::ERROR), "{key}: {between}");
    }
    assert_eq!(latency(&report, "inter_token")["count"], 10_000);
    let bars = prefill["bars"].as_array().unwrap();
    assert_eq!(bars.iter().map(|bar| bar[1].as_u64().unwrap()).sum::<u64>(), 1000);
    // All: 14 ms + 1 ms + 500.5 ms of prefill, as much of decode; the slowest ten: 995.5 ms of each
    let whole = 0.014 + 2.0 * 0.5005;
    let phases = report["phases"]["phases"].as_array().unwrap();
    let share = |name: &str, key: &str| phases.iter().find(|of| of["name"] == name).unwrap()[key].clone();
    assert!(near(&share("prefill", "share"), 0.5005 / whole, 1e-6));
    assert!(near(&share("decode", "share"), 0.5005 / whole, 1e-6));
    assert!(near(&share("queue", "share"), 0.01 / whole, 1e-6));
    assert_eq!(report["phases"]["slowest_requests"], 10);
    assert!(near(&share("prefill", "slowest_share"), 0.9955 / (0.014 + 2.0 * 0.9955), 1e-6));
    let slowest = report["slowest"].as_array().unwrap();
    let ttfts: Vec<_> = slowest.iter().filter(|of| of["by"] == "first_token").map(|of| of["ttft"].clone()).collect();
    assert_eq!(ttfts.len(), 5);
    assert!(ttfts.iter().zip([1.013, 1.012, 1.011, 1.010, 1.009]).all(|(found, exact)| near(found, exact, 1e-6)));
    assert!(slowest.iter().all(|of| !of["why"]["said"].as_str().unwrap().is_empty()), "{slowest:?}");
}

#[test]
fn reports_of_real_servers_say_as_many_requests_as_the_access_log_and_fit_80_columns() {
    for name in ["vllm-0.32-mixed", "vllm-0.32-api2", "vllm-0.32-dp2"] {
        let file = recordings().join(format!("{name}.isrec"));
        let log = std::fs::File::open(recordings().join(format!("{name}.access.jsonl.gz"))).unwrap();
        let log = std::io::read_to_string(flate2::read::MultiGzDecoder::new(log)).unwrap();
        let report = json(&file);
        assert_eq!(report["requests"]["count"].as_u64(), Some(log.lines().count() as u64), "{name}");
        let tokens: u64 =
            log.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["output_tokens"].as_u64()).sum();
        assert_eq!(report["requests"]["output_tokens"].as_u64(), Some(tokens), "{name}");
        assert!(report["steps"]["count"].as_u64().unwrap() > 100, "{name}");
        fits(&said(&file, &[]));
        well_formed(&said(&file, &["--html"]));
    }
    for name in pipeline::CAPTURES {
        let file = pipeline::captures().join(name);
        fits(&said(&file, &[]));
        well_formed(&said(&file, &["--html"]));
    }
}

/// No line is wider than a terminal, and nothing moves its cursor.
fn fits(text: &str) {
    for line in text.lines() {
        assert!(width(line) <= 80, "{} columns: {line}", width(line));
        assert!(!line.chars().any(is_unsafe), "{line:?}");
    }
}

/// Parses a page, and looks for what must not be in one.
fn well_formed(page: &str) -> BTreeSet<String> {
    let (doctype, rest) = page.split_once('\n').unwrap();
    assert_eq!(doctype, "<!doctype html>");
    let document = Document::parse(rest).unwrap();
    let elements = || document.descendants().filter(Node::is_element);
    let names: BTreeSet<String> = elements().map(|of| of.tag_name().name().to_owned()).collect();
    for outside in ["script", "img", "link", "iframe", "object", "a", "base", "form"] {
        assert!(!names.contains(outside), "{outside}");
    }
    assert!(elements().flat_map(|of| of.attributes()).all(|attribute| !attribute.name().starts_with("on")));
    let policy = elements().find(|of| of.attribute("http-equiv") == Some("Content-Security-Policy")).unwrap();
    assert_eq!(policy.attribute("content"), Some("default-src 'none'; style-src 'unsafe-inline'"));
    assert!(!page.contains("url(") && !page.contains("@import"));
    document.descendants().filter_map(|of| of.text()).map(str::to_owned).collect()
}

#[test]
fn what_a_client_chose_is_text_in_a_page_and_still_in_a_terminal() {
    let hostile = "</p><script>alert('1')</script>\" onload=\"x\u{1b}[31m\u{202e}&amp;";
    let folder = Folder::new("report-hostile").unwrap();
    let file = folder.path().join("<b>\u{1b}[2Jtraces.jsonl");
    let requests = (0..20_u32).map(|n| Timed {
        start: f64::from(n),
        model: hostile.into(),
        id: format!("{hostile}{n}"),
        ..Timed::default()
    });
    timed::write(&file, requests).unwrap();
    let texts = well_formed(&said(&file, &["--html"]));
    let shown = "</p><script>alert('1')</script>\" onload=\"x\u{fffd}[31m\u{fffd}&amp;";
    assert!(texts.contains(shown), "the model's name is shown as it is: {texts:?}");
    fits(&said(&file, &[]));
    assert!(said(&file, &["--json"]).chars().all(|c| c == '\n' || !is_unsafe(c)));
}

#[test]
fn names_of_any_width_leave_the_columns_where_they_are() {
    // a name of letters, one of characters that take two columns, one of letters with accents that take none
    let folder = Folder::new("report-wide").unwrap();
    let file = folder.path().join(format!("{}.jsonl", "模型".repeat(30)));
    let names = ["m".repeat(60), "模型".repeat(30), "e\u{301}".repeat(30)];
    let requests =
        (0..30_u32).map(|n| Timed { start: f64::from(n), model: names[n as usize % 3].clone(), ..Timed::default() });
    timed::write(&file, requests).unwrap();
    for locale in ["C.UTF-8", "C"] {
        let output = Command::new(binary()).arg("report").arg(&file).env("LC_ALL", locale).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        fits(&text);
        let rows = text.lines().skip_while(|line| !line.contains("not well")).skip(1).take(3);
        let ends: BTreeSet<_> = rows.map(width).collect();
        assert_eq!(ends.len(), 1, "{locale}: {text}");
    }
}

#[test]
fn a_report_goes_to_a_file_of_its_own_and_a_locale_without_utf_8_gets_ascii() {
    let folder = Folder::new("report-out").unwrap();
    let recording = recordings().join("vllm-0.32-mixed.isrec");
    let page = folder.path().join("page.html");
    assert_eq!(said(&recording, &["--html", "-o", page.to_str().unwrap()]), "");
    well_formed(&std::fs::read_to_string(&page).unwrap());
    let output = Command::new(binary()).arg("report").arg(&recording).env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success() && output.stdout.is_ascii());
    let refused = Command::new(binary()).arg("report").arg(folder.path().join("gone")).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[test]
fn what_a_file_lacks_is_said() {
    // 30 requests │ junk │ the first again, its root another program's │ brackets
    let folder = Folder::new("report-lacks").unwrap();
    let file = folder.path().join("traces.jsonl");
    timed::write(&file, (0..30_u32).map(|n| Timed { start: f64::from(n), ..Timed::default() })).unwrap();
    let mut text = std::fs::read_to_string(&file).unwrap();
    let other = text.lines().next().unwrap().replace("inference_request", "llm_request");
    text = format!("{text}{{\"junk\": 1\n{other}\n{}\n", "[".repeat(10_000));
    std::fs::write(&file, text).unwrap();
    let report = json(&file);
    let losses = report["losses"].as_array().unwrap();
    let count = |what: &str| losses.iter().find(|loss| loss["what"] == what).and_then(|loss| loss["count"].as_u64());
    assert_eq!(report["requests"]["count"], 30);
    assert_eq!((count("lines"), count("foreign_spans"), count("repeated_spans")), (Some(2), Some(1), Some(7)));
    let text = said(&file, &[]);
    assert!(text.contains("2 lines are no export of traces and were skipped"), "{text}");
}

#[test]
fn a_hundred_thousand_requests_take_little_memory() {
    // RLIMIT_DATA: heap, stacks and what is mapped
    const LIMIT_KIB: u32 = 300 << 10;
    let folder = Folder::new("report-large").unwrap();
    let file = folder.path().join("traces.jsonl");
    let requests = (0..100_000_u32).map(|n| Timed {
        start: f64::from(n) / 100.0,
        prefill: 0.01 + spread(n.into(), 1) / 10.0,
        id: format!("cmpl-{n}"),
        output_tokens: 1,
        parse: 0.0,
        tokenize: 0.0,
        detokenize: 0.0,
        ..Timed::default()
    });
    timed::write(&file, requests).unwrap();
    let begun = Instant::now();
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -d {LIMIT_KIB}; exec \"$0\" report \"$1\" --json")])
        .arg(binary())
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::metadata(&file).unwrap().len();
    eprintln!("{} MB of 100,000 requests took {:.1} s", bytes / 1_000_000, begun.elapsed().as_secs_f64());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["requests"]["count"], 100_000);
    assert!(near(&latency(&report, "prefill")["p50"], 0.06, 0.01));
}
