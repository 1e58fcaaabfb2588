//! Server-sent events: the `data:` lines of a response body.
//!
//! Enters: body bytes after chunked decoding, cut anywhere. Leaves: the payload of each `data:` line, up to [`MAX_LINE`]
//! bytes of it. A gap ends the line it falls in.

/// Bytes of one `data:` line that are kept; ids and finish reasons stand at the start of a chunk.
pub const MAX_LINE: usize = 16 * 1024;

/// Splits a body into `data:` payloads.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    /// The event being read is called `error`.
    error: bool,
}

/// What one line gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    pub data: &'a [u8],
    /// It belongs to an event that is called `error`.
    pub error: bool,
}

impl Lines {
    /// Takes body bytes; hands the payload of each whole `data:` line to `sink`.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Payload<'_>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.line.is_empty() {
                self.give(head, sink);
            } else {
                self.hold(head);
                let line = std::mem::take(&mut self.line);
                self.give(&line, sink);
            }
        }
        self.hold(bytes);
    }

    /// Bytes are missing here: the line they belong to is given as far as it goes.
    pub fn gap(&mut self, sink: &mut impl FnMut(Payload<'_>)) {
        let line = std::mem::take(&mut self.line);
        self.give(&line, sink);
    }

    pub fn held_bytes(&self) -> usize {
        self.line.capacity()
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn give(&mut self, line: &[u8], sink: &mut impl FnMut(Payload<'_>)) {
        if let Some(data) = line.strip_prefix(b"data:") {
            sink(Payload { data: data.trim_ascii(), error: self.error });
        } else if let Some(name) = line.strip_prefix(b"event:") {
            self.error = name.trim_ascii() == b"error";
        } else if line.trim_ascii().is_empty() {
            self.error = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_lines_are_found_however_the_body_is_cut() {
        let body = b"event: x\ndata: {\"id\":\"a\"}\n\ndata: [DONE]\r\n\n";
        for cut in 0..body.len() {
            let mut lines = Lines::default();
            let mut out = Vec::new();
            lines.push(&body[..cut], &mut |p| out.push(p.data.to_vec()));
            lines.push(&body[cut..], &mut |p| out.push(p.data.to_vec()));
            assert_eq!(out, [b"{\"id\":\"a\"}".to_vec(), b"[DONE]".to_vec()], "cut at {cut}");
        }
    }

    #[test]
    fn the_data_of_an_error_event_says_so() {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        lines.push(b"event: error\ndata: a\n\ndata: b\n\n", &mut |p| out.push(p.error));
        assert_eq!(out, [true, false]);
    }
}
