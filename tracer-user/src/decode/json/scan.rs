//! The members of a JSON object as its bytes come, cut anywhere, with nothing of it kept.
//!
//! Enters: the bytes of one body, in order, and gaps. Leaves: each member of the top-level object whose value is a scalar, and what kind
//! of value the others are; after a gap, those that stand between it and the end. Constant memory: the member being read, and a
//! window at the end once there was a gap. Refused: values over [`MAX_VALUE`] are cut, and what lies in a gap is not guessed.

/// Bytes of one key or scalar that are kept (model names and ids are short; what a client invents need not be).
const MAX_VALUE: usize = 256;
/// Bytes kept of the end, once something is missing: parameters stand behind the messages.
const TAIL: usize = 16 * 1024;
/// Members that are read back from the end.
const MAX_TOKENS: usize = 512;

/// A member's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Without its quotes, escapes as they are.
    String(&'a [u8]),
    /// A number, `true`, `false` or `null`.
    Scalar(&'a [u8]),
    Object,
    /// An array; whether its first element, however deep in arrays, is a number. `None`: it is empty or was not seen.
    Array { of_numbers: Option<bool> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the top-level object.
    Start,
    /// In it, where a key comes.
    Key,
    /// Behind a key.
    Colon,
    /// Where a value comes.
    Value,
    /// In a value that is kept, or behind it.
    Comma,
    /// Behind the object, or where it makes no sense.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum String {
    No,
    Yes,
    /// Behind a backslash.
    Escape,
}

/// Reads one body.
#[derive(Debug)]
pub struct Scan {
    at: At,
    depth: u32,
    string: String,
    /// The scalar being read is no string.
    bare: bool,
    key: Vec<u8>,
    value: Vec<u8>,
    /// In an array member: what its first element is.
    first: Option<bool>,
    is_array: bool,
    gap: bool,
    tail: Vec<u8>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            at: At::Start,
            depth: 0,
            string: String::No,
            bare: false,
            key: Vec::new(),
            value: Vec::new(),
            first: None,
            is_array: false,
            gap: false,
            tail: Vec::new(),
        }
    }
}

impl Scan {
    /// Every byte was there, and the object ended.
    pub fn is_whole(&self) -> bool {
        self.at == At::Over && self.depth == 0 && !self.gap
    }

    pub fn held_bytes(&self) -> usize {
        self.tail.capacity()
    }

