//! Files are read back: what is in a store is what the pipeline says of the file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use inferspan::exit::Code;
use inferspan::output::{Service, Trace};
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
