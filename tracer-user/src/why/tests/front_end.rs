//! Causes on the HTTP side, and ends.

use super::*;

#[test]
fn a_slow_tokenizer_is_blamed_and_a_usual_one_is_not() {
    let mut scene = normal();
    let tokenize = scene.trace.spans.iter_mut().find(|of| of.name == span::TOKENIZE).unwrap();
    tokenize.end_ns = 2 * MS;
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
    // 0 ├ tokenize ┤ 300 ├ prefill ┤ 310 … 400
    let mut scene = Scene::new(400);
    scene.span(span::TOKENIZE, 0, 300).attributes.push((attribute::PROMPT_TOKENS, Value::Int(30_000)));
    scene.prefill(300, 310, 20);
    scene.decode(310, 400, 10);
    assert_eq!(scene.blamed(), [(Kind::SlowTokenizer, 300)]);
    assert_eq!(scene.evidence(), "tokenizing a prompt of 30,000 tokens took 300 ms");
}

/// 0 ├ prefill ┤ 10 ├ 9 tokens ┤ 100 … the last byte at 900
fn slow_end() -> Scene {
    let mut scene = Scene::new(900);
    scene.prefill(0, 10, 20);
    scene.decode(10, 100, 10);
    scene.steps(10, 100, 10, 4);
    scene
}

#[test]
fn a_client_that_takes_no_bytes_is_slow_and_without_that_nobody_is() {
    let mut scene = slow_end();
    assert_eq!(scene.blamed(), [], "nothing says why the end came so late");
    scene.blocked(0.7, 0.7);
    scene.root().attributes.push((attribute::BLOCKED_WRITES, Value::Int(12)));
    assert_eq!(scene.blamed(), [(Kind::SlowClient, 700)]);
    assert_eq!(scene.evidence(), "the client's socket took no more bytes for 700 ms (12 writes had to wait)");
    assert!(!scene.verdict().causes[0].inferred);
}

#[test]
fn a_client_that_was_slow_while_the_engine_went_on_cost_nothing() {
    let mut scene = normal();
    scene.blocked(0.7, 0.0);
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
    // Nor is what came late for another reason its fault.
    let mut scene = slow_end();
    scene.blocked(0.09, 0.0);
    assert_eq!(scene.blamed(), []);
    scene.span(span::DETOKENIZE, 300, 900);
    assert_eq!(scene.blamed(), [(Kind::FrontEndLate, 600)]);
}

#[test]
fn a_client_is_blamed_for_what_it_took_nothing_behind_the_last_token_alone() {
    // 0 ├ prefill ┤ 10 ├ 49 tokens ┤ 500 … the last byte at 900; the client took nothing from 200 to 650
    let mut scene = Scene::new(900);
    scene.prefill(0, 10, 20);
    scene.decode(10, 500, 50);
    scene.steps(10, 500, 10, 4);
    scene.blocked(0.45, 0.15);
    assert_eq!(scene.blamed(), [(Kind::SlowClient, 150)]);
    let said = "the client's socket took no more bytes for 150 ms after its last token (450 ms in all)";
    assert_eq!(scene.evidence(), said);
    // What does not say how much of it was there says nothing of it.
    scene.root().attributes.retain(|(key, _)| *key != attribute::BLOCKED_AFTER);
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 490)]);
}

#[test]
fn a_front_end_that_waits_for_its_client_is_not_late() {
    let mut scene = slow_end();
    scene.span(span::DETOKENIZE, 850, 900);
    scene.blocked(0.8, 0.8);
    scene.float(attribute::LAST_LAG, 0.75);
    scene.float(attribute::MAX_LAG, 0.75);
    assert_eq!(scene.blamed(), [(Kind::SlowClient, 800)]);
}

#[test]
fn outputs_that_were_taken_up_late_are_the_front_ends() {
    let mut scene = slow_end();
    scene.float(attribute::FIRST_LAG, 0.002);
    scene.float(attribute::LAST_LAG, 0.6);
    scene.float(attribute::MAX_LAG, 0.6);
    scene.span(span::DETOKENIZE, 700, 900);
    assert_eq!(scene.blamed(), [(Kind::FrontEndLate, 800)]);
    assert_eq!(
        scene.evidence(),
        "its last output was taken up 600 ms after the engine sent it; 200 ms from its last output to the last byte written"
    );
}

