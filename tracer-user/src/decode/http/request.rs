//! The requests that come in on a connection.

use super::body::{Body, Progress};
use super::head::{Assembly, Head, announced};
use super::{MAX_BODY, MAX_HEADERS, may_start_request, starts_request};
use crate::decode::json::RequestFields;

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
pub enum RequestEvent {
    /// The first byte of a request.
    Started,
    Head(RequestHead),
    /// The last byte of it, with what its body asks for.
    Complete(RequestFields),
    /// What started is no request after all, or a gap swallowed its head.
    Lost,
}

#[derive(Debug, Default)]
enum State {
    /// Not at a known place; the next call that starts a request does.
    #[default]
    Idle,
    Head(Head),
    Body {
        body: Body,
        kept: Vec<u8>,
        cut: bool,
    },
}

/// Longest header value that is kept (W3C trace context: tracestate is 512 at least).
const MAX_VALUE: usize = 512;

/// The parser of the incoming direction.
#[derive(Debug, Default)]
pub struct Requests {
    state: State,
}

impl Requests {
    /// Takes the bytes of one call that moved `len` bytes.
    pub fn push(&mut self, len: u64, bytes: &[u8], sink: &mut impl FnMut(RequestEvent)) {
        let gap = len.saturating_sub(bytes.len() as u64);
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.step(rest, sink);
        }
        if gap > 0 {
            self.gap(gap, sink);
        }
    }

    fn gap(&mut self, gap: u64, sink: &mut impl FnMut(RequestEvent)) {
        match &mut self.state {
            State::Idle => {}
            State::Head(_) => {
                self.state = State::Idle;
                sink(RequestEvent::Lost);
            }
            State::Body { body, kept, cut } => {
                *cut = true;
                if body.gap(gap) != Progress::More {
                    sink(RequestEvent::Complete(RequestFields::read(kept)));
                    self.state = State::Idle;
                }
            }
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
                self.state = State::Head(Head::default());
                bytes
            }
            State::Head(head) => match head.push(bytes) {
                Assembly::More => &[],
                Assembly::TooLong => {
                    self.state = State::Idle;
                    sink(RequestEvent::Lost);
                    &[]
                }
                Assembly::Whole(used) => {
                    let Some((head, body)) = parse(head.bytes()) else {
                        self.state = State::Idle;
                        sink(RequestEvent::Lost);
                        return &[];
                    };
                    sink(RequestEvent::Head(head));
                    if let Some(body) = body {
                        self.state = State::Body { body, kept: Vec::new(), cut: false };
                    } else {
                        self.state = State::Idle;
                        sink(RequestEvent::Complete(RequestFields::default()));
                    }
                    &bytes[used..]
                }
            },
            State::Body { body, kept, cut } => {
                let cut = *cut;
                let progress = body.advance(bytes, &mut |data| {
                    // After a cut, later bytes would be read as if they followed.
                    if !cut {
                        kept.extend_from_slice(&data[..data.len().min(MAX_BODY - kept.len())]);
                    }
                });
                match progress {
                    Progress::More => &[],
                    Progress::Ended(used) => {
                        sink(RequestEvent::Complete(RequestFields::read(kept)));
                        self.state = State::Idle;
                        &bytes[used..]
                    }
                }
            }
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

    fn parse_calls(calls: &[(u64, &[u8])]) -> Vec<RequestEvent> {
        let mut requests = Requests::default();
        let mut out = Vec::new();
        for (len, bytes) in calls {
            requests.push(*len, bytes, &mut |e| out.push(e));
        }
        out
    }

    #[test]
    fn a_split_and_pipelined_stream_gives_the_same_requests() {
        let two = [POST, POST].concat();
        let whole = parse_calls(&[(two.len() as u64, &two)]);
        assert_eq!(whole.len(), 6);
        let RequestEvent::Head(head) = &whole[1] else { panic!("{whole:?}") };
        assert_eq!(
            (head.method.as_str(), head.path.as_str(), head.request_id.as_deref()),
            ("POST", "/v1/completions", Some("r7"))
        );
        assert!(matches!(&whole[2], RequestEvent::Complete(f) if f.stream == Some(true)));
        for cut in 1..two.len() {
            let (a, b) = two.split_at(cut);
            assert_eq!(parse_calls(&[(a.len() as u64, a), (b.len() as u64, b)]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_body_that_the_cap_cut_still_completes() {
        let events = parse_calls(&[(POST.len() as u64, &POST[..POST.len() - 10]), (POST.len() as u64, POST)]);
        assert_eq!(events.iter().filter(|e| matches!(e, RequestEvent::Complete(_))).count(), 2);
    }

    #[test]
    fn an_attach_inside_a_body_waits_for_the_next_request() {
        let events = parse_calls(&[(9, b"true}}}}}"), (POST.len() as u64, POST)]);
        assert_eq!(events.len(), 3);
    }
}
