//! What a trace says of itself that a verdict needs, on a demo engine with troubles: what the engine did while a request waited, how late the
//! front end was, how long a client took no more.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use inferspan_harness::folder::Folder;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::{Attach, Finished};
use inferspan_tests::live::may_trace;
use serde_json::{Value, json};

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");

/// A client: its id, what it sends, and when.
#[derive(Debug, Clone, Copy)]
struct Client {
    id: &'static str,
    prompt: &'static str,
    tokens: u32,
    /// Sent so much later than the first.
    after: Duration,
    /// Having read the first bytes of the answer it reads nothing for so long.
    pause: Duration,
}

const CLIENT: Client = Client { id: "a", prompt: "hello", tokens: 20, after: Duration::ZERO, pause: Duration::ZERO };

impl Client {
    /// Gives how long it took from the first bytes of the answer to the last.
    fn run(&self, address: &str) -> Duration {
        thread::sleep(self.after);
        let mut stream = TcpStream::connect(address).expect("connect");
        let small: i32 = 4096;
        // SAFETY: the value is four readable bytes.
        unsafe {
            let value = (&raw const small).cast();
            libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, value, 4);
        }
        let body = json!({"model": "demo", "prompt": self.prompt, "max_tokens": self.tokens, "ignore_eos": true, "stream": true});
        let body = body.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.id,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("send");
        let (mut answer, mut bytes) = (Vec::new(), [0; 1024]);
        let mut since = Instant::now();
        while !answer.ends_with(b"0\r\n\r\n") {
            let got = stream.read(&mut bytes).expect("read");
            assert!(got > 0, "the answer ends early");
            if answer.is_empty() {
                since = Instant::now();
                thread::sleep(self.pause);
            }
            answer.extend(&bytes[..got]);
        }
        since.elapsed()
    }
}

/// A demo engine with these arguments answers these clients; what its trace says, live and again from its recording, and how long each
/// took to read its answer.
fn traced(name: &str, arguments: &[&str], clients: &[Client]) -> Option<(Finished, Vec<Duration>)> {
    if !may_trace(name) {
        return None;
    }
    let folder = Folder::new(&format!("evidence-{name}")).expect("a folder");
    let mut command = Command::new(ENGINE);
    command.args(arguments);
    let engine = DemoEngine::start(command, folder.path(), |_, announced| Some(announced)).expect("the demo engine");
    let address = engine.target.url.trim_start_matches("http://").to_owned();
    let attach = Attach::record(engine.target.pid, &folder.path().join("out")).expect("attach");
    // The engine has said something of its queue.
    Client { id: "warm", ..CLIENT }.run(&address);
    thread::sleep(Duration::from_millis(100));
    let took = thread::scope(|scope| {
        let running: Vec<_> = clients.iter().map(|client| scope.spawn(|| client.run(&address))).collect();
        running.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    thread::sleep(Duration::from_millis(300));
    let finished = attach.finish().expect("detach");
    assert_eq!(finished.replay_faults, [] as [String; 0]);
    Some((finished, took))
}

type Attributes = BTreeMap<String, Value>;

/// The root span of a client's request.
fn root<'a>(finished: &'a Finished, id: &str) -> &'a Attributes {
    let id = Value::from(format!("cmpl-{id}"));
    let roots = finished.traces.attributes("inference_request");
    roots.into_iter().find(|root| root["gen_ai.response.id"]["stringValue"] == id).expect("its root span")
}

fn seconds(of: &Attributes, key: &str) -> Option<f64> {
    of.get(key)?["doubleValue"].as_f64()
}

fn int(of: &Attributes, key: &str) -> Option<u64> {
    of.get(key)?["intValue"].as_str()?.parse().ok()
}

#[test]
fn a_client_that_reads_nothing_for_a_while_shows_that_long_and_one_that_reads_shows_nothing() {
    // three clients with a stream of 80 KB each: one reads it as it comes, one stops for 1.5 s, one for 3 s
    let slow = |id, ms| Client { id, tokens: 400, pause: Duration::from_millis(ms), ..CLIENT };
    let clients = [slow("fast", 0), slow("slow", 1_500), slow("slower", 3_000)];
    let arguments = ["--send-buffer", "4096", "--step-ms", "1"];
    let Some((finished, took)) = traced("slow-clients", &arguments, &clients) else { return };
    let blocked = |id| seconds(root(&finished, id), "inferspan.client.blocked_seconds");
    let after = |id| seconds(root(&finished, id), "inferspan.client.blocked_after_seconds");
    for (id, paused, took) in [("slow", 1.5, took[1]), ("slower", 3.0, took[2])] {
        let (blocked, took) = (blocked(id).unwrap_or_default(), took.as_secs_f64());
        // Its buffers fill first, and what was written meanwhile has to be read afterwards.
        assert!(blocked > paused - 0.7 && blocked < took + 0.01, "{id}: {blocked} of {took} s");
        // Its buffers are full long before the engine is done, which does not wait for it.
        let after = after(id).unwrap_or_else(|| panic!("{id}: what came behind the last token is told apart"));
        assert!(after > 0.0 && after < blocked, "{id}: {after} of {blocked} s");
        assert!(int(root(&finished, id), "inferspan.client.blocked_writes").is_some_and(|writes| writes > 0), "{id}");
    }
    for id in ["fast", "warm"] {
        assert_eq!((blocked(id), after(id)), (None, None), "{id}");
    }
}