#[test]
fn a_front_end_that_stalled_in_the_middle_is_late_and_one_that_is_a_little_is_not() {
    let mut scene = normal();
    scene.float(attribute::MAX_LAG, 0.4);
    assert_eq!(scene.blamed(), [(Kind::FrontEndLate, 400)]);
    assert_eq!(scene.evidence(), "outputs were taken up as much as 400 ms late");
    let mut scene = normal();
    for key in [attribute::MAX_LAG, attribute::FIRST_LAG, attribute::LAST_LAG] {
        scene.float(key, 0.015);
    }
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 990)]);
}

#[test]
fn a_request_that_lies_in_the_front_end_before_it_is_tokenized_is_late_there() {
    // 0 ├ parse ┤ 250 ├ tokenize ┤ 251 … 400
    let mut scene = Scene::new(400);
    scene.span(span::PARSE, 0, 250);
    scene.span(span::TOKENIZE, 250, 251);
    scene.prefill(251, 260, 20);
    scene.decode(260, 400, 10);
    assert_eq!(scene.blamed(), [(Kind::FrontEndLate, 250)]);
    assert_eq!(scene.evidence(), "250 ms from the whole request to its tokenizing");
}

#[test]
fn a_request_that_comes_slowly_is_told_from_a_front_end_that_is_late() {
    // 0 first byte … 300 whole ├ parse ┤ 301 … 400
    let mut scene = Scene::new(400);
    scene.span(span::PARSE, 300, 301);
    scene.decode(310, 400, 10);
    assert_eq!(scene.blamed(), [(Kind::SlowRequest, 300)]);
    assert_eq!(scene.evidence(), "300 ms from its first byte to the whole request: sent slowly, or read slowly");
}

#[test]
fn a_request_behind_another_on_its_connection_is_no_slow_one() {
    // 0 first byte … 10 whole … 300 the one before it is answered ├ parse ┤ 301 … 400
    let mut scene = Scene::new(400);
    scene.float(attribute::HTTP_WAITED, 0.29);
    scene.span(span::PARSE, 300, 301);
    scene.decode(310, 400, 10);
    assert_eq!(scene.blamed(), [(Kind::Pipelined, 290)]);
    assert_eq!(scene.evidence(), "290 ms for the answer to the request before it on its connection");
}

#[test]
fn what_is_sent_to_the_engine_late_is_the_front_ends_unless_a_step_lasted_so_long() {
    // 0 ├ tokenize ┤ 1 … 250 queued, prefill … 400
    let mut scene = Scene::new(400);
    scene.span(span::TOKENIZE, 0, 1);
    scene.wait(250, 251, "admission");
    scene.prefill(251, 260, 20);
    scene.decode(260, 400, 10);
    assert_eq!(scene.blamed(), [(Kind::FrontEndLate, 249)]);
    assert_eq!(scene.evidence(), "249 ms from its tokens to the engine's queue");
    scene.step(5, 245, 4);
    assert_eq!(scene.blamed(), []);
}

#[test]
fn a_prompt_that_waits_for_others_in_the_tokenizer_is_late_by_that() {
    // 0 ├ parse ┤ 250 ├ tokenize ┤ 251 … 400; others were tokenized from 10 to 249, in two
    let mut scene = Scene::new(400);
    scene.span(span::PARSE, 0, 250);
    scene.span(span::TOKENIZE, 250, 251);
    scene.around.tokenizing = vec![(100 * MS, 249 * MS), (10 * MS, 120 * MS)];
    assert_eq!(scene.blamed(), [(Kind::SlowTokenizer, 250)]);
    scene.around.tokenizing.pop();
    assert_eq!(scene.blamed(), [(Kind::FrontEndLate, 250)], "that fills too little of it");
}

#[test]
fn an_engine_error_stands_first_whatever_it_took() {
    // 0 queued 500 ├ prefill ┤ 510 ├ tokens ┤ 600, failed at 601
    let mut scene = Scene::new(601);
    scene.wait(0, 500, "admission");
    scene.prefill(500, 510, 20);
    scene.decode(510, 600, 10);
    scene.trace.merit.outcome = Some(Outcome::Error);
    for (error, inferred) in [("engine_error", false), ("server_exited", false), ("500", true)] {
        scene.root().attributes.retain(|(key, _)| *key != attribute::ERROR_TYPE);
        scene.root().attributes.push((attribute::ERROR_TYPE, Value::Str(error.into())));
        assert_eq!(scene.blamed(), [(Kind::EngineError, 1), (Kind::Queued, 500)]);
        assert_eq!(scene.verdict().causes[0].inferred, inferred);
    }
    scene.trace.merit.outcome = Some(Outcome::Abort);
    assert_eq!(scene.blamed(), [(Kind::Queued, 500)], "the client left, which is no error");
    let verdict = scene.verdict();
    assert!(
        text::paragraph(&scene.trace, &verdict).starts_with("why 01010101…: 601 ms, then the client left, of which")
    );
}

