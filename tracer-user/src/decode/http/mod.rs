//! HTTP/1.1 of one connection: both its directions, as one [`Conversation`].
//!
//! Enters: the pieces of each call in order, with gaps where something is missing. Leaves: heads, the fields of bodies, and ends,
//! pipelined and keep-alive ones in order, each of its request. Refused: heads over [`MAX_HEAD`]; what does not parse is skipped until a call that
//! starts a message.

mod body;
mod conversation;
mod head;
mod message;

pub use conversation::{Conversation, HttpEvent, Piece, What};
pub use message::RequestHead;

/// Longest head that is assembled, bytes (uvicorn's h11 limit is 64 KiB).
const MAX_HEAD: usize = 64 * 1024;

const METHODS: [&[u8]; 8] = [b"POST ", b"GET ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT "];

/// Whether `bytes` starts like a request to a server.
pub fn starts_request(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| bytes.starts_with(method))
}

/// Whether `bytes` is all of a call that ended inside a request's method.
pub fn may_start_request(bytes: &[u8]) -> bool {
    !bytes.is_empty() && METHODS.iter().any(|method| method.starts_with(bytes))
}

/// Whether `bytes` starts like a response.
pub fn starts_response(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.")
}

/// Whether `bytes` starts with a whole request line, `METHOD SP target SP HTTP/1.x CRLF`: what a body hardly ever does.
fn starts_request_line(bytes: &[u8]) -> bool {
    let Some(end) = memchr::memchr(b'\n', bytes).filter(|_| starts_request(bytes)) else { return false };
    let mut words = bytes[..end].trim_ascii_end().split(|b| *b == b' ').skip(1);
    let (target, version) = (words.next(), words.next());
    let target = target.is_some_and(|t| !t.is_empty() && t.iter().all(u8::is_ascii_graphic));
    target && words.next().is_none() && matches!(version, Some(b"HTTP/1.1" | b"HTTP/1.0"))
}

/// Whether `bytes` starts with a status line as far as the status code.
fn starts_status_line(bytes: &[u8]) -> bool {
    matches!(bytes, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', b'1'..=b'5', b, c, ..]
        if b.is_ascii_digit() && c.is_ascii_digit())
}
