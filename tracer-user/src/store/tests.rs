//! What is kept, for how long, and how it is found.

use proptest::prelude::*;

use super::*;
use crate::engine::SchedulerStats;
use crate::input::Server;
use crate::output::cuda::StepCuda;
use crate::output::{
    CudaCall, CudaWhat, GenerationRecord, GenerationSeconds, Incomplete, Merit, Outcome, RequestSeconds, Span,
    SpanKind, SpanStatus, UnixNanos, Value,
};

const S: u64 = 1_000_000_000;
/// When it all begins, unix ns.
const BEGIN: u64 = 1_795_478_400 * S;

fn server(pid: u32) -> Arc<Server> {
    Arc::new(Server { service: "chat".into(), pid, ..Server::default() })
}

fn trace_id(n: u64) -> TraceId {
    TraceId((u128::from(n) << 64 | 7).to_be_bytes())
}

fn span_id(n: u64) -> SpanId {
    SpanId(n.to_be_bytes())
}

/// Request `n`, in a trace of its own; it took `took` and was over `at` ns after the beginning; its root has `weight` bytes of text.
fn request(n: u64, at: u64, took: u64, outcome: Outcome, weight: usize) -> Trace {
    let end_ns = BEGIN + at;
    let root = Span {
        trace_id: trace_id(n),
        span_id: span_id(n),
        parent: None,
        parent_is_remote: false,
        trace_state: None,
        name: "inference_request",
        kind: SpanKind::Server,
        start_ns: end_ns.saturating_sub(took),
        end_ns,
        status: SpanStatus::Unset,
        attributes: vec![("text", Value::Str("x".repeat(weight).into()))],
        events: vec![],
        links: vec![],
    };
    let merit = Merit { outcome: Some(outcome), seconds: took as f64 / 1e9, parent_sampled: None };
    Trace { server: server(1), service: Service::Requests, spans: vec![root], merit }
}

/// The record of a tree, by which its client and engine know it.
fn record(of: &Trace, id: &str) -> AccessRecord {
    let root = &of.spans[0];
    let generation = GenerationRecord {
        engine_request_id: format!("{id}-0"),
        finish_reason: None,
        prompt_tokens: None,
        cached_tokens: None,
        output_tokens: 1,
        preemptions: 0,
        seconds: GenerationSeconds::default(),
    };
    AccessRecord {
        v: 1,
        time: UnixNanos(root.end_ns),
        trace_id: root.trace_id,
        span_id: root.span_id,
        request_id: Some(id.to_owned()),
        method: None,
        path: None,
        status: None,
        model: Some("m".into()),
        stream: None,
        outcome: Outcome::Stop,
        finish_reasons: vec![],
        prompt_tokens: None,
        cached_tokens: None,
        output_tokens: None,
        preemptions: None,
        incomplete: Incomplete::default(),
        server: "chat-1".into(),
        seconds: RequestSeconds::default(),
        generations: vec![generation],
    }
}

/// A step of an engine, `from..to` ns after the beginning.
fn step(pid: u32, engine: u32, n: u64, from: u64, to: u64) -> Arc<EngineStep> {
    Arc::new(EngineStep {
        server: server(pid),
        trace_id: trace_id(1 << 32 | u64::from(pid) << 24 | u64::from(engine) << 16 | n),
        span_id: span_id(n),
        engine,
        start_ns: BEGIN + from,
        end_ns: BEGIN + to,
        requests: 1,
        tokens: 1,
        first_tokens: 0,
        prefill_tokens: 0,
        decode_tokens: 1,
        batch: Box::default(),
        stats: Some(SchedulerStats { running: 1, ..SchedulerStats::default() }),
        cuda: None,
    })
}

/// The requests that are kept, by their numbers, in order.
fn kept(store: &Store) -> Vec<u64> {
    let number = |request: &Request| u64::from_be_bytes(request.trace.spans[0].span_id.0);
    store.requests().map(number).collect()
}

fn plain(n: u64, at: u64) -> Arc<Trace> {
    Arc::new(request(n, at, S, Outcome::Stop, 10))
}

