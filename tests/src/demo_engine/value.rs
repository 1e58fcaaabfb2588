//! msgpack, and a tree of it, for the demo engine's own messages. Trusts its peer with depth, not with lengths.

use rmp::{Marker, encode};

use super::wire::Malformed;

/// Writes msgpack, every number in its shortest form, as msgspec does.
#[derive(Debug, Default)]
pub struct Packer(Vec<u8>);

/// Writing to a vector cannot fail.
fn written<T, E: std::fmt::Debug>(result: Result<T, E>) {
    result.expect("a vector takes every byte");
}

impl Packer {
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn nil(&mut self) {
        self.nils(1);
    }

    pub fn nils(&mut self, count: usize) {
        (0..count).for_each(|_| written(encode::write_nil(&mut self.0)));
    }

    pub fn bool(&mut self, value: bool) {
        written(encode::write_bool(&mut self.0, value));
    }

    pub fn uint(&mut self, value: u64) {
        written(encode::write_uint(&mut self.0, value));
    }

    pub fn float(&mut self, value: f64) {
        written(encode::write_f64(&mut self.0, value));
    }

    pub fn str(&mut self, text: &str) {
        written(encode::write_str(&mut self.0, text));
    }

    pub fn array(&mut self, len: usize) {
        written(encode::write_array_len(&mut self.0, len as u32));
    }

    pub fn map(&mut self, len: usize) {
        written(encode::write_map_len(&mut self.0, len as u32));
    }

    /// msgspec does not know the size beforehand where it leaves defaults out, and takes the long form.
    pub fn map16(&mut self, len: u16) {
        self.0.push(Marker::Map16.to_u8());
        self.0.extend(len.to_be_bytes());
    }

    pub fn extension(&mut self, kind: i8, bytes: &[u8]) {
        written(encode::write_ext_meta(&mut self.0, bytes.len() as u32, kind));
        self.0.extend(bytes);
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Uint(u64),
    Int(i64),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

impl Value {
    pub fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        read(&mut bytes).ok_or(Malformed("not msgpack"))
    }

    pub fn array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    pub fn string(&self) -> Option<String> {
        match self {
            Self::Str(text) => Some(text.clone()),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Uint(value) => Some(*value as f64),
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => {
                entries.iter().find(|(name, _)| matches!(name, Self::Str(text) if text == key)).map(|(_, value)| value)
            }
            _ => None,
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(head)
}

/// A big-endian unsigned number of `len` bytes.
fn number(bytes: &mut &[u8], len: usize) -> Option<u64> {
    Some(take(bytes, len)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn text(bytes: &mut &[u8], len: u64) -> Option<Value> {
    Some(Value::Str(String::from_utf8_lossy(take(bytes, len as usize)?).into_owned()))
}

fn items(bytes: &mut &[u8], len: u64) -> Option<Value> {
    (0..len).map(|_| read(bytes)).collect::<Option<_>>().map(Value::Array)
}

fn entries(bytes: &mut &[u8], len: u64) -> Option<Value> {
    (0..len).map(|_| Some((read(bytes)?, read(bytes)?))).collect::<Option<_>>().map(Value::Map)
}

fn extension(bytes: &mut &[u8], len: u64) -> Option<Value> {
    take(bytes, 1)?;
    Some(Value::Bytes(take(bytes, len as usize)?.to_vec()))
}

fn read(bytes: &mut &[u8]) -> Option<Value> {
    let marker = Marker::from_u8(number(bytes, 1)? as u8);
    match marker {
        Marker::Null => Some(Value::Nil),
        Marker::True => Some(Value::Bool(true)),
        Marker::False => Some(Value::Bool(false)),
        Marker::FixPos(value) => Some(Value::Uint(u64::from(value))),
        Marker::FixNeg(value) => Some(Value::Int(i64::from(value))),
        Marker::U8 => number(bytes, 1).map(Value::Uint),
        Marker::U16 => number(bytes, 2).map(Value::Uint),
        Marker::U32 => number(bytes, 4).map(Value::Uint),
        Marker::U64 => number(bytes, 8).map(Value::Uint),
        Marker::I8 => number(bytes, 1).map(|value| Value::Int(i64::from((value as u8).cast_signed()))),
        Marker::I16 => number(bytes, 2).map(|value| Value::Int(i64::from((value as u16).cast_signed()))),
        Marker::I32 => number(bytes, 4).map(|value| Value::Int(i64::from((value as u32).cast_signed()))),
        Marker::I64 => number(bytes, 8).map(|value| Value::Int(value.cast_signed())),
        Marker::F32 => number(bytes, 4).map(|value| Value::Float(f64::from(f32::from_bits(value as u32)))),
        Marker::F64 => number(bytes, 8).map(|value| Value::Float(f64::from_bits(value))),
        Marker::FixStr(len) => text(bytes, u64::from(len)),
        Marker::Str8 => number(bytes, 1).and_then(|len| text(bytes, len)),
        Marker::Str16 => number(bytes, 2).and_then(|len| text(bytes, len)),
        Marker::Str32 => number(bytes, 4).and_then(|len| text(bytes, len)),
        Marker::FixArray(len) => items(bytes, u64::from(len)),
        Marker::Array16 => number(bytes, 2).and_then(|len| items(bytes, len)),
        Marker::Array32 => number(bytes, 4).and_then(|len| items(bytes, len)),
        Marker::FixMap(len) => entries(bytes, u64::from(len)),
        Marker::Map16 => number(bytes, 2).and_then(|len| entries(bytes, len)),
        Marker::Map32 => number(bytes, 4).and_then(|len| entries(bytes, len)),
        Marker::Ext8 => number(bytes, 1).and_then(|len| extension(bytes, len)),
        Marker::Ext16 => number(bytes, 2).and_then(|len| extension(bytes, len)),
        Marker::FixExt1 => extension(bytes, 1),
        Marker::FixExt2 => extension(bytes, 2),
        Marker::FixExt4 => extension(bytes, 4),
        Marker::FixExt8 => extension(bytes, 8),
        Marker::FixExt16 => extension(bytes, 16),
        _ => None,
    }
}
