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
}

impl Lines {
    /// Takes body bytes; hands the payload of each whole `data:` line to `sink`.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(&[u8])) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.line.is_empty() {
                payload(head, sink);
            } else {
                self.hold(head);
                payload(&std::mem::take(&mut self.line), sink);
            }
        }
        self.hold(bytes);
    }

    /// Bytes are missing here: the line they belong to is given as far as it goes.
    pub fn gap(&mut self, sink: &mut impl FnMut(&[u8])) {
        payload(&std::mem::take(&mut self.line), sink);
    }

    fn hold(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn payload(line: &[u8], sink: &mut impl FnMut(&[u8])) {
    if let Some(rest) = line.strip_prefix(b"data:") {
        sink(rest.trim_ascii());
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
            lines.push(&body[..cut], &mut |d| out.push(d.to_vec()));
            lines.push(&body[cut..], &mut |d| out.push(d.to_vec()));
            assert_eq!(out, [b"{\"id\":\"a\"}".to_vec(), b"[DONE]".to_vec()], "cut at {cut}");
        }
    }
}
