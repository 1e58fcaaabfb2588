//! A cursor over msgpack that stops where the bytes stop.
//!
//! Enters: a byte slice, maybe cut short by the capture cap. Leaves: tokens. Every item takes at least one byte, so work is
//! bounded by the slice, whatever lengths it claims; nesting is walked without recursion.

use rmp::Marker;

/// Why a cursor could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    #[error("the bytes end inside an item, at offset {0}")]
    Truncated(usize),
    #[error("no msgpack item starts with this byte, at offset {0}")]
    Invalid(usize),
}

/// One item; of an array or a map only its header (the items follow).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    Nil,
    Bool(bool),
    /// Any integer; engines' all fit.
    Int(i64),
    Float(f64),
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Ext(i8, &'a [u8]),
    /// Number of items.
    Array(u32),
    /// Number of pairs.
    Map(u32),
}

/// A place in a msgpack buffer.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next item.
    pub fn position(&self) -> usize {
        self.at
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Stop> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()).ok_or(Stop::Truncated(self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn be<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let mut raw = [0; N];
        raw.copy_from_slice(self.take(N)?);
        Ok(raw)
    }

    fn blob(&mut self, n: u32) -> Result<&'a [u8], Stop> {
        self.take(n as usize)
    }

    fn ext(&mut self, n: u32) -> Result<Token<'a>, Stop> {
        let kind = i8::from_be_bytes(self.be()?);
        Ok(Token::Ext(kind, self.blob(n)?))
    }

    /// The next item, without moving.
    pub fn peek(&self) -> Result<Token<'a>, Stop> {
        self.clone().token()
    }

    /// The next item. On an error the cursor stays where it was.
    pub fn token(&mut self) -> Result<Token<'a>, Stop> {
        let start = self.at;
        let token = self.read();
        if token.is_err() {
            self.at = start;
        }
        token
    }

    fn read(&mut self) -> Result<Token<'a>, Stop> {
        let start = self.at;
        let [first] = self.be::<1>()?;
        Ok(match Marker::from_u8(first) {
            Marker::Null => Token::Nil,
            Marker::True => Token::Bool(true),
            Marker::False => Token::Bool(false),
            Marker::FixPos(n) => Token::Int(i64::from(n)),
            Marker::FixNeg(n) => Token::Int(i64::from(n)),
            Marker::U8 => Token::Int(i64::from(u8::from_be_bytes(self.be()?))),
            Marker::U16 => Token::Int(i64::from(u16::from_be_bytes(self.be()?))),
            Marker::U32 => Token::Int(i64::from(u32::from_be_bytes(self.be()?))),
            Marker::U64 => Token::Int(i64::try_from(u64::from_be_bytes(self.be()?)).unwrap_or(i64::MAX)),
            Marker::I8 => Token::Int(i64::from(i8::from_be_bytes(self.be()?))),
            Marker::I16 => Token::Int(i64::from(i16::from_be_bytes(self.be()?))),
            Marker::I32 => Token::Int(i64::from(i32::from_be_bytes(self.be()?))),
            Marker::I64 => Token::Int(i64::from_be_bytes(self.be()?)),
            Marker::F32 => Token::Float(f64::from(f32::from_be_bytes(self.be()?))),
            Marker::F64 => Token::Float(f64::from_be_bytes(self.be()?)),
            Marker::FixStr(n) => Token::Str(self.blob(u32::from(n))?),
            Marker::Str8 => {
                let n = u8::from_be_bytes(self.be()?);
                Token::Str(self.blob(u32::from(n))?)
            }
            Marker::Str16 => {
                let n = u16::from_be_bytes(self.be()?);
                Token::Str(self.blob(u32::from(n))?)
            }
            Marker::Str32 => {
                let n = u32::from_be_bytes(self.be()?);
                Token::Str(self.blob(n)?)
            }
            Marker::Bin8 => {
                let n = u8::from_be_bytes(self.be()?);
                Token::Bin(self.blob(u32::from(n))?)
            }
            Marker::Bin16 => {
                let n = u16::from_be_bytes(self.be()?);
                Token::Bin(self.blob(u32::from(n))?)
            }
            Marker::Bin32 => {
                let n = u32::from_be_bytes(self.be()?);
                Token::Bin(self.blob(n)?)
            }
            Marker::FixExt1 => self.ext(1)?,
            Marker::FixExt2 => self.ext(2)?,
            Marker::FixExt4 => self.ext(4)?,
            Marker::FixExt8 => self.ext(8)?,
            Marker::FixExt16 => self.ext(16)?,
            Marker::Ext8 => {
                let n = u8::from_be_bytes(self.be()?);
                self.ext(u32::from(n))?
            }
            Marker::Ext16 => {
                let n = u16::from_be_bytes(self.be()?);
                self.ext(u32::from(n))?
            }
            Marker::Ext32 => {
                let n = u32::from_be_bytes(self.be()?);
                self.ext(n)?
            }
            Marker::FixArray(n) => Token::Array(u32::from(n)),
            Marker::Array16 => Token::Array(u32::from(u16::from_be_bytes(self.be()?))),
            Marker::Array32 => Token::Array(u32::from_be_bytes(self.be()?)),
            Marker::FixMap(n) => Token::Map(u32::from(n)),
            Marker::Map16 => Token::Map(u32::from(u16::from_be_bytes(self.be()?))),
            Marker::Map32 => Token::Map(u32::from_be_bytes(self.be()?)),
            Marker::Reserved => return Err(Stop::Invalid(start)),
        })
    }

    /// Passes one whole item, with everything inside it.
    pub fn skip(&mut self) -> Result<(), Stop> {
        let mut pending: u64 = 1;
        while pending > 0 {
            pending -= 1;
            match self.token()? {
                Token::Array(n) => pending += u64::from(n),
                Token::Map(n) => pending += 2 * u64::from(n),
                _ => {}
            }
        }
        Ok(())
    }

    /// Passes `n` whole items.
    pub fn skip_items(&mut self, n: u64) -> Result<(), Stop> {
        for _ in 0..n {
            self.skip()?;
        }
        Ok(())
    }

    /// The rest of an item whose header `token` was just read.
    pub fn skip_rest(&mut self, token: Token<'a>) -> Result<(), Stop> {
        match token {
            Token::Array(n) => self.skip_items(u64::from(n)),
            Token::Map(n) => self.skip_items(2 * u64::from(n)),
            _ => Ok(()),
        }
    }
}

