//! What is drawn of outputs, without a file's form: marks as a list.

use std::sync::{Arc, Mutex};

use super::mark::{Format, Mark, TrackKind};
use super::*;
use crate::input::{Role, Server};
use crate::model::keys::span;
use crate::output::cuda::{Class, NamedBy};
use crate::output::{
    CudaWhat, KernelName, Merit, Service, Span, SpanId, SpanKind, SpanLink, SpanStatus, TraceId, UnixNanos, WaitOf,
};

/// Writes down marks as text, in the order in which they come.
#[derive(Debug, Clone, Default)]
struct Notebook(Arc<Mutex<Vec<String>>>);

impl Format for Notebook {
    fn begin(&mut self, at: u64, _out: &mut Vec<u8>) {
        self.0.lock().unwrap().push(format!("begin {at}"));
    }

    fn mark(&mut self, mark: &Mark<'_>, _out: &mut Vec<u8>) {
        let mut lines = self.0.lock().unwrap();
        let line = match mark {
            Mark::Track(track) => {
                let process = matches!(track.kind, TrackKind::Process(_));
                format!("{} {}", if process { "group" } else { "track" }, track.name)
            }
            Mark::Slice(slice) => {
                let arrows = (slice.arrows_out.len(), slice.arrow_in.is_some());
                format!("{} {}-{} {arrows:?}", slice.name, slice.start, slice.end)
            }
            Mark::Instant { at, name, .. } => format!("point {name} {at}"),
            Mark::Count { at, value, .. } => format!("count {at} {value:?}"),
            Mark::Arrow { from, to, .. } => format!("arrow {}-{}", from.1, to.1),
        };
        lines.push(line);
    }

    fn end(&mut self, _out: &mut Vec<u8>) {
        self.0.lock().unwrap().push("end".to_owned());
    }
}

fn server() -> Arc<Server> {
    Arc::new(Server { service: "vllm".into(), model: "tiny".into(), pid: 42, ..Server::default() })
}

fn span(id: u8, parent: Option<u8>, name: &'static str, (start_ns, end_ns): (u64, u64), step: Option<u8>) -> Span {
    Span {
        trace_id: TraceId([1; 16]),
        span_id: SpanId([id; 8]),
        parent: parent.map(|parent| SpanId([parent; 8])),
        parent_is_remote: false,
        trace_state: None,
        name,
        kind: SpanKind::Internal,
        start_ns,
        end_ns,
        status: SpanStatus::Unset,
        attributes: Vec::new(),
        events: Vec::new(),
        links: step
            .map(|step| SpanLink { trace_id: TraceId([2; 16]), span_id: SpanId([step; 8]), attributes: Vec::new() })
            .into_iter()
            .collect(),
    }
}

fn request(spans: Vec<Span>) -> Item {
    Item::Request(Arc::new(Trace { server: server(), service: Service::Requests, spans, merit: Merit::default() }))
}

fn step(id: u8, (start_ns, end_ns): (u64, u64)) -> Item {
    Item::Step(EngineStep {
        cuda: None,
        server: server(),
        trace_id: TraceId([2; 16]),
        span_id: SpanId([id; 8]),
        engine: 0,
        start_ns,
        end_ns,
        requests: 1,
        tokens: 1,
        first_tokens: 0,
        prefill_tokens: 0,
        decode_tokens: 3,
        batch: Box::default(),
        stats: None,
    })
}

fn call(thread: u32, start: u64, end: Option<u64>, step: u8, what: CudaWhat) -> Item {
    Item::Call(CudaCall {
        server: server(),
        process: 50,
        thread,
        engine: Some(0),
        rank: None,
        start: UnixNanos(start),
        end: end.map(UnixNanos),
        stream: Some(0),
        step: Some((TraceId([2; 16]), SpanId([step; 8]))),
        what,
    })
}

fn launch() -> CudaWhat {
    let kernel = KernelName {
        name: "k".into(),
        demangled: "k()".into(),
        short: "k\u{202e}\n".into(),
        class: Class::Gemm,
        named_by: NamedBy::Symbol,
    };
    CudaWhat::Launch { kernel: Arc::new(kernel), grid: [1; 3], block: [1; 3], shared: 0, weight: 1 }
}

/// The marks of items, but for the tracks unless asked for; and how much was left out.
fn drawn(items: &[Item], tracks: bool) -> (Vec<String>, u64) {
    let (notebook, left_out) = (Notebook::default(), Arc::new(LeftOut::default()));
    let mut drawing = Drawing::new(Box::new(notebook.clone()), Arc::clone(&left_out));
    let mut out = Vec::new();
    for item in items {
        drawing.item(item, &mut out).unwrap();
    }
    let lines = notebook.0.lock().unwrap().clone();
    let is_track = |line: &String| line.starts_with("track") || line.starts_with("group") || line.starts_with("begin");
    (lines.into_iter().filter(|line| is_track(line) == tracks).collect(), left_out.crowded.load(Relaxed))
}

