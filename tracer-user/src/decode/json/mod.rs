//! The few JSON fields that tracing needs, out of bodies that may be cut.
//!
//! Enters: the bytes of request and response bodies. Leaves: scalars by name; what is not known is `None`. Never keeps a prompt or an
//! output.

mod request;
mod response;
mod scan;

pub use request::{RequestFields, RequestReader};
pub use response::{ResponseFields, ResponseReader};

/// A string of JSON as text; its escapes undone, as far as it is one.
fn text(raw: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(raw).ok().or_else(|| {
        // The limit may have cut a character.
        let end = raw.utf8_chunks().next()?.valid();
        Some(end)
    })?;
    if !text.contains('\\') {
        return Some(text.to_owned());
    }
    Some(serde_json::from_str(&format!("\"{text}\"")).unwrap_or_else(|_| text.to_owned()))
}
