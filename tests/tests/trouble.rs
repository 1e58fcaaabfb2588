//! What goes wrong between a client, a server and the tracer, told as a timeline: the requests that it touches say so, and no others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inferspan::input::{Direction, LossStage, What};
use inferspan::output::{AccessRecord, FinishReason, Metric, Missing, Outcome};
use inferspan_demo_engine::wire::LENGTH;
use inferspan_tests::pipeline::Made;
use inferspan_tests::story::{API, END, ENGINE, STREAM, Story, chunk, connection, done, json, last, post, zmtp};

const PATH: &str = "/v1/completions";

fn delta(id: &str) -> Vec<u8> {
    chunk(&format!(
        "data: {{\"id\":\"cmpl-{id}\",\"model\":\"tiny\",\"choices\":[{{\"text\":\"x\",\"finish_reason\":null}}]}}\n\n"
    ))
}

/// One streamed request of two tokens on connection 1; `skip` says which of its calls are lost: 0 the request, 1 the response's head,
/// 2 the first token, 3 the second, 4 the mark, 5 the end.
fn stream(story: &mut Story, id: &str, skip: &[usize]) {
    let end = connection(1);
    let engine = format!("cmpl-{id}-0-0123abcd");
    let say = |story: &mut Story, n: usize, direction, bytes: &[u8]| {
        if !skip.contains(&n) {
            story.call(end, direction, bytes);
        }
    };
    say(story, 0, Direction::In, &post(PATH, None, r#"{"model":"tiny","prompt":"a","stream":true,"max_tokens":2}"#));
    say(story, 1, Direction::Out, STREAM);
    story.add(&engine, 5, 2);
    story.outputs(&[(&engine, 1, None, true)]);
    say(story, 2, Direction::Out, &delta(id));
    story.outputs(&[(&engine, 1, Some(LENGTH), false)]);
    say(story, 3, Direction::Out, &last(id));
    say(story, 4, Direction::Out, &done());
    say(story, 5, Direction::Out, END);
}

/// It is whole and as it was.
fn is_right(made: &Made, id: &str) {
    let record = made.completion(id);
    assert_eq!((record.outcome, record.incomplete.missing()), (Outcome::Length, &[][..]), "{id}: {record:#?}");
    assert_eq!((record.output_tokens, record.generations.len(), record.status), (Some(2), 1, Some(200)), "{id}");
    assert!(record.seconds.e2e.unwrap() < 0.02, "{id}: {record:#?}");
}

#[test]
fn a_lost_call_of_a_stream_touches_that_stream_only() {
    // a, b (with a call missing), c, d: one after the other on one connection
    for missing in 1..=5 {
        let mut story = Story::default();
        story.open(connection(1));
        for id in ["a", "b", "c", "d"] {
            stream(&mut story, id, if id == "b" { std::slice::from_ref(&missing) } else { &[] });
            story.quiet(200);
        }
        story.close(connection(1));
        let made = story.made();
        for id in ["a", "c", "d"] {
            is_right(&made, id);
        }
        if missing == 1 {
            // Without its head the response says nothing: a request that was not seen to end, and an engine request of nobody's.
            assert_eq!(made.access.len(), 5, "{:#?}", made.access);
            assert!(made.access.iter().any(|record| record.outcome == Outcome::Unknown));
            continue;
        }
        assert_eq!(made.access.len(), 4, "call {missing} missing: {:#?}", made.access);
        let b = made.completion("b");
        assert_eq!(b.output_tokens, Some(2));
        if missing == 5 {
            assert_eq!(b.outcome, Outcome::Unknown, "{b:#?}");
            assert_eq!(b.incomplete.missing(), [Missing::ResponseEndUnseen]);
            assert!(b.seconds.e2e.unwrap() < 0.02, "it ended when it was last heard of: {b:#?}");
        }
        assert!(made.access.iter().all(|record| record.outcome != Outcome::Abort), "{:#?}", made.access);
    }
}

#[test]
fn a_lost_request_leaves_its_response_to_nobody() {
    let mut story = Story::default();
    story.open(connection(1));
    for id in ["a", "b", "c"] {
        stream(&mut story, id, if id == "b" { &[0] } else { &[] });
    }
    story.close(connection(1));
    let made = story.made();
    is_right(&made, "a");
    is_right(&made, "c");
    assert_eq!(made.completion("b").incomplete.missing(), [Missing::HttpSideUnseen]);
}

#[test]
fn a_lost_piece_of_a_request_body_touches_that_request_only() {
    // [POST a: head and half of its body][the other half: lost] … [POST b]
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    let request = post(PATH, None, &format!(r#"{{"prompt":"{}","max_tokens":2}}"#, "x".repeat(400)));
    story.request(end, &request[..200]);
    story.add("cmpl-a-0-0123abcd", 5, 2);
    story.outputs(&[("cmpl-a-0-0123abcd", 2, Some(LENGTH), true)]);
    let usage = r#""usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}"#;
    story.respond(end, &json(200, &format!(r#"{{"id":"cmpl-a","choices":[{{"finish_reason":"length"}}],{usage}}}"#)));
    stream(&mut story, "b", &[]);
    story.close(end);
    let made = story.made();
    is_right(&made, "b");
    assert_eq!((made.completion("a").outcome, made.completion("a").output_tokens), (Outcome::Length, Some(2)));
}

#[test]
fn a_head_request_shifts_nothing() {
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    stream(&mut story, "a", &[]);
    story.request(end, b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n");
    story.respond(end, b"HTTP/1.1 200 OK\r\ncontent-length: 481\r\ncontent-type: application/json\r\n\r\n");
    stream(&mut story, "b", &[]);
    story.close(end);
    let made = story.made();
    is_right(&made, "a");
    is_right(&made, "b");
    assert_eq!(made.access.len(), 2);
    assert_eq!(made.lost, []);
}

#[test]
fn chunks_and_their_end_in_one_capped_call_shift_nothing() {
    // the Rust front end: one writev with all chunks, of which the head (and the tail, where the kernel side copies it) is seen
    for with_tail in [true, false] {
        let mut story = Story::default();
        let end = connection(1);
        story.open(end);
        story.request(end, &post(PATH, None, r#"{"prompt":"a","stream":true}"#));
        story.add("cmpl-a-0-0123abcd", 5, 2);
        story.outputs(&[("cmpl-a-0-0123abcd", 2, Some(LENGTH), true)]);
        let long =
            chunk(&format!("data: {{\"id\":\"cmpl-a\",\"choices\":[{{\"text\":\"{}\"}}]}}\n\n", "y".repeat(5_000)));
        let all = [STREAM, &long, &last("a"), &done(), END].concat();
        let tail = if with_tail { 200 } else { 0 };
        let head = all.len() - tail;
        story.piece(end, Direction::Out, head as u64, &all[..1_000], true);
        if with_tail {
            story.piece(end, Direction::Out, tail as u64, &all[head..], false);
        }
        stream(&mut story, "b", &[]);
        story.close(end);
        let made = story.made();
        is_right(&made, "b");
        let a = made.completion("a");
        assert_eq!((a.output_tokens, made.access.len()), (Some(2), 2));
        let expected = if with_tail { Outcome::Length } else { Outcome::Unknown };
        assert_eq!(a.outcome, expected, "{with_tail}: {a:#?}");
    }
}

#[test]
fn a_response_that_was_lost_whole_is_found_out_by_the_next_ones_id() {
    // a asked, its response lost without a notice; b asked, its response names b
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    for (id, seen) in [("a", false), ("b", true), ("c", true)] {
        let engine = format!("cmpl-{id}-0-0123abcd");
        story.request(end, &post(PATH, Some(id), r#"{"prompt":"a"}"#));
        story.add(&engine, 5, 2);
        story.outputs(&[(&engine, 2, Some(LENGTH), true)]);
        if seen {
            story
                .respond(end, &json(200, &format!(r#"{{"id":"cmpl-{id}","choices":[{{"finish_reason":"length"}}]}}"#)));
        }
        story.quiet(100);
    }
    story.close(end);
    let made = story.made();
    is_right(&made, "b");
    is_right(&made, "c");
    assert_eq!(made.completion("a").outcome, Outcome::Unknown);
}

#[test]
fn a_counted_loss_is_told_and_marks_the_connection_it_is_on() {
    // two clients stream; a record of the first one's connection is lost
    let mut story = Story::default();
    for n in [1, 2] {
        story.open(connection(n));
        story.counted(connection(n), Direction::In, &post(PATH, None, r#"{"prompt":"a","stream":true}"#), true);
        story.counted(connection(n), Direction::Out, STREAM, true);
    }
    for (n, id) in [(1, "a"), (2, "b")] {
        let engine = format!("cmpl-{id}-0-0123abcd");
        story.add(&engine, 5, 2);
        story.outputs(&[(&engine, 2, Some(LENGTH), true)]);
        story.counted(connection(n), Direction::Out, &delta(id), true);
        story.counted(connection(n), Direction::Out, &last(id), n != 1);
        story.counted(connection(n), Direction::Out, &done(), true);
        story.counted(connection(n), Direction::Out, END, true);
    }
    let made = story.made();
    is_right(&made, "b");
    let a = made.completion("a");
    assert_eq!((a.outcome, a.incomplete.missing()), (Outcome::Length, &[Missing::RecordsLost][..]), "{a:#?}");
    assert_eq!(made.lost.iter().map(|lost| (lost.stage, lost.count)).collect::<Vec<_>>(), [(LossStage::Gap, 1)]);
}

#[test]
fn a_lost_engine_message_marks_what_was_running_and_nothing_later() {
    let mut story = Story::default();
    let end = story.from_engine();
    let (a, b) = ("cmpl-a-0-0123abcd", "cmpl-b-0-0123abcd");
    for (n, id) in [(1, a), (2, b)] {
        story.open(connection(n));
        story.request(connection(n), &post(PATH, None, r#"{"prompt":"a","stream":true}"#));
        story.add(id, 5, 3);
    }
    let first = zmtp(&story.message(&[(a, 1, None, true)]));
    story.counted(end, Direction::In, &first, true);
    let lost = zmtp(&story.message(&[(a, 1, None, false)]));
    story.counted(end, Direction::In, &lost, false);
    let last_of_a = zmtp(&story.message(&[(a, 1, Some(LENGTH), false)]));
    story.counted(end, Direction::In, &last_of_a, true);
    for (n, id) in [(1, "a"), (2, "b")] {
        story.respond(connection(n), &[STREAM, &last(id), &done(), END].concat());
    }
    stream(&mut story, "c", &[]);
    let made = story.made();
    assert_eq!(made.completion("a").incomplete.missing(), [Missing::RecordsLost]);
    is_right(&made, "c");
}

fn open_streams(story: &mut Story, ids: &[&str]) {
    for (n, id) in ids.iter().enumerate() {
        let end = connection(n as u64 + 1);
        let engine = format!("cmpl-{id}-0-0123abcd");
        story.open(end);
        story.request(end, &post(PATH, None, r#"{"prompt":"a","stream":true}"#));
        story.respond(end, STREAM);
        story.add(&engine, 5, 9);
        story.outputs(&[(&engine, 1, None, true)]);
        story.respond(end, &delta(id));
    }
}

fn outcomes(made: &Made) -> Vec<(Outcome, Option<String>)> {
    let error = |record: &AccessRecord| {
        made.metrics.iter().find_map(|metric| match metric {
            Metric::Request { span_id, error_type, .. } if *span_id == record.span_id => {
                error_type.as_deref().map(str::to_owned)
            }
            _ => None,
        })
    };
    made.access.iter().map(|record| (record.outcome, error(record))).collect()
}

#[test]
fn a_killed_api_process_is_an_error_of_every_open_request() {
    let mut story = Story::default();
    open_streams(&mut story, &["a", "b"]);
    story.event(API, What::Exited);
    let made = story.made();
    assert_eq!(outcomes(&made), vec![(Outcome::Error, Some("server_exited".to_owned())); 2]);
    assert!(!made.root_events().contains(&"client_disconnected"));
    assert!(made.access.iter().all(|record| record.finish_reasons == [FinishReason::Error]), "{:#?}", made.access);
}

#[test]
fn a_server_that_closes_unasked_failed_and_a_client_that_leaves_did_not() {
    let mut story = Story::default();
    open_streams(&mut story, &["a", "b"]);
    story.close(connection(1));
    story.client_leaves(connection(2));
    story.close(connection(2));
    story.abort(&["cmpl-a-0-0123abcd", "cmpl-b-0-0123abcd"]);
    let made = story.made();
    assert_eq!(made.completion("a").outcome, Outcome::Error);
    assert_eq!(made.completion("b").outcome, Outcome::Abort);
    assert!(made.root_events().contains(&"server_closed"));
}

#[test]
fn a_killed_engine_is_an_error_of_what_it_ran() {
    // the engine goes; the front end ends the stream with an error, then closes
    let mut story = Story::default();
    open_streams(&mut story, &["a", "b"]);
    story.event(ENGINE, What::Exited);
    for n in [1, 2] {
        story.respond(connection(n), &chunk("data: {\"error\": {\"message\": \"EngineDeadError\"}}\n\n"));
        story.respond(connection(n), &[done(), END.to_vec()].concat());
    }
    let made = story.made();
    assert_eq!(outcomes(&made), vec![(Outcome::Error, Some("engine_error".to_owned())); 2]);
}

#[test]
fn errors_in_the_middle_of_a_stream_are_errors() {
    for error in [
        "data: {\"error\": {\"message\": \"x\", \"code\": 500}}\n\n",
        "event: error\ndata: {\"message\": \"x\"}\n\n",
        "event: error\ndata: {\"type\": \"error\", \"error\": {\"type\": \"internal_error\"}}\n\n",
        "data: {\"type\":\"error\",\"code\":\"x\"}\n\n",
    ] {
        let mut story = Story::default();
        open_streams(&mut story, &["a"]);
        story.respond(connection(1), &chunk(error));
        story.respond(connection(1), &[done(), END.to_vec()].concat());
        story.abort(&["cmpl-a-0-0123abcd"]);
        let made = story.made();
        assert_eq!((made.completion("a").outcome, made.completion("a").status), (Outcome::Error, Some(200)), "{error}");
    }
}

#[test]
fn what_a_long_body_does_not_show_is_null_and_what_its_end_says_is_known() {
    let prompt = "words ".repeat(20_000);
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"{prompt}"}}],"model":"tiny","max_tokens":7,"temperature":0.5,"seed":3,"stream":true}}"#
    );
    let request = post("/v1/chat/completions", None, &body);
    for (tail, stream) in [(4_096, Some(true)), (0, None)] {
        let mut story = Story::default();
        let end = connection(1);
        story.open(end);
        let head = request.len() - tail;
        story.piece(end, Direction::In, head as u64, &request[..16_384], true);
        if tail > 0 {
            story.piece(end, Direction::In, tail as u64, &request[head..], false);
        }
        story.respond(end, &json(400, r#"{"error":{"message":"no"}}"#));
        let made = story.made();
        assert_eq!((made.access[0].outcome, made.access[0].stream), (Outcome::Rejected, stream));
        let root = format!("{:?}", made.traces[0].spans[0].attributes);
        assert_eq!(root.contains("gen_ai.request.max_tokens"), tail > 0);
        assert_eq!(root.contains("gen_ai.request.seed"), tail > 0);
    }
}

#[test]
fn a_cut_prompt_of_token_ids_is_not_tokenised() {
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    let request = post(PATH, None, &format!(r#"{{"prompt":[{}],"max_tokens":2}}"#, vec!["1234"; 6_000].join(",")));
    story.piece(end, Direction::In, request.len() as u64, &request[..16_384], true);
    story.add("cmpl-a-0-0123abcd", 6_000, 2);
    story.outputs(&[("cmpl-a-0-0123abcd", 2, Some(LENGTH), true)]);
    story.respond(end, &json(200, r#"{"id":"cmpl-a","choices":[{"finish_reason":"length"}]}"#));
    let made = story.made();
    assert_eq!(made.completion("a").seconds.tokenize, None);
    assert_eq!(made.completion("a").incomplete.missing(), []);
}

#[test]
fn a_connection_that_speaks_neither_is_told_once_and_ignored() {
    let mut story = Story::default();
    story.open(connection(7));
    for _ in 0..10 {
        story.call(connection(7), Direction::In, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 9, 9]);
    }
    let made = story.made();
    assert_eq!(made.verdicts.len(), 1);
    assert_eq!((made.verdicts[0].end, made.access.len()), (connection(7), 0));
}
