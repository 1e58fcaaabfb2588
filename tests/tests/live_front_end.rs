//! Uprobes on a real Python: where a front end decodes a message, and where it reads its clock.
//!
//! Every `python3` that is installed is tried, by the name that it has; msgspec is taken from the environment of the real vLLM.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use inferspan::attach::Target;
use inferspan::attach::family::clock::CLOCK;
use inferspan::attach::family::messages::MESSAGES;
use inferspan::attach::libraries::Attached;
use inferspan::attach::loader::Options;
use inferspan::input::{Event, Function, Role, What};
use inferspan::source::session::Session;
use inferspan_harness::installed::Vllm;
use inferspan_tests::live::{self, Fixture, may_trace};

/// Reads the clock 20 times on the main thread and 5 on another, and other clocks that do not count.
const CLOCKS: &str = "
import sys, threading, time
print('ready', flush=True)
sys.stdin.readline()
for _ in range(20):
    time.time(), time.time_ns(), time.monotonic(), time.perf_counter()
thread = threading.Thread(target=lambda: [time.time() for _ in range(5)])
thread.start()
thread.join()
print('done', flush=True)
";

/// Decodes three messages, two JSON texts, and one message by the function that is no decoder.
const DECODES: &str = "
import sys, time
import msgspec
decoder, json = msgspec.msgpack.Decoder(), msgspec.json.Decoder()
message = msgspec.msgpack.encode([1, 2.5, ['chatcmpl-1', [7]]])
print('ready', flush=True)
sys.stdin.readline()
for _ in range(3):
    decoder.decode(message)
    time.time()
json.decode(b'[1]'), json.decode(b'{}'), msgspec.msgpack.decode(message)
print('done', flush=True)
";

/// Lets both run, the first one probed, and gives what was found and the calls that were seen.
fn calls(python: &str, script: &str) -> (Attached, u32, Vec<Event>) {
    let mut fixtures = [0, 1].map(|_| Fixture::start(python, &["-c", script]));
    let targets = [0, 1].map(|at: usize| Target { tgid: fixtures[at].tgid, capture: false, libraries: false });
    let mut session = Session::start(&Options::default(), &targets).expect("attach");
    let process = [(targets[0].tgid, Role::Api)];
    let found = session.attach_libraries(&process, true);
    assert!(session.attach_libraries(&process, true).is_empty(), "a process is probed once");
    let calls = live::calls(session, &mut fixtures);
    (found, targets[0].tgid, calls)
}

/// What is probed.
fn probed(found: &Attached) -> Vec<&'static str> {
    found.probed.iter().map(|probed| probed.family.what).collect()
}

fn of(calls: &[Event], wanted: Function) -> Vec<&Event> {
    calls.iter().filter(|call| matches!(call.what, What::Call { function, .. } if function == wanted)).collect()
}

#[test]
fn every_reading_of_the_clock_is_seen_and_no_other_process_s() {
    if !may_trace("every_reading_of_the_clock_is_seen_and_no_other_process_s") {
        return;
    }
    let names = [
        "python3",
        "/usr/bin/python3",
        "python3.9",
        "python3.10",
        "python3.11",
        "python3.12",
        "python3.13",
        "python3.14",
    ];
    let runs = |name: &&str| {
        let version = std::process::Command::new(name).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    };
    let mut tried = 0;
    for python in names.into_iter().filter(runs) {
        eprintln!("{python}");
        tried += 1;
        let (found, process, calls) = calls(python, CLOCKS);
        assert_eq!(probed(&found), [CLOCK.what], "{python}: time.time is not found");
        let mut threads: BTreeMap<u32, usize> = BTreeMap::new();
        for call in of(&calls, Function::Clock) {
            assert_eq!(call.process, process, "{python}: the probe is one process's");
            *threads.entry(call.thread).or_default() += 1;
        }
        assert_eq!(threads.remove(&process), Some(20), "{python}");
        assert_eq!(threads.into_values().collect::<Vec<_>>(), [5], "{python}");
    }
    if tried == 0 {
        eprintln!("SKIPPED: no python3 is installed");
    }
}

/// Links that this process holds.
fn links() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("descriptors").map_while(Result::ok);
    let links = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    links.filter(|link| link.as_os_str() == "anon_inode:bpf_link").count()
}

/// Waits until links are as many again and no thread takes one back: this process did not really end, so its old probes would see its
/// calls too.
fn taken_back(before: usize) {
    let is_at_it = || {
        let threads = std::fs::read_dir("/proc/self/task").expect("threads").map_while(Result::ok);
        let mut names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names.any(|name| name.starts_with("inferspan-detac"))
    };
    let until = Instant::now() + Duration::from_mins(1);
    while links() > before || is_at_it() {
        assert!(Instant::now() < until, "probes of an ended process are taken back");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_number_that_is_free_again_is_probed_again() {
    if !may_trace("a_number_that_is_free_again_is_probed_again") {
        return;
    }
    let fixture = Fixture::start("python3", &["-c", CLOCKS]);
    let target = Target { tgid: fixture.tgid, capture: false, libraries: false };
    let mut session = Session::start(&Options::default(), &[target]).expect("attach");
    let (before, links_before) = (session.attached(), links());
    assert_eq!(probed(&session.attach_libraries(&[(target.tgid, Role::Api)], true)), [CLOCK.what]);
    assert_eq!(session.attached(), before + 1);
    session.ended(target.tgid);
    assert_eq!(session.attached(), before, "nothing is left of it");
    taken_back(links_before);
    assert_eq!(probed(&session.attach_libraries(&[(target.tgid, Role::Api)], true)), [CLOCK.what]);
    let clocks = of(&live::calls(session, &mut [fixture]), Function::Clock).len();
    assert_eq!(clocks, 25, "each reading once");
}

#[test]
fn the_decoder_of_messages_is_seen_in_order_with_the_clock() {
    let test = "the_decoder_of_messages_is_seen_in_order_with_the_clock";
    let Some(installed) = may_trace(test).then(Vllm::from_env).flatten() else { return };
    let python = installed.venv.join("bin/python");
    let (found, _, calls) = calls(python.to_str().expect("UTF-8"), DECODES);
    assert_eq!(probed(&found), [MESSAGES.what, CLOCK.what]);
    assert_eq!(found.warnings, [""; 0]);
    let order: Vec<Function> = calls
        .iter()
        .filter_map(|call| match call.what {
            What::Call { function, .. } => Some(function),
            _ => None,
        })
        .collect();
    assert_eq!(order, [Function::Decode, Function::Clock].repeat(3));
}