#[test]
fn the_oldest_goes_when_there_is_no_room_and_is_counted() {
    // requests 0, 1, 2, … 99 end one after the other; room for ten of them
    let size = size::of_trace(&plain(0, 0));
    let mut store = Store::new(Limits { bytes: size * 10 * 4 / 3 + 4, ..Limits::default() });
    for n in 0..100 {
        store.trace(plain(n, n * S / 100));
    }
    assert_eq!(kept(&store), (90..100).collect::<Vec<_>>());
    assert_eq!((store.dropped(), store.requests_count()), (Dropped { requests: 90, steps: 0 }, 10));
    assert!(store.of_trace(trace_id(89)).next().is_none());
    assert_eq!(store.of_trace(trace_id(90)).count(), 1);
}

#[test]
fn what_is_old_goes_and_what_failed_stays_longer() {
    // 0 s: well · 1 s: aborted │ 15 min and 2 s: another ends │ one hour and 2 s: another
    let mut store = Store::default();
    let aborted = Arc::new(request(1, S, S, Outcome::Abort, 10));
    store.trace(plain(0, 0));
    store.trace(aborted);
    store.trace(plain(2, 899 * S));
    assert_eq!(kept(&store), [0, 1, 2]);
    store.trace(plain(3, 902 * S));
    assert_eq!(kept(&store), [1, 2, 3]);
    store.trace(plain(4, 3_602 * S));
    assert_eq!(kept(&store), [4], "it was an hour");
    assert_eq!(store.dropped().requests, 4);
}

#[test]
fn what_was_slow_stays_longer() {
    // 50 requests of 1 s · one of 2 s · 15 minutes later one of 1 s
    let mut store = Store::default();
    for n in 0..50 {
        store.trace(plain(n, n));
    }
    store.trace(Arc::new(request(50, 51, 2 * S, Outcome::Stop, 10)));
    store.trace(plain(51, 1_000 * S));
    assert_eq!(kept(&store), [50, 51]);
}

#[test]
fn a_storm_of_failures_leaves_room_for_what_went_well_and_the_other_way_round() {
    let size = size::of_trace(&plain(0, 0));
    let limits = Limits { bytes: size * 40 * 4 / 3 + 4, ..Limits::default() };
    // 20 that went well, 1,000 that failed, 1,000 that went well: 40 have room
    let mut store = Store::new(limits);
    (0..20).for_each(|n| store.trace(plain(n, n)));
    (20..1_020).for_each(|n| store.trace(Arc::new(request(n, n, S, Outcome::Error, 10))));
    assert_eq!(kept(&store)[..20], (0..20).collect::<Vec<_>>(), "none of them made room");
    assert_eq!(store.requests_count(), 40);
    (1_020..2_020).for_each(|n| store.trace(plain(n, n)));
    assert_eq!(kept(&store)[..10], (1_010..1_020).collect::<Vec<_>>(), "a quarter is theirs");
    assert_eq!(store.requests_count(), 40);
}

#[test]
fn a_request_is_found_by_each_of_its_ids_and_no_longer_when_it_is_gone() {
    let tree = request(5, 0, S, Outcome::Stop, 10);
    let mut store = Store::default();
    store.record(Arc::new(record(&tree, "cmpl-a")));
    store.trace(Arc::new(tree));
    let id = trace_id(5).to_string();
    let found = |store: &Store, id: &str| store.find(id).len();
    for known in ["cmpl-a", "cmpl-a-0", &id, &id[..8], &id.to_uppercase()] {
        assert_eq!(found(&store, known), 1, "{known}");
    }
    for other in ["cmpl", "", &id[..7], "00000001", &format!("{id}0"), "zzzzzzzz"] {
        assert_eq!(found(&store, other), 0, "{other}");
    }
    assert!(store.find("cmpl-a")[0].record.is_some());
    assert_eq!(store.models().collect::<Vec<_>>(), ["m"]);
    store.trace(plain(6, 901 * S));
    for gone in ["cmpl-a", "cmpl-a-0", &id[..8]] {
        assert_eq!(found(&store, gone), usize::from(gone == &id[..8]), "{gone}: the other trace begins alike");
    }
    assert_eq!(store.models().count(), 0);
}

#[test]
fn requests_of_one_trace_are_all_of_it_and_the_newest_is_found_first() {
    // a caller's trace: request 1, then request 2
    let mut second = request(2, S, S, Outcome::Stop, 10);
    second.spans[0].trace_id = trace_id(1);
    let mut store = Store::default();
    store.trace(plain(1, 0));
    store.trace(Arc::new(second));
    let spans: Vec<_> = store.of_trace(trace_id(1)).map(|request| request.trace.spans[0].span_id).collect();
    assert_eq!(spans, [span_id(1), span_id(2)]);
    let found: Vec<_> =
        store.find(&trace_id(1).to_string()).iter().map(|request| request.trace.spans[0].span_id).collect();
    assert_eq!(found, [span_id(2), span_id(1)]);
}