    /// Bytes are missing here.
    pub fn gap(&mut self, sink: &mut impl FnMut(&[u8], Value<'_>)) {
        if !self.gap {
            self.gap = true;
            // What an array holds is known by its first element, wherever it ends.
            if self.depth >= 2 && self.is_array {
                sink(&self.key, Value::Array { of_numbers: self.first });
            }
        }
        self.tail.clear();
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(&[u8], Value<'_>)) {
        if self.gap {
            let bytes = &bytes[bytes.len().saturating_sub(TAIL)..];
            if self.tail.len() + bytes.len() > 2 * TAIL {
                self.tail.drain(..self.tail.len().saturating_sub(TAIL));
            }
            self.tail.extend_from_slice(bytes);
            return;
        }
        while let Some(&byte) = bytes.first() {
            match self.string {
                String::Escape => {
                    self.keep(&bytes[..1]);
                    self.string = String::Yes;
                    bytes = &bytes[1..];
                }
                String::Yes => {
                    let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                    self.keep(&bytes[..end]);
                    bytes = &bytes[end..];
                    match bytes.first() {
                        Some(b'"') => {
                            self.string = String::No;
                            self.string_ends(sink);
                        }
                        Some(_) => {
                            self.keep(b"\\");
                            self.string = String::Escape;
                        }
                        None => return,
                    }
                    bytes = &bytes[1..];
                }
                String::No => {
                    self.byte(byte, sink);
                    bytes = &bytes[1..];
                }
            }
        }
    }

    /// The body is over: what stands between the last gap and the end.
    pub fn finish(&mut self, sink: &mut impl FnMut(&[u8], Value<'_>)) {
        if self.gap {
            from_end(&self.tail, sink);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.depth != 1 {
            return;
        }
        let into = match self.at {
            At::Key => &mut self.key,
            At::Value => &mut self.value,
            _ => return,
        };
        into.extend_from_slice(&bytes[..bytes.len().min(MAX_VALUE.saturating_sub(into.len()))]);
    }

    fn string_ends(&mut self, sink: &mut impl FnMut(&[u8], Value<'_>)) {
        if self.depth != 1 {
            return;
        }
        match self.at {
            At::Key => self.at = At::Colon,
            At::Value => {
                sink(&self.key, Value::String(&self.value));
                self.at = At::Comma;
            }
            _ => self.at = At::Over,
        }
    }

    fn bare_ends(&mut self, sink: &mut impl FnMut(&[u8], Value<'_>)) {
        if std::mem::take(&mut self.bare) {
            sink(&self.key, Value::Scalar(&self.value));
            self.at = At::Comma;
        }
    }

    fn byte(&mut self, byte: u8, sink: &mut impl FnMut(&[u8], Value<'_>)) {
        if self.at == At::Over {
            return;
        }
        if self.depth >= 2 && self.first.is_none() && !matches!(byte, b'[' | b' ' | b'\t' | b'\r' | b'\n' | b']') {
            self.first = Some(byte.is_ascii_digit() || byte == b'-');
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => self.bare_ends(sink),
            b'"' => {
                self.string = String::Yes;
                if self.depth == 1 {
                    match self.at {
                        At::Key => self.key.clear(),
                        _ => self.value.clear(),
                    }
                } else if self.depth == 0 {
                    self.at = At::Over;
                }
            }
            b'{' | b'[' => {
                if self.depth == 0 {
                    self.at = if byte == b'{' { At::Key } else { At::Over };
                } else if self.depth == 1 {
                    self.is_array = byte == b'[';
                    self.first = (!self.is_array).then_some(false);
                }
                self.depth += 1;
            }
            b'}' | b']' => {
                self.bare_ends(sink);
                self.depth = self.depth.saturating_sub(1);
                match self.depth {
                    0 => self.at = At::Over,
                    1 => {
                        let value =
                            if self.is_array { Value::Array { of_numbers: self.first } } else { Value::Object };
                        sink(&self.key, value);
                        self.at = At::Comma;
                    }
                    _ => {}
                }
            }
            _ if self.depth != 1 => {
                if self.depth == 0 {
                    self.at = At::Over;
                }
            }
            b':' if self.at == At::Colon => self.at = At::Value,
            b',' => {
                self.bare_ends(sink);
                self.at = At::Key;
            }
            _ if self.at == At::Value => {
                if !std::mem::replace(&mut self.bare, true) {
                    self.value.clear();
                }
                self.keep(&[byte]);
            }
            _ => self.at = At::Over,
        }
    }
}

/// What stands at the end of an object, read backwards.
#[derive(Debug, Clone, Copy)]
enum Token<'a> {
    String(&'a [u8]),
    Bare(&'a [u8]),
    Object,
    Array,
    Colon,
    Comma,
}

/// Members that stand whole at the end of an object whose start is not here. A quote inside a JSON string is escaped, so that
/// reading backwards from the closing brace every unescaped quote is a string's end or start: what is given is exact.
fn from_end(bytes: &[u8], sink: &mut impl FnMut(&[u8], Value<'_>)) {
    let mut rest = bytes.trim_ascii_end();
    match rest.split_last() {
        Some((b'}', before)) => rest = before,
        _ => return,
    }
    let mut tokens = Vec::new();
    let mut depth = 1u32;
    while let Some((&last, before)) = rest.split_last() {
        if tokens.len() >= MAX_TOKENS {
            break;
        }
        let mut token = None;
        match last {
            b' ' | b'\t' | b'\r' | b'\n' => rest = before,
            b'"' => {
                let Some(open) = opening_quote(before) else { break };
                token = Some(Token::String(&before[open + 1..]));
                rest = &before[..open];
            }
            b'}' | b']' => {
                depth += 1;
                rest = before;
            }
            b'{' | b'[' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
                if depth == 1 {
                    tokens.push(if last == b'{' { Token::Object } else { Token::Array });
                }
                rest = before;
                continue;
            }
            b':' => (token, rest) = (Some(Token::Colon), before),
            b',' => (token, rest) = (Some(Token::Comma), before),
            _ => {
                let is_edge = |b: &u8| b" \t\r\n\"{}[]:,".contains(b);
                // A scalar whose start is not here is not whole.
                let Some(edge) = rest.iter().rposition(is_edge) else { break };
                token = Some(Token::Bare(&rest[edge + 1..]));
                rest = &rest[..=edge];
            }
        }
        if let Some(token) = token.filter(|_| depth == 1) {
            tokens.push(token);
        }
    }
    for member in tokens.split(|token| matches!(token, Token::Comma)) {
        let [value, Token::Colon, Token::String(key)] = member else { continue };
        let cut = |bytes: &'_ [u8]| bytes.len().min(MAX_VALUE);
        match value {
            Token::String(text) => sink(key, Value::String(&text[..cut(text)])),
            Token::Bare(text) => sink(key, Value::Scalar(&text[..cut(text)])),
            Token::Object => sink(key, Value::Object),
            Token::Array => sink(key, Value::Array { of_numbers: None }),
            Token::Colon | Token::Comma => {}
        }
    }
}

/// Where the string starts that ends behind `bytes`.
fn opening_quote(bytes: &[u8]) -> Option<usize> {
    memchr::memrchr_iter(b'"', bytes)
        .find(|&at| bytes[..at].iter().rev().take_while(|&&b| b == b'\\').count() % 2 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(calls: &[Option<&[u8]>]) -> (Vec<(std::string::String, std::string::String)>, bool) {
        let mut scan = Scan::default();
        let mut out = Vec::new();
        let mut sink = |key: &[u8], value: Value<'_>| {
            let value = match value {
                Value::String(text) | Value::Scalar(text) => std::string::String::from_utf8_lossy(text).into_owned(),
                other => format!("{other:?}"),
            };
            out.push((std::string::String::from_utf8_lossy(key).into_owned(), value));
        };
        for call in calls {
            match call {
                Some(bytes) => scan.feed(bytes, &mut sink),
                None => scan.gap(&mut sink),
            }
        }
        scan.finish(&mut sink);
        (out, scan.is_whole())
    }

    const BODY: &[u8] = br#" {"model": "m \"q\" \\", "messages":[{"role":"user","content":"a \"max_tokens\": 9, } ] \\"}] , "stream":true,"n":1, "prompt":[[12,3],[4]],"x":{}, "seed":-7 } "#;

    #[test]
    fn members_are_the_same_however_the_body_is_cut() {
        let (whole, is_whole) = members(&[Some(BODY)]);
        assert!(is_whole);
        let keys: Vec<&str> = whole.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["model", "messages", "stream", "n", "prompt", "x", "seed"]);
        assert_eq!(whole[2].1, "true");
        assert_eq!(whole[4].1, "Array { of_numbers: Some(true) }");
        assert_eq!(whole[6].1, "-7");
        for cut in 0..BODY.len() {
            assert_eq!(members(&[Some(&BODY[..cut]), Some(&BODY[cut..])]), (whole.clone(), true), "cut at {cut}");
        }
    }

    #[test]
    fn around_a_gap_nothing_wrong_is_ever_given() {
        let (whole, _) = members(&[Some(BODY)]);
        for from in 0..BODY.len() {
            for to in from + 1..BODY.len() {
                let (found, is_whole) = members(&[Some(&BODY[..from]), None, Some(&BODY[to..])]);
                assert!(!is_whole);
                for (key, value) in found {
                    let truth = whole.iter().find(|(k, _)| *k == key);
                    // An array of which only an end was seen tells less, and nothing else.
                    assert!(
                        truth.is_some_and(|(_, v)| *v == value || value == "Array { of_numbers: None }"),
                        "{from}..{to}: {key} = {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn parameters_behind_a_cut_prompt_are_read() {
        let ids = format!(r#"{{"prompt":[{}],"max_tokens":64,"stream":true}}"#, vec!["1234"; 6_000].join(","));
        let (head, tail) = (&ids.as_bytes()[..16_000], &ids.as_bytes()[ids.len() - 4_000..]);
        let (found, _) = members(&[Some(head), None, Some(tail)]);
        let expected = [("prompt", "Array { of_numbers: Some(true) }"), ("stream", "true"), ("max_tokens", "64")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
