//! `inferspan why` names the true cause: troubles that are made on purpose on a traced demo server, each among 200 requests at once.
//!
//! Needs root. Of each trouble the request that has it is known; `why --slow` has it among the slowest, with its cause first, and nobody is
//! blamed for what was not made.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use inferspan_harness::attached::Attached;
use inferspan_harness::folder::Folder;
use inferspan_tests::blame::{self, Asked, SETTLED, detach, evidence, inferspan, kinds};
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::live::may_trace;
use inferspan_tests::signals::repository;
use serde_json::{Value, json};

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");
/// Requests at once.
const CROWD: usize = 200;
/// Room for them in a batch, and steps of 11 ms with all of them.
const WIDE: [&str; 4] = ["--max-num-seqs", "256", "--step-ms", "1"];
/// What a busy machine does to processes is no trouble that was made, and is seen: it makes threads wait. It makes no prompt longer, and a
/// request that comes in one piece no slower.
const BUSY: [&str; 3] = ["many_tokens", "front_end_late", "slow_steps"];
/// Requests that `--slow` is asked for.
const SLOWEST: usize = 5;

/// A demo server, traced.
struct Stage {
    engine: DemoEngine,
    folder: Folder,
}

/// Short requests, over a second.
fn crowd() -> Vec<Asked> {
    (0..CROWD).map(|n| Asked::new(&format!("crowd-{n}"), 20, 60, n as u64 * 5)).collect()
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
        blame::attach(&self.engine.target, self.folder.path())
    }

    fn send(&self, all: &[Asked]) {
        blame::send(&self.engine.target, all, &json!({}));
        thread::sleep(SETTLED);
    }

    /// Sends all while traced; what `ask` is told then.
    fn traced<T>(&self, all: &[Asked], ask: impl FnOnce(&Self) -> T) -> T {
        let attached = self.attach();
        self.send(all);
        let told = ask(self);
        detach(attached);
        told
    }

    fn ask(&self, words: &[&str]) -> Vec<Value> {
        blame::ask(self.folder.path(), words)
    }

    fn slowest(&self) -> Vec<Value> {
        let slowest = self.ask(&["why", "--slow", &SLOWEST.to_string()]);
        assert_eq!(slowest.len(), SLOWEST, "{slowest:#?}");
        slowest
    }

    /// As [`inferspan`]: exit code, stdout and stderr.
    fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let output = inferspan(self.folder.path()).args(words).output().expect("inferspan runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

/// The one with the trouble is among the slowest, with the trouble alone, and nobody is blamed for what was not made.
fn names(slowest: &[Value], id: &str, kind: &str) {
    let its = blame::of(slowest, id).unwrap_or_else(|| panic!("{id} is not among the slowest: {slowest:#?}"));
    assert_eq!(kinds(its), [kind], "{id}: {its:#}");
    for other in slowest {
        assert!(kinds(other).iter().all(|of| *of == kind || BUSY.contains(of)), "{id}: {other:#}");
    }
}

/// It says how full the cache was, and that was 90 % or more.
fn is_of_a_full_cache(evidence: &str) -> bool {
    let mut said = evidence.split("KV cache ").skip(1).filter_map(|rest| rest.split_once(" % full"));
    said.any(|(percent, _)| percent.parse::<u32>().is_ok_and(|percent| (90..=100).contains(&percent)))
}

#[test]
fn two_hundred_requests_of_which_none_is_in_trouble_are_blamed_for_nothing() {
    if !may_trace("two_hundred_requests_of_which_none_is_in_trouble_are_blamed_for_nothing") {
        return;
    }
    let stage = Stage::new("none", &WIDE);
    let slowest = stage.traced(&crowd(), Stage::slowest);
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
    for request in stage.traced(&crowd(), Stage::slowest) {
        assert_eq!(kinds(&request)[0], "queued", "{request:#}");
        assert!(evidence(&request).contains("batch full ("), "{request:#}");
    }
    // 64 blocks of 16 tokens are room for ten requests of 90 tokens: those that wait, wait for blocks.
    let stage = Stage::new("cache", &[&WIDE[..], &["--blocks", "64", "--max-model-len", "1024"]].concat());
    for request in stage.traced(&crowd(), Stage::slowest) {
        assert!(["queued", "preempted"].contains(&kinds(&request)[0]), "{request:#}");
        assert!(is_of_a_full_cache(evidence(&request)), "{request:#}");
    }
}

#[test]
fn a_preempted_request_lost_what_it_waited_and_computed_again() {
    if !may_trace("a_preempted_request_lost_what_it_waited_and_computed_again") {
        return;
    }
    // Two of 620 tokens in a cache of 1,024: the younger one is preempted until the other is done.
    let stage = Stage::new("preempted", &["--blocks", "64", "--step-ms", "3", "--max-model-len", "1024"]);
    let two = [Asked::new("older", 20, 600, 0), Asked::new("younger", 20, 600, 50)];
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
    let mut all: Vec<Asked> = (0..60).map(|n| Asked::new(&format!("crowd-{n}"), 20, 40, n * 5)).collect();
    all.push(Asked::new("long", 6_000, 8, 600));
    all.push(Asked::new("behind", 20, 8, 650));
    let ask = |id: &'static str| move |stage: &Stage| stage.ask(&["why", id]).remove(0);
    let [long, crowd, behind] =
        stage.traced(&all, |stage| ["cmpl-long", "cmpl-crowd-59", "cmpl-behind"].map(|id| ask(id)(stage)));
    assert_eq!(kinds(&long), ["long_prefill"], "{long:#}");
    assert!(evidence(&long).contains("in 3 chunks") || evidence(&long).contains("in 4 chunks"), "{long:#}");
    for told in [&crowd, &behind] {
        assert_eq!(kinds(told), ["prefill_of_others"], "{told:#}");
        assert!(evidence(told).contains("tokens)"), "{told:#}");
    }
}

#[test]
fn troubles_of_single_requests_are_named_among_two_hundred() {
    if !may_trace("troubles_of_single_requests_are_named_among_two_hundred") {
        return;
    }
    let knobs = ["--slow-tokenizer-ms", "600", "--block-front-end-ms", "1500", "--stall-front-end-ms", "1500"];
    let more = ["--slow-step-ms", "60", "--engine-error-after", "5"];
    let stage = Stage::new("marks", &[&WIDE[..], &knobs[..], &more[..]].concat());
    for (mark, kind) in [
        ("#slow-tokenizer#", "slow_tokenizer"),
        ("#block-front-end#", "front_end_late"),
        ("#stall-front-end#", "front_end_late"),
        ("#slow-steps#", "slow_steps"),
        ("#engine-error#", "engine_error"),
    ] {
        let id = mark.trim_matches('#');
        let mut all = crowd();
        all.push(Asked::marked(id, mark, 20, 30, 1_600));
        let (told, slowest) = stage.traced(&all, |stage| (stage.ask(&["why", &format!("cmpl-{id}")]), stage.slowest()));
        assert_eq!(kinds(&told[0]), [kind], "{mark}: {:#}", told[0]);
        if kind != "engine_error" {
            names(&slowest, id, kind);
        }
    }
}

#[test]
fn a_client_that_reads_too_slowly_is_named_among_two_hundred() {
    if !may_trace("a_client_that_reads_too_slowly_is_named_among_two_hundred") {
        return;
    }
    let stage = Stage::new("client", &[&WIDE[..], &["--send-buffer", "4096", "--max-model-len", "2048"]].concat());
    let attached = stage.attach();
    thread::scope(|scope| {
        scope.spawn(|| stage.send(&crowd()));
        let slow = Asked::new("slow-reader", 20, 200, 0);
        blame::read_late(&stage.engine.target, &slow, &json!({}), Duration::from_secs(2));
    });
    thread::sleep(SETTLED);
    names(&stage.slowest(), "slow-reader", "slow_client");
    detach(attached);
}

#[test]
fn nobody_to_ask_an_unknown_id_and_one_of_several_runs_are_told_apart() {
    if !may_trace("nobody_to_ask_an_unknown_id_and_one_of_several_runs_are_told_apart") {
        return;
    }
    let stage = Stage::new("verbs", &["--step-ms", "1"]);
    let (code, _, said) = stage.run(&["why", "cmpl-a"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("attach -p PID") && said.contains("--from FILE"), "{said}");
    stage.traced(&[Asked::new("a", 20, 5, 0), Asked::new("b", 20, 5, 10)], |stage| {
        let (code, told, said) = stage.run(&["why", "cmpl-a"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(told.starts_with("why "), "{told}");
        let (code, told, said) = stage.run(&["trace", "cmpl-a"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(told.contains("inference_request") && told.contains("\nwhy "), "{told}");
        let (code, _, said) = stage.run(&["trace", "cmpl-c"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("no request is called cmpl-c") && said.contains("perhaps cmpl-"), "{said}");
        assert_eq!(stage.run(&["why", "--slow", "cmpl-a"]).0, Some(2));
        // A second attach is asked as well, and both have it.
        let second = stage.attach();
        stage.send(&[Asked::new("c", 20, 5, 0)]);
        assert_eq!(stage.ask(&["why", "cmpl-c"]).len(), 2);
        detach(second);
        assert_eq!(stage.ask(&["why", "cmpl-c"]).len(), 1);
    });
    // It is gone, with its socket.
    assert_eq!(stage.run(&["why", "cmpl-a"]).0, Some(3));
    assert_eq!(fs::read_dir(stage.folder.path().join("run")).expect("the folder").count(), 0);
}

/// What real captures say: of each the slowest, and nothing that a look at them does not bear out.
#[test]
fn of_recordings_of_the_real_server_the_slowest_are_explained() {
    let folder = Folder::new("why-recordings").expect("a folder");
    let ask = |words: &[&str], name: &str| {
        let file = repository(&format!("tests/fixtures/recordings/{name}.isrec"));
        blame::ask(folder.path(), &[words, &["--from", file.to_str().expect("UTF-8")]].concat())
    };
    // 700 requests open on one front end: it is late with all it does.
    let slowest = ask(&["why", "--slow", "5"], "vllm-0.32-700-open");
    assert_eq!(slowest.len(), 5);
    assert!(slowest.iter().all(|request| kinds(request)[0] == "front_end_late"), "{slowest:#?}");
    // Few requests, on a small cache: one waited on its connection and then for blocks.
    let slowest = ask(&["why", "--slow", "1"], "vllm-0.32-mixed");
    assert_eq!(kinds(&slowest[0]), ["pipelined", "queued"], "{slowest:#?}");
    let id = slowest[0]["trace_id"].as_str().expect("an id");
    let drawn = ask(&["trace", &id[..10]], "vllm-0.32-mixed");
    assert_eq!(drawn[0]["record"]["trace_id"], id);
    assert!(drawn[0]["spans"].as_array().is_some_and(|spans| spans.len() > 5));
}
