//! What the heads of messages say.
//!
//! Enters: a whole head. Leaves: what is kept of it, and the body that follows. Refused: what is no HTTP/1 head.

use serde::{Deserialize, Serialize};

use super::body::Body;
use super::head::announced;

/// Most headers of a head that are looked at.
const MAX_HEADERS: usize = 128;
/// Longest header value that is kept (W3C trace context: tracestate is 512 at least).
const MAX_VALUE: usize = 512;

/// What a request's head says. Of the header values only trace context and request id are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestHead {
    pub method: String,
    /// Without the query.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

/// The head, and the body that follows it if one does.
pub(super) fn parse_request(head: &[u8]) -> Option<(RequestHead, Option<Body>)> {
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

/// What a response's head says.
pub(super) struct ResponseHead {
    pub status: u16,
    /// The body is server-sent events.
    pub stream: bool,
    pub body: Body,
}

/// The head; its body is what follows unless the request says otherwise (HEAD, CONNECT).
pub(super) fn parse_response(head: &[u8]) -> Option<ResponseHead> {
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