#[test]
fn a_rejected_request_has_no_cause() {
    let mut scene = Scene::new(40);
    scene.trace.merit.outcome = Some(Outcome::Rejected);
    assert_eq!(scene.blamed(), []);
}

/// generation 1: 0 … 300; generation 2, on engine 1: 0 queued 600 … 1000
fn several() -> Scene {
    let mut scene = Scene::new(1_000);
    scene.root().attributes.retain(|(key, _)| *key != attribute::ENGINE_INDEX);
    for (id, parent, name, from, to) in [
        (10, 0, span::GENERATION, 0, 300),
        (11, 10, span::DECODE, 10, 300),
        (12, 0, span::GENERATION, 0, 1_000),
        (13, 12, span::QUEUE, 0, 600),
        (14, 12, span::PREFILL, 600, 610),
        (15, 12, span::DECODE, 610, 1_000),
    ] {
        let mut of = bare(id, Some(parent), name, from, to);
        of.attributes.push((attribute::ENGINE_INDEX, Value::Int(i64::from(id == 12))));
        scene.trace.spans.push(of);
    }
    scene
}

#[test]
fn of_several_engine_requests_the_longest_is_judged() {
    let scene = several();
    assert_eq!(scene.blamed(), [(Kind::Queued, 600)]);
    let unseen = scene.verdict().unseen;
    assert!(
        unseen.iter().any(|what| what == "the other 1 of its engine requests: the longest was judged"),
        "{unseen:?}"
    );
}

#[test]
fn what_is_said_of_all_engine_requests_is_not_blamed_on_one() {
    // generation 2 was preempted once, for 200 ms; all of them five times; the last output of all was taken up late
    let mut scene = several();
    scene.root().attributes.push((attribute::PREEMPTIONS, Value::Int(5)));
    for key in [attribute::FIRST_LAG, attribute::MAX_LAG, attribute::LAST_LAG] {
        scene.float(key, 0.3);
    }
    let longest = scene.trace.spans.iter_mut().find(|of| of.span_id.0[0] == 12).unwrap();
    longest.attributes.push((attribute::PREEMPTIONS, Value::Int(1)));
    let mut wait = bare(16, Some(12), span::QUEUE, 700, 900);
    wait.attributes.push((attribute::REASON, Value::Str("preemption".into())));
    scene.trace.spans.push(wait);
    assert_eq!(scene.blamed(), [(Kind::Queued, 600), (Kind::Preempted, 200)]);
    assert!(scene.verdict().causes[1].evidence.starts_with("preempted 1 time:"), "{:?}", scene.verdict());
}

#[test]
fn a_server_of_which_only_http_is_seen_gave_many_tokens_as_far_as_that_tells() {
    let mut scene = Scene::new(1_000);
    scene.root().attributes = vec![(attribute::PROVENANCE, Value::Str("inferred".into()))];
    scene.decode(100, 1_000, 50);
    let decode = scene.trace.spans.last_mut().unwrap();
    decode.attributes[0].1 = Value::Str("inferred".into());
    assert_eq!(scene.blamed(), [(Kind::ManyTokens, 900)]);
    assert!(scene.verdict().causes[0].inferred);
    scene.float(attribute::BLOCKED, 0.5);
    assert_eq!(scene.blamed(), [(Kind::SlowClient, 500)]);
    assert!(scene.verdict().causes[0].inferred, "some of it may have cost nothing");
}

#[test]
fn what_a_tree_lacks_is_said_in_words() {
    let mut scene = normal();
    scene.root().attributes.push((attribute::INCOMPLETE, Value::Str("attached_late,records_lost".into())));
    scene.trace.merit.outcome = Some(Outcome::Unknown);
    let unseen = scene.verdict().unseen;
    for what in ["its beginning", "records that are", "how it ended", "what its steps did with CUDA"] {
        assert!(unseen.iter().any(|of| of.starts_with(what)), "{what}: {unseen:?}");
    }
}
