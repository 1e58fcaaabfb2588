//! `attach` with its live view, on a running demo engine: when one is served, what it shows of requests that are open and over, and that
//! nothing is left to whoever serves it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use inferspan_harness::folder::Folder;
use inferspan_harness::http;
use inferspan_harness::process::{Process, Signal};
use inferspan_harness::{attached, wait::Interrupt};
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::{Kind, Load, Until};
use serde_json::Value;

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");
const LIMIT: Duration = Duration::from_mins(1);

fn engine(folder: &Folder) -> DemoEngine {
    DemoEngine::start(Command::new(ENGINE), folder.path(), |_, announced| Some(announced)).unwrap()
}

/// Attaches until it says so; on a terminal, or not.
fn attach(engine: &DemoEngine, folder: &Folder, is_terminal: bool, arguments: &[&str]) -> Process {
    let mut command = Command::new(binary());
    command.args(["attach", "-p", &engine.target.pid.to_string()]).args(arguments);
    let start = if is_terminal { Process::start_on_terminal } else { Process::start };
    let mut process = start("attach", &mut command, folder.path()).unwrap();
    attached::wait(&mut process, &mut [], &Interrupt::never()).unwrap();
    process
}

/// Where the view is, as the user is told. That comes right behind "attached".
fn url(process: &Process) -> Option<String> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        let said = fs::read_to_string(&process.errors).unwrap();
        if let Some(url) = said.lines().find_map(|line| line.strip_prefix("inferspan: live view at ")) {
            return Some(url.to_owned());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

fn get(url: &str, path: &str) -> Value {
    let (status, body) = http::get(&format!("{url}{path}")).unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// Asks until `is_it`.
fn wait_for(url: &str, path: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let told = get(url, path);
        if is_it(&told) {
            return told;
        }
        assert!(started.elapsed() < LIMIT, "{path}: {told}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn in_a_terminal_the_view_shows_what_is_open_and_then_what_is_over() {
    if !may_trace("in_a_terminal_the_view_shows_what_is_open_and_then_what_is_over") {
        return;
    }
    let folder = Folder::new("live-ui").unwrap();
    let engine = engine(&folder);
    let mut process = attach(&engine, &folder, true, &[]);
    let url = url(&process).expect("the URL is said");
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let load = Load {
        url: engine.target.url.clone(),
        model: engine.target.model.clone(),
        kinds: vec![Kind::CompletionStream],
        clients: 4,
        until: Until::Requests(60),
        seed: 1,
    };
    let busy = std::thread::spawn(move || load.run().map(|_| ()));
    let is_open = |told: &Value| {
        let open = told["open"].as_array().unwrap().iter();
        open.filter(|open| open["route"] == "/v1/completions" && open["age_s"].is_f64()).count() > 0
    };
    let told = wait_for(&url, "ui/api/requests", is_open);
    let phases = told["open"][0]["phases"].as_array().unwrap();
    assert_eq!(phases[0]["name"], "front_end", "{told}");
    busy.join().unwrap().unwrap();
    let all = |told: &Value| told["total"].as_u64() >= Some(60) && told["open"].as_array().unwrap().is_empty();
    let told = wait_for(&url, "ui/api/requests", all);
    let overview = wait_for(&url, "ui/api/overview", |told| told["servers"][0]["open_count"] == 0);
    assert!(overview["series"].as_array().unwrap().len() < 60, "seconds of now: {}", overview["series"]);
    // What says that the server is ready is one too.
    assert_eq!(overview["latency"]["e2e"]["count"], told["total"]);
    let id = told["requests"][0]["trace_id"].as_str().unwrap();
    assert_eq!(get(&url, &format!("api/traces/{id}"))["data"][0]["traceID"], id);

    // Threads that serve are born when they are needed: none of them may do more than the first.
    let of = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let own = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let kept = of(&own, "CapPrm:");
    assert!(kept.count_ones() < 8, "{kept:x}: most are given up");
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    for task in tasks.map(|task| task.unwrap().path().join("status")) {
        let status = fs::read_to_string(&task).unwrap();
        assert_eq!((of(&status, "CapPrm:"), of(&status, "NoNewPrivs:")), (kept, 1), "{}: {status}", task.display());
    }
    let status = process.stop_with(Signal::INT, LIMIT).unwrap();
    assert_eq!(status.code(), Some(0), "{}", process.tail(10));
}

#[test]
fn a_view_is_served_where_it_is_asked_for_or_a_person_watches_and_nothing_else_is() {
    if !may_trace("a_view_is_served_where_it_is_asked_for_or_a_person_watches_and_nothing_else_is") {
        return;
    }
    let folder = Folder::new("live-ui-flags").unwrap();
    let engine = engine(&folder);
    let log = folder.path().join("access");
    let log = ["--access-log", log.to_str().unwrap()];
    for (is_terminal, arguments, is_served) in [
        (true, vec!["--ui", "off"], false),
        (true, log.to_vec(), false),
        (false, vec![], false),
        (false, [&log[..], &["--ui", "0"]].concat(), true),
    ] {
        let mut process = attach(&engine, &folder, is_terminal, &arguments);
        assert_eq!(url(&process).is_some(), is_served, "{arguments:?}: {}", process.tail(10));
        process.stop_with(Signal::INT, LIMIT).unwrap();
    }
}
