//! HTTP/1.1 of one connection, one parser a direction.
//!
//! Enters: the bytes of each call in order, with gaps where the capture cap cut. Leaves: heads, the fields of bodies, and ends,
//! pipelined and keep-alive ones in order. Refused: heads over [`MAX_HEAD`]; what does not parse is skipped until a call that
//! starts a message.

mod body;
pub mod conversation;
mod head;
pub mod request;
pub mod response;

pub use request::{RequestEvent, RequestHead, Requests};
pub use response::{ResponseEvent, Responses};

/// Longest head that is assembled, bytes (uvicorn's h11 limit is 64 KiB).
const MAX_HEAD: usize = 64 * 1024;
/// Most headers of a head that are looked at.
const MAX_HEADERS: usize = 128;
/// Bytes of a JSON body that are kept to read fields from.
const MAX_BODY: usize = 64 * 1024;

const METHODS: [&[u8]; 7] = [b"POST ", b"GET ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH "];

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
