//! The responses that go out on a connection.

use super::body::{Body, Progress};
use super::head::{Assembly, Head, announced};
use super::{MAX_BODY, MAX_HEADERS, starts_response};
use crate::decode::json::ResponseFields;
use crate::decode::sse;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseEvent {
    /// Status line and headers; `stream`: the body is server-sent events.
    Head { status: u16, stream: bool },
    /// One `data:` chunk of a stream.
    Chunk(ResponseFields),
    /// `data: [DONE]`.
    DoneMark,
    /// The last byte; with what the body says when it is no stream.
    Complete(Option<ResponseFields>),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Head(Head),
    Body {
        body: Body,
        content: Content,
    },
}

#[derive(Debug)]
enum Content {
    Events(sse::Lines),
    Json { kept: Vec<u8>, cut: bool },
}

/// The parser of the outgoing direction.
#[derive(Debug, Default)]
pub struct Responses {
    state: State,
}

impl Responses {
    /// Takes the bytes of one call that moved `len` bytes.
    pub fn push(&mut self, len: u64, bytes: &[u8], sink: &mut impl FnMut(ResponseEvent)) {
        // A new status line ends whatever came before it: the answer to a HEAD has a length and no body.
        if matches!(self.state, State::Body { .. }) && starts_response(bytes) {
            self.state = State::Idle;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.step(rest, sink);
        }
        let gap = len.saturating_sub(bytes.len() as u64);
        if gap > 0 {
            self.gap(gap, sink);
        }
    }

    /// The connection ended: a body that runs until then is complete.
    pub fn closed(&mut self, sink: &mut impl FnMut(ResponseEvent)) {
        if let State::Body { body: Body::UntilClose, content } = &mut self.state {
            complete(content, sink);
        }
        self.state = State::Idle;
    }

    fn gap(&mut self, gap: u64, sink: &mut impl FnMut(ResponseEvent)) {
        match &mut self.state {
            State::Idle => {}
            State::Head(_) => self.state = State::Idle,
            State::Body { body, content } => {
                match content {
                    Content::Events(lines) => lines.gap(&mut |data| chunk(data, sink)),
                    Content::Json { cut, .. } => *cut = true,
                }
                if body.gap(gap) != Progress::More {
                    complete(content, sink);
                    self.state = State::Idle;
                }
            }
        }
    }

    fn begin(&mut self, head: ResponseHead, sink: &mut impl FnMut(ResponseEvent)) {
        sink(ResponseEvent::Head { status: head.status, stream: head.stream });
        if let Body::Length(0) = head.body {
            sink(ResponseEvent::Complete(None));
            return;
        }
        let content = if head.stream {
            Content::Events(sse::Lines::default())
        } else {
            Content::Json { kept: Vec::new(), cut: false }
        };
        self.state = State::Body { body: head.body, content };
    }

    fn step<'b>(&mut self, bytes: &'b [u8], sink: &mut impl FnMut(ResponseEvent)) -> &'b [u8] {
        match &mut self.state {
            State::Idle => {
                if !starts_response(bytes) && !b"HTTP/1.".starts_with(bytes) {
                    return &[];
                }
                self.state = State::Head(Head::default());
                bytes
            }
            State::Head(head) => match head.push(bytes) {
                Assembly::More => &[],
                Assembly::TooLong => {
                    self.state = State::Idle;
                    &[]
                }
                Assembly::Whole(used) => {
                    let parsed = parse(head.bytes());
                    self.state = State::Idle;
                    match parsed {
                        // 1xx: the real response follows.
                        Some(ResponseHead { status: 100..=199, .. }) => {}
                        Some(head) => self.begin(head, sink),
                        None => return &[],
                    }
                    &bytes[used..]
                }
            },
            State::Body { body, content } => {
                let progress = body.advance(bytes, &mut |data| match content {
                    Content::Events(lines) => lines.push(data, &mut |d| chunk(d, sink)),
                    Content::Json { kept, cut: false } => {
                        kept.extend_from_slice(&data[..data.len().min(MAX_BODY - kept.len())]);
                    }
                    Content::Json { .. } => {}
                });
                match progress {
                    Progress::More => &[],
                    Progress::Ended(used) => {
                        complete(content, sink);
                        self.state = State::Idle;
                        &bytes[used..]
                    }
                }
            }
        }
    }
}

fn chunk(data: &[u8], sink: &mut impl FnMut(ResponseEvent)) {
    if data == b"[DONE]" {
        sink(ResponseEvent::DoneMark);
    } else {
        sink(ResponseEvent::Chunk(ResponseFields::read(data)));
    }
}

fn complete(content: &mut Content, sink: &mut impl FnMut(ResponseEvent)) {
    match content {
        Content::Events(lines) => {
            lines.gap(&mut |data| chunk(data, sink));
            sink(ResponseEvent::Complete(None));
        }
        Content::Json { kept, .. } => sink(ResponseEvent::Complete(Some(ResponseFields::read(kept)))),
    }
}

struct ResponseHead {
    status: u16,
    stream: bool,
    body: Body,
}

fn parse(head: &[u8]) -> Option<ResponseHead> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    if !response.parse(head).ok()?.is_complete() {
        return None;
    }
    let status = response.code?;
    let (mut body, mut stream) = (None, false);
    for header in response.headers.iter() {
        let Ok(value) = std::str::from_utf8(header.value) else { continue };
        body = announced(header.name, value, body);
        if header.name.eq_ignore_ascii_case("content-type") {
            stream = value.trim_start().to_ascii_lowercase().starts_with("text/event-stream");
        }
    }
    let body = if matches!(status, 204 | 304) { Body::Length(0) } else { body.unwrap_or(Body::UntilClose) };
    Some(ResponseHead { status, stream, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n25\r\ndata: {\"id\":\"cmpl-1\",\"choices\":[1]}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    const JSON: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 26\r\n\r\n{\"error\":{\"message\":\"no\"}}";

    fn read(calls: &[(u64, &[u8])]) -> Vec<ResponseEvent> {
        let mut responses = Responses::default();
        let mut out = Vec::new();
        for (len, bytes) in calls {
            responses.push(*len, bytes, &mut |e| out.push(e));
        }
        out
    }

    #[test]
    fn a_stream_then_an_error_on_one_connection_however_cut() {
        let both = [STREAM, JSON].concat();
        let whole = read(&[(both.len() as u64, &both)]);
        assert_eq!(whole[0], ResponseEvent::Head { status: 200, stream: true });
        assert!(matches!(&whole[1], ResponseEvent::Chunk(f) if f.id.as_deref() == Some("cmpl-1")));
        assert_eq!(whole[2..4], [ResponseEvent::DoneMark, ResponseEvent::Complete(None)]);
        assert!(matches!(&whole[5], ResponseEvent::Complete(Some(f)) if f.error));
        for cut in 1..both.len() {
            let (a, b) = both.split_at(cut);
            assert_eq!(read(&[(a.len() as u64, a), (b.len() as u64, b)]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_large_body_that_the_cap_cut_completes_and_gives_its_id() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n";
        let events = read(&[(head.len() as u64, head), (60000, b"{\"id\":\"cmpl-9\",\"object\":")]);
        assert!(matches!(&events[1], ResponseEvent::Complete(Some(f)) if f.id.as_deref() == Some("cmpl-9")));
    }
}