impl<'a> Token<'a> {
    /// A non-negative integer.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// A number of any kind.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(n as f64),
            Self::Float(x) => Some(x),
            _ => None,
        }
    }

    /// A string that is UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            Self::Str(raw) => std::str::from_utf8(raw).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_string_is_truncated_and_the_cursor_stays() {
        let mut cursor = Cursor::new(b"\xa5hel");
        assert_eq!(cursor.token(), Err(Stop::Truncated(1)));
        assert_eq!(cursor.position(), 0);
    }

    #[test]
    fn a_lying_array_length_costs_no_more_than_the_bytes() {
        let mut cursor = Cursor::new(b"\xdd\xff\xff\xff\xff\x01\x02");
        assert_eq!(cursor.skip(), Err(Stop::Truncated(7)));
    }

    #[test]
    fn nested_items_are_passed_whole() {
        // [ {"a": [1, 2]}, nil ] then 7
        let mut cursor = Cursor::new(b"\x92\x81\xa1a\x92\x01\x02\xc0\x07");
        cursor.skip().unwrap();
        assert_eq!(cursor.token(), Ok(Token::Int(7)));
    }

    #[test]
    fn the_reserved_byte_is_invalid() {
        assert_eq!(Cursor::new(b"\xc1").token(), Err(Stop::Invalid(0)));
    }
}
