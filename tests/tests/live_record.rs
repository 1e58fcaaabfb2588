//! The verbs `record` and `replay` on a running demo engine: the replay is what the live run exported, byte for byte.

use std::path::Path;
use std::process::{Command, Stdio};

use inferspan::recording::blocks::MAGIC;
use inferspan_harness::folder::Folder;
use inferspan_harness::perfetto::Perfetto;
use inferspan_harness::process::Signal;
use inferspan_tests::attached::Attached;
use inferspan_tests::demo_engine::DemoEngine;
use inferspan_tests::judge::binary;
use inferspan_tests::live::may_trace;
use inferspan_tests::traffic::{Kind, Load, Until};

const ENGINE: &str = env!("CARGO_BIN_EXE_test-engine");
const OUTPUTS: [&str; 4] = ["--traces-out", "--access-log", "--metrics-out", "--chrome"];

/// A folder of the test's own, with what runs exported.
struct Outputs(Folder);

impl Outputs {
    fn new(name: &str) -> Self {
        Self(Folder::new(&format!("record-{name}")).expect("a folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// The output flags, for files that are called after `run`.
    fn outputs(&self, run: &str) -> Vec<String> {
        OUTPUTS.iter().flat_map(|flag| [(*flag).to_owned(), self.path(&format!("{run}{flag}"))]).collect()
    }

    /// What `run` exported. How much of the machine the tracer used is each run's own.
    fn exported(&self, run: &str) -> Vec<String> {
        let read = |flag: &str| std::fs::read_to_string(self.path(&format!("{run}{flag}"))).expect("an output file");
        let own = |line: &&str| !line.contains("inferspan_self_");
        OUTPUTS.iter().map(|flag| read(flag).lines().filter(own).collect::<Vec<_>>().join("\n")).collect()
    }
}

fn engine(folder: &Outputs) -> DemoEngine {
    DemoEngine::start(Command::new(ENGINE), folder.0.path(), |_, announced| Some(announced)).expect("demo engine")
}

/// Ends a recording: exit code and stderr.
fn end(recording: Attached, signal: Signal) -> (Option<i32>, String) {
    recording.signal(signal);
    recording.end()
}

/// Runs `inferspan replay` to its end: exit code and stderr.
fn replay(file: &str, arguments: &[String]) -> (Option<i32>, String) {
    let output = Command::new(binary()).args(["replay", file]).args(arguments).output().expect("inferspan runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("stderr is text"))
}

/// As [`replay`], of a file that can be read once.
fn replay_pipe(file: &str, arguments: &[String]) -> (Option<i32>, String) {
    let mut cat = Command::new("cat").arg(file).stdout(Stdio::piped()).spawn().expect("cat runs");
    let mut command = Command::new(binary());
    command.args(["replay", "/dev/stdin"]).args(arguments).stdin(cat.stdout.take().expect("piped"));
    let output = command.output().expect("inferspan runs");
    cat.wait().expect("wait");
    (output.status.code(), String::from_utf8(output.stderr).expect("stderr is text"))
}

fn load(engine: &DemoEngine, requests: usize) {
    let kinds = vec![Kind::CompletionStream, Kind::ChatStream, Kind::Completion, Kind::AbortStream, Kind::UnknownModel];
    let load = Load {
        url: engine.target.url.clone(),
        model: engine.target.model.clone(),
        kinds,
        clients: 8,
        until: Until::Requests(requests),
        seed: 3,
    };
    load.run().expect("load");
}

#[test]
fn a_replay_is_what_the_live_run_exported_and_the_same_each_time() {
    if !may_trace("a_replay_is_what_the_live_run_exported_and_the_same_each_time") {
        return;
    }
    let folder = Outputs::new("same");
    let engine = engine(&folder);
    for raw in [false, true] {
        let file = folder.path(if raw { "raw.isrec" } else { "run.isrec" });
        // A live run's access log goes on where the one before ended.
        let run = format!("live-{raw}");
        let mut arguments = folder.outputs(&run);
        arguments.extend(["-o".to_owned(), file.clone()]);
        arguments.extend(raw.then(|| "--raw".to_owned()));
        let recording = Attached::start("record", engine.target.pid, &arguments);
        load(&engine, 120);
        let (code, said) = end(recording, Signal::INT);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("lost: none") && said.contains(&format!("inferspan replay {file}")), "{said}");
        assert_eq!(said.contains("keeps what goes over"), raw, "{said}");
        let live = folder.exported(&run);
        assert!(live[1].lines().count() >= 120 && live[0].lines().count() >= 100, "{said}");
        for run in ["first", "second", "through a pipe"] {
            let (code, said) = if run == "through a pipe" {
                replay_pipe(&file, &folder.outputs(run))
            } else {
                replay(&file, &folder.outputs(run))
            };
            assert_eq!(code, Some(0), "{said}");
            for (number, (then, now)) in live.iter().zip(folder.exported(run)).enumerate() {
                assert!(*then == now, "raw={raw}: {} differ in the {run} replay", OUTPUTS[number]);
            }
        }
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("it is there").permissions());
        assert_eq!(mode & 0o777, 0o600, "for its owner alone");
    }
}

#[test]
fn a_tracer_that_is_killed_leaves_a_recording_that_can_be_replayed() {
    if !may_trace("a_tracer_that_is_killed_leaves_a_recording_that_can_be_replayed") {
        return;
    }
    let folder = Outputs::new("killed");
    let engine = engine(&folder);
    let file = folder.path("run.isrec");
    let recording = Attached::start("record", engine.target.pid, &["-o".to_owned(), file.clone()]);
    load(&engine, 40);
    // A block is closed every second.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    end(recording, Signal::KILL);
    let (code, said) = replay(&file, &folder.outputs("replay"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it has no end") && said.contains("what came before is reported"), "{said}");
    assert!(folder.exported("replay")[1].lines().count() >= 40, "{said}");
}

#[test]
fn a_timeline_is_recorded_when_it_is_asked_for_and_opens_in_perfetto() {
    if !may_trace("a_timeline_is_recorded_when_it_is_asked_for_and_opens_in_perfetto") {
        return;
    }
    let folder = Outputs::new("timeline");
    let engine = engine(&folder);
    for format in ["perfetto", "chrome", "otlp-json"] {
        let file = folder.path(format);
        let arguments = ["--format", format, "-o", &file].map(str::to_owned);
        let recording = Attached::start("record", engine.target.pid, &arguments);
        load(&engine, 60);
        let (code, said) = end(recording, Signal::INT);
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains("inferspan replay"), "{said}");
        let bytes = std::fs::read(&file).expect("what was asked for");
        let start: &[u8] = match format {
            "perfetto" => b"\n",
            "chrome" => b"[\n{",
            _ => b"{\"resourceSpans\"",
        };
        assert!(bytes.starts_with(start), "{format}");
        let Some(perfetto) = (format != "otlp-json").then(Perfetto::from_env).flatten() else { continue };
        let queries = [
            "select count(*) from slice where name = 'step'",
            "select count(*) from slice where depth = 0 and category = 'request' and name like '% length'",
            "select count(*) from process where name like '% api' or name like '% engine 0'",
        ];
        let rows = perfetto.query(Path::new(&file), &queries).expect("it opens");
        let counts: Vec<u64> = rows.iter().map(|rows| rows[0][0].as_u64().expect("a count")).collect();
        assert!(counts[0] > 20 && counts[1] > 10 && counts[2] == 2, "{format}: {counts:?}");
    }
}

#[test]
fn what_cannot_be_recorded_or_replayed_is_refused() {
    let folder = Outputs::new("refused");
    let file = folder.path("other.isrec");
    std::fs::write(&file, [&MAGIC[..], &99u32.to_le_bytes()].concat()).expect("a file");
    let (code, said) = replay(&file, &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("form 99") && said.contains("fix:"), "{said}");
    let (code, said) = replay(&folder.path("absent"), &[]);
    assert_eq!(code, Some(3), "{said}");
    let output = Command::new(binary())
        .args(["record", "-p", "1", "--format", "perfetto", "--raw", "-o", &file])
        .output()
        .expect("inferspan runs");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
