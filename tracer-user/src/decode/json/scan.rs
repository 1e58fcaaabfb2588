//! A JSON scanner that keeps nothing.
//!
//! Enters: the bytes of an object, cut anywhere. Leaves: the scalars that have a key, with the containers they stand in, and
//! where containers open. Invariant: memory is constant however deep or long the body is. Refused: everything that is not
//! one object; malformed text gives no error, only nothing more.

/// Longest key or scalar that is given, raw bytes (model names and ids are short; what a client invents need not be).
pub(super) const MAX_VALUE: usize = 256;
/// Containers deeper than this have no names.
const LEVELS: usize = 6;
/// The containers whose names matter.
const NAMES: [&str; 6] = ["usage", "prompt_tokens_details", "input_tokens_details", "choices", "response", "message"];

/// What the scanner found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A value of a key, or the first of an array, begins with this byte: `{`, `[`, `"`, or what a plain scalar starts with.
    Begins(u8),
    /// The value of a key is this string, as written between its quotes.
    Text(&'a [u8]),
    /// The value of a key is this number or word.
    Plain(&'a [u8]),
    /// The container closed with nothing in it.
    Empty,
}

impl Token<'_> {
    /// A string, with its escapes undone.
    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::Text(raw) => unescaped(raw),
            _ => None,
        }
    }

    pub(super) fn truth(self) -> Option<bool> {
        match self {
            Self::Plain(b"true") => Some(true),
            Self::Plain(b"false") => Some(false),
            _ => None,
        }
    }

    pub(super) fn float(self) -> Option<f64> {
        let Self::Plain(raw) = self else { return None };
        // Rust reads "inf" and "nan" too; JSON has no such numbers.
        raw.first().filter(|b| b.is_ascii_digit() || **b == b'-')?;
        std::str::from_utf8(raw).ok()?.parse().ok().filter(|n: &f64| n.is_finite())
    }

    /// A whole number, also one written `16.0`.
    pub(super) fn signed(self) -> Option<i64> {
        let Self::Plain(raw) = self else { return None };
        let written = std::str::from_utf8(raw).ok()?.parse().ok();
        written.or_else(|| self.float().filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64))
    }

    pub(super) fn unsigned(self) -> Option<u64> {
        let Self::Plain(raw) = self else { return None };
        let written = std::str::from_utf8(raw).ok()?.parse().ok();
        written.or_else(|| self.signed().and_then(|n| u64::try_from(n).ok()))
    }
}

fn unescaped(raw: &[u8]) -> Option<String> {
    if memchr::memchr(b'\\', raw).is_none() {
        return std::str::from_utf8(raw).ok().map(str::to_owned);
    }
    serde_json::from_slice(&[b"\"", raw, b"\""].concat()).ok()
}

/// Where a token stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'s> {
    /// Containers around it; 1: directly in the body's object.
    pub(super) depth: usize,
    /// Its key; empty in arrays, and for a key that is not given.
    pub(super) key: &'s str,
    names: &'s [Option<&'static str>; LEVELS],
}

impl Place<'_> {
    /// The key of the container `out` levels out (0: the one it stands in), if it is one of those that matter.
    pub(super) fn inside(&self, out: usize) -> Option<&'static str> {
        self.names.get(self.depth.checked_sub(out + 1)?).copied().flatten()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the object.
    Before,
    Between,
    Text,
    Escape,
    Plain,
    /// The object is closed.
    Over,
    /// Not an object.
    Refused,
}

/// The scanner.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    depth: usize,
    /// The name of the container at each depth, from the outside.
    names: [Option<&'static str>; LEVELS],
    /// The string or plain scalar being read.
    value: Vec<u8>,
    too_long: bool,
    /// `value` is a string that a colon may make a key.
    maybe_key: bool,
    key: String,
    /// A colon was read: the next value has `key`.
    keyed: bool,
    /// Nothing was read of the innermost container yet.
    fresh: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Before,
            depth: 0,
            names: [None; LEVELS],
            value: Vec::new(),
            too_long: false,
            maybe_key: false,
            key: String::new(),
            keyed: false,
            fresh: false,
        }
    }
}

