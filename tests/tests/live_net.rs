//! The kernel side on this kernel: system calls of a fixture, byte for byte.

use inferspan::attach::loader::{Caps, Options};
use inferspan::attach::{Session, Target};
use inferspan::input::LossStage;
use inferspan::telemetry::Telemetry;
use inferspan_tests::live::{Fixture, Trace, may_trace};

const SOCKETS: &str = env!("CARGO_BIN_EXE_sockets");

fn trace(scenario: &str) -> Option<(Fixture, Trace)> {
    if !may_trace(scenario) {
        return None;
    }
    let mut fixture = Fixture::start(SOCKETS, &[scenario]);
    let trace = Trace::of(&mut fixture, &Options::default());
    for stage in LossStage::ALL {
        assert_eq!(trace.telemetry.lost(stage), 0, "nothing is lost at {}", stage.name());
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
    let closed = trace.events().filter(|event| event.what == What::Closed { end: fixture.end("again") }).count();
    assert_eq!(closed, 2, "closed by close() and by dup2(), and the file in between is nobody's business");
}

#[test]
fn a_connection_is_seen_from_accept_to_close() {
    let Some((fixture, trace)) = trace("lifetime") else { return };
    let end = fixture.end("new_server");
    let opened = trace.when(|what| *what == What::Opened { end }).expect("opened");
    let data = trace.when(|what| matches!(what, What::Data { end: of, .. } if *of == end)).expect("data");
    let peer_closed = trace.when(|what| *what == What::PeerClosed { end }).expect("end of stream");
    let closed = trace.when(|what| *what == What::Closed { end }).expect("closed");
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

#[test]
fn payloads_are_cut_at_their_caps_and_keep_their_length() {
    let Some((fixture, trace)) = trace("large") else { return };
    let sizes = |end, direction| -> Vec<(u64, usize)> {
        trace.data(end, direction).iter().map(|(len, bytes)| (*len, bytes.len())).collect()
    };
    assert_eq!(sizes(fixture.end("client"), Direction::Out), [(60_000, 4096)]);
    assert_eq!(sizes(fixture.end("server"), Direction::In), [(60_000, 16_384)]);
    // 32 of 60 pieces of 100 bytes are gathered.
    assert_eq!(sizes(fixture.end("unix0"), Direction::Out), [(30_000, 16_384), (6000, 3200)]);
    assert_eq!(sizes(fixture.end("unix1"), Direction::In), [(30_000, 16_384), (6000, 6000)]);
    let (_, bytes) = &trace.data(fixture.end("unix0"), Direction::Out)[1];
    assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == index as u8), "pieces are in place");
}

#[test]
fn caps_are_options() {
    if !may_trace("caps_are_options") {
        return;
    }
    let mut fixture = Fixture::start(SOCKETS, &["large"]);
    let caps = Caps { tcp_in: 10, tcp_out: 0, unix: 1 << 30, unknown: 0 };
    let trace = Trace::of(&mut fixture, &Options { caps, ..Options::default() });
    assert_eq!(trace.data(fixture.end("server"), Direction::In), [(60_000, (0..10).collect())]);
    assert_eq!(trace.data(fixture.end("client"), Direction::Out), [(60_000, vec![])]);
    assert_eq!(trace.data(fixture.end("unix1"), Direction::In)[0].1.len(), 16_384, "the hard limit");
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
    let targets = [Target { tgid: target.tgid, capture: true }];
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
    let targets = [Target { tgid: fixture.tgid, capture: false }];
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
    let options = Options { data_ring_bytes: 4096 * 4, ..Options::default() };
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
    assert_eq!(told, trace.telemetry.lost(LossStage::DataRing));
    assert_eq!(seen + told, 4000, "every call is seen or counted");
    assert!(trace.events().any(|event| event.what == What::Exited), "edges have a ring of their own");
}

#[test]
fn a_queue_that_nobody_empties_drops_and_counts() {
    if !may_trace("a_queue_that_nobody_empties_drops_and_counts") {
        return;
    }
    let telemetry = std::sync::Arc::new(Telemetry::default());
    let mut fixture = Fixture::start(SOCKETS, &["flood"]);
    let targets = [Target { tgid: fixture.tgid, capture: true }];
    let session = Session::start(&Options::default(), &targets, std::sync::Arc::clone(&telemetry)).expect("attach");
    fixture.go();
    // 64 batches wait; ticks alone fill them in 1.3 s.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let mut events = 0;
    session.detach(|batch| {
        events += batch
            .iter()
            .filter(|input| matches!(input, Input::Event(e) if matches!(e.what, What::Data { .. })))
            .count() as u64;
    });
    let lost: u64 = LossStage::ALL.iter().map(|stage| telemetry.lost(*stage)).sum();
    assert!(events + lost >= 4000, "{events} seen, {lost} lost");
}

#[test]
fn ticks_and_clock_anchors_come_without_events() {
    if !may_trace("ticks_and_clock_anchors_come_without_events") {
        return;
    }
    let fixture = Fixture::start(SOCKETS, &["calls"]);
    let targets = [Target { tgid: fixture.tgid, capture: true }];
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
    let targets = [Target { tgid: inner, capture: true }];
    let trace = Trace::with(&targets, &Options::default(), || fixture.go()).expect("attach");
    assert!(trace.holds(b"from the child"));
    let forked = trace.events().find(|event| matches!(event.what, What::Forked { .. })).expect("fork is seen");
    assert_eq!(forked.process, inner);
    assert!(forked.what != What::Forked { child: fixture.names["child"] }, "the number inside is another one");
    assert!(trace.events().all(|event| event.process >= inner));
}
