//! HTTP/1.1 as uvicorn speaks it: requests out of a byte buffer, responses in the same writes.
//!
//! Takes bodies by length or chunked, up to [`MAX_BODY`]. Anything that is no HTTP request is refused with uvicorn's own
//! words and the connection is closed.

/// Larger than any prompt that fits the model, smaller than what would hurt.
const MAX_BODY: usize = 8 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub request_id: Option<String>,
    pub keep_alive: bool,
    pub body: Vec<u8>,
}

/// What a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The request, and how many bytes it took.
    Request(Request, usize),
    /// Not yet a whole request; `expects` when the client waits for `100 Continue`.
    More {
        expects: bool,
    },
    Invalid,
}

pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut headers);
    let start = match head.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) if bytes.len() < 64 << 10 => return Parsed::More { expects: false },
        Ok(httparse::Status::Partial) | Err(_) => return Parsed::Invalid,
    };
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| str::from_utf8(header.value).ok()).map(str::trim)
    };
    let body = &bytes[start..];
    let taken = if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        unchunk(body)
    } else {
        match header("content-length").map_or(Ok(0), str::parse::<usize>) {
            Ok(len) if len > MAX_BODY => return Parsed::Invalid,
            Ok(len) => Ok((body.len() >= len).then(|| (body[..len].to_vec(), len))),
            Err(_) => Err(()),
        }
    };
    match taken {
        Err(()) => Parsed::Invalid,
        Ok(None) => Parsed::More { expects: body.is_empty() && header("expect") == Some("100-continue") },
        Ok(Some((content, len))) => {
            let close = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            let path = head.path.unwrap_or("/");
            let request = Request {
                method: head.method.unwrap_or_default().to_owned(),
                path: path.split('?').next().unwrap_or(path).to_owned(),
                request_id: header("x-request-id").map(str::to_owned),
                keep_alive: head.version == Some(1) && !close,
                body: content,
            };
            Parsed::Request(request, start + len)
        }
    }
}

/// Content and length on the wire of a chunked body; `None` when it is not all there.
fn unchunk(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let mut content = Vec::new();
    let mut at = 0;
    loop {
        let (head, len) = match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete((head, len))) => (head, len as usize),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(()),
        };
        if len > MAX_BODY || content.len() + len > MAX_BODY {
            return Err(());
        }
        at += head;
        let Some(chunk) = bytes.get(at..at + len + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err(());
        }
        content.extend(&chunk[..len]);
        at += len + 2;
        if len == 0 {
            return Ok(Some((content, at)));
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

fn head(status: u16, length: Option<usize>, content: &str, keep_alive: bool) -> Vec<u8> {
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    let length = length.map_or_else(String::new, |length| format!("content-length: {length}\r\n"));
    let chunked = if length.is_empty() { "transfer-encoding: chunked\r\n" } else { "" };
    let connection = if keep_alive { "" } else { "connection: close\r\n" };
    let reason = reason(status);
    format!(
        "HTTP/1.1 {status} {reason}\r\ndate: {date}\r\nserver: uvicorn\r\n{length}content-type: {content}\r\n\
         vary: Origin\r\n{chunked}{connection}\r\n"
    )
    .into_bytes()
}

/// Head and body, which leave in two writes.
pub fn response(status: u16, content: &str, body: Vec<u8>, keep_alive: bool) -> [Vec<u8>; 2] {
    [head(status, Some(body.len()), content, keep_alive), body]
}

pub fn json(status: u16, body: &str, keep_alive: bool) -> [Vec<u8>; 2] {
    response(status, "application/json", body.as_bytes().to_vec(), keep_alive)
}

/// The head of an SSE stream.
pub fn stream_head(keep_alive: bool) -> Vec<u8> {
    head(200, None, "text/event-stream; charset=utf-8", keep_alive)
}

/// One SSE event as one chunk.
pub fn event(data: &str) -> Vec<u8> {
    format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8).into_bytes()
}

/// The chunk that ends a stream.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What uvicorn says to anything else.
pub fn invalid() -> Vec<u8> {
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\n\
      Invalid HTTP request received."
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &[u8] =
        b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: h\r\nX-Request-Id: r\r\nContent-Length: 2\r\n\r\n{}GET";

    #[test]
    fn a_request_ends_where_its_body_ends() {
        let Parsed::Request(request, taken) = parse(POST) else { panic!("no request") };
        assert_eq!((request.path.as_str(), request.request_id.as_deref()), ("/v1/completions", Some("r")));
        assert_eq!(&POST[taken..], b"GET");
    }

    #[test]
    fn every_prefix_of_a_request_asks_for_more() {
        for cut in 0..POST.len() - 3 - 1 {
            assert_eq!(parse(&POST[..cut]), Parsed::More { expects: false }, "cut at {cut}");
        }
    }

    #[test]
    fn chunked_bodies_are_joined() {
        let bytes = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let Parsed::Request(request, taken) = parse(bytes) else { panic!("no request") };
        assert_eq!((request.body.as_slice(), taken), (&b"abcde"[..], bytes.len()));
    }

    #[test]
    fn a_chunk_of_an_event_counts_its_own_bytes() {
        assert_eq!(event("[DONE]"), b"e\r\ndata: [DONE]\n\n\r\n");
    }
}