impl Scanner {
    /// The object was read to its end.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Nothing was read.
    pub(super) fn is_untouched(&self) -> bool {
        self.state == State::Before
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.value.capacity() + self.key.capacity()
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Place<'_>, Token<'_>)) {
        while let Some(&byte) = bytes.first() {
            match self.state {
                State::Over | State::Refused => return,
                State::Text => {
                    let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
                    self.keep(&bytes[..end]);
                    match bytes.get(end) {
                        Some(b'\\') => {
                            self.keep(b"\\");
                            self.state = State::Escape;
                        }
                        Some(_) => self.text_ends(sink),
                        None => {}
                    }
                    bytes = bytes.get(end + 1..).unwrap_or_default();
                    continue;
                }
                State::Escape => {
                    self.keep(&[byte]);
                    self.state = State::Text;
                }
                State::Plain if !matches!(byte, b',' | b':' | b'"' | b'{' | b'}' | b'[' | b']' | b' ' | 9..=13) => {
                    self.keep(&[byte]);
                }
                State::Plain => {
                    self.state = State::Between;
                    self.value_ends(false, sink);
                    // The byte that ended it is looked at again.
                    continue;
                }
                State::Before | State::Between => self.between(byte, sink),
            }
            bytes = &bytes[1..];
        }
    }

    fn between(&mut self, byte: u8, sink: &mut impl FnMut(Place<'_>, Token<'_>)) {
        match byte {
            b' ' | 9..=13 => return,
            b'{' | b'[' => {
                if self.state == State::Before && byte == b'[' {
                    self.state = State::Refused;
                    return;
                }
                self.begins(byte, sink);
                let name = if self.keyed { NAMES.into_iter().find(|name| *name == self.key) } else { None };
                if let Some(slot) = self.names.get_mut(self.depth) {
                    *slot = name;
                }
                self.depth += 1;
                self.state = State::Between;
                self.keyed = false;
                self.maybe_key = false;
                self.fresh = true;
                return;
            }
            _ if self.state == State::Before => self.state = State::Refused,
            b'}' | b']' => {
                if self.fresh {
                    sink(Place { depth: self.depth, key: "", names: &self.names }, Token::Empty);
                }
                self.depth -= 1;
                self.keyed = false;
                self.maybe_key = false;
                if self.depth == 0 {
                    self.state = State::Over;
                }
            }
            b'"' => {
                self.begins(byte, sink);
                self.clear();
                self.state = State::Text;
            }
            b':' => {
                self.keyed = true;
                self.key.clear();
                if self.maybe_key && !self.too_long {
                    self.key.push_str(&unescaped(&self.value).unwrap_or_default());
                }
                self.maybe_key = false;
            }
            b',' => {
                self.keyed = false;
                self.maybe_key = false;
            }
            _ => {
                self.begins(byte, sink);
                self.clear();
                self.keep(&[byte]);
                self.state = State::Plain;
            }
        }
        self.fresh = false;
    }

    fn begins(&mut self, byte: u8, sink: &mut impl FnMut(Place<'_>, Token<'_>)) {
        if self.keyed || self.fresh {
            let key = if self.keyed { self.key.as_str() } else { "" };
            sink(Place { depth: self.depth, key, names: &self.names }, Token::Begins(byte));
        }
        self.fresh = false;
    }

    fn text_ends(&mut self, sink: &mut impl FnMut(Place<'_>, Token<'_>)) {
        self.state = State::Between;
        if self.keyed {
            self.value_ends(true, sink);
        } else {
            self.maybe_key = true;
        }
    }

    fn value_ends(&mut self, text: bool, sink: &mut impl FnMut(Place<'_>, Token<'_>)) {
        if self.keyed && !self.too_long {
            let token = if text { Token::Text(&self.value) } else { Token::Plain(&self.value) };
            sink(Place { depth: self.depth, key: &self.key, names: &self.names }, token);
        }
        self.keyed = false;
    }

    fn clear(&mut self) {
        self.value.clear();
        self.too_long = false;
        self.maybe_key = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.value.len() + bytes.len() > MAX_VALUE {
            self.too_long = true;
        }
        if !self.too_long {
            self.value.extend_from_slice(bytes);
        }
    }

    /// A scanner that starts in the middle, between values, so deep.
    pub(super) fn at_depth(depth: usize) -> Self {
        Self { state: State::Between, depth, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalars(body: &[u8], cut: usize) -> Vec<(usize, String, String)> {
        let mut out = Vec::new();
        let mut sink = |place: Place<'_>, token: Token<'_>| {
            if let Token::Text(raw) | Token::Plain(raw) = token {
                out.push((place.depth, place.key.to_owned(), String::from_utf8_lossy(raw).into_owned()));
            }
        };
        let mut scanner = Scanner::default();
        scanner.push(&body[..cut], &mut sink);
        scanner.push(&body[cut..], &mut sink);
        assert!(scanner.is_over());
        out
    }

    // {"a":"x\"}","b":[{"c":1}],"d":null}
    //            ^ a quote that is escaped is no boundary, a bracket in a string is none
    #[test]
    fn scalars_with_keys_are_found_however_the_body_is_cut() {
        let body = br#" {"a" : "x\"}","b":[{"c":1},2,"s"], "d":null}"#;
        let whole = scalars(body, 0);
        let expected = [(1, "a", r#"x\"}"#), (3, "c", "1"), (1, "d", "null")];
        assert_eq!(whole, expected.map(|(depth, key, value)| (depth, key.to_owned(), value.to_owned())));
        for cut in 0..body.len() {
            assert_eq!(scalars(body, cut), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_body_that_is_no_object_or_never_closes_is_harmless() {
        for body in [&b"[1,2]"[..], b"}}}}", b"\"x\"", b"", b"{]]]]}", b"{\"a\":::,,,{\"", b"----form\r\n\r\n{"] {
            Scanner::default().push(body, &mut |_, _| {});
            super::super::tail::read_tail(body, &mut |_, _| {});
        }
        let deep = vec![b'{'; 100_000];
        let mut scanner = Scanner::default();
        scanner.push(&deep, &mut |_, _| {});
        assert!(scanner.held_bytes() < 1_024);
    }
}
