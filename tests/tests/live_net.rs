//! The kernel side on this kernel: system calls of a fixture, byte for byte.

use inferspan::attach::Target;
use inferspan::attach::loader::{Cap, Caps, Options};
use inferspan::attach::rings::RINGS;
use inferspan::input::{Direction, End, Fact, Input, LossStage, What};
use inferspan::source::session::Session;
use inferspan_tests::live::{Fixture, Piece, Trace, lost_at, may_trace};

const SOCKETS: &str = env!("CARGO_BIN_EXE_sockets");

fn trace(scenario: &str) -> Option<(Fixture, Trace)> {
    if !may_trace(scenario) {
        return None;
    }
    let mut fixture = Fixture::start(SOCKETS, &[scenario]);
    let trace = Trace::of(&mut fixture, &Options::default());
    for stage in LossStage::ALL {
        assert_eq!(trace.lost(stage), 0, "nothing is lost at {}", stage.name());
    }
    Some((fixture, trace))
}

fn whole(bytes: &[u8]) -> (u64, Vec<u8>) {
    (bytes.len() as u64, bytes.to_vec())
}

#[test]
fn every_data_call_gives_its_exact_bytes_once_in_its_direction() {
    let Some((fixture, trace)) = trace("calls") else { return };
    let (client, server) = (fixture.end("client"), fixture.end("server"));
    assert_eq!(trace.data(client, Direction::Out), [whole(b"hello tcp"), whole(b"abcde")]);
    assert_eq!(trace.data(server, Direction::In), [whole(b"hello tcp"), whole(b"abcde")]);
    assert_eq!(trace.data(client, Direction::In), []);
    assert_eq!(trace.data(server, Direction::Out), []);
    assert_eq!(trace.data(fixture.end("unix0"), Direction::Out), [whole(b"over unix"), whole(b"message")]);
    // MSG_PEEK gives no event: the bytes are still to come.
    assert_eq!(trace.data(fixture.end("unix1"), Direction::In), [whole(b"over unix"), whole(b"message")]);
}

#[test]
fn descriptors_that_are_no_stream_sockets_never_leave_the_kernel() {
    let Some((fixture, trace)) = trace("noise") else { return };
    assert!(!trace.holds(b"NOISE"));
    // The number that was a socket, a file and a socket again.
    assert_eq!(trace.data(fixture.end("again"), Direction::Out), [whole(b"a socket again")]);
    assert_eq!(trace.data(fixture.end("copy"), Direction::In), [whole(b"a socket again")]);
    let closed = trace
        .events()
        .filter(|event| matches!(event.what, What::Closed { end, .. } if end == fixture.end("again")))
        .count();
    assert_eq!(closed, 2, "closed by close() and by dup2(), and the file in between is nobody's business");
}

#[test]
fn a_connection_is_seen_from_accept_to_close() {
    let Some((fixture, trace)) = trace("lifetime") else { return };
    let end = fixture.end("new_server");
    let opened = trace.when(|what| *what == What::Opened { end }).expect("opened");
    let data = trace.when(|what| matches!(what, What::Data { end: of, .. } if *of == end)).expect("data");
    let peer_closed = trace.when(|what| *what == What::PeerClosed { end }).expect("end of stream");
    let closed = trace.when(|what| matches!(what, What::Closed { end: of, .. } if *of == end)).expect("closed");
    assert!(opened < data && data < peer_closed && peer_closed < closed);
    assert_eq!(trace.data(end, Direction::In), [whole(b"first")]);
}

#[test]
fn a_reset_tells_that_the_peer_is_gone() {
    let Some((fixture, trace)) = trace("reset") else { return };
    let end = fixture.end("reset_server");
    assert_eq!(trace.events().filter(|event| event.what == What::PeerClosed { end }).count(), 1);
    assert_eq!(trace.data(end, Direction::Out), [whole(b"response that nobody reads")]);
}

/// The bytes of a stream as far as they were captured, by offset; checks that the pieces follow each other without a hole
/// between them.
fn stream(pieces: &[Piece]) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut next = 0;
    for piece in pieces {
        assert_eq!(piece.offset, Some(next), "pieces follow each other");
        next += piece.len;
        match runs.last_mut() {
            Some((at, bytes)) if *at + bytes.len() as u64 == piece.offset.unwrap_or_default() => {
                bytes.extend(&piece.bytes);
            }
            _ => runs.push((piece.offset.unwrap_or_default(), piece.bytes.clone())),
        }
    }
    runs
}

fn pattern(range: std::ops::Range<u32>) -> Vec<u8> {
    range.map(|index| (index / 251) as u8 ^ index as u8).collect()
}

