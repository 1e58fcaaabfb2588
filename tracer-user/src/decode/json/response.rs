//! What a response's body, or one event of a stream, says.
//!
//! Enters: the bytes of the body and its gaps, as they come. Leaves: [`ResponseFields`]. The body is scanned as it passes;
//! after a gap its last bytes are kept and read at its end, where the usage stands. Invariant: a field is what a full parse
//! would give, or absent; text that a model or client wrote is never taken for a field. Never keeps an output.

use serde::{Deserialize, Serialize};

use super::scan::{Place, Scanner, Token};
use super::tail::{Window, read_tail};

/// Bytes after a gap that are kept for what stands at the end.
const TAIL: usize = 4 * 1024;
/// Most finish reasons of a body that are kept.
const MAX_REASONS: usize = 64;
/// Events that only say that an answer is on its way (Responses API and Anthropic messages).
const BOOKKEEPING: [&[u8]; 5] =
    [b"ping", b"message_start", b"response.created", b"response.in_progress", b"response.queued"];

/// Keys of strings that are the model's words: chat and completions, the Responses API's and Anthropic's deltas, and tools' arguments.
const TEXTS: [&str; 8] =
    ["content", "text", "delta", "reasoning", "reasoning_content", "thinking", "arguments", "partial_json"];

/// What one response body, or one chunk of a stream, says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResponseFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Non-null finish reasons, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finish_reasons: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// The body reports an error instead of a result.
    pub error: bool,
    /// It carries output (or its end), not only usage or bookkeeping.
    pub content: bool,
    /// Strings of it that are the model's words and not empty: where it is 0, an output has only begun, or ended.
    pub texts: u32,
}

impl ResponseFields {
    /// Reads a body, or an event's data, that is at hand.
    pub fn read(bytes: &[u8]) -> Self {
        let mut body = ResponseBody::default();
        body.push(bytes);
        body.finish()
    }
}

/// A response body as it comes.
#[derive(Debug)]
pub struct ResponseBody {
    scanner: Scanner,
    fields: ResponseFields,
    /// What follows the last gap.
    tail: Window,
    cut: bool,
}

impl Default for ResponseBody {
    fn default() -> Self {
        Self {
            scanner: Scanner::default(),
            fields: ResponseFields { content: true, ..ResponseFields::default() },
            tail: Window::new(TAIL),
            cut: false,
        }
    }
}

impl ResponseBody {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.cut {
            self.tail.push(bytes);
        } else {
            let fields = &mut self.fields;
            self.scanner.push(bytes, &mut |place, token| fields.take(place, token));
        }
    }

    /// Bytes are missing here. Nothing is held of what came before.
    pub fn gap(&mut self) {
        self.cut = true;
        self.scanner = Scanner::default();
        self.tail.clear();
    }

    /// The fields, at the body's end.
    pub fn finish(mut self) -> ResponseFields {
        if self.cut {
            let fields = &mut self.fields;
            read_tail(self.tail.bytes(), &mut |place, token| fields.take(place, token));
        }
        self.fields
    }

    /// The fields, where the body's end was not seen.
    pub fn give_up(self) -> ResponseFields {
        self.fields
    }

    pub fn held_bytes(&self) -> usize {
        self.scanner.held_bytes() + self.tail.held_bytes()
    }
}

