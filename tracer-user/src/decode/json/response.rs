//! What a response body, or one chunk of a stream, says.
//!
//! Enters: bytes that may be cut. Leaves: the fields that tracing needs; never an output. A quote inside a JSON string is escaped, so a
//! quoted key followed by a colon is a key, wherever in the body the bytes start.

use super::scan::{Scan, Value};

/// Longest string value that is kept, bytes.
const MAX_STRING: usize = 256;
/// Bytes kept of the start and of the end of a body that is no stream: ids stand at the start, usage at the end.
const HEAD: usize = 8 * 1024;
const TAIL: usize = 4 * 1024;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseFields {
    pub id: Option<String>,
    pub model: Option<String>,
    /// Non-null finish reasons, in order.
    pub finish_reasons: Vec<String>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// The body reports an error instead of a result.
    pub error: bool,
    /// It carries output (or its end), not only usage or bookkeeping.
    pub content: bool,
}

impl ResponseFields {
    /// Looks `body` over for the fields.
    pub fn read(body: &[u8]) -> Self {
        Self::read_cut(body, &[])
    }

    /// Looks the two ends of a body over.
    fn read_cut(head: &[u8], tail: &[u8]) -> Self {
        // Not `stop_reason`: there vLLM puts the stop string itself, which is the client's text.
        let reasons = |part| strings(part, "\"finish_reason\"").map(str::to_owned);
        let mut finish_reasons: Vec<String> = reasons(head).chain(reasons(tail)).take(64).collect();
        let what = Kind::of(head);
        if what == Kind::Incomplete {
            finish_reasons.push("length".to_owned());
        }
        let usage = usage(tail).or_else(|| usage(head)).unwrap_or_default();
        let count = |keys: [&'static str; 2]| keys.into_iter().find_map(|key| number(usage, key));
        Self {
            id: strings(head, "\"id\"").next().map(str::to_owned),
            model: strings(head, "\"model\"").next().map(str::to_owned),
            finish_reasons,
            prompt_tokens: count(["\"prompt_tokens\"", "\"input_tokens\""]),
            completion_tokens: count(["\"completion_tokens\"", "\"output_tokens\""]),
            error: what == Kind::Error,
            content: memchr::memmem::find(head, b"\"choices\":[]").is_none(),
        }
    }
}

/// What kind of body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Result,
    Error,
    /// A response of the Responses API that ran out of tokens.
    Incomplete,
}

impl Kind {
    /// vLLM writes `{"error": {…}}`, older ones `{"object":"error"…}`, the Anthropic and Responses APIs `{"type":"error"…}` and
    /// `{"type":"response.failed"…}`; with and without white space.
    fn of(body: &[u8]) -> Self {
        // Nearly every chunk has none of these words, and a search is cheaper than a scan.
        let may_be = |word: &[u8]| memchr::memmem::find(body, word).is_some();
        if !may_be(b"\"error\"") && !may_be(b"\"response.failed\"") && !may_be(b"\"response.incomplete\"") {
            return Self::Result;
        }
        let mut kind = Self::Result;
        let mut take = |key: &[u8], value: Value<'_>| match (key, value) {
            (b"error", value) if value != Value::Scalar(b"null") => kind = Self::Error,
            (b"object" | b"type", Value::String(b"error")) | (b"type", Value::String(b"response.failed")) => {
                kind = Self::Error;
            }
            (b"type", Value::String(b"response.incomplete")) => kind = Self::Incomplete,
            _ => {}
        };
        let mut scan = Scan::default();
        scan.feed(body, &mut take);
        kind
    }
}

