//! Conversations that are HTTP, with any bodies and any framing.
//!
//! Enters: bytes. Leaves: calls in the order of a connection: requests, alone or several in one call, and their answers in that order, each
//! in one call or with its chunks in calls of their own.

use inferspan::input::Direction;

use crate::bytes::Bytes;

/// Exchanges of one conversation at most.
const MAX: usize = 24;

/// The calls of a connection.
pub fn calls(bytes: &mut Bytes<'_>) -> Vec<(Direction, Vec<u8>)> {
    let mut calls = Vec::new();
    let mut exchanges = 0;
    while !bytes.is_over() && exchanges < MAX {
        let at_once = 1 + bytes.below(3);
        let requests: Vec<Vec<u8>> = (0..at_once).map(|_| request(bytes)).collect();
        calls.push((Direction::In, requests.concat()));
        for _ in 0..at_once {
            response(bytes, &mut calls);
        }
        exchanges += at_once;
    }
    calls
}

/// What a body is framed by: nothing to come, a length, or chunks.
fn framed(bytes: &mut Bytes<'_>, head: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let body = bytes.piece(3_000);
    if bytes.flag() {
        head.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        return vec![body.to_vec()];
    }
    head.extend(b"transfer-encoding: chunked\r\n\r\n");
    let each = 1 + usize::from(bytes.u8()) * 8;
    let mut parts: Vec<Vec<u8>> =
        body.chunks(each).map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).collect();
    parts.push(b"0\r\n\r\n".to_vec());
    parts
}

/// A header's value of what a fuzzer drew.
fn value(bytes: &mut Bytes<'_>) -> String {
    bytes.short().iter().map(|byte| char::from(b' ' + byte % 95)).collect()
}

fn request(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let path = ["/v1/completions", "/v1/chat/completions?x=1", "/v1/models", "/health", "*"][bytes.below(5)];
    let name = ["X-Request-Id", "traceparent", "tracestate", "Authorization", "x"][bytes.below(5)];
    if bytes.flag() {
        return format!("GET {path} HTTP/1.1\r\n{name}: {}\r\n\r\n", value(bytes)).into_bytes();
    }
    let mut head = format!("POST {path} HTTP/1.1\r\n{name}: {}\r\n", value(bytes)).into_bytes();
    let parts = framed(bytes, &mut head);
    [head, parts.concat()].concat()
}

fn response(bytes: &mut Bytes<'_>, calls: &mut Vec<(Direction, Vec<u8>)>) {
    let status = ["200 OK", "400 Bad Request", "500 Internal Server Error", "429 Too Many"][bytes.below(4)];
    let kind = ["application/json", "text/event-stream; charset=utf-8"][bytes.below(2)];
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n").into_bytes();
    let at_once = bytes.flag();
    let parts = framed(bytes, &mut head);
    if at_once {
        head.extend(parts.concat());
        calls.push((Direction::Out, head));
    } else {
        calls.push((Direction::Out, head));
        calls.extend(parts.into_iter().filter(|part| !part.is_empty()).map(|part| (Direction::Out, part)));
    }
}
