//! HTTP/1.1 of one connection: a parser a direction, and the [`conversation`] that pairs them.
//!
//! Enters: the bytes of each call in order, with gaps where something is missing. Leaves: heads, the fields of bodies, and ends,
//! pipelined and keep-alive ones in order, each of its request. Refused: heads over [`MAX_HEAD`]; what does not parse is skipped until a call that
//! starts a message.

mod body;
pub mod conversation;
mod head;
mod request;
mod response;

pub use request::RequestHead;

/// Longest head that is assembled, bytes (uvicorn's h11 limit is 64 KiB).
const MAX_HEAD: usize = 64 * 1024;
/// Longest request line that is looked for, bytes.
const MAX_LINE: usize = 8 * 1024;
/// Most headers of a head that are looked at.
const MAX_HEADERS: usize = 128;

const METHODS: [&[u8]; 7] = [b"POST ", b"GET ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH "];

/// Whether `bytes` starts like a request to a server.
pub fn starts_request(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| bytes.starts_with(method))
}

/// Whether `bytes` starts with a whole request line (RFC 9112 section 3): what a body would hold by the rarest chance only.
pub fn starts_request_line(bytes: &[u8]) -> bool {
    let line = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = memchr::memchr(b'\r', line) else { return false };
    let mut words = line[..end].split(|&b| b == b' ');
    starts_request(bytes)
        && words.next().is_some()
        && words.next().is_some_and(|target| target.starts_with(b"/") || target.starts_with(b"http") || target == b"*")
        && words.next().is_some_and(|version| version.starts_with(b"HTTP/1."))
        && words.next().is_none()
}

/// Whether `bytes` is all of a call that ended inside a request's method.
pub fn may_start_request(bytes: &[u8]) -> bool {
    !bytes.is_empty() && METHODS.iter().any(|method| method.starts_with(bytes))
}

/// Whether `bytes` starts like a response.
pub fn starts_response(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.")
}
