//! The requests that come in on a connection: heads and bodies, one after the other.

use super::body::{Body, Progress};
use super::head::{Assembly, Head, announced};
use super::{MAX_HEADERS, may_start_request, starts_request};
use crate::decode::json::{RequestFields, RequestReader};

/// What a request's head says. Of the header values only trace context and request id are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHead {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub request_id: Option<String>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum RequestEvent {
    /// The first byte of a request.
    Started,
    Head(RequestHead),
    /// The last byte of it, with what its body asks for.
    Complete(RequestFields),
    /// What started is no request after all, or a gap swallowed its head.
    Dropped,
}

#[derive(Debug, Default)]
enum State {
    /// Not at a known place; the next call that starts a request does.
    #[default]
    Idle,
    Head(Head),
    Body {
        body: Body,
        reader: RequestReader,
        /// Nobody wants to hear of it any more: it was answered before all of it came.
        answered: bool,
    },
}

/// Longest header value that is kept (W3C trace context: tracestate is 512 at least).
const MAX_VALUE: usize = 512;

/// The parser of the incoming direction.
#[derive(Debug, Default)]
pub(super) struct Requests {
    state: State,
    /// Bytes of the request being read are missing, so where it ends is not known.
    doubtful: bool,
}

impl Requests {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8], sink: &mut impl FnMut(RequestEvent)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.step(rest, sink);
        }
    }

    /// In the middle of a request; a body, if its head is over.
    pub fn is_in_body(&self) -> bool {
        matches!(self.state, State::Body { .. })
    }

    pub fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Where the request being read ends is not known.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    pub fn held_bytes(&self) -> usize {
        match &self.state {
            State::Idle => 0,
            State::Head(head) => head.bytes().len(),
            State::Body { reader, .. } => reader.held_bytes(),
        }
    }

    /// `gap` bytes are missing here.
    pub fn gap(&mut self, gap: u64, sink: &mut impl FnMut(RequestEvent)) {
        match &mut self.state {
            State::Idle => {}
            State::Head(_) => {
                self.state = State::Idle;
                sink(RequestEvent::Dropped);
            }
            State::Body { body, reader, .. } => {
                reader.gap();
                if body.gap(gap) != Progress::More {
                    self.end(sink);
                } else if body.is_lost() {
                    self.doubtful = true;
                }
            }
        }
    }

    /// It is not known how many bytes are missing here.
    pub fn doubt(&mut self, sink: &mut impl FnMut(RequestEvent)) {
        match &mut self.state {
            State::Idle => {}
            State::Head(_) => self.gap(1, sink),
            State::Body { reader, .. } => {
                reader.gap();
                self.doubtful = true;
            }
        }
    }

    /// The request being read is over, however much of it came.
    pub fn end(&mut self, sink: &mut impl FnMut(RequestEvent)) {
        self.doubtful = false;
        match std::mem::take(&mut self.state) {
            State::Idle => {}
            State::Head(_) => sink(RequestEvent::Dropped),
            State::Body { mut reader, answered, .. } => {
                if !answered {
                    sink(RequestEvent::Complete(reader.finish()));
                }
            }
        }
    }

    /// The request being read was answered: what still comes of its body is passed over.
    pub fn answered(&mut self, sink: &mut impl FnMut(RequestEvent)) {
        if let State::Body { reader, answered, .. } = &mut self.state
            && !std::mem::replace(answered, true)
        {
            sink(RequestEvent::Complete(reader.finish()));
        }
    }

    /// Consumes some of `bytes` (not empty); returns what is left.
    fn step<'b>(&mut self, bytes: &'b [u8], sink: &mut impl FnMut(RequestEvent)) -> &'b [u8] {
        match &mut self.state {
            State::Idle => {
                if !starts_request(bytes) && !may_start_request(bytes) {
                    // Stray CRLFs between requests are allowed (RFC 9112 section 2.2); anything else is skipped to the next call.
                    return match bytes {
                        [b'\r' | b'\n', rest @ ..] => rest,
                        _ => &[],
                    };
                }
                sink(RequestEvent::Started);
                self.doubtful = false;
                self.state = State::Head(Head::default());
                bytes
            }
            State::Head(head) => match head.push(bytes) {
                Assembly::More => &[],
                Assembly::TooLong => {
                    self.state = State::Idle;
                    sink(RequestEvent::Dropped);
                    &[]
                }
                Assembly::Whole(used) => {
                    let Some((head, body)) = parse(head.bytes()) else {
                        self.state = State::Idle;
                        sink(RequestEvent::Dropped);
                        return &[];
                    };
                    sink(RequestEvent::Head(head));
                    if let Some(body) = body {
                        self.state = State::Body { body, reader: RequestReader::default(), answered: false };
                    } else {
                        self.state = State::Idle;
                        sink(RequestEvent::Complete(RequestFields { whole: true, ..RequestFields::default() }));
                    }
                    &bytes[used..]
                }
            },
            State::Body { body, reader, .. } => match body.advance(bytes, &mut |data| reader.feed(data)) {
                Progress::More => &[],
                Progress::Ended(used) => {
                    self.end(sink);
                    &bytes[used..]
                }
            },
        }
    }
}

/// The head, and the body that follows it if one does.
fn parse(head: &[u8]) -> Option<(RequestHead, Option<Body>)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(head).ok()?.is_complete() {
        return None;
    }
    let path = request.path?;
    let mut out = RequestHead {
        method: request.method?.to_owned(),
        path: path.split(['?', '#']).next().unwrap_or(path).chars().take(MAX_VALUE).collect(),
        ..RequestHead::default()
    };
    let mut body = None;
    for header in request.headers.iter() {
        let Ok(value) = std::str::from_utf8(header.value) else { continue };
        let keep = || Some(value.chars().take(MAX_VALUE).collect::<String>()).filter(|v| !v.is_empty());
        body = announced(header.name, value, body);
        if header.name.eq_ignore_ascii_case("x-request-id") {
            out.request_id = keep();
        } else if header.name.eq_ignore_ascii_case("traceparent") {
            out.traceparent = keep();
        } else if header.name.eq_ignore_ascii_case("tracestate") {
            out.tracestate = keep();
        }
    }
    // A length of 0 is no body.
    Some((out, body.filter(|body| !matches!(body, Body::Length(0)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &[u8] = b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a\r\nX-Request-Id: r7\r\nAuthorization: secret\r\nContent-Length: 27\r\n\r\n{\"model\":\"m\",\"stream\":true}";

    fn parse_calls(calls: &[&[u8]]) -> Vec<RequestEvent> {
        let mut requests = Requests::default();
        let mut out = Vec::new();
        for bytes in calls {
            requests.push(bytes, &mut |e| out.push(e));
        }
        out
    }

    #[test]
    fn a_split_and_pipelined_stream_gives_the_same_requests() {
        let two = [POST, POST].concat();
        let whole = parse_calls(&[&two]);
        assert_eq!(whole.len(), 6);
        let RequestEvent::Head(head) = &whole[1] else { panic!("{whole:?}") };
        assert_eq!(
            (head.method.as_str(), head.path.as_str(), head.request_id.as_deref()),
            ("POST", "/v1/completions", Some("r7"))
        );
        assert!(matches!(&whole[2], RequestEvent::Complete(f) if f.stream == Some(true)));
        for cut in 1..two.len() {
            let (a, b) = two.split_at(cut);
            assert_eq!(parse_calls(&[a, b]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_attach_inside_a_body_waits_for_the_next_request() {
        assert_eq!(parse_calls(&[b"true}}}}}", POST]).len(), 3);
    }
}
