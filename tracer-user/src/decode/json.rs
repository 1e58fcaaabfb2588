//! The few JSON fields that tracing needs, out of bodies that may be cut short.
//!
//! Enters: the head of a request or response body. Leaves: scalars by name; whatever stands before the cut is given. Never
//! keeps a prompt or an output.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Longest string value that is kept, bytes (model names and ids are short; what a client invents need not be).
const MAX_STRING: usize = 256;

/// What a request asks for.
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
    pub whole: bool,
}

impl RequestFields {
    /// Reads the top-level object in `body`; stops quietly where it is cut or is not JSON.
    pub fn read(body: &[u8]) -> Self {
        let mut fields = Self::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        // An error means that the rest is not there; what was read stays.
        let _cut = Object(&mut fields).deserialize(&mut json);
        fields
    }
}

struct Object<'f>(&'f mut RequestFields);

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let fields = self.0;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "model" => fields.model = map.next_value::<Scalar>()?.into_string(),
                "stream" => fields.stream = map.next_value::<Scalar>()?.as_bool(),
                "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                    fields.max_tokens = map.next_value::<Scalar>()?.as_u64().or(fields.max_tokens);
                }
                "n" => fields.n = map.next_value::<Scalar>()?.as_u64(),
                "temperature" => fields.temperature = map.next_value::<Scalar>()?.as_f64(),
                "top_p" => fields.top_p = map.next_value::<Scalar>()?.as_f64(),
                "seed" => fields.seed = map.next_value::<Scalar>()?.as_i64(),
                "request_id" => fields.request_id = map.next_value::<Scalar>()?.into_string(),
                "prompt" | "input" => {
                    fields.prompt_is_tokens = matches!(map.next_value::<Scalar>()?, Scalar::Numbers);
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A value, as far as it matters.
enum Scalar {
    Bool(bool),
    Number(f64),
    String(String),
    /// An array (or an array of arrays) whose first element is a number.
    Numbers,
    Other,
}

impl Scalar {
    fn into_string(self) -> Option<String> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(n) => Some(*n),
            _ => None,
        }
    }

    fn as_i64(&self) -> Option<i64> {
        self.as_f64().filter(|n| n.fract() == 0.0).map(|n| n as i64)
    }

    fn as_u64(&self) -> Option<u64> {
        self.as_i64().and_then(|n| u64::try_from(n).ok())
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_bool<E>(self, b: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(b))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Scalar, E> {
                Ok(Scalar::Number(n as f64))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Scalar, E> {
                Ok(Scalar::Number(n as f64))
            }
            fn visit_f64<E>(self, n: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number(n))
            }
            fn visit_str<E>(self, s: &str) -> Result<Scalar, E> {
                let end = (0..=s.len().min(MAX_STRING)).rev().find(|&i| s.is_char_boundary(i)).unwrap_or(0);
                Ok(Scalar::String(s[..end].to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
                let first = seq.next_element::<Scalar>()?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(match first {
                    Some(Scalar::Number(_) | Scalar::Numbers) => Scalar::Numbers,
                    _ => Scalar::Other,
                })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// What one response body, or one chunk of a stream, says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseFields {
    pub id: Option<String>,
    pub model: Option<String>,
    /// Non-null finish reasons, in order.
    pub finish_reasons: Vec<String>,
    pub completion_tokens: Option<u64>,
    pub prompt_tokens: Option<u64>,
    /// The body reports an error instead of a result.
    pub error: bool,
    /// It carries output (or its end), not only usage or bookkeeping.
    pub content: bool,
}

impl ResponseFields {
    /// Looks `body` over for the fields. Quotes inside JSON strings are escaped, so a quoted key followed by a colon is a key.
    pub fn read(body: &[u8]) -> Self {
        let head = body.trim_ascii_start();
        // Not `stop_reason`: there vLLM puts the stop string itself, which is the client's text.
        let finish_reasons = strings(body, "\"finish_reason\"").map(str::to_owned).take(64).collect();
        Self {
            id: strings(body, "\"id\"").next().map(str::to_owned),
            model: strings(body, "\"model\"").next().map(str::to_owned),
            finish_reasons,
            prompt_tokens: None,
            completion_tokens: number(body, "\"completion_tokens\"").or_else(|| number(body, "\"output_tokens\"")),
            error: head.starts_with(b"{\"error\":{") || head.starts_with(b"{\"object\":\"error\""),
            content: memchr::memmem::find(body, b"\"choices\":[]").is_none(),
        }
    }
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
    let end = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_before_a_cut_are_given() {
        let body = br#"{"model":"tiny","stream":true,"max_tokens":4,"messages":[{"role":"user","content":"hel"#;
        let fields = RequestFields::read(body);
        assert_eq!(fields.model.as_deref(), Some("tiny"));
        assert_eq!((fields.stream, fields.max_tokens), (Some(true), Some(4)));
    }

    #[test]
    fn a_prompt_of_token_ids_is_told_from_text() {
        assert!(RequestFields::read(br#"{"prompt":[1,2,3]}"#).prompt_is_tokens);
        assert!(RequestFields::read(br#"{"prompt":[[1,2],[3]]}"#).prompt_is_tokens);
        assert!(!RequestFields::read(br#"{"prompt":["a","b"]}"#).prompt_is_tokens);
    }

    #[test]
    fn wrong_types_are_not_errors() {
        let fields = RequestFields::read(br#"{"model":5,"n":"two","stream":"yes","seed":7}"#);
        assert_eq!(fields, RequestFields { seed: Some(7), ..RequestFields::default() });
    }

    #[test]
    fn quoted_text_that_looks_like_a_key_is_not_one() {
        let body = br#"{"id":"cmpl-1","choices":[{"text":"say \"finish_reason\":\"length\"","finish_reason":"stop"}],"usage":{"completion_tokens": 12}}"#;
        let fields = ResponseFields::read(body);
        assert_eq!(fields.id.as_deref(), Some("cmpl-1"));
        assert_eq!(fields.finish_reasons, ["stop"]);
        assert_eq!(fields.completion_tokens, Some(12));
    }
}
