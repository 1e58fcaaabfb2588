//! Which requests are slow.

use super::*;
use crate::store::{Limits, Request, Store};

/// First token after so many ms, then so many tokens of so many ms each.
fn request(first_ms: u64, tokens: u64, each_ms: u64) -> Request {
    let end = first_ms + (tokens - 1) * each_ms;
    let mut scene = Scene::new(end.max(1));
    scene.decode(first_ms, end, tokens as i64);
    Request { trace: Arc::new(scene.trace), record: None }
}

#[test]
fn a_long_answer_is_not_slow_and_a_late_first_token_or_slow_tokens_are() {
    let mut requests: Vec<Request> = (0..50).map(|_| request(30, 100, 10)).collect();
    requests.push(request(30, 5_000, 10));
    requests.push(request(2_000, 10, 10));
    requests.push(request(30, 100, 40));
    let slow: Vec<usize> = slow::slowest(&requests, 3).into_iter().map(|of| of.0).collect();
    assert_eq!(slow[..2], [52, 51], "3 s over what 100 tokens take, 2 s over what a first token does");
    let long = slow::slowest(&requests, 100).into_iter().find(|(at, _)| *at == 50).unwrap().1;
    assert!(long.score < 1e-3 && long.per_token.is_some_and(|times| times < 1.1), "{long:?}");
}

#[test]
fn a_request_that_never_gave_a_token_waited_at_least_so_long() {
    let mut requests: Vec<Request> = (0..50).map(|_| request(30, 100, 10)).collect();
    let mut scene = Scene::new(3_000);
    scene.trace.merit.outcome = Some(Outcome::Abort);
    requests.push(Request { trace: Arc::new(scene.trace), record: None });
    let mut scene = Scene::new(9_000);
    scene.trace.merit.outcome = Some(Outcome::Rejected);
    requests.push(Request { trace: Arc::new(scene.trace), record: None });
    assert_eq!(slow::slowest(&requests, 1)[0].0, 50, "one that was rejected is not slow");
}

#[test]
fn what_went_on_around_is_found_in_the_store() {
    // another's prompt from 200 to 260, one on engine 1, one that was over before; steps 0 … 300
    let mut store = Store::new(Limits::default());
    let other = |id: u8, engine: i64, from: u64, to: u64| {
        let mut scene = Scene::new(to + 10);
        scene.root().trace_id = TraceId([id; 16]);
        scene.root().start_ns = from * MS;
        scene.root().attributes[1].1 = Value::Int(engine);
        scene.prefill(from, to, 500).attributes.push((attribute::CACHED, Value::Int(100)));
        Arc::new(scene.trace)
    };
    store.trace(other(7, 0, 10, 50));
    store.trace(other(8, 0, 200, 260));
    store.trace(other(9, 1, 200, 260));
    (0..40).for_each(|n| store.step(Arc::new(step(n * 10, n * 10 + 10, 4))));
    let mut scene = Scene::new(300);
    scene.root().start_ns = 100 * MS;
    let trace = Arc::new(scene.trace);
    store.trace(Arc::clone(&trace));
    let around = around(&store, &trace);
    let expected =
        Prefill { trace: TraceId([8; 16]), engine: 0, start_ns: 200 * MS, end_ns: 260 * MS, tokens: Some(400) };
    assert_eq!(around.prefills, [expected]);
    assert_eq!((around.steps.len(), around.before.len(), around.after.len()), (20, 10, 10));
}

#[test]
fn one_that_was_told_of_long_after_it_ended_hides_nobody() {
    // 100 s … 101 s; another's prompt meanwhile; then one that ended at 1 s is told of
    let mut store = Store::new(Limits::default());
    let at = |id: u8, from: u64, to: u64| {
        let mut scene = Scene::new(to);
        (scene.root().trace_id, scene.root().start_ns) = (TraceId([id; 16]), from * MS);
        scene.prefill(from, to, 500);
        Arc::new(scene.trace)
    };
    let trace = at(1, 100_000, 101_000);
    for told in [Arc::clone(&trace), at(8, 100_200, 100_300), at(9, 0, 1_000)] {
        store.trace(told);
    }
    let prefills = around(&store, &trace).prefills;
    assert_eq!(prefills.iter().map(|of| of.trace).collect::<Vec<_>>(), [TraceId([8; 16])]);
}
