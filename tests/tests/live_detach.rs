//! How probes go: all of a library's or none, and without anybody waiting for the kernel.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use inferspan_harness::attached::Attached;
use inferspan_harness::folder::Folder;
use inferspan_harness::process::Signal;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;

/// Functions of the library that look like the tokenizer's, each with two probes; at most 64 are probed.
const FUNCTIONS: usize = 60;
/// What `attach` attaches without a library.
const TRACEPOINTS: usize = 4;
/// For a trace to end, however many probes there are.
const AT_ONCE: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_mins(2);

/// A library of that many tokenizer functions.
fn library(folder: &Path) -> PathBuf {
    let mut source = String::from("static volatile int calls;\n");
    for number in 0..FUNCTIONS {
        let name =
            format!("_RNvMsE_NtCs{number:04}Bal8Hga_10tokenizers9tokenizerNtB5_11PyTokenizer19___pymethod_encode__");
        writeln!(source, "static __attribute__((used, noinline)) int {name}(int a) {{ calls += {number}; return a; }}")
            .expect("a string");
    }
    let (from, library) = (folder.join("many.c"), folder.join("tokenizers.abi3.so"));
    fs::write(&from, source).expect("a source file");
    let built = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&from).status();
    assert!(built.expect("cc, which Rust links with").success());
    library
}

fn engine(name: &str) -> (DemoEngine, Folder) {
    let folder = Folder::new(&format!("detach-{name}")).expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_test-engine"));
    command.env("LD_PRELOAD", library(folder.path()));
    let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced));
    (engine.expect("demo engine"), folder)
}

/// Attaches, each probe a perf event, with so many descriptors at most.
fn attach(engine: &DemoEngine, log: &Path, descriptors: usize) -> Attached {
    let script = format!("ulimit -n {descriptors}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(binary()).args(["attach", "--level", "requests", "--uprobe-events"]);
    command.args(["-p", &engine.target.pid.to_string(), "--access-log"]).arg(log).stdout(Stdio::null());
    Attached::start(&mut command).expect("attached")
}

/// Programs that a process holds attached: a link each.
fn links(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").filter_map(Result::ok);
    let is_one = |path: &PathBuf| path.to_str().is_some_and(|path| path.contains("bpf_link"));
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).filter(is_one).count()
}

#[test]
fn a_trace_with_a_perf_event_a_probe_ends_at_once_and_all_that_was_seen_is_told() {
    // requests ─ INT ─ the end; the kernel takes 124 probes back, one after the other, behind it
    if !may_trace("a_trace_with_a_perf_event_a_probe_ends_at_once_and_all_that_was_seen_is_told") {
        return;
    }
    let (engine, folder) = engine("at-once");
    let log = folder.path().join("access.jsonl");
    let attached = attach(&engine, &log, 1024);
    let probes = TRACEPOINTS + 2 * FUNCTIONS;
    assert!(attached.said.contains(&format!("with {probes} probes")), "{}", attached.said);
    assert_eq!(links(attached.pid()), probes);
    engine.answer(20).expect("answers");
    let start = Instant::now();
    attached.signal(Signal::INT).expect("it runs");
    let (status, said) = attached.end(LIMIT).expect("it ends");
    let took = start.elapsed();
    assert!(status.success() && said.contains("lost: none"), "{said}");
    assert!(took < AT_ONCE, "it took {took:?}");
    let logged = fs::read_to_string(&log).expect("access log").lines().count();
    assert!((20..=21).contains(&logged), "{logged} of 20 requests, and of one that sees that the server answers");
}

#[test]
fn half_an_attach_leaves_nothing_behind() {
    // room for some probes of the library and not for all ─ none is there ─ requests ─ INT: nobody waits for those that go
    if !may_trace("half_an_attach_leaves_nothing_behind") {
        return;
    }
    let (engine, folder) = engine("half");
    let log = folder.path().join("access.jsonl");
    let attached = attach(&engine, &log, 130);
    assert!(attached.said.contains(&format!("with {TRACEPOINTS} probes")), "{}", attached.said);
    let warning = attached.said.lines().find(|line| line.contains("is not probed")).expect("a warning").to_owned();
    let number = warning.split_once(" probes that were placed before it are taken back").expect("how many");
    let number: usize = number.0.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    assert!((1..2 * FUNCTIONS).contains(&number) && warning.contains("Too many open files"), "{warning}");
    engine.answer(20).expect("answers");
    attached.signal(Signal::INT).expect("it runs");
    let start = Instant::now();
    let (status, said) = attached.end(LIMIT).expect("it ends");
    assert!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    assert!(status.success() && said.contains("lost: none"), "{said}");
    assert!(fs::read_to_string(&log).expect("access log").lines().count() >= 20, "{said}");

    let attached = attach(&engine, &log, 130);
    let start = Instant::now();
    while links(attached.pid()) > TRACEPOINTS {
        assert!(start.elapsed() < LIMIT, "{} are still there", links(attached.pid()));
        std::thread::sleep(Duration::from_millis(200));
    }
}
