//! The way back into a body of which the middle is missing.
//!
//! Enters: what follows a gap. Leaves: the same tokens that [`Scanner`] gives. Invariant: nothing is given that a full parse
//! would not give. Refused: what does not end as an object does.

use std::collections::VecDeque;

use super::scan::{Place, Scanner, Token};

/// Reads the last bytes of a body, of which the front is missing, up to its end. A quote inside a JSON string is escaped,
/// so the quotes that are not are the strings' ends: counted back from the body's end, which is outside of any string,
/// they tell where the window starts; and so do the brackets.
pub(super) fn read_tail(window: &[u8], sink: &mut impl FnMut(Place<'_>, Token<'_>)) {
    let window = window.trim_ascii_end();
    // What a backslash before the window may have escaped is not judged.
    let slashes = window.iter().take_while(|b| **b == b'\\').count();
    let Some(rest) = window.get(slashes + 1..) else { return };
    let in_text = quotes(rest).count() % 2 == 1;
    let from = if in_text { quotes(rest).next().map_or(rest.len(), |at| at + 1) } else { 0 };
    let rest = &rest[from..];
    let Some(depth) = depth_at_start(rest) else { return };
    Scanner::at_depth(depth).push(rest, sink);
}

/// The quotes in `bytes` that no backslash escapes.
fn quotes(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    memchr::memchr_iter(b'"', bytes)
        .filter(|&at| bytes[..at].iter().rev().take_while(|b| **b == b'\\').count().is_multiple_of(2))
}

/// How deep `rest` starts, which starts outside of strings, if its last byte closes the body's object.
fn depth_at_start(rest: &[u8]) -> Option<usize> {
    if rest.last() != Some(&b'}') {
        return None;
    }
    let (mut depth, mut lowest_before_end) = (0_i64, 0_i64);
    let (mut in_text, mut escaped) = (false, false);
    for &byte in &rest[..rest.len() - 1] {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth -= 1,
            _ => {}
        }
        lowest_before_end = lowest_before_end.min(depth);
    }
    let start = 1 - depth;
    (!in_text && start >= 1 && start + lowest_before_end >= 1).then_some(start as usize)
}

/// The last bytes of a stream.
#[derive(Debug)]
pub(super) struct Window {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Window {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: VecDeque::new(), limit }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let over = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..over);
        self.bytes.extend(bytes);
    }

    pub(super) fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }

    pub(super) fn bytes(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // ..."content":"say \"temperature\": 9"}],"temperature":0.5,"n":2}   read from any place on
    //   ^ window starts anywhere                                     ^ the end is known
    #[test]
    fn a_tail_gives_only_what_a_full_parse_gives_wherever_it_starts() {
        let body =
            br#"{"m":[{"r":"u","content":"say \"n\": 9, \\\\\"n\":8}] \\"},{"n":7}],"n":2,"t":{"n":3},"s":"\\"}"#;
        for start in 0..body.len() {
            let mut found = Vec::new();
            read_tail(&body[start..], &mut |place, token| {
                if let (1, "n", Token::Plain(raw)) = (place.depth, place.key, token) {
                    found.push(raw.to_vec());
                }
            });
            assert!(found.is_empty() || found == [b"2".to_vec()], "from {start}: {found:?}");
            assert!(!found.is_empty() || start > 60, "from {start}");
        }
    }
}
