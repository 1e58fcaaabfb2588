//! The responses that go out on a connection, one after the other.

use super::body::{Body, Progress};
use super::head::{Assembly, Head, announced};
use super::{MAX_HEADERS, starts_response};
use crate::decode::json::{ResponseFields, ResponseReader};
use crate::decode::sse;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ResponseEvent {
    /// Status line and headers; `stream`: the body is server-sent events.
    Head { status: u16, stream: bool },
    /// One `data:` chunk of a stream.
    Chunk(ResponseFields),
    /// `data: [DONE]`.
    DoneMark,
    /// The last byte; with what the body says when it is no stream.
    Complete(Option<ResponseFields>),
}

/// What the parser has to know of the request that it reads the response to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Head,
    Connect,
    Other,
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
    /// After a 101, or a CONNECT that was granted: no HTTP any more.
    Foreign,
}

#[derive(Debug)]
enum Content {
    Events(sse::Lines),
    Json(ResponseReader),
}

/// The parser of the outgoing direction.
#[derive(Debug, Default)]
pub(super) struct Responses {
    state: State,
    /// Bytes of the response being read are missing, so where it ends is not known.
    doubtful: bool,
}

impl Responses {
    /// Takes the next bytes; `tail`: what stands before them in the same call is not there. `asked` tells of the request that a
    /// response which begins answers.
    pub fn push(
        &mut self,
        bytes: &[u8],
        tail: bool,
        asked: &mut impl FnMut() -> Asked,
        sink: &mut impl FnMut(ResponseEvent),
    ) {
        let mut rest = bytes;
        let mut tail = tail;
        while !rest.is_empty() {
            rest = self.step(rest, std::mem::take(&mut tail), asked, sink);
        }
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Past the head of a response.
    pub fn is_in_body(&self) -> bool {
        matches!(self.state, State::Body { .. })
    }

    pub fn is_foreign(&self) -> bool {
        matches!(self.state, State::Foreign)
    }

    /// Where the response being read ends is not known.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    pub fn held_bytes(&self) -> usize {
        match &self.state {
            State::Idle | State::Foreign => 0,
            State::Head(head) => head.bytes().len(),
            State::Body { content: Content::Events(lines), .. } => lines.held_bytes(),
            State::Body { content: Content::Json(reader), .. } => reader.held_bytes(),
        }
    }

    /// The connection ended: a body that runs until then is complete.
    pub fn closed(&mut self, sink: &mut impl FnMut(ResponseEvent)) {
        if let State::Body { body: Body::UntilClose, content } = &mut self.state {
            complete(content, sink);
        }
        self.state = State::Idle;
    }

    /// Forgets the response being read.
    pub fn abandon(&mut self) {
        self.doubtful = false;
        self.state = State::Idle;
    }

    /// `gap` bytes are missing here. `lost`: they were not left out on purpose, so that there may be more missing than of this
    /// response.
    pub fn gap(&mut self, gap: u64, sink: &mut impl FnMut(ResponseEvent)) {
        match &mut self.state {
            State::Idle | State::Foreign => {}
            State::Head(_) => self.state = State::Idle,
            State::Body { body, content } => {
                content.gap(sink);
                if body.gap(gap) != Progress::More {
                    complete(content, sink);
                    self.abandon();
                } else if body.is_lost() {
                    self.doubtful = true;
                }
            }
        }
    }

    /// It is not known how many bytes are missing here.
    pub fn doubt(&mut self, sink: &mut impl FnMut(ResponseEvent)) {
        if let State::Body { content, body } = &mut self.state {
            content.gap(sink);
            if let Body::Chunked(chunk) = body {
                chunk.lose();
            }
        }
        self.doubtful = !self.is_idle();
    }