#[test]
fn a_long_call_comes_in_pieces_and_a_cut_one_keeps_its_head_and_its_tail() {
    let Some((fixture, trace)) = trace("large") else { return };
    let pieces = |name: &str, direction| trace.pieces(fixture.end(name), direction);
    // 60,000 bytes of TCP: 4 KiB of head and of tail out, whole in.
    let out = pieces("client", Direction::Out);
    let shape: Vec<_> = out.iter().map(|piece| (piece.starts, piece.len, piece.bytes.len())).collect();
    assert_eq!(shape, [(true, 55_904, 4096), (false, 4096, 4096)]);
    assert_eq!(stream(&out), [(0, pattern(0..4096)), (55_904, pattern(55_904..60_000))]);
    let into = pieces("server", Direction::In);
    assert_eq!(into.iter().filter(|piece| piece.starts).count(), 1);
    assert_eq!(into.iter().map(|piece| piece.bytes.len()).max(), Some(16_384));
    assert_eq!(stream(&into), [(0, pattern(0..60_000))]);
    // Unix: 1,000,000 bytes in one send and in one receive, then 6000 bytes in 60 buffers: all of it.
    let whole: Vec<u8> = [pattern(0..1_000_000), pattern(0..6000)].concat();
    for (name, direction) in [("unix0", Direction::Out), ("unix1", Direction::In)] {
        assert_eq!(stream(&pieces(name, direction)), [(0, whole.clone())], "{name}");
    }
    assert_eq!(pieces("unix0", Direction::Out).iter().filter(|piece| piece.starts).count(), 2);
}

#[test]
fn many_buffers_keep_their_first_and_their_last_bytes() {
    let Some((fixture, trace)) = trace("vectors") else { return };
    // 120 buffers of 100 bytes, then of 1000, over TCP; then 3 large ones.
    let out = trace.pieces(fixture.end("client"), Direction::Out);
    let expected = [
        (0, pattern(0..4096)),
        (7904, pattern(7904..12_000)),
        (12_000, pattern(0..4096)),
        (127_904, pattern(115_904..120_000)),
        (132_000, pattern(0..4096)),
        (228_904, pattern(96_904..101_000)),
    ];
    // What is adjacent in the stream is one run.
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, bytes) in expected {
        match runs.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == at => run.extend(bytes),
            _ => runs.push((at, bytes)),
        }
    }
    assert_eq!(stream(&out), runs);
    assert_eq!(out.iter().filter(|piece| piece.starts).count(), 3);
}

#[test]
fn caps_are_options() {
    if !may_trace("caps_are_options") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["large"]);
    let cap = |head, tail| Cap { head, tail };
    let caps = Caps { http_in: cap(10, 0), http_out: cap(0, 0), engine: cap(0, 7), unknown: cap(0, 0) };
    let trace = Trace::of(&mut fixture, &Options { caps, ..Options::default() });
    assert_eq!(trace.data(fixture.end("server"), Direction::In), [(60_000, pattern(0..10))]);
    assert_eq!(trace.data(fixture.end("client"), Direction::Out), [(60_000, vec![])]);
    let tails = trace.data(fixture.end("unix0"), Direction::Out);
    assert_eq!(tails[..2], [(999_993, vec![]), (7, pattern(999_993..1_000_000))]);
}

#[test]
fn children_and_threads_are_followed() {
    let Some((fixture, trace)) = trace("child") else { return };
    let child = fixture.names["child"];
    let forked = trace.events().find(|event| event.what == What::Forked { child }).expect("fork is seen");
    assert_eq!(forked.process, fixture.tgid);
    let inherited = End::of_descriptor(child, fixture.names["unix0"]);
    assert_eq!(trace.data(inherited, Direction::Out), [whole(b"from the child")]);
    assert!(trace.holds(b"the child's own"));
    assert!(trace.events().any(|event| event.process == child && event.what == What::Exited));
    assert!(trace.events().any(|event| event.process == fixture.tgid && event.what == What::Exited));
    let thread = trace
        .events()
        .find(|event| matches!(&event.what, What::Data { bytes, .. } if bytes == b"from a thread"))
        .expect("threads are seen");
    assert_eq!(thread.process, fixture.tgid);
    assert_ne!(thread.thread, fixture.tgid);
    assert_eq!(
        trace.events().filter(|event| matches!(event.what, What::Forked { .. })).count(),
        1,
        "a thread is no fork"
    );
}

#[test]
fn a_process_that_is_no_target_is_invisible() {
    if !may_trace("a_process_that_is_no_target_is_invisible") {
        return;
    }
    let mut target = Fixture::start(SOCKETS, &["calls"]);
    let mut other = Fixture::start(SOCKETS, &["calls"]);
    let targets = [Target { tgid: target.tgid, capture: true, libraries: false }];
    let trace = Trace::with(&targets, &Options::default(), || {
        other.go();
        target.go();
    })
    .expect("attach");
    assert!(trace.events().count() > 0);
    assert!(trace.events().all(|event| event.process == target.tgid));
}

