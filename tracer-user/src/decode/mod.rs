//! Bytes to messages: ring records, HTTP/1.1, SSE, JSON fields, ZMTP 3.1 and msgpack. Pure and incremental.
//!
//! Enters: the bytes of one direction of one connection, cut anywhere, with gaps where the capture cap cut them. Leaves:
//! whole messages, or what a cut one holds, marked so. The same stream cut elsewhere gives the same messages. Refused: what
//! does not parse is counted and skipped up to the next place where parsing can start again.

pub mod http;
pub mod json;
pub mod msgpack;
pub mod record;
pub mod sse;
pub mod zmtp;
