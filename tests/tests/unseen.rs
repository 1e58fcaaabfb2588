//! Requests whose end was not seen, told as a timeline: their outcome is `unknown` in log, metric and trace, and `abort` is only what was
//! seen as one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inferspan::input::{Direction, End, LossStage, What};
use inferspan::output::{Metric, Missing, Outcome, Value};
use inferspan_demo_engine::wire::LENGTH;
use inferspan_tests::pipeline::Made;
use inferspan_tests::story::{API, END, STREAM, Story, chunk, connection, done, last, post, zmtp};

const A: &str = "cmpl-a-0-0123abcd";

fn delta() -> Vec<u8> {
    chunk("data: {\"id\":\"cmpl-a\",\"choices\":[{\"text\":\"x\",\"finish_reason\":null}]}\n\n")
}

/// A stream begins on connection 1 and gives one token. `counts`: the source counts its bytes.
fn begun(counts: bool) -> (Story, End) {
    let (mut story, end) = (Story::default(), connection(1));
    story.open(end);
    let request = post("/v1/completions", None, r#"{"model":"tiny","prompt":"a","stream":true}"#);
    let say = |story: &mut Story, direction, bytes: &[u8]| {
        if counts {
            story.counted(end, direction, bytes, true);
        } else {
            story.call(end, direction, bytes);
        }
    };
    say(&mut story, Direction::In, &request);
    story.add(A, 5, 9);
    story.outputs(&[(A, 1, None, true)]);
    say(&mut story, Direction::Out, STREAM);
    say(&mut story, Direction::Out, &delta());
    (story, end)
}

/// The outcome of the one request: the same in log, metric (of an HTTP request) and trace.
fn outcome(made: &Made) -> Outcome {
    let [record] = made.access.as_slice() else { panic!("{:#?}", made.access) };
    let [trace] = made.traces.as_slice() else { panic!("{:#?}", made.traces) };
    let told = trace.spans[0].attributes.iter().find(|(key, _)| *key == "inferspan.outcome");
    assert_eq!(told.map(|(_, value)| value), Some(&Value::Str(record.outcome.name().into())), "{record:#?}");
    let metric = made.metrics.iter().find_map(|metric| match metric {
        Metric::Request { outcome, error_type, .. } => Some((*outcome, error_type.clone())),
        _ => None,
    });
    if record.path.is_some() {
        let (outcome, error) = metric.expect("a request is counted");
        assert_eq!(outcome, record.outcome);
        let expected = match outcome {
            Outcome::Unknown => Some("unknown"),
            Outcome::Abort => Some("client_disconnected"),
            _ => None,
        };
        assert_eq!(error.as_deref(), expected);
    }
    record.outcome
}

#[test]
fn a_client_that_is_seen_leaving_aborts() {
    // a token ─ the client leaves ─ the server cancels and closes
    for counts in [false, true] {
        let (mut story, end) = begun(counts);
        story.client_leaves(end);
        story.abort(&[A]);
        if counts {
            story.close_counted(end);
        } else {
            story.close(end);
        }
        assert_eq!(outcome(&story.made()), Outcome::Abort);
    }
}

#[test]
fn a_client_that_leaves_after_records_were_lost_may_have_had_all() {
    // a token ─ payload is lost, and in it the end ─ the idle connection is closed by its client, then by the server
    for stage in [LossStage::DataRing, LossStage::Queue, LossStage::Decode] {
        let (mut story, end) = begun(false);
        story.outputs(&[(A, 1, Some(LENGTH), false)]);
        story.lose(stage, 3);
        story.client_leaves(end);
        story.close(end);
        let made = story.made();
        assert_eq!(outcome(&made), Outcome::Unknown, "{stage:?}");
        assert!(made.access[0].incomplete.missing().contains(&Missing::RecordsLost));
    }
}

#[test]
fn a_loss_before_the_last_write_that_was_seen_hides_no_end() {
    // payload is lost, of whomever ─ a token, where it was expected ─ the client leaves ─ the close's account is lost
    let (mut story, end) = begun(true);
    story.lose(LossStage::DataRing, 3);
    story.counted(end, Direction::Out, &delta(), true);
    story.client_leaves(end);
    story.abort(&[A]);
    story.close(end);
    assert_eq!(outcome(&story.made()), Outcome::Abort);
}

#[test]
fn what_a_close_says_was_written_and_not_seen_may_have_been_the_end() {
    // a token ─ [the rest of the stream: lost] ─ the client leaves ─ the close, which says how much moved
    let (mut story, end) = begun(true);
    story.outputs(&[(A, 1, Some(LENGTH), false)]);
    for bytes in [&last("a")[..], &done(), END] {
        story.counted(end, Direction::Out, bytes, false);
    }
    story.lose(LossStage::DataRing, 3);
    story.client_leaves(end);
    story.close_counted(end);
    assert_eq!(outcome(&story.made()), Outcome::Unknown);
}

#[test]
fn without_its_close_nobody_knows_what_was_written_last() {
    // a token ─ [the rest of the stream, and the close: lost] ─ the client is seen leaving ─ the number is another connection's
    let (mut story, end) = begun(true);
    story.outputs(&[(A, 1, Some(LENGTH), false)]);
    story.lose(LossStage::DataRing, 3);
    story.lose(LossStage::EdgeRing, 1);
    story.client_leaves(end);
    story.open(end);
    assert_eq!(outcome(&story.made()), Outcome::Unknown);
}

#[test]
fn edges_that_were_lost_may_have_been_the_client_s_leaving() {
    // a token ─ [the client leaves: lost] ─ the server cancels and closes
    let (mut story, end) = begun(true);
    story.lose(LossStage::EdgeRing, 1);
    story.abort(&[A]);
    story.close_counted(end);
    assert_eq!(outcome(&story.made()), Outcome::Unknown);
}

#[test]
fn an_engine_s_last_message_that_was_lost_is_no_abort() {
    // a token ─ [the last one: lost] ─ the response ends as usual
    let (mut story, end) = begun(true);
    let engine = story.from_engine();
    let message = zmtp(&story.message(&[(A, 1, Some(LENGTH), false)]));
    story.counted(engine, Direction::In, &message, false);
    for bytes in [&last("a")[..], &done(), END] {
        story.counted(end, Direction::Out, bytes, true);
    }
    let made = story.made();
    assert_eq!(outcome(&made), Outcome::Length);
    assert!(made.access[0].incomplete.missing().contains(&Missing::RecordsLost), "{:#?}", made.access);
}

#[test]
fn what_is_open_when_the_tracer_stops_is_unknown() {
    // a token ─ the tracer stops; or its server is gone, and nothing told of that
    let (mut story, _) = begun(true);
    let made = story.stopped();
    assert_eq!(outcome(&made), Outcome::Unknown);
    assert_eq!(made.access[0].incomplete.missing(), [Missing::Unfinished]);
    assert_eq!(made.access[0].seconds.e2e, None, "how long it took is not known");
    assert_eq!(made.access[0].output_tokens, Some(1));
}

#[test]
fn a_client_that_left_before_the_tracer_stopped_aborted() {
    // a token ─ the client leaves ─ the tracer stops before the server closes
    let (mut story, end) = begun(true);
    story.client_leaves(end);
    let made = story.stopped();
    assert_eq!(outcome(&made), Outcome::Abort);
    assert!(made.root_events().contains(&"client_disconnected"));
}

#[test]
fn an_engine_request_of_before_the_attach_that_is_open_at_the_end_is_unknown() {
    // (sent before the attach) a token ─ the tracer stops
    let mut story = Story::default();
    story.outputs(&[(A, 1, None, false)]);
    let made = story.stopped();
    assert_eq!(outcome(&made), Outcome::Unknown);
    let missing = made.access[0].incomplete.missing();
    assert!(missing.contains(&Missing::AttachedLate) && missing.contains(&Missing::HttpSideUnseen), "{missing:?}");
}

#[test]
fn a_process_that_is_gone_with_records_lost_may_have_answered_before() {
    // a token ─ payload is lost ─ the process ends; without the loss that is an error
    for (lost, expected) in [(true, Outcome::Unknown), (false, Outcome::Error)] {
        let (mut story, _) = begun(true);
        if lost {
            story.lose(LossStage::DataRing, 3);
        }
        story.event(API, What::Exited);
        let made = story.made();
        assert_eq!(made.access[0].outcome, expected, "{made:#?}");
    }
}
