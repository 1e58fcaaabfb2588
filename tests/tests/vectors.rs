//! Messages of ten releases, encoded from each one's own field list (`fixtures/captures/synthetic`), decoded by shape alone;
//! cut at every byte they give what they hold; and layouts of releases that do not exist yet are read too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use inferspan::decode::zmtp::{Message, Part};
use inferspan::engine::vllm::Vllm;
use inferspan::engine::{Add, Engine as _, EngineMessage, LifeEventKind, Outputs};
use inferspan::output::FinishReason;
use inferspan_tests::pipeline;

const VERSIONS: [&str; 10] =
    ["0.8.5", "0.9.2", "0.10.2", "0.13.0", "0.16.0", "0.17.0", "0.20.0", "0.24.0", "0.28.0", "0.33.0"];

fn vector(version: &str, kind: &str) -> Vec<u8> {
    let path: PathBuf = pipeline::captures().join("synthetic").join(format!("{version}_{kind}.bin"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn part(bytes: &[u8], cut: bool) -> Part {
    Part { bytes: bytes.to_vec(), cut, tail: Vec::new() }
}

fn decode_add(body: &[u8]) -> EngineMessage {
    Vllm.decode(&Message { parts: vec![part(&[0], false), part(body, false)], part_count: 2 })
}

fn decode_outputs(body: &[u8]) -> EngineMessage {
    Vllm.decode(&Message { parts: vec![part(body, false)], part_count: 1 })
}

fn add(version: &str) -> Add {
    match decode_add(&vector(version, "add")) {
        EngineMessage::Add(add) => add,
        other => panic!("{version}: {other:?}"),
    }
}

fn outputs(version: &str, kind: &str) -> Outputs {
    match decode_outputs(&vector(version, kind)) {
        EngineMessage::Outputs(outputs) => outputs,
        other => panic!("{version} {kind}: {other:?}"),
    }
}

#[test]
fn every_releases_request_is_read() {
    for version in VERSIONS {
        let add = add(version);
        let at_least_0_14 = !["0.8.5", "0.9.2", "0.10.2", "0.13.0"].contains(&version);
        assert_eq!(add.id, if at_least_0_14 { "chatcmpl-my-rid-7-bd151e35" } else { "chatcmpl-my-rid-7" }, "{version}");
        assert_eq!(add.external_id.as_deref(), Some("chatcmpl-my-rid-7"), "{version}");
        assert_eq!(add.prompt_tokens, Some(4), "{version}");
        assert_eq!(add.arrival, Some(1_795_485_850.25), "{version}");
        assert_eq!(add.max_tokens, Some(4), "{version}");
        assert_eq!(add.temperature, Some(0.0), "{version}");
        let before_tokenizing = at_least_0_14 && version != "0.16.0";
        assert_eq!(add.arrival_before_tokenizing, before_tokenizing, "{version}");
        assert!(!add.cut, "{version}");
    }
}

#[test]
fn every_releases_first_output_is_read() {
    for version in VERSIONS {
        let outputs = outputs(version, "outputs_first");
        assert_eq!((outputs.engine, outputs.timestamp), (0, Some(1070.78)), "{version}");
        let output = &outputs.outputs[0];
        assert_eq!(output.tokens, 1, "{version}");
        assert_eq!(output.finish, None, "{version}");
        let events: Vec<_> = output.events.iter().map(|e| (e.kind, e.at)).collect();
        assert_eq!(events, [(LifeEventKind::Queued, 1070.76), (LifeEventKind::Scheduled, 1070.77)], "{version}");
        let with_prefill_stats = ["0.20.0", "0.24.0", "0.28.0", "0.33.0"].contains(&version);
        assert_eq!(output.prompt_tokens, with_prefill_stats.then_some(4), "{version}");
        assert_eq!(output.cached_tokens, (version != "0.8.5").then_some(0), "{version}");
        let stats = outputs.stats.unwrap();
        assert_eq!((stats.running, stats.waiting, stats.kv_cache_usage), (1, 0, 0.25), "{version}");
        assert_eq!((stats.prefix_queries, stats.prefix_hits), (4, 0), "{version}");
    }
}

#[test]
fn every_releases_last_output_and_preemption_are_read() {
    for version in VERSIONS {
        assert_eq!(outputs(version, "outputs_decode").outputs[0].finish, None, "{version}");
        assert_eq!(outputs(version, "outputs_final").outputs[0].finish, Some(FinishReason::Length), "{version}");
        let events: Vec<_> = outputs(version, "outputs_preempt").outputs[0].events.iter().map(|e| e.kind).collect();
        assert_eq!(events, [LifeEventKind::Preempted, LifeEventKind::Scheduled], "{version}");
    }
}

#[test]
fn a_message_cut_anywhere_gives_what_it_holds() {
    for version in VERSIONS {
        let body = vector(version, "add");
        // Id and token count sit in the first 60 bytes.
        for end in 60..body.len() {
            let EngineMessage::Add(add) = decode_add(&body[..end]) else { panic!("{version} cut at {end}") };
            assert_eq!(add.prompt_tokens, Some(4), "{version} cut at {end}");
            assert!(add.cut, "{version} cut at {end}");
        }
        for kind in ["outputs_first", "outputs_decode", "outputs_final", "outputs_preempt"] {
            let body = vector(version, kind);
            let whole = outputs(version, kind);
            for end in 0..body.len() {
                if let EngineMessage::Outputs(cut) = decode_outputs(&body[..end]) {
                    assert_eq!(cut.outputs[0].id, whole.outputs[0].id, "{version} {kind} cut at {end}");
                    assert!(cut.timestamp.is_none() || cut.timestamp == whole.timestamp);
                }
            }
        }
    }
}

#[test]
fn a_request_whose_output_is_of_a_grammar_is_known() {
    let temperature = b"\xabtemperature\xcb\0\0\0\0\0\0\0\0";
    for (version, more, is_structured) in [
        ("0.33.0", &b"\xb2structured_outputs\x81\xa4json\xa2{}"[..], true),
        ("0.33.0", b"\xb2structured_outputs\xc0", false),
        ("0.8.5", b"\xafguided_decoding\x81\xa5regex\xa1a", true),
        ("0.33.0", b"\xa5other\x81\xb2structured_outputs\xc3", false),
    ] {
        let body = vector(version, "add");
        let at = body.windows(temperature.len()).position(|bytes| bytes == temperature).unwrap();
        let body = [&body[..at], more, &body[at + temperature.len()..]].concat();
        let EngineMessage::Add(add) = decode_add(&body) else { panic!("{version}") };
        assert_eq!((add.structured_output, add.max_tokens, add.cut), (is_structured, Some(4), false), "{version}");
    }
    assert!(!add("0.33.0").structured_output);
}

/// `fields` more nils at the end of a message whose first byte is a fixarray header.
fn grown(mut body: Vec<u8>, fields: u8) -> Vec<u8> {
    assert_eq!(body[0] & 0xf0, 0x90, "a fixarray");
    let n = body[0] & 0x0f;
    body.splice(0..1, [0xdc, 0, n + fields]);
    body.extend(std::iter::repeat_n(0xc0, usize::from(fields)));
    body
}

#[test]
fn fields_that_no_release_has_yet_are_skipped() {
    let EngineMessage::Outputs(outputs) = decode_outputs(&grown(vector("0.33.0", "outputs_first"), 3)) else {
        panic!()
    };
    assert_eq!(outputs.outputs[0].prompt_tokens, Some(4));
    // A container where none was: [.., {"new": [1, {"x": nil}]}]
    let mut body = grown(vector("0.33.0", "outputs_final"), 1);
    body.pop();
    body.extend_from_slice(b"\x81\xa3new\x92\x01\x81\xa1x\xc0");
    let EngineMessage::Outputs(outputs) = decode_outputs(&body) else { panic!() };
    assert_eq!(outputs.outputs[0].finish, Some(FinishReason::Length));
}

#[test]
fn the_frames_of_a_real_chat_are_read() {
    let frame = |name: &str| std::fs::read(pipeline::captures().join("frames").join(name)).unwrap();
    let EngineMessage::Add(add) = decode_add(&frame("v0.32_chat_000_1.bin")) else { panic!() };
    assert_eq!((add.prompt_tokens, add.max_tokens), (Some(15), Some(4)));
    let tokens: Vec<u64> = (1..=5)
        .map(|i| match decode_outputs(&frame(&format!("v0.32_chat_{i:03}_0.bin"))) {
            EngineMessage::Outputs(outputs) => outputs.outputs.iter().map(|o| o.tokens).sum(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tokens, [1, 1, 1, 1, 0]);
}

#[test]
fn other_messages_are_not_taken_for_outputs() {
    // The coordinator's [[[waiting, running, kv] per engine], wave, running], a worker ping, a utility call.
    for body in [
        &b"\x93\x91\x93\x00\x01\xcb\x3f\xd0\x00\x00\x00\x00\x00\x00\x05\xc3"[..],
        b"\x00",
        b"\x94\x00\x07\xa5sleep\x90",
    ] {
        assert!(!matches!(decode_outputs(body), EngineMessage::Outputs(_)), "{body:x?}");
    }
    assert_eq!(decode_outputs(b"ENGINE_CORE_DEAD"), EngineMessage::Dead);
}
