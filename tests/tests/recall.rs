//! Files are read back: what is in a store is what the pipeline says of the file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inferspan::exit::Code;
use inferspan::export::otlp::spans::{self, Origin};
use inferspan::export::otlp_file;
use inferspan::output::{Merit, Service, Trace};
use inferspan::recall::{self, Kind, LIMITS};
use inferspan::store::Limits;
use inferspan_tests::pipeline;

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recordings")
}

#[test]
fn a_syscall_log_is_read_into_the_requests_and_steps_that_the_pipeline_gives() {
    for name in pipeline::CAPTURES {
        let made = pipeline::run(&pipeline::events(name));
        let read = recall::open(&pipeline::captures().join(name), LIMITS).unwrap();
        assert_eq!(read.about.kind, Kind::SyscallLog, "{name}");
        let requests: Vec<&Trace> = read.store.requests().map(|request| &*request.trace).collect();
        let made_requests: Vec<&Trace> = made.traces.iter().filter(|t| t.service == Service::Requests).collect();
        assert_eq!(requests, made_requests, "{name}");
        let records: Vec<_> = read.store.requests().filter_map(|request| request.record.as_deref()).collect();
        assert_eq!(records, made.access.iter().collect::<Vec<_>>(), "{name}");
        let steps: usize = read.store.steps().engines().map(|(_, steps)| steps.len()).sum();
        assert_eq!(steps, made.steps.len(), "{name}");
        assert_eq!(read.about.losses, [], "{name}");
        assert_eq!(read.about.span_ns.is_some(), !requests.is_empty(), "{name}");
        assert!(read.about.span_ns.is_none_or(|(from, to)| from < to && to == read.store.newest_ns()), "{name}");
    }
}

#[test]
fn a_recording_is_read_and_says_who_wrote_it() {
    let mut files = std::fs::read_dir(recordings()).unwrap().map(|entry| entry.unwrap().path());
    let recording = files.find(|path| path.extension().is_some_and(|end| end == "isrec")).unwrap();
    let read = recall::open(&recording, LIMITS).unwrap();
    assert_eq!(read.about.kind, Kind::Recording);
    assert!(read.about.writer.is_some_and(|writer| !writer.is_empty()));
    assert!(read.store.requests().count() > 0);
}

#[test]
fn what_does_not_fit_is_counted_and_said() {
    let limits = Limits { bytes: 1 << 14, ..LIMITS };
    let read = recall::open(&pipeline::captures().join("v0.32_api2.jsonl.gz"), limits).unwrap();
    assert!(read.about.losses.iter().any(|loss| loss.what == "store" && loss.count > 0), "{:?}", read.about.losses);
}

#[test]
fn what_is_no_file_of_ours_is_refused_with_what_to_do() {
    let refused = |path: &Path| recall::open(path, LIMITS).unwrap_err();
    let gone = refused(Path::new("no-such-file"));
    assert_eq!((gone.code, gone.fix.as_str()), (Code::NoTarget, "check the path"));
    assert_eq!(refused(&pipeline::captures()).code, Code::Usage);
    let junk = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    assert_eq!(refused(&junk).code, Code::Usage);
}

/// The traces of a file as `--traces-out` writes it of what the pipeline made, every step among them.
fn write_traces(made: &pipeline::Made, path: &Path, lines_of: usize) {
    let mut out = Vec::new();
    let (scope, origin) = (spans::scope(), Origin::default());
    let steps = made.steps.iter().map(|step| Trace {
        server: Arc::clone(&step.server),
        service: Service::Engine,
        spans: step.spans(2000),
        merit: Merit::default(),
    });
    let all: Vec<Trace> = made.traces.iter().filter(|t| t.service == Service::Requests).cloned().chain(steps).collect();
    for several in all.chunks(lines_of) {
        let mut requests = several.iter().map(|trace| otlp_file::request(trace, &scope, &origin));
        let mut line = requests.next().unwrap();
        line.resource_spans.extend(requests.flat_map(|request| request.resource_spans));
        serde_json::to_writer(&mut out, &line).unwrap();
        out.push(b'\n');
    }
    let file = std::fs::File::create(path).unwrap();
    if path.extension().is_some_and(|end| end == "gz") {
        let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        file.write_all(&out).unwrap();
        file.finish().unwrap();
    } else {
        (&file).write_all(&out).unwrap();
    }
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("inferspan-recall-{}-{name}", std::process::id()))
}

#[test]
fn a_trace_file_gives_the_trees_records_and_steps_that_it_was_written_of() {
    // capture ─pipeline─▶ trees, steps ─otlp_file─▶ lines (1, or 7 traces each, plain, or gzip) ─recall─▶ the same
    for (name, lines_of, end) in [
        ("v0.32_api2.jsonl.gz", 1, "jsonl"),
        ("v0.32_logprobs_stop_abort.jsonl.gz", 7, "jsonl.gz"),
        ("v0.32_preempt.jsonl.gz", 7, "jsonl"),
        ("v0.11.0_run.jsonl.gz", 1, "jsonl.gz"),
        ("v0.32_chat_stream.jsonl.gz", 1, "jsonl"),
    ] {
        let made = pipeline::run(&pipeline::events(name));
        let path = temporary(&format!("{name}.{end}"));
        write_traces(&made, &path, lines_of);
        let read = recall::open(&path, LIMITS).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((read.about.kind, &read.about.losses), (Kind::Traces, &vec![]), "{name}");
        assert_eq!(read.about.writer.as_deref(), Some(env!("CARGO_PKG_VERSION")), "{name}");
        let requests: Vec<_> = read.store.requests().collect();
        let made_traces: Vec<&Trace> = made.traces.iter().filter(|t| t.service == Service::Requests).collect();
        assert_eq!(requests.len(), made_traces.len(), "{name}");
        for (request, made) in requests.iter().zip(&made_traces) {
            assert_eq!(request.trace.spans, made.spans, "{name}");
            assert_eq!(request.trace.merit.outcome, made.merit.outcome, "{name}");
            assert_eq!(request.trace.server.instance(), made.server.instance(), "{name}");
        }
        let records: Vec<_> = requests.iter().filter_map(|request| request.record.as_deref().cloned()).collect();
        for (mut record, made) in records.into_iter().zip(&made.access) {
            // When the last byte was written, and not the root's end, where the engine went on after that.
            record.time = made.time;
            assert_eq!(&record, made, "{name}");
        }
        let steps: Vec<_> = read.store.steps().engines().flat_map(|(_, steps)| steps).collect();
        assert_eq!(steps.len(), made.steps.len(), "{name}");
        for (step, made) in steps.iter().zip(&made.steps) {
            assert_eq!(step.spans(2000), made.spans(2000), "{name}");
        }
    }
}
