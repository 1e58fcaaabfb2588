use super::*;
use crate::input::{Delivered, Direction, Probe, Role};
use crate::output::Speaks;

/// Two servers: processes 1 and 2; 10 ns for the order.
fn pipeline() -> Pipeline {
    let mut pipeline = Pipeline::new(2, 10, &Config::default());
    pipeline.push(Some(0), Input::Fact(Fact::Process { tgid: 1, role: Role::Api }));
    pipeline.push(Some(1), Input::Fact(Fact::Process { tgid: 2, role: Role::Api }));
    pipeline.record(false);
    pipeline
}

fn event(at: EventNanos, process: u32, what: What) -> Input {
    Input::Event(Event { at, process, thread: process, what })
}

/// A call on a connection of a process that reads this.
fn reads(at: EventNanos, process: u32, bytes: &[u8]) -> Input {
    let (end, direction) = (End::of_descriptor(process, 5), Direction::In);
    let what =
        What::Data { end, direction, len: bytes.len() as u64, bytes: bytes.to_vec(), starts: true, offset: None };
    event(at, process, what)
}

/// Which server got an event, and when that was, in the order in which they got them.
fn got(pipeline: &mut Pipeline) -> Vec<(u32, EventNanos)> {
    let entries = pipeline.take_entries();
    let of = |entry: Entry| match entry {
        Entry::Input { server, input: Input::Event(event), .. } => Some((server, event.at)),
        _ => None,
    };
    entries.into_iter().filter_map(of).collect()
}

fn losses(pipeline: &mut Pipeline) -> Vec<(LossStage, u64)> {
    let of = |output: Output| match output {
        Output::Lost(lost) => Some((lost.stage, lost.count)),
        _ => None,
    };
    pipeline.outputs().drain(..).filter_map(of).collect()
}

#[test]
fn an_event_goes_to_the_server_whose_process_caused_it_in_order() {
    // process 2 at 5, 1 at 3, 2 at 4 ─ a tick at 20 lets them go
    let mut pipeline = pipeline();
    for (at, process) in [(5, 2), (3, 1), (4, 2)] {
        pipeline.push(None, reads(at, process, b"x"));
    }
    assert_eq!(got(&mut pipeline), [], "they are held back");
    pipeline.push(None, Input::Tick(20));
    assert_eq!(got(&mut pipeline), [(0, 3), (1, 4), (1, 5)]);
}

#[test]
fn a_child_is_its_parent_s_server_s_and_what_is_nobody_s_is_counted() {
    // 1 forks 9 ─ 9 reads ─ 9 ends ─ 9 reads: another process has its number
    let mut pipeline = pipeline();
    pipeline.push(None, reads(1, 9, b"x"));
    assert_eq!(losses(&mut pipeline), [(LossStage::Unclassified, 1)]);
    pipeline.push(None, event(2, 1, What::Forked { child: 9 }));
    pipeline.push(None, reads(3, 9, b"x"));
    pipeline.push(None, event(4, 9, What::Exited));
    assert_eq!(losses(&mut pipeline), []);
    pipeline.push(None, reads(5, 9, b"x"));
    assert_eq!(losses(&mut pipeline), [(LossStage::Unclassified, 1)]);
    pipeline.push(None, Input::Tick(20));
    assert_eq!(got(&mut pipeline), [(0, 2), (0, 3), (0, 4)]);
}

#[test]
fn of_one_server_alone_every_process_is_its() {
    let mut pipeline = Pipeline::new(1, 10, &Config::default());
    pipeline.record(false);
    pipeline.push(None, reads(1, 9, b"x"));
    pipeline.push(None, Input::Tick(20));
    assert_eq!((got(&mut pipeline), losses(&mut pipeline)), (vec![(0, 1)], vec![]));
}

