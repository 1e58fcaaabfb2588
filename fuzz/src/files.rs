//! Files that somebody else made: libraries, syscall logs, recordings, traces.
//!
//! Readers that take a file are given one in memory.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{BufReader, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use inferspan::attach::code::Code;
use inferspan::attach::exports::{self, Exports};
use inferspan::attach::family::ENTERED;
use inferspan::attach::handles;
use inferspan::core::Config;
use inferspan::elf::{Image, image};
use inferspan::input::Input;
use inferspan::kernel;
use inferspan::output::EngineStep;
use inferspan::recall::Taker;
use inferspan::recall::traces::{Made, Reader};
use inferspan::recording::reader::Recording;
use inferspan::recording::{Entry, blocks};
use inferspan::run::pipeline::Pipeline;
use inferspan::run::preroll::Preroll;
use inferspan::source::syscall_log::SyscallLog;
use inferspan::store::{Limits, Store};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::bytes::Bytes;

thread_local! {
    static FILE: OnceCell<File> = const { OnceCell::new() };
}

/// A file with these bytes, read from its start. One file for all, so that an input costs no new one.
fn file(bytes: &[u8]) -> File {
    FILE.with(|kept| {
        let kept = kept.get_or_init(|| memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory").into());
        let mut file = kept.try_clone().expect("another descriptor of it");
        file.set_len(0).expect("it is cut");
        file.rewind().expect("it is rewound");
        file.write_all(bytes).expect("it is written");
        file.rewind().expect("it is rewound");
        file
    })
}

/// A library of a target: its image, its exports, the kernels that it registers, where its functions are entered.
pub fn elf(bytes: &[u8]) {
    let source: &[u8] = bytes;
    let _ = image::build_id(source);
    if let Ok(image) = Image::read(source) {
        for code in image.code().into_iter().chain(image.stubs()) {
            let _ = (image.is_code(code.address), image.offset(code.address), image.word(code.address));
        }
        let _ = image.slots(&["__cudaRegisterFunction", "cuLaunchKernel"]);
        let _ = image.functions(&["encode", "main"]);
        for segment in image.data() {
            let _ = image.pointer(segment.address);
        }
    }
    let tables = [kernel::scan(source), kernel::scan(source)].map(|table| format!("{table:?}"));
    assert_eq!(tables[0], tables[1], "the same file says the same");
    if let Ok(code) = Code::parse(bytes) {
        let points = code.functions(ENTERED, |_| Some(1));
        assert!(points.is_sorted_by(|a, b| a.offset < b.offset), "one point a place");
    }
    let file = file(bytes);
    let _ = exports::soname(&file);
    if let Ok(Some(exports)) = Exports::read(&file) {
        let _ = (exports.soname().map(str::len), exports.has("cuInit"), exports.point(ENTERED, 1, "cuInit"));
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let _ = handles::names_at(Path::new(&path));
}

/// A syscall log, through the look ahead and the pipeline.
pub fn syscall_log(bytes: &[u8]) {
    let read = || {
        let mut log = SyscallLog::read(Path::new("log"), BufReader::new(file(bytes))).expect("a file in memory reads");
        let mut events = Vec::new();
        // A broken one is used up to there.
        while let Ok(Some(event)) = log.next_event() {
            events.push(event);
        }
        assert!(events.len() as u64 + log.bad_lines() <= log.lines());
        (events, log.bad_lines())
    };
    let (events, bad) = read();
    assert_eq!((&events, bad), (&read().0, read().1), "the same log says the same");
    let mut preroll = Preroll::default();
    for event in &events {
        preroll.look(event);
    }
    let (facts, _) = preroll.facts(None);
    let mut pipeline = Pipeline::new(1, 500_000_000, &Config { closes_visible: false, ..Config::default() });
    let facts = facts.into_iter().map(Input::Fact);
    for input in facts.chain(events.into_iter().map(Input::Event)) {
        pipeline.push(Some(0), input);
    }
    while pipeline.finish_part() {}
}

/// A recording: any bytes, or blocks of any contents. Its entries go through the pipeline.
pub fn recording(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let kind = bytes.u8();
    let packed = if kind & 1 == 0 { bytes.0.to_vec() } else { blocks_of(bytes) };
    let file = BufReader::new(file(&packed));
    let Ok(mut recording) = Recording::read(Path::new("recording"), file) else { return };
    let servers = recording.header.servers.min(4) as usize;
    let mut pipeline = Pipeline::new(servers, 0, &Config::default());
    let mut last = 0;
    while let Ok(Some(entry)) = recording.next_entry() {
        if let Entry::Complete { late } = &entry {
            last = *late;
        }
        pipeline.replay(entry, recording.header.raw);
        let _ = pipeline.outputs().drain(..).count();
    }
    let _ = (pipeline.unanswered(), last);
    while pipeline.finish_part() {}
}

/// The form of a recording around contents: a checksum is never guessed.
fn blocks_of(mut bytes: Bytes<'_>) -> Vec<u8> {
    let mut packed = Vec::new();
    blocks::begin(&mut packed).expect("a vector takes it");
    while !bytes.is_over() {
        blocks::write(&mut packed, bytes.piece(usize::MAX)).expect("a vector takes it");
    }
    packed
}

/// A file of traces: no more spans than it has objects, the same twice, and every request with its root first.
pub fn traces(bytes: &[u8]) {
    let read = || {
        let mut reader = Reader::default();
        let mut made: Vec<Made> = bytes.split(|byte| *byte == b'\n').flat_map(|line| reader.push(line)).collect();
        made.extend(reader.finish());
        made
    };
    let made = read();
    let objects = memchr::memchr_iter(b'{', bytes).count();
    let mut store = Store::new(Limits { bytes: 1 << 20, ..Limits::default() });
    let mut spans = 0;
    for made in &made {
        match made {
            Made::Request(trace, record) => {
                let root = trace.spans.first().expect("a tree has a root");
                assert!(trace.spans.iter().skip(1).all(|span| span.trace_id == root.trace_id && span.parent.is_some()));
                spans += trace.spans.len();
                store.request(trace, record.as_ref());
            }
            Made::Step(step) => {
                assert!(step.start_ns <= step.end_ns && step.batch.len() <= EngineStep::MAX_LINKS);
                spans += 1;
                Taker::step(&mut store, step);
            }
        }
    }
    assert!(spans <= objects, "{spans} spans of {objects} objects");
    let words = |made: &[Made]| format!("{made:?}");
    assert_eq!(words(&made), words(&read()), "the same file says the same");
}
