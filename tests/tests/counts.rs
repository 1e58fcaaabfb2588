//! What requests of several engine requests amount to, what is counted against the response's own word, and when a first token is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inferspan::input::Function;
use inferspan::output::{Metric, Missing, Outcome};
use inferspan_demo_engine::wire::LENGTH;
use inferspan_tests::story::{END, STREAM, Story, connection, done, json, last, post};

const PATH: &str = "/v1/completions";

#[test]
fn a_beam_search_is_one_request() {
    // 2 beams, 3 tokens: 1 + 2 + 2 engine requests
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    story.request(end, &post(PATH, None, r#"{"prompt":"a","n":2,"use_beam_search":true,"max_tokens":3}"#));
    // Tokenised once, before the engine requests and their stamps.
    story.encode();
    let batches = [("0011223344556677", 1), ("8899aabbccddeeff", 2), ("0123456789abcdef", 2)];
    for (sent, (batch, beams)) in (0..).zip(batches) {
        let ids: Vec<String> = (0..beams).map(|i| format!("cmpl-a-{batch}-beam-{i}-0123abc{i}")).collect();
        for id in &ids {
            story.add(id, 5 + sent, 1);
        }
        for id in &ids {
            story.outputs(&[(id, 1, Some(LENGTH), true)]);
        }
    }
    let usage = r#""usage":{"prompt_tokens":5,"total_tokens":11,"completion_tokens":6}"#;
    story.respond(end, &json(200, &format!(r#"{{"id":"cmpl-a","choices":[{{"finish_reason":"length"}}],{usage}}}"#)));
    let made = story.made();
    assert_eq!(made.access.len(), 1, "{:#?}", made.access);
    let record = made.completion("a");
    assert_eq!((record.outcome, record.incomplete.missing()), (Outcome::Length, &[][..]));
    assert!((record.seconds.tokenize.unwrap() - 0.001).abs() < 1e-9);
    assert_eq!((record.generations.len(), record.output_tokens, record.prompt_tokens), (5, Some(5), Some(5)));
    let finished = made.metrics.iter().filter(|metric| matches!(metric, Metric::Generation { .. })).count();
    assert_eq!(finished, 5, "the counters follow vLLM's own");
    let names: Vec<_> = made.traces[0].spans.iter().map(|span| span.name).collect();
    assert_eq!(names.iter().filter(|name| **name == "generations").count(), 1, "{names:?}");
}

#[test]
fn every_engine_request_of_a_long_beam_search_is_counted_once() {
    // 1 + 4 x 900 engine requests, 1 ms each to send and to answer
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    story.request(end, &post(PATH, None, r#"{"prompt":"a","n":4,"use_beam_search":true,"max_tokens":901}"#));
    for sent in 0..=900_u32 {
        let beams = if sent == 0 { 1 } else { 4 };
        let ids: Vec<String> = (0..beams).map(|i| format!("cmpl-a-{sent:016x}-beam-{i}-0123abc{i}")).collect();
        for id in &ids {
            story.add(id, 5 + sent, 1);
        }
        let outputs: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, Some(LENGTH), true)).collect();
        story.outputs(&outputs);
    }
    story.respond(end, &json(200, r#"{"id":"cmpl-a","choices":[{"finish_reason":"length"}]}"#));
    let made = story.made();
    assert_eq!(made.access.len(), 1);
    let finished = |metric: &&Metric| matches!(metric, Metric::Generation { .. });
    assert_eq!(made.metrics.iter().filter(finished).count(), 3_601);
    assert_eq!(made.metrics.iter().filter(|metric| matches!(metric, Metric::FirstToken { .. })).count(), 3_601);
}

#[test]
fn samples_of_one_prompt_share_its_tokens() {
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    story.request(end, &post(PATH, None, r#"{"prompt":"a","n":2,"max_tokens":1}"#));
    for n in 0..2 {
        story.add(&format!("{n}_cmpl-a-0-0123abcd"), 5, 1);
    }
    story.outputs(&[("0_cmpl-a-0-0123abcd", 1, Some(LENGTH), true), ("1_cmpl-a-0-0123abcd", 1, Some(LENGTH), true)]);
    let usage = r#""usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}"#;
    story.respond(end, &json(200, &format!(r#"{{"id":"cmpl-a","choices":[{{"finish_reason":"length"}}],{usage}}}"#)));
    let made = story.made();
    let record = made.completion("a");
    assert_eq!((record.prompt_tokens, record.output_tokens, record.incomplete.missing()), (Some(5), Some(2), &[][..]));
    let counted: u64 =
        made.metrics.iter().map(|m| if let Metric::Prompt { tokens, .. } = m { *tokens } else { 0 }).sum();
    assert_eq!(counted, 10, "the counters follow vLLM's own");
}

#[test]
fn a_usage_that_contradicts_the_count_is_told() {
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    story.request(end, &post(PATH, None, r#"{"prompt":"a","max_tokens":2}"#));
    story.add("cmpl-a-0-0123abcd", 5, 2);
    story.outputs(&[("cmpl-a-0-0123abcd", 2, Some(LENGTH), true)]);
    let usage = r#""usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3}"#;
    story.respond(end, &json(200, &format!(r#"{{"id":"cmpl-a","choices":[{{"finish_reason":"length"}}],{usage}}}"#)));
    let made = story.made();
    assert_eq!(made.completion("a").incomplete.missing(), [Missing::UsageDiffers]);
    assert!(made.metrics.iter().any(|metric| matches!(metric, Metric::UsageDiffers { .. })));
}

#[test]
fn time_to_first_token_starts_at_the_first_byte_and_vllms_at_its_stamp() {
    // request read ── 100 ms in the event loop ── arrival stamp, ADD ── 50 ms ── first token
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    story.request(end, &post(PATH, None, r#"{"prompt":"a","stream":true}"#));
    story.quiet(100);
    story.add("cmpl-a-0-0123abcd", 5, 2);
    story.quiet(50);
    story.outputs(&[("cmpl-a-0-0123abcd", 2, Some(LENGTH), true)]);
    story.respond(end, &[STREAM, &last("a"), &done(), END].concat());
    let made = story.made();
    let seconds = made.completion("a").seconds;
    assert!((seconds.ttft.unwrap() - 0.152).abs() < 1e-6, "{seconds:?}");
    assert!((seconds.ttft_engine.unwrap() - 0.052).abs() < 2e-6, "{seconds:?}");
    assert!(made.root_events().contains(&"first_content_written"));
}

#[test]
fn vllms_first_token_is_when_the_front_end_gets_to_it() {
    // a message that is not seen ─ decode ── ADD ── first token arrives ─ 1 s ─ decode ─ clock ─ written
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    story.enters(Function::Decode);
    story.request(end, &post(PATH, None, r#"{"prompt":"a","stream":true}"#));
    story.add("cmpl-a-0-0123abcd", 5, 2);
    story.quiet(50);
    story.outputs(&[("cmpl-a-0-0123abcd", 2, Some(LENGTH), true)]);
    story.quiet(1000);
    story.enters(Function::Clock);
    story.enters(Function::Decode);
    story.enters(Function::Clock);
    story.enters(Function::Clock);
    story.respond(end, &[STREAM, &last("a"), &done(), END].concat());
    let made = story.made();
    let seconds = made.completion("a").seconds;
    assert!((seconds.ttft.unwrap() - 0.052).abs() < 2e-6, "it arrived long before: {seconds:?}");
    assert!((seconds.ttft_engine.unwrap() - 1.055).abs() < 2e-6, "{seconds:?}");
}

#[test]
fn a_pipelined_request_waits_and_that_is_not_parsing() {
    let mut story = Story::default();
    let end = connection(1);
    story.open(end);
    let two = [post(PATH, Some("a"), r#"{"prompt":"a"}"#), post(PATH, Some("b"), r#"{"prompt":"b"}"#)].concat();
    story.request(end, &two);
    for id in ["a", "b"] {
        let engine = format!("cmpl-{id}-0-0123abcd");
        story.quiet(5);
        story.add(&engine, 5, 2);
        story.quiet(300);
        story.outputs(&[(&engine, 2, Some(LENGTH), true)]);
        story.respond(end, &json(200, &format!(r#"{{"id":"cmpl-{id}","choices":[{{"finish_reason":"length"}}]}}"#)));
    }
    let made = story.made();
    assert!(made.completion("b").seconds.parse.unwrap() < 0.06, "{:#?}", made.completion("b"));
}