#[test]
fn who_waits_knows_who_was_before_it() {
    // one at a time: a runs 0.6 s or more ─ b, c, d come while it does
    let later = |id, ms| Client { id, after: Duration::from_millis(ms), ..CLIENT };
    let clients = [Client { tokens: 100, ..CLIENT }, later("b", 150), later("c", 200), later("d", 250)];
    let Some((finished, _)) = traced("queue", &["--max-num-seqs", "1"], &clients) else { return };
    let mut seen: Vec<_> = finished
        .traces
        .attributes("queue_wait")
        .into_iter()
        .map(|wait| (int(wait, "inferspan.queue.waiting"), int(wait, "inferspan.queue.running")))
        .collect();
    seen.sort_unstable();
    // The first of all finds an engine that has said nothing yet.
    let expected = [(None, None), (Some(0), Some(0)), (Some(0), Some(1)), (Some(1), Some(1)), (Some(2), Some(1))];
    assert_eq!(seen, expected);
    let waits = finished.traces.attributes("queue_wait");
    let usages: Vec<f64> = waits.iter().filter_map(|wait| seconds(wait, "inferspan.queue.kv_cache_usage")).collect();
    assert_eq!(usages.len(), 4, "all but the first say it: {waits:#?}");
    assert!(usages.iter().all(|usage| (0.0..0.5).contains(usage)), "the cache is not full: {usages:?}");
}

#[test]
fn a_cache_that_is_full_shows_on_what_waits_for_it() {
    // four of 20 + 150 tokens in a cache that holds two of them
    let client = |id| Client { id, tokens: 150, ..CLIENT };
    let clients = ["a", "b", "c", "d"].map(client);
    let arguments = ["--blocks", "16", "--max-model-len", "256", "--step-ms", "2"];
    let Some((finished, _)) = traced("cache", &arguments, &clients) else { return };
    let waits = finished.traces.attributes("queue_wait");
    let preempted = || waits.iter().filter(|wait| wait["inferspan.reason"]["stringValue"] == "preemption");
    assert!(preempted().count() > 0, "{waits:#?}");
    for wait in preempted() {
        assert!(seconds(wait, "inferspan.queue.kv_cache_usage").is_some_and(|usage| usage > 0.9), "{wait:#?}");
        assert!(int(wait, "inferspan.queue.running").is_some_and(|running| running <= 3), "{wait:#?}");
    }
}

/// msgspec's decoder, as far as a probe sees it.
fn decoder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("evidence/msgspec");
    std::fs::create_dir_all(&folder).expect("a folder");
    let library = folder.join("_core.cpython-312-x86_64-linux-gnu.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/msgspec.c");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    assert!(cc.status().expect("cc, which Rust links with").success());
    library
}

#[test]
fn a_front_end_that_stands_still_shows_on_what_it_took_up_late() {
    // a stream of 0.8 s or more ─ meanwhile b: once it is sent, the event loop stands still for 0.4 s ─ later c
    let stream = Client { tokens: 200, ..CLIENT };
    let b = Client { id: "b", prompt: "hello #block-front-end#", after: Duration::from_millis(200), ..CLIENT };
    let c = Client { id: "c", after: Duration::from_millis(2_500), ..CLIENT };
    let library = decoder();
    let arguments = ["--block-front-end-ms", "400", "--decoder", library.to_str().expect("a path")];
    let Some((finished, _)) = traced("front-end", &arguments, &[stream, b, c]) else { return };
    let lags = |id| {
        let key = |which| format!("inferspan.front_end.{which}_lag_seconds");
        let lag = |which| seconds(root(&finished, id), &key(which)).unwrap_or_else(|| panic!("{id}: {}", key(which)));
        (lag("first"), lag("max"), lag("last"))
    };
    let (first, most, last) = lags("b");
    assert!((0.25..0.8).contains(&first) && most >= first && most >= last, "b: {first} {most} {last}");
    let (first, most, last) = lags("a");
    assert!(
        (0.0..0.2).contains(&first) && (0.25..0.8).contains(&most) && (0.0..0.2).contains(&last),
        "a: {first} {most} {last}"
    );
    let (first, most, last) = lags("c");
    assert!(
        (0.0..0.2).contains(&first) && (0.0..0.2).contains(&most) && (0.0..0.2).contains(&last),
        "c: {first} {most} {last}"
    );
}

#[test]
fn a_front_end_that_gets_no_cpu_receives_late() {
    // a: once it is sent, the process is stopped for 0.4 s
    let stalled = Client { prompt: "hello #stall-front-end#", ..CLIENT };
    let Some((finished, _)) = traced("stall", &["--stall-front-end-ms", "400"], &[stalled]) else { return };
    let first = seconds(root(&finished, "a"), "inferspan.front_end.first_lag_seconds");
    assert!(first.is_some_and(|lag| (0.25..0.8).contains(&lag)), "{first:?}");
}
