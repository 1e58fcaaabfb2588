use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use super::client::ask_runs;
use super::serve::Server;
use super::*;
use crate::exit::Code;
use crate::export::Pressure;
use crate::export::access_log::tests::record;
use crate::export::kept::Kept;
use crate::output::{Merit, Outcome, Service, Trace, TraceId};
use crate::store::{Limits, Store};
use crate::why::tests::{MS, bare};

const PAPER: Paper = Paper { color: false, unicode: true, width: 80 };

/// A folder of this test's own; it is gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("inferspan-ask-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A request with a trace id that begins with `id`, that waited `queued_ms` of 1 s.
fn request(id: u8, queued_ms: u64) -> (crate::output::AccessRecord, Trace) {
    let mut root = bare(0, None, "inference_request", 0, 1_000);
    root.trace_id = TraceId([0x11, 0x11, 0x11, 0x11, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let queue = bare(1, Some(0), "queue_wait", 0, queued_ms);
    let record = crate::output::AccessRecord {
        trace_id: root.trace_id,
        span_id: root.span_id,
        request_id: Some(format!("cmpl-{id}")),
        ..record()
    };
    let merit = Merit { outcome: Some(Outcome::Stop), seconds: 1.0, parent_sampled: None };
    let trace = Trace { server: Arc::default(), service: Service::Requests, spans: vec![root, queue], merit };
    (record, trace)
}

fn store() -> Store {
    let mut store = Store::new(Limits::default());
    for id in 1..=3 {
        let (record, trace) = request(id, u64::from(id) * 200);
        store.record(Arc::new(record));
        store.trace(Arc::new(trace));
    }
    store
}

fn kept() -> Kept {
    let kept = Kept::new(Limits::default());
    *kept.store() = store();
    kept
}

fn ask(ask: Ask) -> Question {
    Question { v: VERSION, ask, paper: PAPER }
}

fn why(id: &str) -> Question {
    ask(Ask::Why { id: id.to_owned() })
}

#[test]
fn a_request_is_told_by_any_of_its_ids_and_the_beginning_of_several_lists_them() {
    let store = store();
    let told = |id: &str| answer(&store, &why(id));
    for id in ["cmpl-2", "CMPL-2", "1111111102", &format!("11111111{}", "02").to_owned()] {
        let found = told(id).found;
        // Names are looked up as they are; digits in either case.
        if id == "CMPL-2" {
            assert!(found.is_empty());
            continue;
        }
        assert_eq!(found.len(), 1, "{id}");
        assert!(found[0].text.contains("400 ms (40 %): queued"), "{}", found[0].text);
        assert_eq!(found[0].document["causes"][0]["kind"], "queued");
    }
    let several = told("11111111");
    assert_eq!(several.found.len(), 3);
    assert!(several.found.iter().all(|found| found.document.is_null() && !found.is_exact));
}

#[test]
fn an_id_that_nothing_has_gets_the_nearest() {
    let store = store();
    let hints = |id: &str| answer(&store, &why(id)).hints;
    assert_eq!(hints("cmpl-9")[0], "perhaps cmpl-3");
    assert!(hints("zzz").iter().all(|hint| hint.starts_with("for example 11111111")), "{:?}", hints("zzz"));
    assert_eq!(answer(&store, &why("zzz")).kept, 3);
}

#[test]
fn a_trace_is_drawn_with_its_line_and_its_why() {
    let found = answer(&store(), &ask(Ask::Trace { id: "cmpl-1".to_owned() })).found;
    for what in ["length", "trace 1111111101", "queue_wait", "why 11111111…"] {
        assert!(found[0].text.contains(what), "{what}: {}", found[0].text);
    }
    assert_eq!(found[0].document["spans"].as_array().map(Vec::len), Some(2));
    let ascii = Question { paper: Paper { unicode: false, ..PAPER }, ..ask(Ask::Trace { id: "cmpl-1".to_owned() }) };
    assert!(answer(&store(), &ascii).found[0].text.is_ascii());
}

#[test]
fn several_runs_are_asked_and_the_slowest_of_all_come_first() {
    let folder = Folder::new("several");
    let one = Server::start(&folder.0, kept()).unwrap();
    // The other run is another process; here it has the socket of another number.
    fs::rename(folder.0.join(format!("{}.sock", std::process::id())), folder.0.join("1.sock")).unwrap();
    let two = Server::start(&folder.0, kept()).unwrap();
    let heard = ask_runs(&folder.0, &ask(Ask::Slow { most: 2 })).unwrap();
    assert_eq!((heard.answer.found.len(), heard.answer.kept, heard.warnings.len()), (2, 6, 0));
    let heard = ask_runs(&folder.0, &why("cmpl-2")).unwrap();
    assert_eq!(heard.answer.found.len(), 2);
    drop((one, two));
    assert!(!folder.0.join(format!("{}.sock", std::process::id())).exists(), "it takes its socket with it");
    let error = ask_runs(&folder.0, &why("cmpl-2")).unwrap_err();
    assert_eq!(error.code, Code::NoTarget, "{error}");
}

#[test]
fn sockets_of_runs_that_are_gone_are_removed_and_other_files_left() {
    let folder = Folder::new("left");
    fs::create_dir(&folder.0).unwrap();
    drop(UnixListener::bind(folder.0.join("77.sock")).unwrap());
    fs::write(folder.0.join("notes.sock"), "").unwrap();
    let server = Server::start(&folder.0, kept()).unwrap();
    assert!(!folder.0.join("77.sock").exists());
    assert!(folder.0.join("notes.sock").exists());
    let own = folder.0.join(format!("{}.sock", std::process::id()));
    assert_eq!(fs::symlink_metadata(&own).unwrap().permissions().mode() & 0o777, 0o600);
    drop(server);
}

#[test]
fn a_folder_that_others_could_have_made_is_refused() {
    let folder = Folder::new("others");
    let there = Folder::new("there");
    fs::create_dir(&there.0).unwrap();
    symlink(&there.0, &folder.0).unwrap();
    assert!(Server::start(&folder.0, kept()).is_err(), "a link");
    fs::remove_file(&folder.0).unwrap();
    fs::create_dir(&folder.0).unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Server::start(&folder.0, kept()).is_err(), "anybody writes there");
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&folder.0, Some(65_534), None).unwrap();
        assert!(Server::start(&folder.0, kept()).is_err(), "another user's");
        assert_eq!(ask_runs(&folder.0, &why("cmpl-1")).unwrap_err().code, Code::Permission);
        chown(&folder.0, Some(0), None).unwrap();
    }
    assert!(Server::start(&folder.0, kept()).is_ok());
}