#[test]
fn a_fact_told_of_a_server_counts_before_what_is_held_back() {
    let mut pipeline = pipeline();
    pipeline.push(None, reads(5, 1, b"x"));
    pipeline.push(Some(0), Input::Fact(Fact::EngineClock { offset_ns: 3 }));
    pipeline.push(None, Input::Tick(20));
    let entries = pipeline.take_entries();
    let is_fact = |entry: &Entry| matches!(entry, Entry::Input { server: 0, input: Input::Fact(_), .. });
    let is_event = |entry: &Entry| matches!(entry, Entry::Input { input: Input::Event(_), .. });
    assert!(entries.iter().position(is_fact) < entries.iter().position(is_event), "{entries:?}");
}

#[test]
fn what_concerns_no_process_goes_to_all_and_is_counted_once() {
    // a loss of 3 · the tracer's own account
    let mut pipeline = pipeline();
    pipeline.push(None, Input::Lost(Lost { at: 1, count: 3, stage: LossStage::DataRing }));
    assert_eq!(losses(&mut pipeline), [(LossStage::DataRing, 3)]);
    pipeline.push(None, Input::Tick(20));
    let told = |entry: &Entry| matches!(entry, Entry::Input { input: Input::Lost(_), .. });
    assert_eq!(pipeline.take_entries().iter().filter(|entry| told(entry)).count(), 2);
    let delivered = Delivered { probe: Probe::Syscall, count: 9 };
    pipeline.push(None, Input::Delivered(delivered));
    assert_eq!(pipeline.outputs().drain(..).collect::<Vec<_>>(), [Output::Delivered(delivered)]);
}

#[test]
fn a_verdict_says_when_its_connection_was_first_seen() {
    // opened 3 ─ a request 5: it speaks HTTP, as of 3 ─ closed 6 ─ the number again 7, seen in its middle
    let mut pipeline = pipeline();
    let end = End::of_descriptor(1, 5);
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    pipeline.push(None, event(3, 1, What::Opened { end }));
    pipeline.push(None, reads(5, 1, request));
    pipeline.push(None, event(6, 1, What::Closed { end, moved: None }));
    pipeline.push(None, reads(7, 1, request));
    pipeline.push(None, Input::Tick(20));
    let http = Verdict { end, speaks: Speaks::Http };
    assert_eq!(pipeline.verdicts(), [(http, 3), (http, 7)]);
    assert_eq!(pipeline.verdicts(), []);
}

#[test]
fn a_recording_holds_no_bytes_unless_it_is_raw() {
    for raw in [false, true] {
        let mut pipeline = Pipeline::new(1, 10, &Config::default());
        pipeline.record(raw);
        pipeline.push(None, reads(1, 1, b"POST /v1/completions HTTP/1.1\r\ncontent-length: 6\r\n\r\nsecret"));
        pipeline.push(None, Input::Tick(20));
        let kept = pipeline.take_entries().into_iter().find_map(|entry| match entry {
            Entry::Input { input: Input::Event(Event { what: What::Data { bytes, .. }, .. }), answers, .. } => {
                Some((bytes.is_empty(), answers.is_empty()))
            }
            _ => None,
        });
        assert_eq!(kept, Some((!raw, raw)), "either the bytes or what they said");
    }
}

#[test]
fn a_recording_replayed_says_the_same() {
    // a request is read ─ its process ends ─ the end of the run
    let story = |pipeline: &mut Pipeline| {
        pipeline.push(Some(0), Input::Fact(Fact::Process { tgid: 1, role: Role::Api }));
        pipeline.push(None, reads(1, 1, b"POST /v1/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"));
        pipeline.push(None, event(2, 1, What::Exited));
        pipeline.push(None, Input::Tick(9_000_000_000));
        while pipeline.finish_part() {}
    };
    let mut live = Pipeline::new(1, 10, &Config::default());
    live.record(false);
    story(&mut live);
    let mut replayed = Pipeline::new(1, 10, &Config::default());
    for entry in live.take_entries() {
        replayed.replay(entry, false);
    }
    assert!(live.outputs().iter().any(|output| matches!(output, Output::Access(_))));
    assert_eq!((live.outputs(), replayed.unanswered()), (replayed.outputs(), 0));
}

