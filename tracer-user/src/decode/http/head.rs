//! A message head put together from the calls it came in, and what it says of the body.

use super::MAX_HEAD;
use super::body::{Body, Chunk};

/// A head so far.
#[derive(Debug, Default)]
pub(super) struct Head(Vec<u8>);

/// What some more bytes did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assembly {
    More,
    /// Over [`MAX_HEAD`].
    TooLong,
    /// The head is whole; this many of the bytes were its.
    Whole(usize),
}

impl Head {
    /// Takes the bytes of a call.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Assembly {
        let before = self.0.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(MAX_HEAD + 4 - before)]);
        let from = before.saturating_sub(3);
        match memchr::memmem::find(&self.0[from..], b"\r\n\r\n") {
            Some(i) => {
                self.0.truncate(from + i + 4);
                Assembly::Whole(self.0.len() - before)
            }
            None if self.0.len() > MAX_HEAD => Assembly::TooLong,
            None => Assembly::More,
        }
    }

    /// Bytes that are held of it.
    pub(super) fn held_bytes(&self) -> usize {
        self.0.capacity()
    }

    /// The head, once whole.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The body that a header announces (RFC 9112 section 6: the chunked coding overrides a length).
pub(super) fn announced(name: &str, value: &str, so_far: Option<Body>) -> Option<Body> {
    if name.eq_ignore_ascii_case("transfer-encoding") && value.to_ascii_lowercase().contains("chunked") {
        return Some(Body::Chunked(Chunk::Size(Vec::new())));
    }
    match so_far {
        None if name.eq_ignore_ascii_case("content-length") => value.trim().parse().ok().map(Body::Length),
        other => other,
    }
}