#[test]
fn a_tree_without_a_record_is_kept_and_a_record_whose_tree_does_not_come_is_forgotten() {
    let mut store = Store::default();
    for n in 0..10_000 {
        store.record(Arc::new(record(&request(n, n, S, Outcome::Stop, 10), "lost")));
    }
    store.trace(plain(0, 0));
    assert!(store.requests().all(|request| request.record.is_none()), "its record was long ago");
    assert_eq!(store.find("lost").len(), 0);
    let mut steps = request(1, 0, S, Outcome::Stop, 10);
    steps.service = Service::Engine;
    store.trace(Arc::new(steps));
    store.trace(Arc::new(Trace { spans: vec![], ..request(2, 0, S, Outcome::Stop, 10) }));
    assert_eq!(store.requests_count(), 1, "neither a step's tree nor an empty one is a request");
}

#[test]
fn two_servers_in_one_container_are_not_mixed() {
    // pid 1: 0─10 · pid 2, of the same instance: 5─15
    let of = |pid, from, to| {
        let mut step = EngineStep::clone(&step(pid, 0, from, from, to));
        step.server = Arc::new(Server { container_id: Some("c".into()), ..Server::clone(&server(pid)) });
        Arc::new(step)
    };
    let mut store = Store::default();
    let (one, other) = (of(1, 0, 10), of(2, 5, 15));
    assert_eq!(one.server.instance(), other.server.instance());
    store.step(Arc::clone(&one));
    store.step(Arc::clone(&other));
    let key = Steps::key(&other.server, 0);
    let during: Vec<_> = store.steps().during(&key, 0, u64::MAX).map(|step| step.span_id).collect();
    assert_eq!(during, [other.span_id]);
}

#[test]
fn launches_of_older_steps_go_before_the_steps_do() {
    // a thousand steps of 500 launches each, of which the room holds some hundred
    let bytes = 64 << 20;
    let mut store = Store::new(Limits { bytes, ..Limits::default() });
    let call = CudaCall {
        server: server(1),
        process: 1,
        thread: 1,
        engine: Some(0),
        rank: None,
        start: UnixNanos(BEGIN),
        end: None,
        stream: None,
        step: None,
        what: CudaWhat::Set { bytes: 1 },
    };
    for n in 0..1_000 {
        let mut step = EngineStep::clone(&step(1, 0, n, n * 10, n * 10 + 10));
        let kernels = Arc::new(vec![call.clone(); 500]);
        step.cuda = Some(Box::new(StepCuda { launches: 500, kernels, ..StepCuda::default() }));
        store.step(Arc::new(step));
    }
    assert!(store.held_bytes() <= bytes / 4, "{}", store.held_bytes());
    assert_eq!(store.steps().count(), 1_000, "the steps are there");
    let gone = store.steps().launches_dropped();
    assert!((500..1_000).contains(&gone), "{gone}");
    let key = Steps::key(&server(1), 0);
    let whole = |n: u64| {
        let step = store.steps().during(&key, BEGIN + n * 10, BEGIN + n * 10 + 1).next().expect("it is kept");
        let cuda = store.steps().whole(step).cuda.clone().expect("it has CUDA");
        (cuda.launches, cuda.kernels.len(), cuda.kernels_let_go)
    };
    assert_eq!((whole(0), whole(999)), ((500, 0, true), (500, 500, false)));
    // A day later all of them are too old, and weigh nothing.
    store.step(step(1, 0, 5_000, 86_400 * S, 86_400 * S + 10));
    assert!(store.steps().count() == 1 && store.held_bytes() < 4_096, "{}", store.held_bytes());
}