#[test]
fn an_entry_of_a_server_that_is_not_there_does_nothing_and_missing_ones_are_counted() {
    let mut pipeline = Pipeline::new(1, 10, &Config::default());
    pipeline.replay(Entry::Input { server: 7, input: Input::Tick(1), answers: Vec::new() }, false);
    pipeline.replay(Entry::Finish { server: 7 }, false);
    pipeline.replay(Entry::Missing { entries: 4 }, false);
    assert_eq!(losses(&mut pipeline), [(LossStage::Queue, 4)]);
}

#[test]
fn what_is_held_back_at_the_end_still_counts_and_what_came_late_is_counted() {
    // 30 (lets 5 go) ─ 1: late ─ the end lets 30 go
    let mut pipeline = pipeline();
    pipeline.push(None, reads(5, 1, b"x"));
    pipeline.push(None, reads(30, 1, b"x"));
    pipeline.push(None, reads(1, 1, b"x"));
    assert_eq!(pipeline.late(), 1);
    while pipeline.finish_part() {}
    assert_eq!(got(&mut pipeline), [(0, 5), (0, 1), (0, 30)]);
}

#[test]
fn what_all_sorters_hold_back_is_bounded_and_the_fullest_lets_go_first() {
    // two servers, nothing is due ─ the first sends 4 MiB, the second 1 MiB, then the first 2 MiB more
    let mut pipeline = Pipeline::new(2, u64::MAX, &Config::default());
    pipeline.push(Some(0), Input::Fact(Fact::Process { tgid: 1, role: Role::Api }));
    pipeline.push(Some(1), Input::Fact(Fact::Process { tgid: 2, role: Role::Api }));
    pipeline.record(false);
    for (at, process) in [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 1), (7, 1)] {
        pipeline.push(None, reads(at, process, &vec![b'x'; 1 << 20]));
    }
    assert_eq!(got(&mut pipeline), [(0, 1), (0, 2)]);
    assert!(pipeline.held_back <= order::MAX_BYTES);
}

#[test]
fn too_much_of_all_servers_lets_go_where_most_is_and_is_replayed_alike() {
    // server 0 holds a request's head of 1 KiB ─ server 1 a frame on each of 30 connections, 1 MiB of it ─ the first of these let go
    let mut pipeline = pipeline();
    let piece = |at, process, fd, bytes: Vec<u8>| {
        let (end, len) = (End::of_descriptor(process, fd), bytes.len() as u64);
        event(at, process, What::Data { end, direction: Direction::In, len, bytes, starts: true, offset: None })
    };
    let head = [&b"POST /v1/completions HTTP/1.1\r\nx: "[..], &[b'x'; 1_000]].concat();
    pipeline.push(None, piece(1, 1, 5, head));
    let greeting = [&[0xff][..], &[0; 8], &[0x7f, 3, 0], b"NULL", &[0; 48]].concat();
    let frame = [&[0x02][..], &(2_u64 << 30).to_be_bytes(), &vec![0x90; 1 << 20]].concat();
    for fd in 0..30 {
        pipeline.push(None, piece(100 + u64::from(fd), 2, fd, greeting.clone()));
        pipeline.push(None, piece(200 + u64::from(fd), 2, fd, frame.clone()));
    }
    pipeline.push(None, Input::Tick(1_000));
    let entries = pipeline.take_entries();
    let relieved = |entry: &Entry| match entry {
        Entry::Input { server, input: Input::Relieve(holders), .. } => Some((*server, holders.len())),
        _ => None,
    };
    let all: Vec<_> = entries.iter().filter_map(relieved).collect();
    assert!(matches!(all.as_slice(), [(1, 6..=8)]), "{all:?}");
    let told = losses(&mut pipeline);
    assert_eq!(told, vec![(LossStage::Evicted, 1); all[0].1]);
    let mut again = Pipeline::new(2, 0, &Config::default());
    for entry in entries {
        again.replay(entry, false);
    }
    assert_eq!((losses(&mut again), again.unanswered()), (told, 0));
}