#[test]
fn a_target_without_capture_is_followed_and_not_looked_at() {
    if !may_trace("a_target_without_capture_is_followed_and_not_looked_at") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["child"]);
    let targets = [Target { tgid: fixture.tgid, capture: false, libraries: false }];
    let trace = Trace::with(&targets, &Options::default(), || fixture.go()).expect("attach");
    assert!(trace.events().all(|event| matches!(event.what, What::Forked { .. } | What::Exited)));
    assert_eq!(trace.events().count(), 3);
}

#[test]
fn a_full_ring_is_counted_and_told() {
    if !may_trace("a_full_ring_is_counted_and_told") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["flood"]);
    let small = RINGS.map(|ring| if ring.stage == LossStage::DataRing { 4096 * 4 } else { ring.bytes });
    let options = Options { ring_bytes: small, ..Options::default() };
    let trace = Trace::of(&mut fixture, &options);
    let seen = trace.events().filter(|event| matches!(event.what, What::Data { .. })).count() as u64;
    let told: u64 = trace
        .inputs
        .iter()
        .filter_map(|input| match input {
            Input::Lost(lost) => {
                assert_eq!(lost.stage, LossStage::DataRing);
                Some(lost.count)
            }
            _ => None,
        })
        .sum();
    assert!(told > 0, "16 KiB cannot hold what 4000 calls of 4 KiB leave in 10 ms");
    assert_eq!(seen + told, 4000, "every call is seen or counted");
    assert!(trace.events().any(|event| event.what == What::Exited), "edges have a ring of their own");
}

#[test]
fn a_queue_that_nobody_empties_drops_and_counts() {
    if !may_trace("a_queue_that_nobody_empties_drops_and_counts") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["flood"]);
    let targets = [Target { tgid: fixture.tgid, capture: true, libraries: false }];
    let session = Session::start(&Options::default(), &targets).expect("attach");
    fixture.go();
    // 64 batches wait; ticks alone fill them in 1.3 s.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let (mut events, mut lost) = (0, 0);
    session.detach(|batch| {
        lost += LossStage::ALL.iter().map(|stage| lost_at(&batch, *stage)).sum::<u64>();
        events += batch
            .iter()
            .filter(|input| matches!(input, Input::Event(e) if matches!(e.what, What::Data { .. })))
            .count() as u64;
    });
    assert!(events + lost >= 4000, "{events} seen, {lost} lost");
}

#[test]
fn ticks_and_clock_anchors_come_without_events() {
    if !may_trace("ticks_and_clock_anchors_come_without_events") {
        return;
    }
    let fixture = Fixture::start(SOCKETS, &["calls"]);
    let targets = [Target { tgid: fixture.tgid, capture: true, libraries: false }];
    let wait = || std::thread::sleep(std::time::Duration::from_millis(1200));
    let trace = Trace::with(&targets, &Options::default(), wait).expect("attach");
    let ticks: Vec<u64> =
        trace.inputs.iter().filter_map(|i| if let Input::Tick(at) = i { Some(*at) } else { None }).collect();
    assert!(ticks.len() >= 30, "{} ticks in 1.2 s", ticks.len());
    assert!(ticks.is_sorted());
    let anchors: Vec<(u64, u64)> = trace
        .inputs
        .iter()
        .filter_map(|input| match input {
            Input::Fact(Fact::Clock { event_ns, unix_ns }) => Some((*event_ns, *unix_ns)),
            _ => None,
        })
        .collect();
    assert!(anchors.len() >= 2, "one at the start and one a second");
    let offset = |(event, unix): (u64, u64)| unix - event;
    assert!(offset(anchors[0]).abs_diff(offset(anchors[1])) < 5_000_000, "the clocks run alike");
    assert_eq!(trace.events().count(), 0);
}

#[test]
fn a_target_in_its_own_pid_namespace_has_its_host_pid() {
    if !may_trace("a_target_in_its_own_pid_namespace_has_its_host_pid") {
        return;
    }
    // `unshare` stays outside; its child is pid 1 inside.
    let mut fixture = Fixture::start("unshare", &["--pid", "--fork", "--mount-proc", SOCKETS, "child"]);
    let outer = fixture.tgid;
    let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).expect("children");
    let inner: u32 = children.trim().parse().expect("one child");
    let targets = [Target { tgid: inner, capture: true, libraries: false }];
    let trace = Trace::with(&targets, &Options::default(), || fixture.go()).expect("attach");
    assert!(trace.holds(b"from the child"));
    let forked = trace.events().find(|event| matches!(event.what, What::Forked { .. })).expect("fork is seen");
    assert_eq!(forked.process, inner);
    assert!(forked.what != What::Forked { child: fixture.names["child"] }, "the number inside is another one");
    assert!(trace.events().all(|event| event.process >= inner));
}
