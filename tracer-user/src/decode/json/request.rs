//! What a request asks for.
//!
//! Enters: body bytes as they come, and gaps. Leaves: the parameters that tracing needs, each `None` when it is not there or not
//! known ([`RequestFields::whole`] tells the two apart). Never keeps a prompt.

use super::scan::{Scan, Value};

/// The parameters of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestFields {
    pub model: Option<String>,
    pub stream: Option<bool>,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`.
    pub max_tokens: Option<u64>,
    pub n: Option<u64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub seed: Option<i64>,
    pub request_id: Option<String>,
    /// The prompt came as token ids, so nothing is tokenised.
    pub prompt_is_tokens: bool,
    /// Every byte of the body was seen: what is absent was not asked for.
    pub whole: bool,
}

impl RequestFields {
    /// Reads a body of which this is all that there is.
    pub fn read(body: &[u8]) -> Self {
        let mut reader = RequestReader::default();
        reader.feed(body);
        reader.finish()
    }

    fn take(&mut self, key: &[u8], value: Value<'_>) {
        match (key, value) {
            (b"model", Value::String(text)) => self.model = super::text(text),
            (b"request_id", Value::String(text)) => self.request_id = super::text(text),
            (b"stream", Value::Scalar(b"true")) => self.stream = Some(true),
            (b"stream", Value::Scalar(b"false")) => self.stream = Some(false),
            (b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens", Value::Scalar(text)) => {
                self.max_tokens = number(text).and_then(whole_number).or(self.max_tokens);
            }
            (b"n", Value::Scalar(text)) => self.n = number(text).and_then(whole_number),
            (b"temperature", Value::Scalar(text)) => self.temperature = number(text),
            (b"top_p", Value::Scalar(text)) => self.top_p = number(text),
            (b"seed", Value::Scalar(text)) => {
                self.seed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            }
            (b"prompt" | b"input" | b"prompt_token_ids", Value::Array { of_numbers: Some(is) }) => {
                self.prompt_is_tokens = is;
            }
            _ => {}
        }
    }
}

fn number(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok().filter(|n: &f64| n.is_finite())
}

fn whole_number(n: f64) -> Option<u64> {
    (n >= 0.0 && n.fract() == 0.0 && n < 9e15).then_some(n as u64)
}

/// Reads a body as it comes.
#[derive(Debug, Default)]
pub struct RequestReader {
    scan: Scan,
    fields: RequestFields,
}

impl RequestReader {
    pub fn feed(&mut self, bytes: &[u8]) {
        let Self { scan, fields } = self;
        scan.feed(bytes, &mut |key, value| fields.take(key, value));
    }

    /// Bytes are missing here.
    pub fn gap(&mut self) {
        let Self { scan, fields } = self;
        scan.gap(&mut |key, value| fields.take(key, value));
    }

    pub fn held_bytes(&self) -> usize {
        self.scan.held_bytes()
    }

    /// The body is over.
    pub fn finish(&mut self) -> RequestFields {
        let Self { scan, fields } = self;
        scan.finish(&mut |key, value| fields.take(key, value));
        fields.whole = scan.is_whole();
        std::mem::take(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_before_a_cut_are_given() {
        let body = br#"{"model":"tiny","stream":true,"max_tokens":4,"messages":[{"role":"user","content":"hel"#;
        let fields = RequestFields::read(body);
        assert_eq!(fields.model.as_deref(), Some("tiny"));
        assert_eq!((fields.stream, fields.max_tokens, fields.whole), (Some(true), Some(4), false));
    }

    #[test]
    fn a_prompt_of_token_ids_is_told_from_text() {
        assert!(RequestFields::read(br#"{"prompt":[1,2,3]}"#).prompt_is_tokens);
        assert!(RequestFields::read(br#"{"prompt":[[1,2],[3]]}"#).prompt_is_tokens);
        assert!(!RequestFields::read(br#"{"prompt":["a","b"]}"#).prompt_is_tokens);
        assert!(!RequestFields::read(br#"{"prompt":"1"}"#).prompt_is_tokens);
    }

    #[test]
    fn wrong_types_are_not_errors() {
        let fields = RequestFields::read(br#"{"model":5,"n":"two","stream":"yes","seed":7}"#);
        assert_eq!(fields, RequestFields { seed: Some(7), whole: true, ..RequestFields::default() });
    }

    #[test]
    fn what_a_body_does_not_say_is_known_only_when_all_of_it_was_seen() {
        let mut reader = RequestReader::default();
        reader.feed(br#"{"messages":[{"content":"aaaa"#);
        reader.gap();
        reader.feed(br#"bbb"}],"max_completion_tokens":12}"#);
        let fields = reader.finish();
        assert_eq!((fields.max_tokens, fields.stream, fields.whole), (Some(12), None, false));
        assert!(RequestFields::read(br#"{"messages":[]}"#).whole);
    }
}
