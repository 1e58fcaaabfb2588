//! Server-sent events: the `data:` lines of a response body.
//!
//! Enters: body bytes after chunked decoding, cut anywhere. Leaves: the payload of each `data:` line, up to [`MAX_LINE`]
//! bytes of it, with the name of its event. A gap ends the line it falls in, and the name.

/// Bytes of one `data:` line that are kept; ids and finish reasons stand at the start of a chunk.
pub const MAX_LINE: usize = 16 * 1024;
/// Longest event name that is kept.
const MAX_NAME: usize = 64;

/// One `data:` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// From the `event:` line before it; empty without one.
    pub event: &'a [u8],
    pub data: &'a [u8],
}

/// Splits a body into `data:` payloads.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    event: Vec<u8>,
}

impl Lines {
    /// Takes body bytes; hands each whole `data:` line to `sink`.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Line<'_>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.line.is_empty() {
                // As much of it as if it had come in pieces.
                self.whole(&head[..head.len().min(MAX_LINE)], sink);
            } else {
                self.hold(head);
                let line = std::mem::take(&mut self.line);
                self.whole(&line, sink);
            }
        }
        self.hold(bytes);
    }

    /// Bytes are missing here: the line they belong to is given as far as it goes.
    pub fn gap(&mut self, sink: &mut impl FnMut(Line<'_>)) {
        let line = std::mem::take(&mut self.line);
        self.whole(&line, sink);
        self.event.clear();
    }

    pub fn held_bytes(&self) -> usize {
        self.line.capacity() + self.event.capacity()
    }

    fn whole(&mut self, line: &[u8], sink: &mut impl FnMut(Line<'_>)) {
        if let Some(data) = line.strip_prefix(b"data:") {
            sink(Line { event: &self.event, data: data.trim_ascii() });
        } else if let Some(name) = line.strip_prefix(b"event:") {
            let name = name.trim_ascii();
            self.event.clear();
            self.event.extend_from_slice(&name[..name.len().min(MAX_NAME)]);
        } else if line.trim_ascii().is_empty() {
            self.event.clear();
        }
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_lines_are_found_with_their_event_however_the_body_is_cut() {
        let body = b"event: error\ndata: {\"id\":\"a\"}\n\ndata: [DONE]\r\n\n";
        for cut in 0..body.len() {
            let mut lines = Lines::default();
            let mut out = Vec::new();
            lines.push(&body[..cut], &mut |l| out.push((l.event.to_vec(), l.data.to_vec())));
            lines.push(&body[cut..], &mut |l| out.push((l.event.to_vec(), l.data.to_vec())));
            let expected = [(b"error".to_vec(), b"{\"id\":\"a\"}".to_vec()), (Vec::new(), b"[DONE]".to_vec())];
            assert_eq!(out, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_over_the_limit_is_as_long_whole_as_in_pieces() {
        // one push:  [data: 17,000 a, a newline]   two pushes: the same, cut after 100 bytes
        let body = [b"data:".as_slice(), &b"a".repeat(17_000), b"\n"].concat();
        for cut in [0, 100] {
            let (mut lines, mut lens) = (Lines::default(), Vec::new());
            lines.push(&body[..cut], &mut |l| lens.push(l.data.len()));
            lines.push(&body[cut..], &mut |l| lens.push(l.data.len()));
            assert_eq!(lens, [MAX_LINE - b"data:".len()], "cut at {cut}");
        }
    }
}
