//! `inferspan why` names the true cause: troubles that are made on purpose on a traced demo server, each among 200 requests at once.
//!
//! Needs root. Of each trouble the request that has it is known; `why --slow` puts it first, with its cause first, and blames it for nothing
//! that was not made.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inferspan_harness::attached::Attached;
use inferspan_harness::folder::Folder;
use inferspan_harness::process::Signal;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::Client;
use serde_json::{Value, json};

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");
/// Requests at once.
const CROWD: usize = 200;

/// A demo server, traced.
struct Stage {
    engine: DemoEngine,
    folder: Folder,
}

/// A request to send.
#[derive(Clone)]
struct Asked {
    id: String,
    prompt: String,
    max_tokens: u32,
    /// After the others began.
    after: Duration,
}

/// A prompt of about so many tokens, that shares no beginning with another.
fn prompt(id: &str, tokens: usize, mark: &str) -> String {
    format!("{mark} {id}{}", " ba".repeat(tokens))
}

fn asked(id: &str, tokens: usize, mark: &str, max_tokens: u32, after_ms: u64) -> Asked {
    Asked { id: id.to_owned(), prompt: prompt(id, tokens, mark), max_tokens, after: Duration::from_millis(after_ms) }
}

/// Short requests, over a second.
fn crowd() -> Vec<Asked> {
    (0..CROWD).map(|n| asked(&format!("crowd-{n}"), 20, "", 60, n as u64 * 5)).collect()
}

impl Stage {
    fn new(name: &str, arguments: &[&str]) -> Self {
        let folder = Folder::new(&format!("why-{name}")).expect("a folder");
        let mut command = Command::new(ENGINE);
        command.args(arguments);
        let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("demo engine");
        Self { engine, folder }
    }

    fn attach(&self) -> Attached {
        let mut command = inferspan(self.folder.path());
        command.args(["attach", "-p", &self.engine.target.pid.to_string(), "--access-log"]);
        command.arg(self.folder.path().join("access.jsonl")).stdout(Stdio::null());
        Attached::start(&mut command).expect("inferspan attaches")
    }

    /// Sends all, each by a client of its own, and waits for their ends.
    fn send(&self, all: &[Asked]) {
        let begun = Instant::now();
        thread::scope(|scope| {
            for asked in all {
                scope.spawn(move || {
                    thread::sleep(asked.after.saturating_sub(begun.elapsed()));
                    let mut client = Client::new(&self.engine.target.url);
                    let body = json!({
                        "model": self.engine.target.model,
                        "prompt": asked.prompt,
                        "max_tokens": asked.max_tokens,
                        "ignore_eos": true,
                        "stream": true,
                    });
                    let headers = [("X-Request-Id", asked.id.as_str())];
                    let request = client.request("POST", "/v1/completions", &headers, &body.to_string());
                    client.exchange(&request).expect("an answer");
                });
            }
        });
    }

    /// Sends all while traced; what `ask` is told then.
    fn traced<T>(&self, all: &[Asked], ask: impl FnOnce(&Self) -> T) -> T {
        let attached = self.attach();
        self.send(all);
        // Requests leave when nothing can join them any more.
        thread::sleep(Duration::from_millis(1_500));
        let told = ask(self);
        attached.signal(Signal::INT).expect("it runs");
        let (status, said) = attached.end(Duration::from_mins(1)).expect("inferspan ends");
        assert!(status.success(), "{said}");
        told
    }