#[test]
fn an_arrow_joins_a_request_and_its_step_whichever_comes_first() {
    let early = request(vec![
        span(1, None, span::REQUEST, (0, 100), None),
        span(2, Some(1), span::DECODE_STEP, (10, 30), Some(7)),
    ]);
    let late = step(7, (5, 20));
    let slices = ["tiny unfinished 0-100 (0, false)", "decode_step 10-30 (0, false)"];
    let (marks, _) = drawn(&[early, late], false);
    assert_eq!(marks, [slices[0], slices[1], "step 5-20 (0, false)", "arrow 10-10"]);
    let again = request(vec![
        span(1, None, span::REQUEST, (0, 100), None),
        span(2, Some(1), span::DECODE_STEP, (10, 30), Some(7)),
    ]);
    let (marks, _) = drawn(&[step(7, (5, 20)), again], false);
    assert_eq!(marks, ["step 5-20 (0, false)", slices[0], slices[1], "arrow 10-10"]);
}

#[test]
fn slices_that_do_not_meet_get_no_arrow() {
    let apart = request(vec![
        span(1, None, span::REQUEST, (0, 100), None),
        span(2, Some(1), span::DECODE_STEP, (10, 30), Some(7)),
    ]);
    let (marks, _) = drawn(&[step(7, (1, 10)), apart], false);
    assert!(!marks.iter().any(|mark| mark.starts_with("arrow")), "{marks:?}");
}

#[test]
fn requests_at_a_time_get_a_lane_each_and_overlapping_children_a_row() {
    // 0 ├───────────┤      1 ├──────┤      then 0 is free again
    let whole = |id, times| request(vec![span(id, None, span::REQUEST, times, None)]);
    let forked = request(vec![
        span(1, None, span::REQUEST, (50, 90), None),
        span(2, Some(1), span::GENERATION, (50, 80), None),
        span(3, Some(1), span::GENERATION, (60, 90), None),
    ]);
    let (tracks, left_out) = drawn(&[whole(1, (0, 40)), whole(1, (10, 50)), forked], true);
    let lanes = ["track request lane 1", "track request lane 2", "track request lane 1, row 2"];
    assert_eq!(tracks[..2], ["begin 0", "group vllm-42"]);
    assert_eq!(tracks[2..], lanes);
    assert_eq!(left_out, 0);
}

#[test]
fn a_step_points_to_each_threads_first_call_and_names_are_safe_to_show() {
    let items = [
        call(51, 10, None, 1, launch()),
        call(51, 11, None, 1, launch()),
        call(51, 12, Some(15), 1, CudaWhat::Wait { of: WaitOf::Event }),
        call(52, 13, None, 1, launch()),
        step(1, (5, 20)),
    ];
    let (marks, _) = drawn(&items, false);
    let kernel = "k\u{fffd}\u{fffd}";
    let expected = [
        format!("{kernel} 10-10 (0, true)"),
        format!("point {kernel} 10"),
        format!("{kernel} 11-11 (0, false)"),
        format!("point {kernel} 11"),
        "wait for event 12-15 (0, false)".to_owned(),
        format!("{kernel} 13-13 (0, true)"),
        format!("point {kernel} 13"),
        "step 5-20 (2, false)".to_owned(),
    ];
    assert_eq!(marks, expected);
}

#[test]
fn a_process_is_called_what_is_known_of_it_and_again_when_more_is() {
    let process = |role, engine| Item::Process(ServerProcess { server: server(), process: 50, role, engine });
    let items = [
        process(Role::Engine, None),
        call(51, 10, None, 1, launch()),
        process(Role::Engine, Some(0)),
        call(51, 11, None, 1, launch()),
        step(1, (5, 20)),
    ];
    let (tracks, _) = drawn(&items, true);
    let groups: Vec<_> = tracks.iter().filter(|line| line.starts_with("group")).collect();
    assert_eq!(groups, ["group vllm-42 engine", "group vllm-42 engine 0"]);
    assert!(tracks.contains(&"track engine 0 steps".to_owned()));
}

#[test]
fn tracks_are_bounded_and_what_finds_none_is_counted() {
    let calls: Vec<Item> = (0..20_000).map(|thread| call(thread, 10, None, 1, launch())).collect();
    let (tracks, left_out) = drawn(&calls, true);
    let threads = tracks.iter().filter(|line| line.contains("thread")).count();
    // A group and a stream take two of the 16,384.
    assert_eq!((threads, left_out), (16_382, 20_000 - 16_382));
}

#[test]
fn a_full_disk_is_told_of_at_the_end() {
    let args = super::super::flags::OutputArgs::default();
    let telemetry = Arc::default();
    let context = Context {
        flags: &args,
        telemetry: &telemetry,
        pressure: super::super::Pressure::Drop,
        origin: super::super::otlp::spans::Origin::of_this_process(false),
    };
    let mut sink = open(&context, Path::new("/dev/full"), Box::<chrome::Chrome>::default()).unwrap();
    sink.step(&match step(1, (5, 20)) {
        Item::Step(step) => step,
        _ => unreachable!("that is what it makes"),
    });
    let failure = sink.finish().unwrap();
    assert!(failure.starts_with("timeline /dev/full: No space left on device"), "{failure}");
}
