//! The verb `attach`, from outside: what it says, how it ends, and with which exit code.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use inferspan::proc::{OWN, Proc};
use inferspan_harness::folder::Folder;
use inferspan_harness::process::Signal;
use inferspan_tests::attached::Attached;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");

/// A running demo engine, in a folder that is its and the test's.
fn engine(name: &str) -> (DemoEngine, Folder) {
    let folder = Folder::new(&format!("attach-{name}")).expect("a folder");
    let engine = DemoEngine::start(Command::new(ENGINE), folder.path(), |_, announced| Some(announced));
    (engine.expect("demo engine"), folder)
}

/// Runs `inferspan attach` to its end: exit code and stderr.
fn attach(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary()).arg("attach").args(arguments).output().expect("inferspan runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("stderr is text"))
}

/// A running `inferspan attach` that has said that it is attached.
fn attached_to(pid: u32, arguments: &[&str]) -> Attached {
    Attached::start("attach", pid, &arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
}

#[test]
fn both_signals_end_a_trace_that_is_flushed_with_success() {
    if !may_trace("both_signals_end_a_trace_that_is_flushed_with_success") {
        return;
    }
    let (engine, folder) = engine("signals");
    for signal in [Signal::INT, Signal::TERM] {
        let log = folder.path().join(format!("access-{signal:?}.jsonl"));
        let attached = attached_to(engine.target.pid, &["--access-log", log.to_str().expect("UTF-8")]);
        engine.answer(4).expect("answers");
        attached.signal(signal);
        let (code, said) = attached.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("inferspan: attached")).count(), 1, "{said}");
        assert!(said.contains("lost: none"), "{said}");
        let logged = fs::read_to_string(&log).expect("access log").lines().count();
        // The load asks once more, to see that the server answers.
        assert!((4..=5).contains(&logged), "{logged} logged");
        assert!(said.contains(&format!("detached: {logged} requests")), "{said}");
    }
}

#[test]
fn a_hangup_opens_the_log_anew_where_there_is_one_and_ends_the_trace_elsewhere() {
    // 4 requests ─ rename ─ HUP ─ 4 requests ─ INT
    let test = "a_hangup_opens_the_log_anew_where_there_is_one_and_ends_the_trace_elsewhere";
    if !may_trace(test) {
        return;
    }
    let (engine, folder) = engine("hangup");
    let log = folder.path().join("access.jsonl");
    let attached = attached_to(engine.target.pid, &["--access-log", log.to_str().expect("UTF-8")]);
    engine.answer(4).expect("answers");
    let lines = |path: &PathBuf| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    // Nothing is on its way when the name changes.
    let start = Instant::now();
    while lines(&log) < 4 && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(500));
    let renamed = log.with_extension("1");
    fs::rename(&log, &renamed).expect("a rename");
    attached.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(500));
    let before = lines(&renamed);
    engine.answer(4).expect("answers");
    attached.signal(Signal::INT);
    let (code, said) = attached.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(lines(&renamed) == before && lines(&log) >= 4, "{before}, {} and {}", lines(&renamed), lines(&log));
    assert!(said.contains(&format!("detached: {} requests", before + lines(&log))), "{said}");

    // What ignores a hangup here, `nohup`, asks every process that it starts to go on behind one.
    if Proc::this().status(OWN).is_ok_and(|status| status.ignores(Signal::HUP.as_raw())) {
        eprintln!("SKIPPED in part: {test}: SIGHUP is ignored here; run it without nohup");
        return;
    }
    let attached = attached_to(engine.target.pid, &[]);
    engine.answer(4).expect("answers");
    attached.signal(Signal::HUP);
    let (code, said) = attached.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("detached: ") && !said.contains("detached: 0 requests"), "{said}");
}

#[test]
fn a_trace_that_nobody_reads_any_more_ends() {
    if !may_trace("a_trace_that_nobody_reads_any_more_ends") {
        return;
    }
    let (engine, _folder) = engine("unread");
    let mut command = Command::new(binary());
    command.args(["attach", "-p", &engine.target.pid.to_string()]);
    let mut attach = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("inferspan runs");
    // As `head -1` does, sooner or later.
    drop(attach.stdout.take());
    let start = Instant::now();
    let output = attach.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("detached: ") && start.elapsed() < Duration::from_secs(20), "{said}");
}

#[test]
fn a_server_that_ends_during_a_trace_ends_it_with_success() {
    if !may_trace("a_server_that_ends_during_a_trace_ends_it_with_success") {
        return;
    }
    let (engine, _folder) = engine("ends");
    let attached = attached_to(engine.target.pid, &["--access-log", "/dev/null"]);
    drop(engine);
    let (code, said) = attached.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the server has ended"), "{said}");
}

#[test]
fn a_duration_ends_a_trace_with_success() {
    if !may_trace("a_duration_ends_a_trace_with_success") {
        return;
    }
    let (engine, _folder) = engine("duration");
    let pid = engine.target.pid.to_string();
    let start = Instant::now();
    let (code, said) = attach(&["-p", &pid, "--duration", "1s", "--access-log", "/dev/null"]);
    assert_eq!(code, Some(0), "{said}");
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&start.elapsed()));
}

#[test]
fn what_cannot_be_traced_has_an_error_and_an_exit_code_of_its_own() {
    // The highest PID there is on a 64-bit Linux (PID_MAX_LIMIT); taken last.
    let (code, said) = attach(&["-p", "4194303"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("fix:"), "{said}");
    let own = std::process::id().to_string();
    let (code, said) = attach(&["-p", &own]);
    assert_eq!(code, Some(5), "{said}");
    let (code, said) = attach(&["-p", &own, "--level", "memory"]);
    assert_eq!(code, Some(2), "no level is offered that does not exist: {said}");
    let (code, said) = attach(&["-p", "zero"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = attach(&["--name", "a server that does not exist"]);
    assert_eq!(code, Some(3), "{said}");
}

#[test]
fn a_missing_capability_is_named() {
    if !may_trace("a_missing_capability_is_named") {
        return;
    }
    let (engine, _folder) = engine("capability");
    // Root without the two, and without the one that stands for both.
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-bpf,-perfmon,-sys_admin"])
        .arg(binary())
        .args(["attach", "-p", &engine.target.pid.to_string(), "--access-log", "/dev/null"])
        .output()
        .expect("setpriv of util-linux");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("missing CAP_BPF and CAP_PERFMON"), "{said}");
    assert!(said.contains("fix:"), "{said}");
}

#[test]
fn an_object_that_is_none_is_a_usage_error() {
    if !may_trace("an_object_that_is_none_is_a_usage_error") {
        return;
    }
    let (engine, _folder) = engine("object");
    let pid = engine.target.pid.to_string();
    let (code, said) = attach(&["-p", &pid, "--bpf-object", "/nonexistent.o", "--access-log", "/dev/null"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = attach(&["-p", &pid, "--debug-bpf", "--access-log", "/dev/null"]);
    assert_eq!(code, Some(2), "the shipped object has no log: {said}");
    assert!(said.contains("debug-log"), "{said}");
}
