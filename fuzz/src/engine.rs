//! Messages of an engine and its front ends, written as vLLM writes them, with numbers that a fuzzer chose.
//!
//! Bytes that a fuzzer draws are hardly ever a whole message; these are, and what they say is hostile.

use rmp::encode::{write_array_len, write_f64, write_map_len, write_nil, write_sint, write_str, write_u8, write_uint};

use crate::bytes::Bytes;

/// Ids of engine requests: of responses that the pieces of [`crate::inputs`] show, of samples, of a beam search, and of nobody.
pub const IDS: [&str; 8] = [
    "cmpl-a-0-0123abcd",
    "chatcmpl-b-0123abcd",
    "0_chatcmpl-c-0123abcd",
    "1_chatcmpl-c-0123abcd",
    "cmpl-d-0123abcd-beam-0",
    "cmpl-d-0123abcd-beam-1",
    "resp_e_0-0123abcd",
    "x",
];

/// Appends a frame; `more`: another of its message follows.
fn frame(out: &mut Vec<u8>, more: bool, body: &[u8]) {
    if let Ok(len) = u8::try_from(body.len()) {
        out.extend([u8::from(more), len]);
    } else {
        out.push(2 | u8::from(more));
        out.extend((body.len() as u64).to_be_bytes());
    }
    out.extend(body);
}

/// A message as it crosses a socket.
pub fn message(bytes: &mut Bytes<'_>, now: u64) -> Vec<u8> {
    let mut out = Vec::new();
    match bytes.below(8) {
        0..=2 => {
            frame(&mut out, true, &[0]);
            frame(&mut out, false, &add(bytes, now));
        }
        3 => {
            frame(&mut out, true, &[1]);
            frame(&mut out, false, &abort(bytes));
        }
        4 => frame(&mut out, false, b"ENGINE_CORE_DEAD"),
        _ => frame(&mut out, false, &outputs(bytes, now)),
    }
    out
}

fn id(bytes: &mut Bytes<'_>) -> &'static str {
    IDS[bytes.below(IDS.len())]
}

fn add(bytes: &mut Bytes<'_>, now: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let id = id(bytes);
    // Writing into a vector does not fail.
    let _ = write_array_len(&mut out, 8);
    let _ = write_str(&mut out, id);
    let prompt = bytes.u8();
    let _ = write_array_len(&mut out, u32::from(prompt));
    (0..prompt).for_each(|_| out.push(7));
    let _ = write_nil(&mut out);
    let _ = write_map_len(&mut out, 3);
    let _ = write_str(&mut out, "max_tokens");
    let _ = write_uint(&mut out, bytes.number());
    let _ = write_str(&mut out, "temperature");
    let _ = write_f64(&mut out, bytes.seconds(0));
    let _ = write_str(&mut out, "seed");
    let _ = write_uint(&mut out, bytes.number());
    let _ = write_nil(&mut out);
    let _ = write_f64(&mut out, bytes.seconds(now));
    let _ = write_nil(&mut out);
    let _ = write_str(&mut out, id.rsplit_once('-').map_or(id, |(external, _)| external));
    out
}

fn abort(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let count = bytes.below(4) as u32;
    let _ = write_array_len(&mut out, count);
    (0..count).for_each(|_| {
        let _ = write_str(&mut out, id(bytes));
    });
    out
}

fn outputs(bytes: &mut Bytes<'_>, now: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = write_array_len(&mut out, 5);
    let engine = if bytes.flag() { 0 } else { bytes.u8() };
    let _ = write_sint(&mut out, i64::from(engine));
    let count = bytes.below(4) as u32;
    let _ = write_array_len(&mut out, count);
    (0..count).for_each(|_| output(bytes, now, &mut out));
    if bytes.flag() {
        let _ = write_map_len(&mut out, 3);
        let _ = write_str(&mut out, "num_running_reqs");
        let _ = write_uint(&mut out, bytes.number());
        let _ = write_str(&mut out, "num_waiting_reqs");
        let _ = write_uint(&mut out, bytes.number());
        let _ = write_str(&mut out, "prefix_cache_stats");
        let _ = write_map_len(&mut out, 2);
        let _ = write_str(&mut out, "queries");
        let _ = write_uint(&mut out, bytes.number());
        let _ = write_str(&mut out, "hits");
        let _ = write_uint(&mut out, bytes.number());
    } else {
        let _ = write_nil(&mut out);
    }
    let _ = write_f64(&mut out, bytes.seconds(now));
    let _ = write_nil(&mut out);
    out
}

/// One request's, as 0.33 has it: id, tokens, …, finish reason, …, events, …, what its prefill was.
fn output(bytes: &mut Bytes<'_>, now: u64, out: &mut Vec<u8>) {
    let _ = write_array_len(out, 16);
    let _ = write_str(out, id(bytes));
    let tokens = bytes.below(5) as u32;
    let _ = write_array_len(out, tokens);
    (0..tokens).for_each(|_| {
        let _ = write_u8(out, 200);
    });
    for _ in 2..5 {
        let _ = write_nil(out);
    }
    match bytes.u8() {
        reason @ 0..=5 => {
            let _ = write_sint(out, i64::from(reason));
        }
        _ => {
            let _ = write_nil(out);
        }
    }
    let _ = write_nil(out);
    let events = bytes.below(4) as u32;
    let _ = write_array_len(out, events);
    for _ in 0..events {
        let _ = write_map_len(out, 2);
        let _ = write_str(out, "type");
        let _ = write_sint(out, bytes.below(5) as i64);
        let _ = write_str(out, "timestamp");
        let _ = write_f64(out, bytes.seconds(now));
    }
    let _ = write_map_len(out, 2);
    let _ = write_str(out, "num_prompt_tokens");
    let _ = write_uint(out, bytes.number());
    let _ = write_str(out, "num_cached_tokens");
    let _ = write_uint(out, bytes.number());
    for _ in 9..16 {
        let _ = write_nil(out);
    }
}