#[test]
fn steps_of_an_engine_are_told_apart_and_by_the_time_that_they_overlap() {
    // server 1, engine 0: 0─10─20─30 · engine 1: 0──15 · server 2, engine 0: 0─────30
    let mut store = Store::default();
    for (n, from, to) in [(0, 0, 10), (1, 10, 20), (2, 20, 30)] {
        store.step(step(1, 0, n, from, to));
    }
    store.step(step(1, 1, 0, 0, 15));
    store.step(step(2, 0, 0, 0, 30));
    let during = |name: &str, engine, from: u64, to: u64| {
        let pid = name.trim_start_matches("chat-").parse().unwrap();
        let key = Steps::key(&server(pid), engine);
        let its = store.steps().during(&key, BEGIN + from, BEGIN + to);
        its.map(|step| step.start_ns - BEGIN).collect::<Vec<_>>()
    };
    assert_eq!(during("chat-1", 0, 0, 30), [0, 10, 20]);
    assert_eq!(during("chat-1", 0, 10, 20), [10], "neither of its neighbours");
    assert_eq!(during("chat-1", 0, 9, 21), [0, 10, 20]);
    assert_eq!(during("chat-1", 1, 0, 30), [0]);
    assert_eq!(during("chat-2", 0, 29, 31), [0]);
    assert_eq!((during("chat-2", 1, 0, 30), during("chat-3", 0, 0, 30)), (vec![], vec![]));
    assert_eq!(during("chat-1", 0, 20, 10), Vec::<u64>::new());
    assert_eq!(store.steps().engines().count(), 3);
    let one = step(1, 1, 0, 0, 15);
    assert_eq!(store.step_of(one.trace_id, one.span_id), Some(&one));
    assert_eq!(store.steps().of_trace(one.trace_id).count(), 1);
    assert_eq!(store.step_of(one.trace_id, span_id(77)), None);
}

#[test]
fn old_steps_go_and_servers_that_are_gone_are_forgotten() {
    let mut store = Store::default();
    for pid in 0..1_000 {
        store.step(step(pid, 0, 0, u64::from(pid) * 60 * S, u64::from(pid) * 60 * S + S));
    }
    assert_eq!((store.steps().count(), store.steps().engines().count()), (16, 16), "those of a quarter of an hour");
    assert_eq!(store.dropped().steps, 984);
    let gone = step(900, 0, 0, 0, S);
    assert_eq!(store.step_of(gone.trace_id, gone.span_id), None);
}

#[test]
fn what_is_larger_than_its_room_is_not_kept_and_drives_nothing_out() {
    let mut store = Store::new(Limits { bytes: 1 << 20, ..Limits::default() });
    store.trace(plain(0, 0));
    store.trace(Arc::new(request(1, 1, S, Outcome::Error, 4 << 20)));
    let huge = EngineStep { batch: vec![(trace_id(0), span_id(0)); 1 << 20].into(), ..(*step(1, 0, 0, 0, 1)).clone() };
    store.step(step(1, 0, 1, 0, 1));
    store.step(Arc::new(huge));
    assert_eq!((kept(&store), store.steps().count()), (vec![0], 1));
    assert_eq!(store.dropped(), Dropped { requests: 1, steps: 1 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However large, old, many or alike they are.
    #[test]
    fn never_more_is_held_than_is_allowed(
        bytes in 0_usize..200_000,
        things in prop::collection::vec((0_u64..40, any::<u32>(), 0_u64..4_000, 0_usize..30_000, 0_u8..5), 0..300),
    ) {
        let mut store = Store::new(Limits { bytes, ..Limits::default() });
        let (mut requests, mut steps) = (0, 0);
        for (n, at, took, weight, kind) in things {
            let at = u64::from(at) * 1_000;
            if kind < 4 {
                let outcome = if kind == 0 { Outcome::Error } else { Outcome::Stop };
                let tree = request(n, at, took, outcome, weight);
                if kind < 3 {
                    store.record(Arc::new(record(&tree, &"i".repeat(weight / 10))));
                }
                store.trace(Arc::new(tree));
                requests += 1;
            } else {
                let batch = vec![(trace_id(0), span_id(0)); weight / 100];
                store.step(Arc::new(EngineStep { batch: batch.into(), ..(*step(n as u32 % 3, 0, n, at, at + took)).clone() }));
                steps += 1;
            }
            prop_assert!(store.held_bytes() <= bytes, "{} of {bytes}", store.held_bytes());
            let recounted: usize = store.requests().map(|request| {
                size::of_trace(&request.trace) + request.record.as_deref().map_or(0, size::of_record)
            }).sum::<usize>() + store.steps().engines().flat_map(|(_, steps)| steps).map(|step| size::of_step(step)).sum::<usize>();
            prop_assert_eq!(recounted, store.held_bytes());
            prop_assert_eq!(store.requests_count() as u64 + store.dropped().requests, requests);
            prop_assert_eq!(store.steps().count() as u64 + store.dropped().steps, steps);
        }
    }
}