    /// The requests of `inferspan WORDS --json`.
    fn ask(&self, words: &[&str]) -> Vec<Value> {
        let output = inferspan(self.folder.path()).args(words).arg("--json").output().expect("inferspan runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        document["requests"].as_array().expect("requests").clone()
    }
}

fn inferspan(folder: &Path) -> Command {
    let mut command = Command::new(binary());
    command.env("INFERSPAN_RUN_DIR", folder.join("run"));
    command
}

/// The kinds of a request's causes, the one that cost most first.
fn kinds(request: &Value) -> Vec<&str> {
    request["causes"].as_array().expect("causes").iter().filter_map(|cause| cause["kind"].as_str()).collect()
}

/// What a busy machine does to processes is no trouble that was made, and is seen.
const BUSY: [&str; 5] = ["many_tokens", "front_end_late", "slow_steps", "prefill_of_others", "slow_request"];

/// The one with the trouble is among the slowest, with the trouble alone, and nobody is blamed for what was not made.
fn names(slowest: &[Value], id: &str, kind: &str) {
    let its = slowest.iter().find(|of| of["request_id"].as_str().is_some_and(|known| known.contains(id)));
    let its = its.unwrap_or_else(|| panic!("{id} is not among the slowest: {slowest:#?}"));
    assert_eq!(kinds(its), [kind], "{id}: {its:#}");
    for other in slowest {
        assert!(kinds(other).iter().all(|of| *of == kind || BUSY.contains(of)), "{id}: {other:#}");
    }
}

fn evidence(request: &Value) -> &str {
    request["causes"][0]["evidence"].as_str().unwrap_or_default()
}

#[test]
fn two_hundred_requests_of_which_none_is_in_trouble_are_blamed_for_nothing() {
    if !may_trace("two_hundred_requests_of_which_none_is_in_trouble_are_blamed_for_nothing") {
        return;
    }
    let stage = Stage::new("none", &["--max-num-seqs", "256", "--step-ms", "1"]);
    let slowest = stage.traced(&crowd(), |stage| stage.ask(&["why", "--slow", "5"]));
    let all: BTreeSet<&str> = slowest.iter().flat_map(kinds).collect();
    assert!(all.is_subset(&BTreeSet::from(BUSY)), "{slowest:#?}");
}

#[test]
fn a_full_batch_and_a_full_cache_are_told_apart() {
    if !may_trace("a_full_batch_and_a_full_cache_are_told_apart") {
        return;
    }
    // As many as ever run, with a cache that is mostly free.
    let stage = Stage::new("batch", &["--max-num-seqs", "8", "--step-ms", "1"]);
    let slowest = stage.traced(&crowd(), |stage| stage.ask(&["why", "--slow", "5"]));
    for request in &slowest {
        assert_eq!(kinds(request)[0], "queued", "{request:#}");
        assert!(evidence(request).contains("batch full (8 ran)"), "{request:#}");
    }
    // 64 blocks of 16 tokens are room for ten requests of 90 tokens: those that wait, wait for blocks.
    let stage =
        Stage::new("cache", &["--max-num-seqs", "256", "--step-ms", "1", "--blocks", "64", "--max-model-len", "1024"]);
    let slowest = stage.traced(&crowd(), |stage| stage.ask(&["why", "--slow", "5"]));
    for request in &slowest {
        assert!(["queued", "preempted"].contains(&kinds(request)[0]), "{request:#}");
        assert!(evidence(request).contains("KV cache 9") || evidence(request).contains("KV cache 100"), "{request:#}");
    }
}

#[test]
fn a_preempted_request_lost_what_it_waited_and_computed_again() {
    if !may_trace("a_preempted_request_lost_what_it_waited_and_computed_again") {
        return;
    }
    // Two of 600 tokens in a cache of 1,000: the younger one is preempted until the other is done.
    let stage = Stage::new("preempted", &["--blocks", "64", "--step-ms", "3", "--max-model-len", "1024"]);
    let two = [asked("older", 20, "", 600, 0), asked("younger", 20, "", 600, 50)];
    let told = stage.traced(&two, |stage| stage.ask(&["why", "cmpl-younger"]));
    assert_eq!(kinds(&told[0])[0], "preempted", "{:#}", told[0]);
    assert!(evidence(&told[0]).contains("computed again"), "{:#}", told[0]);
}

#[test]
fn a_long_prompt_is_its_own_requests_and_the_others_wait_for_it() {
    if !may_trace("a_long_prompt_is_its_own_requests_and_the_others_wait_for_it") {
        return;
    }
    // One prompt of 6,000 tokens in chunks of 2,048, when 60 short ones give tokens.
    let stage = Stage::new("prompt", &["--max-num-seqs", "256", "--step-ms", "5", "--max-model-len", "8192"]);
    let mut all: Vec<Asked> = (0..60).map(|n| asked(&format!("crowd-{n}"), 20, "", 40, n * 5)).collect();
    all.push(asked("long", 6_000, "", 8, 600));
    all.push(asked("behind", 20, "", 8, 650));
    let (long, crowd, behind) = stage.traced(&all, |stage| {
        (stage.ask(&["why", "cmpl-long"]), stage.ask(&["why", "cmpl-crowd-59"]), stage.ask(&["why", "cmpl-behind"]))
    });
    assert_eq!(kinds(&long[0]), ["long_prefill"], "{:#}", long[0]);
    assert!(evidence(&long[0]).contains("in 3 chunks") || evidence(&long[0]).contains("in 4 chunks"), "{:#}", long[0]);
    for told in [&crowd[0], &behind[0]] {
        assert_eq!(kinds(told), ["prefill_of_others"], "{told:#}");
        assert!(evidence(told).contains("tokens)"), "{told:#}");
    }
}

#[test]
fn troubles_of_single_requests_are_named_among_two_hundred() {
    if !may_trace("troubles_of_single_requests_are_named_among_two_hundred") {
        return;
    }
    let knobs = ["--slow-tokenizer-ms", "600", "--block-front-end-ms", "900", "--stall-front-end-ms", "900"];
    let more = ["--slow-step-ms", "60", "--engine-error-after", "5", "--max-num-seqs", "256", "--step-ms", "1"];
    let stage = Stage::new("marks", &[&knobs[..], &more[..]].concat());
    for (mark, kind) in [
        ("#slow-tokenizer#", "slow_tokenizer"),
        ("#block-front-end#", "front_end_late"),
        ("#stall-front-end#", "front_end_late"),
        ("#slow-steps#", "slow_steps"),
        ("#engine-error#", "engine_error"),
    ] {
        let id = mark.trim_matches('#');
        let mut all = crowd();
        all.push(asked(id, 20, mark, 30, 1_600));
        let (told, slowest) = stage
            .traced(&all, |stage| (stage.ask(&["why", &format!("cmpl-{id}")]), stage.ask(&["why", "--slow", "5"])));
        assert_eq!(kinds(&told[0]), [kind], "{mark}: {:#}", told[0]);
        if kind != "engine_error" {
            names(&slowest, id, kind);
        }
    }
}