#[test]
fn a_question_that_is_none_is_answered_with_why_and_the_next_one_as_always() {
    let folder = Folder::new("bad");
    let _server = Server::start(&folder.0, kept()).unwrap();
    let path = folder.0.join(format!("{}.sock", std::process::id()));
    let say = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(bytes).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    };
    assert!(say(b"hello\n").contains("makes no sense"));
    let old = serde_json::to_string(&Question { v: 7, ..why("cmpl-1") }).unwrap();
    assert!(say(format!("{old}\n").as_bytes()).contains("it speaks version 1 of the questions"));
    assert_eq!(say(&[b'x'; 5_000]), "", "a line without end is not read to its end");
    assert_eq!(ask_runs(&folder.0, &why("cmpl-1")).unwrap().answer.found.len(), 1);
}

#[test]
fn what_a_target_says_does_not_reach_a_terminal_raw() {
    let mut store = Store::new(Limits::default());
    let (mut record, trace) = request(1, 500);
    record.request_id = Some("cmpl-\u{1b}[2J".to_owned());
    record.model = Some("\u{1b}]0;x\u{7}".to_owned());
    store.record(Arc::new(record));
    store.trace(Arc::new(trace));
    let is_safe = |text: &str| !text.chars().any(|c| c != '\n' && crate::sanitise::is_unsafe(c));
    let drawn = answer(&store, &ask(Ask::Trace { id: "1111111101".to_owned() }));
    assert!(is_safe(&drawn.found[0].text), "{:?}", drawn.found[0].text);
    assert!(answer(&store, &why("cmpl-\u{1b}[2K")).hints.iter().all(|hint| is_safe(hint)));
}

#[test]
fn a_store_of_many_is_asked_in_no_time() {
    // 3,000 requests at once, 10,000 steps
    let mut store = Store::new(Limits { bytes: usize::MAX, ..Limits::default() });
    for n in 0..3_000_u64 {
        let (mut record, mut trace) = request(1, 500);
        let id = TraceId(u128::from(n + 1).to_be_bytes());
        record.trace_id = id;
        record.request_id = Some(format!("cmpl-{n}"));
        for span in &mut trace.spans {
            (span.trace_id, span.end_ns) = (id, span.end_ns + n * MS / 100);
        }
        store.record(Arc::new(record));
        store.trace(Arc::new(trace));
    }
    let kept = Kept::new(Limits::default());
    *kept.store() = store;
    let _sink = kept.sink(Pressure::Drop);
    let begun = std::time::Instant::now();
    assert_eq!(answer(&kept, &ask(Ask::Slow { most: 3 })).found.len(), 3);
    // 40 ms in a debug build on a shared 2-core VM.
    assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn the_store_is_held_for_one_request_at_a_time() {
    struct Looks(Store, std::cell::Cell<usize>);
    impl Source for Looks {
        fn look<T>(&self, at: impl FnOnce(&Store) -> T) -> T {
            self.1.set(self.1.get() + 1);
            at(&self.0)
        }
    }
    let looks = Looks(store(), std::cell::Cell::new(0));
    let told = answer(&looks, &Question { v: VERSION, ask: Ask::Slow { most: 5 }, paper: PAPER });
    assert_eq!(told.found.len(), 3);
    assert_eq!(looks.1.get(), 1 + 3 + 1, "for all of them, for each, and how many there are");
}
