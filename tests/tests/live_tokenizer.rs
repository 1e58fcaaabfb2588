//! Uprobes on a library that has the tokenizer's symbols.

use std::path::{Path, PathBuf};
use std::process::Command;

use inferspan::attach::Target;
use inferspan::attach::libraries::Attached;
use inferspan::attach::loader::Options;
use inferspan::input::{Event, Function, Probe, Role, What};
use inferspan::source::session::Session;
use inferspan_tests::live::{self, Fixture, may_trace};

const SOCKETS: &str = env!("CARGO_BIN_EXE_sockets");

/// Builds the library into a directory of its own, named as the real one is.
fn library(test: &str, flags: &[&str]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&directory).expect("directory");
    let library = directory.join("tokenizers.abi3.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers.c");
    let status = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC"])
        .args(flags)
        .arg("-o")
        .arg(&library)
        .arg(source)
        .status()
        .expect("cc, which Rust links with");
    assert!(status.success());
    library
}

/// Attaches to the first of `fixtures`, lets all run, and gives the calls that were seen.
fn calls(fixtures: &mut [Fixture]) -> (Vec<Event>, Attached) {
    let tgid = fixtures[0].tgid;
    let targets = [Target { tgid, capture: true, libraries: false }];
    let mut session = Session::start(&Options::default(), &targets).expect("attach");
    let process = [(tgid, Role::Api)];
    let probes = session.attach_libraries(&process, true);
    assert!(session.attach_libraries(&process, true).is_empty(), "a library is probed once");
    let calls = live::calls(session, fixtures);
    (calls, probes)
}

fn fixture(library: &Path) -> Fixture {
    Fixture::start(SOCKETS, &["tokenizer", library.to_str().expect("UTF-8")])
}

#[test]
fn calls_of_the_target_are_timed_and_those_of_others_are_not_seen() {
    if !may_trace("calls_of_the_target_are_timed_and_those_of_others_are_not_seen") {
        return;
    }
    let library = library("timed", &[]);
    let mut fixtures = [fixture(&library), fixture(&library)];
    let (calls, probes) = calls(&mut fixtures);
    assert_eq!(probes.warnings, [""; 0]);
    let of: Vec<_> = probes.probed.iter().map(|probed| (probed.process, probed.functions)).collect();
    assert_eq!(of, [(fixtures[0].tgid, 2)]);
    assert!(calls.iter().all(|call| call.process == fixtures[0].tgid), "the filter is by process, the probe by file");
    let of = |wanted: Function| -> Vec<&Event> {
        calls.iter().filter(|call| matches!(call.what, What::Call { function, .. } if function == wanted)).collect()
    };
    // On each of two threads: encode, and encode_batch with an encode inside, which returns first.
    let encodes = of(Function::Encode);
    assert_eq!(encodes.len(), 6);
    let threads: std::collections::BTreeSet<u32> = calls.iter().map(|call| call.thread).collect();
    assert_eq!(threads.len(), 2);
    for call in &encodes {
        let What::Call { entered, .. } = call.what else { panic!("a call") };
        let took = call.at - entered;
        assert!((5_000_000..2_000_000_000).contains(&took), "nanosleep(5 ms) took {took} ns");
    }
}

#[test]
fn a_library_that_was_deleted_after_it_was_mapped_is_probed() {
    if !may_trace("a_library_that_was_deleted_after_it_was_mapped_is_probed") {
        return;
    }
    let library = library("deleted", &[]);
    let mut fixtures = [fixture(&library)];
    std::fs::remove_file(&library).expect("remove");
    let (calls, probes) = calls(&mut fixtures);
    assert_eq!(probes.functions(Probe::Tokenizer), 2);
    assert_eq!(calls.len(), 6);
}

#[test]
fn a_stripped_library_is_a_warning() {
    if !may_trace("a_stripped_library_is_a_warning") {
        return;
    }
    let library = library("stripped", &["-s"]);
    let mut fixtures = [fixture(&library)];
    let (calls, probes) = calls(&mut fixtures);
    assert_eq!((probes.probed.len(), calls.len()), (0, 0));
    assert_eq!(probes.warnings.len(), 1);
    assert!(probes.warnings[0].contains("stripped"), "{}", probes.warnings[0]);
}