    fn begin(&mut self, head: ResponseHead, asked: Asked, sink: &mut impl FnMut(ResponseEvent)) {
        sink(ResponseEvent::Head { status: head.status, stream: head.stream });
        self.doubtful = false;
        if asked == Asked::Connect && head.status < 300 {
            self.state = State::Foreign;
            return;
        }
        // The answer to a HEAD has the length that the body would have, and no body (RFC 9110 section 9.3.2).
        if asked == Asked::Head || matches!(head.body, Body::Length(0)) {
            sink(ResponseEvent::Complete(None));
            return;
        }
        let content = if head.stream {
            Content::Events(sse::Lines::default())
        } else {
            Content::Json(ResponseReader::default())
        };
        self.state = State::Body { body: head.body, content };
    }

    fn step<'b>(
        &mut self,
        bytes: &'b [u8],
        tail: bool,
        asked: &mut impl FnMut() -> Asked,
        sink: &mut impl FnMut(ResponseEvent),
    ) -> &'b [u8] {
        match &mut self.state {
            State::Foreign => &[],
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
                        Some(ResponseHead { status: 101, .. }) => self.state = State::Foreign,
                        // 1xx: the real response follows.
                        Some(ResponseHead { status: 100..=199, .. }) => {}
                        Some(head) => self.begin(head, asked(), sink),
                        None => return &[],
                    }
                    &bytes[used..]
                }
            },
            State::Body { body, content } => {
                let mut take = |data: &[u8]| match content {
                    Content::Events(lines) => lines.push(data, &mut |p| chunk(p, sink)),
                    Content::Json(reader) => reader.feed(data),
                };
                let progress =
                    if tail { body.advance_tail(bytes, &mut take) } else { body.advance(bytes, &mut take) };
                self.doubtful &= body.is_lost();
                match progress {
                    Progress::More => &[],
                    Progress::Ended(used) => {
                        complete(content, sink);
                        self.abandon();
                        &bytes[used..]
                    }
                }
            }
        }
    }
}

impl Content {
    fn gap(&mut self, sink: &mut impl FnMut(ResponseEvent)) {
        match self {
            Self::Events(lines) => lines.gap(&mut |payload| chunk(payload, sink)),
            Self::Json(reader) => reader.gap(),
        }
    }
}

fn chunk(payload: sse::Payload<'_>, sink: &mut impl FnMut(ResponseEvent)) {
    if payload.data == b"[DONE]" {
        sink(ResponseEvent::DoneMark);
    } else {
        let mut fields = ResponseFields::read(payload.data);
        fields.error |= payload.error;
        sink(ResponseEvent::Chunk(fields));
    }
}

fn complete(content: &mut Content, sink: &mut impl FnMut(ResponseEvent)) {
    match content {
        Content::Events(lines) => {
            lines.gap(&mut |payload| chunk(payload, sink));
            sink(ResponseEvent::Complete(None));
        }
        Content::Json(reader) => sink(ResponseEvent::Complete(Some(reader.finish()))),
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

    fn read(calls: &[&[u8]]) -> Vec<ResponseEvent> {
        let mut responses = Responses::default();
        let mut out = Vec::new();
        for bytes in calls {
            responses.push(bytes, false, &mut || Asked::Other, &mut |e| out.push(e));
        }
        out
    }

    #[test]
    fn a_stream_then_an_error_on_one_connection_however_cut() {
        let both = [STREAM, JSON].concat();
        let whole = read(&[&both]);
        assert_eq!(whole[0], ResponseEvent::Head { status: 200, stream: true });
        assert!(matches!(&whole[1], ResponseEvent::Chunk(f) if f.id.as_deref() == Some("cmpl-1")));
        assert_eq!(whole[2..4], [ResponseEvent::DoneMark, ResponseEvent::Complete(None)]);
        assert!(matches!(&whole[5], ResponseEvent::Complete(Some(f)) if f.error));
        for cut in 1..both.len() {
            let (a, b) = both.split_at(cut);
            assert_eq!(read(&[a, b]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn the_answer_to_a_head_has_a_length_and_no_body() {
        let mut responses = Responses::default();
        let mut out = Vec::new();
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n";
        responses.push(head, false, &mut || Asked::Head, &mut |e| out.push(e));
        assert_eq!(out[1], ResponseEvent::Complete(None));
        assert!(responses.is_idle());
    }
}