/// What follows the last `"usage"` that is an object.
fn usage(body: &[u8]) -> Option<&[u8]> {
    memchr::memmem::rfind_iter(body, b"\"usage\"").find_map(|at| {
        let rest = body[at + b"\"usage\"".len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        rest.starts_with(b"{").then_some(rest)
    })
}

/// What follows `key` and its colon.
fn values<'b>(body: &'b [u8], key: &'static str) -> impl Iterator<Item = &'b [u8]> {
    memchr::memmem::find_iter(body, key.as_bytes()).filter_map(move |at| {
        let rest = body[at + key.len()..].trim_ascii_start().strip_prefix(b":")?;
        Some(rest.trim_ascii_start())
    })
}

fn strings<'b>(body: &'b [u8], key: &'static str) -> impl Iterator<Item = &'b str> {
    values(body, key).filter_map(|rest| {
        let rest = rest.strip_prefix(b"\"")?;
        let end = memchr::memchr(b'"', &rest[..rest.len().min(MAX_STRING)])?;
        std::str::from_utf8(&rest[..end]).ok()
    })
}

fn number(body: &[u8], key: &'static str) -> Option<u64> {
    let rest = values(body, key).next()?;
    // A number that the bytes end in may go on.
    let end = rest.iter().position(|b| !b.is_ascii_digit())?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// Reads a body that is no stream, as it comes: keeps its two ends.
#[derive(Debug, Default)]
pub struct ResponseReader {
    head: Vec<u8>,
    tail: Vec<u8>,
    cut: bool,
}

impl ResponseReader {
    pub fn feed(&mut self, bytes: &[u8]) {
        let room = if self.cut { 0 } else { HEAD - self.head.len() };
        let (head, rest) = bytes.split_at(bytes.len().min(room));
        self.head.extend_from_slice(head);
        if rest.is_empty() {
            return;
        }
        self.cut = true;
        let rest = &rest[rest.len().saturating_sub(TAIL)..];
        if self.tail.len() + rest.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        }
        self.tail.extend_from_slice(rest);
    }

    /// Bytes are missing here.
    pub fn gap(&mut self) {
        self.cut = true;
        self.tail.clear();
    }

    pub fn held_bytes(&self) -> usize {
        self.head.capacity() + self.tail.capacity()
    }

    pub fn finish(&self) -> ResponseFields {
        ResponseFields::read_cut(&self.head, &self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_that_looks_like_a_key_is_not_one() {
        let body = br#"{"id":"cmpl-1","choices":[{"text":"say \"finish_reason\":\"length\"","finish_reason":"stop"}],"usage":{"completion_tokens": 12}}"#;
        let fields = ResponseFields::read(body);
        assert_eq!(fields.id.as_deref(), Some("cmpl-1"));
        assert_eq!(fields.finish_reasons, ["stop"]);
        assert_eq!(fields.completion_tokens, Some(12));
    }

    #[test]
    fn errors_are_told_in_every_spelling() {
        for body in [
            r#"{"error":{"message":"x"}}"#,
            r#"{"error": {"message": "x"}}"#,
            r#"{"object":"error","message":"x"}"#,
            r#"{"type": "error", "error": {"type": "api_error"}}"#,
            r#"{"type":"response.failed","response":{}}"#,
            r#"{"id":"x","error":"boom"}"#,
        ] {
            assert!(ResponseFields::read(body.as_bytes()).error, "{body}");
        }
        for body in [
            r#"{"id":"x","error":null,"choices":[]}"#,
            r#"{"choices":[{"text":"{\"error\": {"}]}"#,
            r#"{"choices":[{"delta":{"error":{"a":1},"type":"error"}}]}"#,
            r#"{"type":"response.completed","response":{"error":null,"type":"error"}}"#,
        ] {
            assert!(!ResponseFields::read(body.as_bytes()).error, "{body}");
        }
    }

    #[test]
    fn the_usage_of_a_long_body_is_read_from_its_end() {
        let text = "x ".repeat(40_000);
        let body = format!(
            r#"{{"id":"cmpl-9","choices":[{{"text":"{text}","finish_reason":"length"}}],"usage":{{"prompt_tokens":7,"total_tokens":49,"completion_tokens":42,"prompt_tokens_details":null}}}}"#
        );
        let body = body.as_bytes();
        let mut reader = ResponseReader::default();
        reader.feed(&body[..4096]);
        reader.gap();
        reader.feed(&body[body.len() - 4096..]);
        let fields = reader.finish();
        assert_eq!(fields.id.as_deref(), Some("cmpl-9"));
        assert_eq!(fields.finish_reasons, ["length"]);
        assert_eq!((fields.prompt_tokens, fields.completion_tokens), (Some(7), Some(42)));
    }
}
