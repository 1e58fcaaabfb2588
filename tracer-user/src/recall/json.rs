//! OTLP/JSON, as far as spans need it: an export request of traces.
//!
//! Enters: a line. Leaves: what it says, mostly borrowed from it: a file has a hundred attributes a request, and each is looked at once. Numbers
//! of 64 bits are strings or numbers, as OTLP has it. What is not named here is passed over.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::output::{SpanId, TraceId};

/// Digits of ids.
const TRACE_DIGITS: usize = 32;
const SPAN_DIGITS: usize = 16;

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'l> {
    #[serde(borrow)]
    pub resource_spans: Vec<ResourceSpans<'l>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub(super) struct ResourceSpans<'l> {
    #[serde(borrow)]
    pub resource: Resource<'l>,
    #[serde(borrow)]
    pub scope_spans: Vec<ScopeSpans<'l>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Resource<'l> {
    #[serde(borrow)]
    pub attributes: Vec<KeyValue<'l>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct ScopeSpans<'l> {
    #[serde(borrow)]
    pub scope: Scope<'l>,
    #[serde(borrow)]
    pub spans: Vec<Span<'l>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Scope<'l> {
    #[serde(borrow)]
    pub name: Cow<'l, str>,
    #[serde(borrow)]
    pub version: Cow<'l, str>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Span<'l> {
    #[serde(borrow)]
    pub trace_id: Cow<'l, str>,
    #[serde(borrow)]
    #[serde(rename = "spanId")]
    pub id: Cow<'l, str>,
    #[serde(borrow, rename = "parentSpanId")]
    pub parent: Cow<'l, str>,
    #[serde(borrow)]
    pub trace_state: Cow<'l, str>,
    pub flags: u32,
    #[serde(borrow)]
    pub name: Cow<'l, str>,
    pub kind: i32,
    pub start_time_unix_nano: Number,
    pub end_time_unix_nano: Number,
    #[serde(borrow)]
    pub attributes: Vec<KeyValue<'l>>,
    #[serde(borrow)]
    pub events: Vec<Event<'l>>,
    #[serde(borrow)]
    pub links: Vec<Link<'l>>,
    pub status: Status,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Event<'l> {
    pub time_unix_nano: Number,
    #[serde(borrow)]
    pub name: Cow<'l, str>,
    #[serde(borrow)]
    pub attributes: Vec<KeyValue<'l>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Link<'l> {
    #[serde(borrow)]
    pub trace_id: Cow<'l, str>,
    #[serde(borrow)]
    pub span_id: Cow<'l, str>,
    #[serde(borrow)]
    pub attributes: Vec<KeyValue<'l>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub code: i32,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct KeyValue<'l> {
    #[serde(borrow)]
    pub key: Cow<'l, str>,
    #[serde(borrow, default)]
    pub value: Value<'l>,
}

/// What an attribute is.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Value<'l> {
    String(Cow<'l, str>),
    Bool(bool),
    Int(i64),
    Double(f64),
    Array(Vec<Value<'l>>),
    /// Nothing, or what no attribute of ours is.
    #[default]
    Other,
}

/// Text that is borrowed where it has no escapes: inside a map serde would copy a plain [`Cow`].
#[derive(serde::Deserialize)]
struct Text<'l>(#[serde(borrow)] Cow<'l, str>);

impl<'de: 'l, 'l> Deserialize<'de> for Value<'l> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ValueVisitor(PhantomData))
    }
}

struct ValueVisitor<'l>(PhantomData<Value<'l>>);

impl<'de: 'l, 'l> Visitor<'de> for ValueVisitor<'l> {
    type Value = Value<'l>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of an attribute")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'l>, A::Error> {
        let mut value = Value::Other;
        while let Some(Text(kind)) = map.next_key()? {
            value = match &*kind {
                "stringValue" => Value::String(map.next_value::<Text<'l>>()?.0),
                "boolValue" => Value::Bool(map.next_value()?),
                "intValue" => Value::Int(map.next_value::<Signed>()?.0),
                // JSON has no number that is none.
                "doubleValue" => map.next_value::<Option<f64>>()?.map_or(Value::Other, Value::Double),
                "arrayValue" => Value::Array(map.next_value::<Array<'l>>()?.values),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
        }
        Ok(value)
    }
}

#[derive(serde::Deserialize)]
struct Array<'l> {
    #[serde(borrow, default)]
    values: Vec<Value<'l>>,
}

/// A number of 64 bits without a sign.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Number(pub u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberVisitor).and_then(|n| u64::try_from(n).map(Self).map_err(D::Error::custom))
    }
}

/// One with a sign.
struct Signed(i64);

impl<'de> Deserialize<'de> for Signed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberVisitor).and_then(|n| i64::try_from(n).map(Self).map_err(D::Error::custom))
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = i128;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, or a string of one")
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<i128, E> {
        Ok(n.into())
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<i128, E> {
        Ok(n.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<i128, E> {
        text.parse().map_err(E::custom)
    }
}

/// `None` for what is no id, and for the one that means none.
pub(super) fn trace_id(text: &str) -> Option<TraceId> {
    digits(text, TRACE_DIGITS).map(|id| TraceId(id.to_be_bytes()))
}

pub(super) fn span_id(text: &str) -> Option<SpanId> {
    digits(text, SPAN_DIGITS).and_then(|id| u64::try_from(id).ok()).map(|id| SpanId(id.to_be_bytes()))
}

fn digits(text: &str, count: usize) -> Option<u128> {
    // A sign is none.
    let is_fine = text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_fine.then(|| u128::from_str_radix(text, 16).ok()).flatten().filter(|id| *id != 0)
}
