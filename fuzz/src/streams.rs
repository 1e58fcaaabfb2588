//! Byte streams: HTTP, JSON, server-sent events, ZMTP, and the engine messages in it.
//!
//! A stream that is cut elsewhere gives the same (`decode/mod.rs` promises it), so each is read twice: as it comes, and in pieces of
//! lengths that the input chooses.

use inferspan::decode::http::{Conversation, HttpEvent, Piece, What};
use inferspan::decode::json::{RequestBody, RequestFields, ResponseBody, ResponseFields};
use inferspan::decode::msgpack::Cursor;
use inferspan::decode::sse::{Lines, MAX_LINE};
use inferspan::decode::zmtp::{KEPT_BYTES, Message, Part, Stream, TAIL_BYTES};
use inferspan::engine;
use inferspan::input::Direction;

use crate::bytes::Bytes;

/// What a parser may hold besides what came in: fixed windows, and what a vector grows by.
const SLACK: usize = 256 * 1024;

/// Cuts `bytes` at places that are drawn from `seed`; every byte is in one piece.
fn pieces(mut bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut state = seed | 1;
    while !bytes.is_empty() {
        // Knuth's multiplier; any would do.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let longest = if state >> 60 < 8 { 4 } else { bytes.len() };
        let (piece, rest) = bytes.split_at((1 + (state >> 33) as usize % longest).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// One call of a conversation, or something that is not there.
enum Step<'a> {
    Call { direction: Direction, bytes: &'a [u8], cut: u64 },
    Lost { direction: Direction, bytes: Option<u64> },
    Rebind { from: u64, to: u64 },
}

fn steps<'a>(bytes: &mut Bytes<'a>) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    while !bytes.is_over() && steps.len() < 512 {
        let kind = bytes.u8();
        let direction = if kind & 1 == 0 { Direction::In } else { Direction::Out };
        steps.push(match kind >> 1 & 15 {
            0..=11 => Step::Call { direction, bytes: bytes.piece(usize::MAX), cut: 0 },
            12 | 13 => Step::Call { direction, bytes: bytes.piece(usize::MAX), cut: bytes.number() },
            14 => Step::Lost { direction, bytes: bytes.flag().then(|| bytes.number()) },
            _ => Step::Rebind { from: bytes.number(), to: bytes.number() },
        });
    }
    steps
}

/// The events of a conversation. `cut`: calls are given in pieces of lengths drawn from it.
fn converse(steps: &[Step<'_>], cut: Option<u64>) -> Vec<HttpEvent> {
    let mut conversation = Conversation::default();
    let mut events = Vec::new();
    let mut given = 0;
    for step in steps {
        let mut sink = |event| events.push(event);
        match *step {
            Step::Call { bytes: [], .. } => {}
            Step::Call { direction, bytes, cut: gap } => {
                given += bytes.len();
                let parts = cut.map_or_else(|| vec![bytes], |seed| pieces(bytes, seed));
                for (at, part) in parts.iter().enumerate() {
                    let gap = if at + 1 == parts.len() { gap } else { 0 };
                    let len = (part.len() as u64).saturating_add(gap);
                    conversation.push(direction, Piece { len, bytes: part, starts: at == 0 }, &mut sink);
                }
            }
            Step::Lost { direction, bytes } => conversation.lost(direction, bytes, &mut sink),
            Step::Rebind { from, to } => {
                conversation.rebind(from, to, &mut sink);
            }
        }
        let held = conversation.held_bytes();
        assert!(held <= 4 * given + SLACK, "{held} bytes are held of {given}");
    }
    conversation.closed(&mut |event| events.push(event));
    events
}

/// A conversation on a connection, with losses, cuts and rebinds. Where what comes is no HTTP, parsing starts again at the beginning of a
/// piece, so other pieces may give something else; of what is HTTP they may not, so such a conversation is made of the same bytes.
pub fn http(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let seed = u64::from(bytes.u16());
    let steps = steps(&mut bytes.clone());
    assert_eq!(converse(&steps, None), converse(&steps, None), "the same bytes give the same");
    let _ = converse(&steps, Some(seed));

    let calls = crate::exchange::calls(&mut bytes);
    let steps: Vec<Step<'_>> =
        calls.iter().map(|(direction, bytes)| Step::Call { direction: *direction, bytes, cut: 0 }).collect();
    let whole = converse(&steps, None);
    let is_resync = |event: &HttpEvent| matches!(event.what, What::NoRequest | What::EndUnseen | What::Gap(_));
    assert!(!whole.iter().any(is_resync), "what is whole is read whole: {whole:?}");
    assert_eq!(whole, converse(&steps, Some(seed)), "the same calls in other pieces give the same");
}

/// The bodies of a request and of a response.
pub fn json(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let (seed, gap_at) = (u64::from(bytes.u16()), usize::from(bytes.u16()));
    let text = bytes.0;
    let request = |parts: &[&[u8]]| {
        let mut body = RequestBody::default();
        for part in parts {
            body.push(part);
            assert!(body.held_bytes() <= 4 * text.len() + SLACK);
        }
        body.finish()
    };
    let response = |parts: &[&[u8]]| {
        let mut body = ResponseBody::default();
        for part in parts {
            body.push(part);
            assert!(body.held_bytes() <= 4 * text.len() + SLACK);
        }
        body.finish()
    };
    let parts = pieces(text, seed);
    assert_eq!(request(&[text]), request(&parts), "a request's body that is cut elsewhere gives the same");
    assert_eq!(response(&[text]), response(&parts), "a response's body that is cut elsewhere gives the same");
    let _ = (RequestFields::read(text), ResponseFields::read(text));

    // With a gap in it, at any place.
    let (before, after) = text.split_at(gap_at.min(text.len()));
    let (mut request, mut response) = (RequestBody::default(), ResponseBody::default());
    for part in [before, after] {
        request.push(part);
        request.gap();
        response.push(part);
        response.gap();
    }
    assert!(!request.finish().whole, "what has a gap is not whole");
    let _ = response.give_up();
}

/// Server-sent events, with gaps.
pub fn sse(bytes: &[u8]) {
    type Given = Vec<(Vec<u8>, Vec<u8>)>;
    let mut bytes = Bytes(bytes);
    let seed = u64::from(bytes.u16());
    let (gap_at, text) = (usize::from(bytes.u16()), bytes.0);
    let read = |parts: &[&[u8]], gap_before: Option<usize>| {
        let (mut lines, mut given) = (Lines::default(), Given::new());
        for (at, part) in parts.iter().enumerate() {
            let mut sink = |line: inferspan::decode::sse::Line<'_>| {
                assert!(line.data.len() <= MAX_LINE, "a line of {} bytes", line.data.len());
                given.push((line.event.to_vec(), line.data.to_vec()));
            };
            if gap_before == Some(at) {
                lines.gap(&mut sink);
            }
            lines.push(part, &mut sink);
            assert!(lines.held_bytes() <= 2 * MAX_LINE + SLACK);
        }
        given
    };
    assert_eq!(read(&[text], None), read(&pieces(text, seed), None), "lines that are cut elsewhere are the same");
    let (before, after) = text.split_at(gap_at.min(text.len()));
    read(&[before, after], Some(1));
}

/// The frames of a stream that starts with its greeting, with cuts and losses; its messages are read as an engine's.
pub fn zmtp(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let seed = u64::from(bytes.u16());
    let losses = bytes.u8();
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    let text = [&greeting, bytes.0].concat();
    let read = |parts: &[&[u8]]| {
        let (mut stream, mut messages) = (Stream::default(), Vec::new());
        for (at, part) in parts.iter().enumerate() {
            stream.push(part.len() as u64, part, at == 0, &mut |message| messages.push(message));
            assert!(stream.held_bytes() <= 4 * (text.len() + TAIL_BYTES) + SLACK);
        }
        (messages, stream.desyncs())
    };
    // The greeting is known by its first ten bytes, which are in one call (measured).
    let mut parts = vec![&text[..10]];
    parts.extend(pieces(&text[10..], seed));
    let (whole, desyncs) = read(&[&text]);
    assert_eq!((&whole, desyncs), (&read(&parts).0, read(&parts).1), "a stream that is cut elsewhere gives the same");
    whole.iter().for_each(understand);

    // As calls of an attach in the middle: each may start a frame, some are cut short, some are missing.
    let mut stream = Stream::default();
    for (at, part) in pieces(bytes.0, seed).iter().enumerate() {
        let mut sink = |message| understand(&message);
        match losses >> (at % 8) & 1 {
            0 => stream.push(part.len() as u64, part, true, &mut sink),
            _ if at % 3 == 0 => stream.gap(part.len() as u64, &mut sink),
            _ if at % 5 == 0 => stream.doubt(),
            _ => {
                let captured = part.len() / 2;
                stream.push(part.len() as u64, &part[..captured], at % 2 == 0, &mut sink);
            }
        }
        assert!(stream.held_bytes() <= KEPT_BYTES * 2 + 4 * (text.len() + TAIL_BYTES) + SLACK);
    }
}

fn understand(message: &Message) {
    assert_eq!(
        format!("{:?}", engine::decode(message)),
        format!("{:?}", engine::decode(message)),
        "the same message says the same"
    );
}

/// The messages of an engine and its front ends, whole and cut.
pub fn msgpack(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let (kind, cut, tail) = (bytes.u8(), usize::from(bytes.u16()), usize::from(bytes.u16()));
    let text = bytes.0;
    let mut cursor = Cursor::new(text);
    while cursor.token().is_ok() {
        assert!(cursor.position() <= text.len());
    }
    let mut cursor = Cursor::new(text);
    let _ = cursor.skip_items(u64::from(u32::MAX));
    let message = |body: Part| {
        let kinds = Part { bytes: vec![kind & 7], ..Part::default() };
        // One byte more often names a request; an output message has no such part.
        let parts = if kind & 8 == 0 { vec![body] } else { vec![kinds, body] };
        Message { part_count: parts.len(), parts }
    };
    understand(&message(Part { bytes: text.to_vec(), ..Part::default() }));
    let (head, tail) = (text.len().min(cut), text.len().saturating_sub(tail));
    understand(&message(Part { bytes: text[..head].to_vec(), cut: true, tail: text[tail..].to_vec() }));
}