impl ResponseFields {
    fn take(&mut self, place: Place<'_>, token: Token<'_>) {
        // The Responses API and Anthropic messages put the result's own fields one level deeper in stream events.
        let of_result =
            place.depth == 1 || (place.depth == 2 && matches!(place.inside(0), Some("response" | "message")));
        match (place.key, token) {
            (key, Token::Begins(b'"')) if TEXTS.contains(&key) => self.texts = self.texts.saturating_add(1),
            (key, Token::Text(b"")) if TEXTS.contains(&key) => self.texts = self.texts.saturating_sub(1),
            ("error", Token::Begins(byte)) => self.error |= place.depth == 1 && byte != b'n',
            (_, Token::Begins(_)) => {}
            ("", Token::Empty) => self.content &= place.depth != 2 || place.inside(0) != Some("choices"),
            ("object" | "type", Token::Text(b"error")) | ("type", Token::Text(b"response.failed")) => {
                self.error |= place.depth == 1;
            }
            ("type", Token::Text(kind)) if place.depth == 1 => self.content &= !BOOKKEEPING.contains(&kind),
            ("id", _) if of_result && self.id.is_none() => self.id = token.text(),
            ("model", _) if of_result && self.model.is_none() => self.model = token.text(),
            // Not `stop_reason`: there an engine puts the stop string itself, which is the client's text.
            ("finish_reason", _) if place.depth == 3 && self.finish_reasons.len() < MAX_REASONS => {
                self.finish_reasons.extend(token.text());
            }
            ("prompt_tokens" | "input_tokens", _) if place.inside(0) == Some("usage") => {
                self.prompt_tokens = token.unsigned().or(self.prompt_tokens);
            }
            ("completion_tokens" | "output_tokens", _) if place.inside(0) == Some("usage") => {
                self.completion_tokens = token.unsigned().or(self.completion_tokens);
            }
            ("cached_tokens", _) if place.inside(1) == Some("usage") => {
                let details = matches!(place.inside(0), Some("prompt_tokens_details" | "input_tokens_details"));
                self.cached_tokens = token.unsigned().filter(|_| details).or(self.cached_tokens);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &[u8] = br#"{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"say \"finish_reason\":\"length\", \"usage\":{\"completion_tokens\":99}","tool_calls":[{"id":"call-1"}]},"finish_reason":"stop"}],"usage":{"prompt_tokens": 9,"total_tokens":21,"completion_tokens": 12,"prompt_tokens_details":{"cached_tokens":8}},"prompt_logprobs":null}"#;

    #[test]
    fn quoted_text_that_looks_like_a_field_is_not_one() {
        let fields = ResponseFields::read(CHAT);
        assert_eq!((fields.id.as_deref(), fields.model.as_deref()), (Some("chatcmpl-1"), Some("m")));
        assert_eq!(fields.finish_reasons, ["stop"]);
        let usage = (fields.prompt_tokens, fields.cached_tokens, fields.completion_tokens);
        assert_eq!(usage, (Some(9), Some(8), Some(12)));
        assert!(fields.content && !fields.error);
    }

    // {"id":"c","choices":[{..."content":"aaaa~~~gap~~~aaaa"},"finish_reason":"stop"}],"usage":{...}}
    #[test]
    fn the_usage_behind_a_gap_is_read() {
        let at = memchr::memmem::find(CHAT, b"say").unwrap();
        for (from, to) in [(at, at + 1), (at, at + 20), (at + 3, at + 60)] {
            let mut body = ResponseBody::default();
            body.push(&CHAT[..from]);
            body.gap();
            body.push(&CHAT[to..]);
            assert_eq!(body.finish(), ResponseFields::read(CHAT), "gap {from}..{to}");
        }
    }

    #[test]
    fn errors_are_known_by_their_keys_whatever_the_white_space() {
        for body in [
            r#"{"error":{"message":"no"}}"#,
            r#"{"error": {"message":"no"}}"#,
            r#"{ "message":"x", "error" : "no"}"#,
            r#"{"object":"error","message":"no","code":400}"#,
            r#"{"type":"error","error":{"type":"internal_error"}}"#,
            r#"{"response":{"id":"resp_1"},"sequence_number":3,"type":"response.failed"}"#,
        ] {
            assert!(ResponseFields::read(body.as_bytes()).error, "{body}");
        }
        for body in [
            r#"{"id":"resp_1","error":null,"object":"response"}"#,
            r#"{"id":"c","choices":[{"text":"{\"error\": {\"type\":\"error\"","error":1}]}"#,
            r#"{"id":"c","choices":[{"type":"error","object":"error"}]}"#,
        ] {
            assert!(!ResponseFields::read(body.as_bytes()).error, "{body}");
        }
    }

    #[test]
    fn the_usage_chunk_and_bookkeeping_events_are_no_content() {
        let usage = ResponseFields::read(br#"{"id":"c","choices": [],"usage":{"completion_tokens":3}}"#);
        assert_eq!((usage.content, usage.completion_tokens), (false, Some(3)));
        let created = ResponseFields::read(br#"{"response":{"id":"resp_1","model":"m"},"type":"response.created"}"#);
        assert_eq!(
            (created.content, created.id.as_deref(), created.model.as_deref()),
            (false, Some("resp_1"), Some("m"))
        );
        assert!(ResponseFields::read(br#"{"id":"c","choices":[{"delta":{"content":"x","tool_calls":[]}}]}"#).content);
    }

    #[test]
    fn responses_and_messages_count_as_input_and_output() {
        let done = ResponseFields::read(
            br#"{"response":{"id":"resp_1","usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":2},"output_tokens":7}},"type":"response.completed"}"#,
        );
        assert_eq!((done.prompt_tokens, done.cached_tokens, done.completion_tokens), (Some(5), Some(2), Some(7)));
        assert_eq!(ResponseFields::read(br#"{"id":"c","usage":null}"#).prompt_tokens, None);
    }
}
